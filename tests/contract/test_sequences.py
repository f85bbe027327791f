"""Outputs that are sequences of tensors or optional values, over the socket."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from support import Answer, Server, inference, serving, tensor


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    made = {
        "parts": onnx_models.sequence_output(),
        "texts": onnx_models.sequence_output("BYTES"),
        "optional": onnx_models.optional_output(),
    }
    for name, model in made.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.onnx").write_bytes(model)
    with serving(repository=repository) as running:
        yield running


def split(server: Server, data: list[Any], sizes: list[int], *wanted: str, datatype: str = "FP32") -> Answer:
    name = "parts" if datatype == "FP32" else "texts"
    inputs = [tensor("x", [len(data) // 2, 2], datatype, data), tensor("sizes", [len(sizes)], "INT64", sizes)]
    outputs = {"outputs": [{"name": each} for each in wanted]} if wanted else {}
    return server.infer(name, inference(*inputs, **outputs))


def test_a_sequence_is_one_tensor(server: Server) -> None:
    answer = split(server, [1, 2, 3, 4, 5, 6, 7, 8], [2, 2])
    parts, total = answer.json["outputs"]
    assert parts == tensor("parts", [2, 2, 2], "FP32", [1, 2, 3, 4, 5, 6, 7, 8])
    assert total == tensor("total", [], "INT64", [2])
    answer = split(server, ["a", "", "ccc", "dd"], [1, 1], datatype="BYTES")
    assert answer.json["outputs"][0] == tensor("parts", [2, 1, 2], "BYTES", ["a", "", "ccc", "dd"])


def test_metadata(server: Server) -> None:
    described = {output["name"]: output for output in server.get("/v2/models/parts").json["outputs"]}
    assert described["parts"] == {"name": "parts", "datatype": "FP32", "shape": [-1, -1, 2]}
    assert server.get("/v2/models/parts/config").json["max_batch_size"] == 0
    (optional, _) = server.get("/v2/models/optional").json["outputs"]
    assert optional == {"name": "y", "datatype": "FP32", "shape": [2]}


def test_unequal_shapes_are_an_error_that_names_the_way_out(server: Server) -> None:
    for wanted in ((), ("parts",), ("total", "parts")):
        answer = split(server, [1, 2, 3, 4, 5, 6], [1, 2], *wanted)
        assert answer.status == 400
        assert re.search(
            "output 'parts' is a sequence of tensors of different shapes, .*; let the graph pad or concatenate them, "
            "or ask only for other outputs",
            answer.error,
        )
    assert split(server, [1, 2, 3, 4, 5, 6], [1, 2], "total").json["outputs"] == [tensor("total", [], "INT64", [2])]


def test_an_optional_output_is_there_or_absent(server: Server) -> None:
    def ask(given: bool, *wanted: str) -> Answer:
        inputs = [tensor("x", [2], "FP32", [1, 2]), tensor("given", [], "BOOL", [given])]
        return server.infer("optional", inference(*inputs, outputs=[{"name": each} for each in wanted]))

    y, z = tensor("y", [2], "FP32", [1, 2]), tensor("z", [2], "FP32", [-1, -2])
    assert ask(True).json["outputs"] == [y, z]
    assert ask(True, "z", "y").json["outputs"] == [z, y]
    assert ask(False, "z").json["outputs"] == [z]
    for wanted in ((), ("y",), ("z", "y")):
        answer = ask(False, *wanted)
        assert answer.status == 400
        assert "output 'y' is optional, and absent; ask only for other outputs" in answer.error


def test_a_sequence_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "parts" / "1").mkdir(parents=True)
    (tmp_path / "parts" / "1" / "model.onnx").write_bytes(onnx_models.sequence_output())
    (tmp_path / "parts" / "config.toml").write_text("max_batch_size = 4\n")
    with serving("--load", "none", repository=tmp_path) as own:
        answer = own.post("/v2/repository/models/parts/load")
    assert answer.status == 400
    assert "max_batch_size must be 0, because output 'parts' is a sequence, which has no rows" in answer.error
