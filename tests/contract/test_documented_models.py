"""The examples of docs/python-models.md, word for word: they are served, and answer what the text says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import Server, inference, serving, tensor

DOCUMENT = Path(__file__).parents[2] / "docs" / "python-models.md"
FILE = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("documented")
    files = FILE.findall(DOCUMENT.read_text())
    assert len(files) == 6
    for name, content in files:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(content)
    (repository / "lengths" / "1" / "scores.onnx").write_bytes(long_above_three_words())
    (repository / "pickled" / "1" / "model.pkl").touch()
    with serving("--allow-python-models", "--load", "none", repository=repository) as running:
        yield running


def long_above_three_words() -> bytes:
    weights = [("w", np.array([[0, 1]], np.float32)), ("b", np.array([3.5, 0], np.float32))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["words", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["scores"])],
        "lengths",
        [helper.make_tensor_value_info("words", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    content: bytes = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]
    ).SerializeToString()
    return content


def test_words_around_an_onnx_model(server: Server) -> None:
    server.load("models/lengths")
    body = inference(tensor("text", [2, 1], "BYTES", ["two words", "these are more than three"]))
    assert server.infer("lengths", body).json["outputs"][0]["data"] == ["short", "long"]


def test_a_rule(server: Server) -> None:
    server.load("models/limits")

    def body(*amounts: object) -> object:
        shape = [len(amounts), 1]
        countries = ["CH", "AT", "XX"][: len(amounts)]
        return inference(tensor("amount", shape, "FP64", amounts), tensor("country", shape, "BYTES", countries))

    assert server.infer("limits", body(4000, 4000, 1001)).json["outputs"][0]["data"] == [False, True, True]
    refused = server.infer("limits", b'{"inputs":[{"name":"amount","shape":[1,1],"datatype":"FP64","data":[NaN]},'
                           b'{"name":"country","shape":[1,1],"datatype":"BYTES","data":["CH"]}]}')  # fmt: skip
    assert (refused.status, refused.json["error"]) == (400, "the model refuses these inputs: an amount is not a number")


def test_a_pickle_is_refused_with_the_reason(server: Server) -> None:
    refused = server.post("/v2/models/pickled/load")
    assert refused.status == 400
    assert "a pickle is code: convert the model with skl2onnx" in refused.json["error"]
