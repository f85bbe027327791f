"""What a graph says beside its signature: operators, sparse outputs, and whether values decide its sizes."""

import numpy as np
import onnx_models
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastinfer.backends.onnx import elements
from fastinfer.backends.onnx.graph.facts import read_facts


def graph(*nodes, inputs=("x",), constants=None, functions=()):
    infos = [onnx_models.value(name, "FP32", ["n", 4]) for name in inputs]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    made = [helper.make_node(op, ins.split(" "), ["y"] if i == len(nodes) - 1 else [f"v{i}"], **attributes)
            for i, (op, ins, attributes) in enumerate(nodes)]  # fmt: skip
    body = helper.make_graph(made, "g", infos, [onnx_models.value("y", "FP32", None)], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(body, opset_imports=opsets, functions=list(functions)).SerializeToString()


STEADY = {
    "relu": graph(("Relu", "x", {})),
    "a constant shape": graph(("Reshape", "x to", {}), constants={"to": np.int64([-1, 2])}),
    "the input's own shape": graph(("Shape", "x", {}), ("ConstantOfShape", "v0", {})),
    "a size of another input": graph(("Shape", "z", {}), ("Reshape", "x v0", {}), inputs=("x", "z")),
    "a copied constant": graph(("Identity", "to", {}), ("Expand", "x v0", {}), constants={"to": np.int64([2, 4])}),
    "a recurrence over all steps": graph(("LSTM", "x w r", {})),
    "constant regions": graph(("RoiAlign", "x rois batch", {}), constants={"rois": np.float32([[0, 0, 1, 1]])}),
    "constant axes": graph(("ReduceSum", "x axes", {}), constants={"axes": np.int64([1])}),
    "quantized": graph(("DynamicQuantizeLinear", "x", {})),
}  # fmt: skip

BY_VALUES = {
    "Resize": graph(("Cast", "x", {"to": TensorProto.INT64}), ("Resize", "x   v0", {})),
    "ConstantOfShape": graph(("Cast", "x", {"to": TensorProto.INT64}), ("ConstantOfShape", "v0", {})),
    "Reshape": graph(("Cast", "x", {"to": TensorProto.INT64}), ("Reshape", "x v0", {})),
    "Tile": graph(("Cast", "x", {"to": TensorProto.INT64}), ("Abs", "v0", {}), ("Tile", "x v1", {})),
    "Range": graph(("Range", "x x x", {})),
    "TopK": graph(("ReduceMax", "x", {}), ("TopK", "x v0", {})),
    "NonZero": graph(("NonZero", "x", {})),
    "DFT": graph(("DFT", "x n", {}), inputs=("x", "n")),
    "MaxUnpool": graph(("MaxUnpool", "x i to", {"kernel_shape": [2, 2]}), inputs=("x", "i", "to")),
    "RoiAlign": graph(("RoiAlign", "x rois batch", {}), inputs=("x", "rois", "batch")),
    "MaxRoiPool": graph(("MaxRoiPool", "x rois", {"pooled_shape": [1, 1]}), inputs=("x", "rois")),
    "LSTM": graph(("LSTM", "x w r  lengths", {}), inputs=("x", "lengths")),
    "GRU": graph(("GRU", "x w r  lengths", {}), inputs=("x", "lengths")),
    "RNN": graph(("RNN", "x w r  lengths", {}), inputs=("x", "lengths")),
    "Attention": graph(("Attention", "x x x    lengths", {}), inputs=("x", "lengths")),
    "GroupQueryAttention": graph(
        ("GroupQueryAttention", "x x x   lengths total", {"domain": "com.microsoft"}), inputs=("x", "lengths", "total")
    ),
    "ReduceSum": graph(("ReduceSum", "x axes", {}), inputs=("x", "axes")),
    "ReduceLogSumExp": graph(("ReduceLogSumExp", "x axes", {}), inputs=("x", "axes")),
    "OneHot": graph(("OneHot", "x depth values", {}), inputs=("x", "depth", "values")),
    "Pad": graph(("Pad", "x pads", {}), inputs=("x", "pads")),
    "Slice": graph(("Slice", "x a b", {}), inputs=("x", "a", "b")),
    "Compress": graph(("Compress", "x chosen", {}), inputs=("x", "chosen")),
    "Expand": graph(("Expand", "x to", {}), inputs=("x", "to")),
    "Unique": graph(("Unique", "x", {})),
    "STFT": graph(("STFT", "x step window", {}), inputs=("x", "step", "window")),
    "HannWindow": graph(("HannWindow", "n", {}), inputs=("n",)),
    "NonMaxSuppression": graph(("NonMaxSuppression", "x s", {}), inputs=("x", "s")),
    "Mystery": graph(("Mystery", "x", {"domain": "own"})),
    "Loop": onnx_models.endless(),
}


@pytest.mark.parametrize("name", STEADY)
def test_work_that_follows_from_shapes(name):
    assert read_facts(STEADY[name]).sized_by_values is None


@pytest.mark.parametrize("name", BY_VALUES)
def test_work_that_values_decide_is_named(name):
    assert f"operator '{name}'" in (read_facts(BY_VALUES[name]).sized_by_values or "")


def test_functions_are_looked_into():
    sized = helper.make_function(
        "own", "Sized", ["a"], ["b"], [helper.make_node("ConstantOfShape", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    facts = read_facts(graph(("Sized", "x", {"domain": "own"}), functions=[sized]))
    assert "ConstantOfShape" in (facts.sized_by_values or "")
    assert facts.operators == {"Sized", "ConstantOfShape"}


def branches(node):
    branch = helper.make_graph([node], "b", [], [onnx_models.value(node.output[0], "FP32", None)])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "o", [], [onnx_models.value("o", "FP32", None)])
    return {"then_branch": branch, "else_branch": other}


def test_branches_are_looked_into():
    model = graph(("If", "c", branches(helper.make_node("NonZero", ["x"], ["b"]))), constants={"c": np.bool_(True)})
    assert "'NonZero'" in (read_facts(model).sized_by_values or "")
    model = graph(("If", "c", branches(helper.make_node("Neg", ["x"], ["b"]))), constants={"c": np.bool_(True)})
    assert read_facts(model).sized_by_values is None
    choice = branches(helper.make_node("Neg", ["x"], ["b"]))
    chosen = graph(("ReduceMax", "x", {}), ("Cast", "v0", {"to": TensorProto.BOOL}), ("If", "v1", choice))
    assert "'If'" in (read_facts(chosen).sized_by_values or "")


def test_sparse_outputs_are_named():
    sparse = [onnx_models.sparse_constant(), onnx_models.sparse_weight(output=True), onnx_models.sparse_loop()]
    sparse += [onnx_models.sparse_branches(True, True), onnx_models.sparse_branches(False, True, condition=False)]
    for model in sparse:
        assert read_facts(model).unserved == "output 'w' is a sparse tensor; only tensors can be served"
    # Of the last two, some requests are answered, or all.
    dense = [onnx_models.sparse_weight(output=False), onnx_models.sparse_branches(True, False)]
    for model in [*dense, onnx_models.sparse_branches(False, True, condition=True)]:
        assert read_facts(model).unserved is None


@pytest.mark.parametrize("number", elements.UNSUPPORTED)
def test_an_element_type_without_a_datatype_is_named(number):
    name = TensorProto.DataType.Name(number)
    for what, model in (("input 'x'", onnx_models.element_input), ("output 'y'", onnx_models.element_output)):
        assert read_facts(model(number)).unserved == f"{what} is {name}; the protocol has no datatype for that"


def test_all_element_types_are_known():
    assert set(elements.UNSUPPORTED) == set(TensorProto.DataType.values()) - {0, *onnx_models.ONNX_TYPES.values()}


def test_a_default_of_any_element_type_is_no_reason_against_a_model():
    whole = ModelProto.FromString(onnx_models.element_input(TensorProto.INT4))
    whole.graph.initializer.append(TensorProto(name="x", data_type=TensorProto.INT4, dims=[1], raw_data=b"\0"))
    whole.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    assert read_facts(whole.SerializeToString()).unserved is None


def test_the_work_of_an_optional_input_does_not_count():
    """A request that gives it never runs on the loop's thread."""
    assert read_facts(onnx_models.optional_bias()).sized_by_values is None


@pytest.mark.parametrize("damaged", [b"", b"\x0a", b"nothing", onnx_models.mlp()[:100]])
def test_of_what_cannot_be_read_nothing_is_known(damaged):
    facts = read_facts(damaged)
    assert facts.sized_by_values is not None
    assert facts.unserved is None
