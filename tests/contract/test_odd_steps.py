"""Models with optional inputs, absent outputs, state, scores or one row, as steps of ensembles and of chains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_models
import pytest
from ensembles import ensemble, step, tensors, write_ensemble, write_model
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import value
from support import Server, inference, serving, tensor


def state() -> bytes:
    """``y = x + h[0]`` and ``hn = h * h``; the rows of ``h`` are along its second dimension."""
    return onnx_models.model(
        [
            helper.make_node("Split", ["h"], ["first", "second"], axis=0, num_outputs=2),
            helper.make_node("Squeeze", ["first", "zero"], ["row"]),
            helper.make_node("Add", ["x", "row"], ["y"]),
            helper.make_node("Mul", ["h", "h"], ["hn"]),
        ],
        [value("x", "FP32", ["batch", 4]), value("h", "FP32", [2, "batch", 4])],
        [value("y", "FP32", ["batch", 4]), value("hn", "FP32", [2, "batch", 4])],
        [numpy_helper.from_array(np.array([0], np.int64), "zero")],
        opset=18,
    )


def scores() -> bytes:
    """The scores of a classifier with the classes a, b and c, as they are exported."""
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    graph = helper.make_graph(
        [
            helper.make_node("Softmax", ["x"], ["s"], axis=1),
            helper.make_node("ZipMap", ["s"], ["p"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]),
        ],
        "scores",
        [value("x", "FP32", ["batch", 3])],
        [helper.make_value_info("p", helper.make_sequence_type_proto(kind))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return made.SerializeToString()


def mean_over_sequence() -> bytes:
    """``y = x`` minus its mean over the second dimension: rows of two dimensions each."""
    return onnx_models.model(
        [helper.make_node("ReduceMean", ["x"], ["m"], axes=[1]), helper.make_node("Sub", ["x", "m"], ["y"])],
        [value("x", "FP32", ["batch", "sequence", 4])],
        [value("y", "FP32", ["batch", "sequence", 4])],
        opset=17,
    )


def alone(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], made: dict[str, Any]) -> dict[str, Any]:
    return ensemble(inputs, outputs, made, max_batch_size=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("odd")
    x4, y4 = tensors("x"), tensors("y")
    write_model(root, "state", state())
    same = {"x": "x", "h": "h"}, {"y": "y", "hn": "hn"}
    write_ensemble(
        root,
        "streams",
        alone(x4 + tensors("h", dims=(2, 4)), y4 + tensors("hn", dims=(2, 4)), step("state", *same)),
    )
    write_ensemble(root, "rows", ensemble(x4 + tensors("h", dims=(2, 4)), y4, step("state", same[0], {"y": "y"})))
    write_model(root, "scaled", onnx_models.with_defaults())
    given = step("scaled", {"x": "x", "scale": "s"}, {"y": "y"})
    write_ensemble(root, "given", alone(tensors("x", dims=(-1, 4)) + tensors("s"), tensors("y", dims=(-1, 4)), given))
    write_model(root, "scores", scores())
    named = step("scores", {"x": "x"}, {"p": "p"})
    write_ensemble(root, "named", alone(tensors("x", dims=(-1, 3)), tensors("p", dims=(-1, 3)), named))
    write_model(root, "centred", mean_over_sequence())
    write_ensemble(root, "mixes", ensemble(x4, y4, step("centred", {"x": "x"}, {"y": "y"}), max_batch_size=8))
    write_model(root, "optional", onnx_models.optional_output())
    some = step("optional", {"x": "x", "given": "g"}, {"z": "z"})
    present = tensors("x", dims=(2,)) + tensors("g", dims=(), datatype="BOOL")
    write_ensemble(root, "some", alone(present, tensors("z", dims=(2,)), some))
    write_model(root, "one", onnx_models.with_defaults(shape=(1, 4)), "max_batch_size = 8\n")
    write_model(root, "same", onnx_models.with_defaults())
    with serving("--no-strict-readiness", repository=root) as running:
        yield running


def outputs(server: Server, model: str, *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = server.infer(model, inference(*inputs, **more))
    assert answer.status == 200, answer.body
    return {each["name"]: each for each in answer.json["outputs"]}


def test_an_item_of_a_model_whose_rows_are_along_the_second_dimension(server: Server) -> None:
    inputs = tensor("x", [4], "FP32", [1, 2, 3, 4]), tensor("h", [2, 4], "FP32", list(range(8)))
    expected = outputs(server, "state", *inputs)
    assert expected["y"]["data"] == [1, 3, 5, 7]
    assert outputs(server, "streams", *inputs) == expected


@pytest.mark.parametrize("model", ["rows", "mixes"])
def test_rows_of_an_ensemble_are_not_taken_for_something_else(server: Server, model: str) -> None:
    ready = server.get(f"/v2/models/{model}/ready")
    assert ready.status == 503
    assert ("rows along its first dimension" if model == "rows" else "has the shape [-1, 4]") in ready.error


def test_a_step_gets_an_optional_input(server: Server) -> None:
    inputs = [tensor("x", [2, 4], "FP32", list(range(8))), tensor("s", [4], "FP32", [2, 2, 2, 2])]
    expected = outputs(server, "scaled", inputs[0], {**inputs[1], "name": "scale"})["y"]["data"]
    assert outputs(server, "given", *inputs)["y"]["data"] == expected


def test_each_row_of_scores_is_classified_apart_behind_a_step_or_a_chain(server: Server) -> None:
    rows = tensor("x", [2, 3], "FP32", [0, 1, 2, 5, 4, 3])

    def classes(model: str) -> Any:
        wanted = [{"name": "p", "parameters": {"classification": 1}}]
        return [text.split(":")[1:] for text in outputs(server, model, rows, outputs=wanted)["p"]["data"]]

    assert classes("scores") == classes("named") == [["2", "c"], ["0", "a"]]


def test_outputs_that_nobody_takes_may_be_absent(server: Server) -> None:
    inputs = tensor("x", [2], "FP32", [1, 2]), tensor("g", [], "BOOL", [False])
    assert "z" in outputs(server, "some", *inputs)


def test_a_chain_keeps_the_rows_that_its_first_stage_may_get(server: Server) -> None:
    name = server.post("/v2/repository/models/one/load", {"parameters": {"next": "same"}}).json["name"]
    rows = tensor("x", [3, 4], "FP32", list(range(12)))
    assert len(outputs(server, name, rows)["y"]["data"]) == 12


@pytest.mark.parametrize("dims", ["[1, 300000000]", "[10, 1000000000000]", "[9000000000000000000, 4]"])
@pytest.mark.parametrize("data", ["zero_data", "random_data"])
def test_a_warm_up_is_bounded(server: Server, dims: str, data: str) -> None:
    sample = f'{{"name":"w","inputs":{{"x":{{"data_type":"TYPE_FP32","dims":{dims},"{data}":true}}}}}}'
    answer = server.post(
        "/v2/repository/models/centred/load",
        {"parameters": {"config": f'{{"max_batch_size":0,"model_warmup":[{sample}]}}'}},
    )
    assert answer.status == 400
