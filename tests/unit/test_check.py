"""``fastinfer check`` on real models, good and bad."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import REPOSITORY

from fastinfer.cli import main as cli
from fastinfer.cli.check import check
from fastinfer.config.server import ServerConfig


def copied(directory: Path, model: str, name: str, configuration: str = "") -> Path:
    shutil.copytree(REPOSITORY / model, directory / name)
    if configuration:
        (directory / name / "config.toml").write_text(configuration)
    return directory / name


def told(directory: Path, *names: str) -> dict[tuple[str, int | None], tuple[bool, str]]:
    results = check(ServerConfig(), [directory], names)
    return {(result.name, result.version): (result.ok, result.detail) for result in results}


def test_each_version_that_would_be_served_is_told() -> None:
    results = told(REPOSITORY, "simple", "two_versions")
    assert list(results) == [("simple", 1), ("two_versions", 1), ("two_versions", 2)]
    ok, detail = results["simple", 1]
    assert ok
    assert detail.startswith("INPUT0 INT32[-1,16], INPUT1 INT32[-1,16] -> OUTPUT0 INT32[-1,16]")


def test_without_names_all_are_tried_and_a_bad_one_stops_nothing(tmp_path: Path) -> None:
    copied(tmp_path, "two_versions", "half").joinpath("2", "model.onnx").write_bytes(b"no model")
    copied(tmp_path, "simple", "whole")
    results = told(tmp_path)
    assert {key: ok for key, (ok, _) in results.items()} == {("half", 1): True, ("half", 2): False, ("whole", 1): True}


@pytest.mark.parametrize(
    ("configuration", "version", "reason"),
    [
        ("nonsense = 1\n", None, "nonsense"),
        ("version_policy = { specific = { versions = [7] } }\n", None, "none of the versions"),
        ('default_model_filename = "other.onnx"\n', 1, "no file 'other.onnx'"),
        ('[parameters]\nintra_op_threads = "many"\n', 1, "intra_op_threads"),
        ("[[inputs]]\nname = 'nobody'\ndata_type = 'TYPE_FP32'\ndims = [1]\n", 1, "nobody"),
    ],
)
def test_what_a_configuration_may_have_wrong(
    tmp_path: Path, configuration: str, version: int | None, reason: str
) -> None:
    copied(tmp_path, "simple", "m", configuration)
    ((key, (ok, detail)),) = told(tmp_path).items()
    assert (key, ok) == (("m", version), False)
    assert reason in detail
    assert str(tmp_path) not in detail


def test_which_file_is_the_model(tmp_path: Path) -> None:
    version = copied(tmp_path, "simple", "m") / "1"
    (version / "model.onnx").rename(version / "renamed.onnx")
    assert told(tmp_path)["m", 1][0]
    shutil.copy(version / "renamed.onnx", version / "second.onnx")
    assert "several .onnx files" in told(tmp_path)["m", 1][1]
    (tmp_path / "m" / "config.toml").write_text('default_model_filename = "second.onnx"\n')
    assert told(tmp_path)["m", 1][0]
    shutil.rmtree(version)
    version.mkdir()
    (tmp_path / "m" / "config.toml").unlink()
    assert "no .onnx file" in told(tmp_path)["m", 1][1]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    copied(tmp_path, "simple", "stats")
    assert "no version" in told(tmp_path, "empty")["empty", None][1]
    assert "cannot be called" in told(tmp_path, "stats")["stats", None][1]
    assert not told(tmp_path, "nobody")["nobody", None][0]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied(tmp_path, "simple", "good")
    assert cli.main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("ok      good/1  INPUT0 INT32[-1,16]")
    (tmp_path / "bad").mkdir()
    assert cli.main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("FAILED  bad")
