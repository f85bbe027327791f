"""External data behind links: what is read, and what never is."""

from __future__ import annotations

import os
from pathlib import Path

import layouts
import numpy as np
import onnx
import onnx_models
import pytest
from onnx import ModelProto, helper

from fastinfer.backends.onnx.graph.external import external_files, relocated
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.backends.onnx.weights import find_weights
from fastinfer.tensor.tensor import Tensor


def cached(directory: Path, *weights: float) -> Path:
    """A model as Hugging Face's cache keeps it: links to files that are called by their digests."""
    layouts.write_external(directory / "download" / "model.onnx", *weights, one_file=True)
    blobs, snapshot = directory / "blobs", directory / "snapshots" / "main" / "onnx"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    for file in (directory / "download").iterdir():
        digest = f"{sum(file.name.encode()):x}"
        file.rename(blobs / digest)
        (snapshot / file.name).symlink_to(f"../../../blobs/{digest}")
    return snapshot / "model.onnx"


def answer(path: Path, *roots: Path, allow_links: bool = False) -> list[float]:
    """The answer of a model to a row of zeros; OrtError if it does not load."""
    content = path.read_bytes()
    weights = find_weights(content, path, roots, allow_links=allow_links)
    if weights is None:
        session = Session(path, model=content)
    else:
        session = Session(path, model=relocated(content, weights.names), weights_folder=str(weights.folder))
    [y] = session.run([Tensor.from_numpy("x", np.zeros((1, 4), "f4"))])
    row: list[float] = y.numpy()[0].tolist()
    return row


def external(directory: Path) -> Path:
    """A model file with its weights in ``w0`` beside it."""
    layouts.write_external(directory / "model.onnx", 3, one_file=False)
    return directory / "model.onnx"


def test_a_cache_of_hugging_face(tmp_path: Path) -> None:
    assert answer(cached(tmp_path, 1, 2)) == [3] * 4


def test_links_into_a_repository(tmp_path: Path) -> None:
    model = external(tmp_path / "repository" / "m" / "1")
    (tmp_path / "repository" / "shared").mkdir()
    (model.parent / "w0").rename(tmp_path / "repository" / "shared" / "weights.bin")
    (model.parent / "w0").symlink_to("../../shared/weights.bin")
    assert answer(model, tmp_path / "other", tmp_path / "repository") == [3] * 4
    with pytest.raises(OrtError, match="'w0' is a link to a file outside of the model repository; --allow-linked"):
        answer(model, tmp_path / "other", tmp_path / "repository" / "m")
    assert answer(model, allow_links=True) == [3] * 4


def test_a_linked_model_finds_the_weights_beside_the_real_one(tmp_path: Path) -> None:
    real = external(tmp_path / "exports")
    link = tmp_path / "repository" / "m" / "1" / "model.onnx"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    assert answer(link, tmp_path / "repository") == [3] * 4


def test_a_directory_that_is_a_link(tmp_path: Path) -> None:
    external(tmp_path / "exports")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "1").symlink_to(tmp_path / "exports")
    assert answer(tmp_path / "repository" / "1" / "model.onnx", tmp_path / "repository") == [3] * 4


def test_hard_links(tmp_path: Path) -> None:
    model = external(tmp_path / "repository" / "1")
    (tmp_path / "repository" / ".cache").mkdir()
    os.link(model.parent / "w0", tmp_path / "repository" / ".cache" / "0a")
    assert answer(model, tmp_path / "repository") == [3] * 4  # both names are in the repository
    with pytest.raises(OrtError, match=r"'w0' has a second name \(a hard link\) outside of the model repository"):
        answer(model)
    os.link(model.parent / "w0", tmp_path / "elsewhere")
    with pytest.raises(OrtError, match=r"'w0' has a second name \(a hard link\) outside of the model repository"):
        answer(model, tmp_path / "repository")
    assert answer(model, tmp_path / "repository", allow_links=True) == [3] * 4


@pytest.mark.parametrize("allow_links", [False, True])
def test_what_is_no_file(tmp_path: Path, allow_links: bool) -> None:
    model = external(tmp_path / "1")
    (model.parent / "w0").unlink()
    os.mkfifo(tmp_path / "1" / "pipe")
    for target in ("pipe", "/dev/zero", "."):
        (model.parent / "w0").symlink_to(target)
        with pytest.raises(OrtError, match="'w0' is not a regular file"):
            answer(model, tmp_path, allow_links=allow_links)
        (model.parent / "w0").unlink()
    (model.parent / "w0").symlink_to("w0")
    with pytest.raises((OrtError, OSError)):
        answer(model, tmp_path, allow_links=allow_links)


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    model = external(tmp_path)
    (tmp_path / "w0").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16\n")
    with pytest.raises(OrtError, match="'w0' is a git-lfs pointer, not the weights: run 'git lfs pull'"):
        answer(model)


def test_a_missing_file_is_not_searched_where_links_lead(tmp_path: Path) -> None:
    """Links move the directory in which the runtime searches: other names must not be found there."""
    layouts.write_external(tmp_path / "m" / "model.onnx", 3, 4, one_file=False)
    (tmp_path / "repository").mkdir()
    (tmp_path / "m" / "w0").rename(tmp_path / "repository" / "a")
    (tmp_path / "m" / "w1").rename(tmp_path / "repository" / "w1")
    (tmp_path / "m" / "w0").symlink_to("../repository/a")
    with pytest.raises(OrtError, match="'w1' is missing"):
        answer(tmp_path / "m" / "model.onnx", tmp_path / "repository")


def test_links_to_several_repositories(tmp_path: Path) -> None:
    layouts.write_external(tmp_path / "m" / "model.onnx", 3, 4, one_file=False)
    for number in (0, 1):
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / "m" / f"w{number}").rename(tmp_path / f"r{number}" / "w")
        (tmp_path / "m" / f"w{number}").symlink_to(f"../r{number}/w")
    roots = (tmp_path / "r0", tmp_path / "r1")
    with pytest.raises(OrtError, match="links to several places outside"):  # else all between them could be read
        answer(tmp_path / "m" / "model.onnx", *roots)
    assert answer(tmp_path / "m" / "model.onnx", *roots, allow_links=True) == [7] * 4


def test_only_regular_files_beside_the_model_are_left_to_the_session(tmp_path: Path) -> None:
    model = external(tmp_path)
    assert find_weights(model.read_bytes(), model, [], allow_links=False) is None
    assert find_weights(onnx_models.simple(), model, [], allow_links=True) is None
    assert find_weights(b"location", model, [], allow_links=True) is None


# --- Other names in the model -----------------------------------------------------------------------------------------


def tensor(location: str) -> onnx.TensorProto:
    made = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        made.external_data.add(key=key, value=value)
    return made


def everywhere() -> ModelProto:
    """External data in all places of a model."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor("constant"))], "g", [], [], [tensor("inner")]
    )
    model = layouts.adding(1)
    model.graph.initializer.append(tensor("dir/weights"))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    model.graph.node.append(helper.make_node("Many", ["x"], ["q"], graphs=[inner, inner]))
    model.functions.add().node.append(helper.make_node("Constant", [], ["c"], value=tensor("function")))
    return model


def test_files_get_other_names_wherever_they_are_named() -> None:
    model = everywhere()
    names = sorted(external_files(model.SerializeToString()))
    assert names == ["constant", "dir/weights", "function", "inner", "sparse"]
    changed = ModelProto.FromString(relocated(model.SerializeToString(), {name: f"new/{name}" for name in names}))
    assert external_files(changed.SerializeToString()) == {f"new/{name}" for name in names}
    back = {f"new/{name}": name for name in names}
    assert ModelProto.FromString(relocated(changed.SerializeToString(), back)) == model


def test_only_the_given_names_change() -> None:
    model = everywhere()
    assert ModelProto.FromString(relocated(model.SerializeToString(), {"other": "x"})) == model
    one = relocated(model.SerializeToString(), {"inner": "x"})
    assert external_files(one) == {"constant", "dir/weights", "function", "x", "sparse"}
