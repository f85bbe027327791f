"""What one client's request or load leaves behind: nothing that others would notice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import REPOSITORY, Server, inference, serving, tensor

MIB = 1 << 20
WEIGHTS = 40 * MIB  # malloc gives blocks of more than 32 MiB back at once
LOADS = 6


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: int = 0) -> bytes:
    held = [numpy_helper.from_array(np.ones(weights // 4, "f4"), "w")] if weights else []
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def heavy(operator: str = "Identity", *outputs: Any) -> bytes:
    nodes = [helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["a"])]
    nodes.append(helper.make_node(operator, ["a"], ["y"]))
    return model(nodes, [value("x", [1])], list(outputs) or [value("y", [1])], WEIGHTS)


def put(repository: Path, name: str, content: bytes) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(content)


def anonymous_bytes(server: Server) -> int:
    (pid,) = server.serving_pids()
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


REFUSED: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a configuration that does not fit": (heavy(), {"config": '{"input":[{"name":"x","data_type":"TYPE_BOOL"}]}'}),
    "a configuration of another input": (heavy(), {"config": '{"input":[{"name":"z","data_type":"TYPE_FP32"}]}'}),
    "a parameter that is wrong": (heavy(), {"execution_providers": "NoSuchProvider"}),
    "an operator that does not exist": (heavy("NoSuchOperator"), {}),
    "a sequence as output of a batched model": (
        heavy("SequenceConstruct", helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])),
        {"config": '{"max_batch_size":8}'},
    ),
    "zeros": (bytes(WEIGHTS), {}),
    "half a file": (heavy()[: WEIGHTS // 2], {}),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_refused_load_keeps_no_memory(tmp_path: Path, refused: str) -> None:
    content, parameters = REFUSED[refused]
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    put(tmp_path, "heavy", content)
    with serving("--load", "simple", repository=tmp_path) as server:

        def load() -> None:
            answer = server.post("/v2/repository/models/heavy/load", {"parameters": parameters})
            assert answer.status == 400, answer.body

        load()
        load()  # what the allocators keep is there now
        before = anonymous_bytes(server)
        for _ in range(LOADS):
            load()
        assert anonymous_bytes(server) - before < LOADS * WEIGHTS // 3


def test_a_model_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    put(tmp_path, "huge", b"")
    with (tmp_path / "huge" / "1" / "model.onnx").open("r+b") as file:
        file.truncate(3 << 30)
    with serving("--load", "simple", repository=tmp_path) as server:
        before = anonymous_bytes(server)
        answer = server.post("/v2/models/huge/load")
        assert answer.status == 400
        assert "has a file of 3,221,225,472 bytes, and a model file has less than 2 GiB" in answer.json["error"]
        assert anonymous_bytes(server) - before < 64 * MIB


def test_one_huge_answer_does_not_close_a_model_to_others(tmp_path: Path) -> None:
    """Its values decide how large the output is. A guess from one request would refuse all others for ever."""
    put(
        tmp_path,
        "filled",
        model(
            [helper.make_node("ConstantOfShape", ["n"], ["y"])],
            [value("n", [1], TensorProto.INT64)],
            [value("y", ["k"])],
        ),
    )

    def ask(count: int) -> int:
        outputs = [{"name": "y", "parameters": {"binary_data": True}}]
        return server.infer("filled", inference(tensor("n", [1], "INT64", [count]), outputs=outputs)).status

    with serving("--in-flight-bytes", "64MiB", repository=tmp_path) as server:
        assert ask(10) == 200
        for _ in range(3):
            assert ask(40_000_000) == 503
            assert [ask(count) for count in (10, 1, 1000, 0, 100_000)] == [200] * 5
        answer = server.infer("filled", inference(tensor("n", [1], "INT64", [3])))
        assert json.loads(answer.body)["outputs"][0]["data"] == [0, 0, 0]
        assert server.metrics().count("fastinfer_in_flight_bytes 0") == 1
