"""``fastinfer check`` on real models, good and bad."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import onnx_models
import pytest
from ensembles import diamond, linear, outer, write_basic, write_ensemble
from onnx import helper
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


# --- Notes ------------------------------------------------------------------------------------------------------------


def notes(directory: Path, content: bytes, configuration: str = "", **options: object) -> tuple[str, str]:
    """The facts about a model, and the request to try."""
    version = directory / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(content)
    (version.parent / "config.toml").write_text(configuration)
    (result,) = check(ServerConfig(**options), [directory])
    assert result.ok, result.detail
    facts, command = result.notes
    return facts, command


def of_shape(*shape: int | str, datatype: str = "FP32") -> bytes:
    return onnx_models.identity(datatype, shape)


def test_what_a_run_costs(tmp_path: Path) -> None:
    facts, _ = notes(tmp_path, of_shape("batch", 3))
    time = r"[\d.e-]+ ms"
    why = "batched because its rows are independent"
    assert re.fullmatch(rf"opset 17, {why}, 1 row in {time}, 16 rows in {time}, [\d.]+ MiB of memory", facts)


@pytest.mark.parametrize(
    ("shape", "configuration", "said"),
    [
        (("batch", 3), "max_batch_size = 8", "batched because max_batch_size is configured, 1 row in .*, 8 rows in"),
        ((2, 3), "", "opset 17, 1 row in [^,]*, [^,]*memory"),
    ],
)
def test_why_it_is_batched(tmp_path: Path, shape: tuple[int | str, ...], configuration: str, said: str) -> None:
    assert re.search(said, notes(tmp_path, of_shape(*shape), configuration)[0])


@pytest.mark.parametrize(
    ("shape", "datatype", "data"),
    [((2, 3), "FP32", [0] * 6), (("batch", 2), "BYTES", [""] * 2), (("batch", "n"), "BOOL", [False])],
)
def test_a_request_to_try(tmp_path: Path, shape: tuple[int | str, ...], datatype: str, data: list[object]) -> None:
    _, command = notes(tmp_path, of_shape(*shape, datatype=datatype), port=1234)
    curl, d, body, url = shlex.split(command)
    assert (curl, d, url) == ("curl", "-d", "localhost:1234/v2/models/m/infer")
    filled = [each if isinstance(each, int) else 1 for each in shape]
    assert json.loads(body) == {"inputs": [{"name": "x", "shape": filled, "datatype": datatype, "data": data}]}


def test_a_large_request_to_try_is_binary(tmp_path: Path) -> None:
    _, command = notes(tmp_path, of_shape("batch", 3, 100))
    header = shlex.split(command)[2].rstrip(";")
    assert json.loads(header)["inputs"][0]["parameters"] == {"binary_data_size": 1200}
    assert (
        f"head -c 1200 /dev/zero) | curl --data-binary @- -H 'Inference-Header-Content-Length: {len(header)}'"
        in command
    )


def test_open_dimensions_get_a_size_that_the_model_takes(tmp_path: Path) -> None:
    x, y = onnx_models.value("x", "FP32", ("n", "m")), onnx_models.value("y", "FP32", (4, "k"))
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", 7, [2], [4, -1])
    _, command = notes(tmp_path, onnx_models.model([reshape], [x], [y], [shape]))
    assert '"shape":[8,8]' in command


def test_no_request_to_try(tmp_path: Path) -> None:
    facts, said = notes(tmp_path, of_shape(1 << 25))
    assert facts.startswith("opset 17, ")
    assert said == "no example was found: an example would be too large"


def test_many_rows_may_be_too_large(tmp_path: Path) -> None:
    facts, command = notes(tmp_path, of_shape("batch", 1 << 21))
    assert "1 row in " in facts
    assert "16 rows" not in facts
    assert command.endswith("/v2/models/m/infer")


def test_a_run_that_does_not_end(tmp_path: Path) -> None:
    _, said = notes(tmp_path, onnx_models.endless(), load_run_timeout_s=0.2)
    assert said == "no example was found: an example takes longer than 0.2 s"


def test_ensembles_are_checked_with_the_models_of_their_steps(tmp_path: Path) -> None:
    write_basic(tmp_path)
    write_ensemble(tmp_path, "diamond", diamond())
    write_ensemble(tmp_path, "outer", outer())
    write_ensemble(tmp_path, "linear", linear("plus", "plus"))
    write_ensemble(tmp_path, "amiss", linear("plus", "nobody"))
    write_ensemble(tmp_path, "round", linear("plus", "around"))
    write_ensemble(tmp_path, "around", linear("plus", "round"))
    results = told(tmp_path)
    signature = "x FP32[-1,4] -> y FP32[-1,4], batches of up to 64"
    assert results["outer", 1] == told(tmp_path, "outer")["outer", 1] == (True, signature)
    assert results["diamond", 1][0]
    assert results["amiss", 1] == (False, "ensemble 'amiss': no model 'nobody' in the repository")
    assert results["round", 1] == (
        False,
        "ensemble 'round': ensemble 'around': 'round' is a step of itself: round -> around -> round",
    )
    (checked,) = check(ServerConfig(), [tmp_path], ["linear"])
    assert checked.notes == ("an ensemble of 2 steps: plus, plus",)
