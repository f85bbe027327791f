"""The files of external data that a model names."""

from __future__ import annotations

import layouts
import onnx_models
import pytest
from onnx import ModelProto, TensorProto, helper

from fastinfer.backends.onnx.graph.external import external_files


def tensor(location: str) -> TensorProto:
    made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=location)
    made.external_data.add(key="offset", value="0")
    return made


def test_without_external_data() -> None:
    assert external_files(b"") == external_files(onnx_models.simple()) == frozenset()
    model = layouts.adding(1)
    model.graph.doc_string = "location"
    assert external_files(model.SerializeToString()) == frozenset()


def test_wherever_a_tensor_may_be() -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor("constant"))], "g", [], [], [tensor("i")]
    )
    model = ModelProto()
    model.CopyFrom(layouts.adding(1))
    model.graph.initializer.append(tensor("dir/weights"))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    model.functions.add().node.append(helper.make_node("Constant", [], ["c"], value=tensor("function")))
    assert external_files(model.SerializeToString()) == {"dir/weights", "sparse", "constant", "i", "function"}


@pytest.mark.parametrize("location", ["", "/etc/passwd", "../weights", "a/../../b", "a\0b", "."])
def test_paths_that_lead_elsewhere_are_none_of_its_files(location: str) -> None:
    assert external_files(onnx_models.external_weight(location)) == frozenset()


def test_an_unreadable_graph_has_none() -> None:
    model = onnx_models.external_weight("weights")
    for size in range(len(model)):
        assert external_files(model[:size]) <= {"weights"}
