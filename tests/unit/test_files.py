"""A model's directory that changes while it is looked at."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import layouts
import pytest
import releases
from ensembles import linear, to_toml

from fastinfer.base.errors import ApiError
from fastinfer.config.model_paths import ModelPath
from fastinfer.repository import files


def test_a_version_that_goes_away_after_it_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "model" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"?")
    (version / "notes.txt").write_bytes(b"?")
    found = files.find([tmp_path], "model")
    assert found.model_file(1, "", "*.onnx") == version / "model.onnx"
    shutil.rmtree(version)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)  # it was there when that was asked
    with pytest.raises(ApiError, match=r"has no \.onnx file") as raised:
        found.model_file(1, "", "*.onnx")
    assert raised.value.status == 400


def test_a_copy_that_keeps_the_time_is_another_file(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"one")
    before = files.find([tmp_path], "m").versions[1]
    status = (version / "model.onnx").stat()
    (version / "model.onnx").write_bytes(b"two")  # in place: the inode and the size are the same
    os.utime(version / "model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.find([tmp_path], "m").versions[1] != before


# --- Links ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The directory of a model with one version."""
    directory = tmp_path / "models" / "m"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.onnx").write_bytes(b"one")
    return directory


def found(model: Path) -> files.ModelFiles:
    return files.find([model.parent], "m")


def test_every_deployment_changes_the_stamp(tmp_path: Path) -> None:
    for deploy in releases.ALL:
        root = tmp_path / deploy.__name__
        root.mkdir()
        stamps = []
        for number in (1, 2, 3):
            deploy(root, number)
            stamp = files.find([root / "models"], "m").versions[1]
            assert [entry[0] for entry in stamp] == ["model.onnx"]
            assert stamp not in stamps, deploy.__name__
            assert files.find([root / "models"], "m").versions[1] == stamp
            stamps.append(stamp)


@pytest.mark.parametrize("place", ["config.toml", "labels.txt", "warmup/data", "1/weights.bin", "1/parts/weights.bin"])
@pytest.mark.parametrize("linked", ["file", "directory", "no"])
def test_all_that_decides_what_is_served_is_in_the_stamp(model: Path, place: str, linked: str) -> None:
    path, outside = model / place, model.parents[1] / "outside"
    outside.mkdir()
    if linked == "directory" and path.parent not in (model, model / "1"):
        path.parent.symlink_to(outside)
        path.write_bytes(b"before")
    else:
        path.parent.mkdir(exist_ok=True)
        if linked == "file":
            path.symlink_to(outside / "file")
        path.write_bytes(b"before")
    before = found(model)
    real = path.resolve()
    (real.parent / "other").write_bytes(b"behind")
    (real.parent / "other").rename(real)
    assert found(model) != before
    assert (found(model).shared == before.shared) == place.startswith("1/")


def test_what_lies_beside_the_model_is_not_in_the_stamp(model: Path) -> None:
    before = found(model)
    (model / "releases").mkdir()
    (model / "releases" / "half-copied").write_bytes(b"x")
    (model / ".swp").write_bytes(b"x")
    (model / "2").mkdir()
    after = found(model)
    assert (after.shared, after.versions[1]) == (before.shared, before.versions[1])


@pytest.mark.parametrize("target", [".", "..", "../1", "self", "self/..", "nowhere", "/nowhere/at/all"])
def test_links_in_circles_and_to_nowhere_are_entries(model: Path, target: str) -> None:
    (model / "1" / "self").symlink_to(target)
    before = found(model)
    assert [entry[0] for entry in before.versions[1]] == ["model.onnx", "self"]
    assert found(model) == before
    (model / "1" / "self").unlink()
    assert found(model) != before


def test_a_dangling_link_that_leads_somewhere_at_last(model: Path) -> None:
    (model / "config.toml").symlink_to("elsewhere.toml")
    before = found(model)
    (model / "elsewhere.toml").write_text("")
    assert found(model).shared != before.shared


def test_a_version_may_be_the_models_own_directory(model: Path) -> None:
    (model / "2").symlink_to(".")
    (model / "model.onnx").write_bytes(b"two")
    after = found(model)
    assert "model.onnx" in [entry[0] for entry in after.versions[2]]
    assert after.read_model(2, after.model_file(2, "", "*.onnx")) == b"two"


@pytest.mark.parametrize("place", ["1/up", "2", "warmup", "1/a/b"])
@pytest.mark.parametrize("target", ["/", "the repository", "above"])
def test_a_link_to_what_holds_the_model_is_refused(model: Path, place: str, target: str) -> None:
    above = {"/": Path("/"), "the repository": model.parent, "above": model.parents[1]}[target]
    (model / place).parent.mkdir(parents=True, exist_ok=True)
    (model / place).symlink_to(above)
    with pytest.raises(ApiError, match="is a link to a directory above the model's own") as raised:
        found(model)
    assert raised.value.status == 400


def test_the_repository_by_another_name_is_refused_too(model: Path) -> None:
    alias = model.parents[1] / "alias"
    alias.symlink_to(model.parent)
    (model / "1" / "up").symlink_to(alias)
    with pytest.raises(ApiError, match="is a link to a directory"):
        files.find([alias], "m")


def test_too_many_files_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.limits, "MAX_MODEL_FILES", 20)
    for number in range(18):
        (model / "1" / f"{number}.bin").write_bytes(b"")
    assert len(found(model).versions[1]) == 19
    (model / "1" / "one-more").write_bytes(b"")
    with pytest.raises(ApiError, match="more than 20 files") as raised:
        found(model)
    assert raised.value.status == 400


def test_directories_that_link_to_each_other_are_walked_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.limits, "MAX_MODEL_FILES", 200)
    for number in range(20):  # 2^20 paths
        (model / "1" / f"d{number}").mkdir()
        for name in "ab":
            (model / "1" / f"d{number}" / name).symlink_to(f"../d{(number + 1) % 20}")
    assert found(model) == found(model)


def test_too_deep_directories_are_refused(model: Path) -> None:
    (model / "1" / Path(*["d"] * files.limits.MAX_MODEL_DEPTH)).mkdir(parents=True)
    assert found(model)
    (model / "1" / Path(*["d"] * (files.limits.MAX_MODEL_DEPTH + 1))).mkdir()
    with pytest.raises(ApiError, match="nested directories") as raised:
        found(model)
    assert raised.value.status == 400


# --- What is read is what was found -----------------------------------------------------------------------------------


def test_the_file_that_is_read_is_the_one_of_the_stamp(model: Path) -> None:
    before = found(model)
    path = before.model_file(1, "", "*.onnx")
    assert before.read_model(1, path) == b"one"
    (model / "1" / "new").write_bytes(b"one")
    (model / "1" / "new").rename(path)
    with pytest.raises(files.FilesChangedError) as raised:
        before.read_model(1, path)
    assert raised.value.status == 503
    path.unlink()
    with pytest.raises(files.FilesChangedError):
        before.read_model(1, path)


# --- Repositories that cannot be read ---------------------------------------------------------------------------------


def test_a_later_repository_does_not_stand_in_for_one_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    assert files.unreadable([model.parent]) is None
    assert files.unreadable([model.parent, lost]) == "No such file or directory"
    with pytest.raises(ApiError, match="a model repository cannot be read: No such file") as raised:
        files.find([lost, model.parent], "m")
    assert not isinstance(raised.value, files.UnknownModelError)
    assert files.find([model.parent, lost], "m").versions
    with pytest.raises(ApiError, match="cannot be read"):
        files.find([model.parent, lost], "other")
    lost.mkdir()
    with pytest.raises(files.UnknownModelError):
        files.find([model.parent, lost], "other")


@pytest.mark.parametrize("named", ["", "model.onnx"])
@pytest.mark.parametrize("call", ["iterdir", "stat"])  # the directory may not be listed; it may not be entered
def test_a_version_that_cannot_be_read_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, named: str, call: str
) -> None:
    before = found(model)
    assert before.model_file(1, named, "*.onnx").name == "model.onnx"
    _deny(monkeypatch, call, model / "1" if call == "iterdir" else model / "1" / "model.onnx")
    with pytest.raises(ApiError) as raised:
        before.model_file(1, named, "*.onnx")
    reason = "model 'm' version 1 cannot be read: Permission denied"
    assert (raised.value.status, raised.value.message) == (400, reason)


def test_a_model_whose_versions_cannot_be_looked_at_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "2").symlink_to("nowhere")
    (model / "3").symlink_to("3")
    _deny(monkeypatch, "stat", model / "1")
    with pytest.raises(ApiError, match=r"^model 'm' cannot be read: Permission denied$"):
        found(model)
    shutil.rmtree(model / "1")
    with pytest.raises(files.NoVersionError):  # links that lead nowhere or in circles are no error by themselves
        found(model)


@pytest.mark.parametrize("place", ["", "2"])
def test_what_cannot_be_looked_at_has_not_gone(model: Path, place: str) -> None:
    (model.parent / "other").mkdir()
    path = model / place if place else model
    if place:
        path.symlink_to("x" * 300)  # stat() fails, not because there is nothing
    else:
        shutil.rmtree(model)
        model.symlink_to("x" * 300)
    assert files.names([model.parent]) == [model.name, "other"]
    refused = files.find_all([model.parent])[model.name]
    assert isinstance(refused, ApiError)
    assert (refused.status, refused.message) == (400, f"model '{model.name}' cannot be read: File name too long")


def test_a_directory_of_many_files_is_walked_with_its_marks(model: Path) -> None:
    before = found(model)
    assert before.marks.keys() == {0, *before.versions}
    (model / "1" / "weights").write_bytes(b"x")
    after = found(model)
    changed = {version for version in after.marks if after.marks[version] != before.marks[version]}
    assert changed == {1}
    assert after.mark != before.mark
    assert found(model) == after


def _deny(monkeypatch: pytest.MonkeyPatch, call: str, denied: Path) -> None:
    """Lets a call of :class:`Path` fail for one path, as it does for users without permission; root has all."""
    original = getattr(Path, call)

    def deny(path: Path, *args: object, **kwargs: object) -> object:
        if path == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, call, deny)


# --- Models by path ---------------------------------------------------------------------------------------------------


def by_path(place: ModelPath) -> files.ModelFiles:
    return files.find([{"m": place}], "m")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """The model file in a flat directory, with external data in two files."""
    directory = tmp_path / "exported"
    layouts.write_external(directory / "net.onnx", 1, 2, one_file=False)
    return directory / "net.onnx"


def test_a_file_alone_has_one_version_and_no_configuration(exported: Path) -> None:
    (exported.parent / "config.toml").write_text("nonsense = 1")
    files_ = by_path(ModelPath(None, exported))
    assert [entry[0] for entry in files_.versions[1]] == ["net.onnx", "w0", "w1"]
    assert files_.shared == ()
    assert files_.read_config().max_batch_size is None
    assert files_.model_file(1, "", "*.onnx") == exported
    assert files_.read_model(1, exported) == exported.read_bytes()
    with pytest.raises(ApiError, match=r"has no file 'other.onnx'"):
        files_.model_file(1, "other.onnx", "*.onnx")


def test_the_stamp_of_a_flat_directory_has_what_a_load_reads(exported: Path) -> None:
    place = ModelPath(exported.parent, exported)
    before = by_path(place)
    (exported.parent / "server.log").write_text("x")
    (exported.parent / "other.onnx").write_bytes(b"x")
    assert by_path(place) == before
    for name, content in (
        ("config.toml", "[[outputs]]\nname = 'y'\ndata_type = 'TYPE_FP32'\ndims = [4]\nlabel_filename = 'l.csv'"),
        ("l.csv", "a\nb"),
        ("warmup/data", "x"),
        ("config.toml", "nonsense = 1"),
        ("w1", "otherwise"),
    ):
        path = exported.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        after = by_path(place)
        assert after != before, name
        assert (after.shared == before.shared) == (name == "w1")
        before = after


def test_a_model_file_that_names_other_external_data_is_read_again(exported: Path) -> None:
    place = ModelPath(None, exported)
    layouts.write_external(exported, 1, one_file=True)
    assert [entry[0] for entry in by_path(place).versions[1]] == ["net.onnx", "net.onnx.data"]
    layouts.write(exported)
    assert [entry[0] for entry in by_path(place).versions[1]] == ["net.onnx"]


def test_models_by_path_come_before_repositories(exported: Path, model: Path) -> None:
    roots = [{"m": ModelPath(None, exported), "n": ModelPath(model)}, model.parent]
    assert files.names(roots) == ["m", "n"]
    assert files.find(roots, "m").directory == exported.parent
    assert files.find(roots, "n").directory == model
    exported.unlink()
    assert files.find(roots, "m").directory == model
    shutil.rmtree(model)
    assert list(files.find_all(roots)) == []
    assert files.unreadable(roots) is None


def test_a_model_by_path_that_is_out_of_reach_is_not_gone(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [{"m": ModelPath(None, exported)}]

    def refuse(_: Path) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", refuse)
    assert files.unreadable(roots) == "Input/output error"
    with pytest.raises(ApiError, match="model 'm' cannot be read: Input/output error"):
        files.find(roots, "m")


def test_a_directory_that_has_the_name_of_a_model_file(model: Path) -> None:
    content = (model / "1" / "model.onnx").read_bytes()
    (model / "1" / "model.onnx").unlink()
    inner = model / "1" / "model.onnx" / "model.onnx"
    inner.parent.mkdir()
    inner.write_bytes(content)
    files_ = found(model)
    assert files_.has_file(1, "*.onnx")
    assert files_.model_file(1, "", "*.onnx") == files_.model_file(1, "model.onnx", "*.onnx") == inner
    assert files_.read_model(1, inner) == content
    inner.unlink()
    with pytest.raises(ApiError, match=r"has no \.onnx file"):
        found(model).model_file(1, "", "*.onnx")


def test_another_name_than_the_directorys_may_differ_from_the_configurations(model: Path) -> None:
    (model / "config.pbtxt").write_text('name: "trained"\n')
    with pytest.raises(ApiError, match="is not the name of the model's directory, 'm'"):
        found(model).read_config()
    assert files.find([{"n": ModelPath(model)}], "n").read_config().name == "n"


def test_an_ensemble_may_have_no_version_directory(model: Path) -> None:
    (model / "1" / "model.onnx").unlink()
    (model / "1").rmdir()
    with pytest.raises(files.NoVersionError):
        files.find([model.parent], model.name)
    (model / "config.toml").write_text(to_toml(linear()))
    found = files.find([model.parent], model.name)
    assert found.versions == {1: ()}
    (model / "3").mkdir()
    assert files.find([model.parent], model.name).versions == {3: ()}
    (model / "3").rmdir()
    (model / "config.toml").write_text(to_toml(linear("times", "plus")))
    assert files.find([model.parent], model.name).mark != found.mark
    (model / "config.toml").write_text('platform = "ensemble"')
    with pytest.raises(ApiError, match="an ensemble needs ensemble_scheduling"):
        files.find([model.parent], model.name)
