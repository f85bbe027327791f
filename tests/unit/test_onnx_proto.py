"""Reading and writing ONNX models as protobuf messages, against the onnx package."""

from pathlib import Path

import numpy as np
import onnx
import onnx_models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from fastinfer.backends.onnx.graph import proto
from fastinfer.backends.onnx.graph.proto import Message, ProtoError
from fastinfer.backends.onnx.graph.rows import prove

MODELS = sorted((Path(__file__).parents[2] / "model-repository").glob("*/*/*.onnx"))

DECLARED = {
    proto.Attribute: onnx.AttributeProto,
    proto.Dimension: onnx.TensorShapeProto.Dimension,
    proto.Function: onnx.FunctionProto,
    proto.Graph: onnx.GraphProto,
    proto.Model: onnx.ModelProto,
    proto.Node: onnx.NodeProto,
    proto.OperatorSetId: onnx.OperatorSetIdProto,
    proto.SparseTensor: onnx.SparseTensorProto,
    proto.StringStringEntry: onnx.StringStringEntryProto,
    proto.Tensor: onnx.TensorProto,
    proto.TensorShape: onnx.TensorShapeProto,
    proto.TensorType: onnx.TypeProto.Tensor,
    proto.Type: onnx.TypeProto,
    proto.OptionalType: onnx.TypeProto.Optional,
    proto.ValueInfo: onnx.ValueInfoProto,
}
KINDS = {2: "float", 3: "int64", 5: "int32", 9: "string", 11: "message", 12: "bytes", 14: "int32"}


def test_every_message_is_compared():
    assert set(DECLARED) == set(Message.__subclasses__())


@pytest.mark.parametrize("ours", DECLARED, ids=lambda ours: ours.__name__)
def test_declarations_are_those_of_the_onnx_package(ours):
    known = DECLARED[ours].DESCRIPTOR.fields_by_name
    fields = {name: field for name, field in vars(ours).items() if isinstance(field, proto._Field)}
    assert fields
    for name, field in fields.items():
        assert (field.number, field.kind) == (known[name].number, KINDS[known[name].type]), name
        assert ("s" in type(field).__name__[-1:]) == known[name].is_repeated, name
        if field.message is not None:
            assert DECLARED[field.message()].DESCRIPTOR is known[name].message_type


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parts[-3])
def test_a_model_is_read_as_the_onnx_package_reads_it_and_written_back(path):
    data = path.read_bytes()
    ours, theirs = proto.Model(data), onnx.ModelProto.FromString(data)
    assert ours.graph is not None
    assert [(n.op_type, n.input, n.output, n.name) for n in ours.graph.node] == [
        (n.op_type, list(n.input), list(n.output), n.name) for n in theirs.graph.node
    ]
    assert [(t.name, t.dims, t.data_type) for t in ours.graph.initializer] == [
        (t.name, list(t.dims), t.data_type) for t in theirs.graph.initializer
    ]
    ours.graph = ours.graph  # through nested messages
    assert onnx.ModelProto.FromString(ours.to_bytes()) == theirs


def test_weights_are_not_copied():
    weights = np.zeros(1_000_000, dtype=np.float32)
    data = onnx_models.model([], [], [], [numpy_helper.from_array(weights, "w")])
    graph = proto.Model(data).graph
    assert graph is not None
    assert graph.initializer[0].raw_data.obj is data


def test_a_graph_can_be_changed():
    model = proto.Model(onnx_models.simple())
    graph = model.graph
    assert graph is not None
    node = proto.Node()
    node.op_type, node.input, node.output = "Identity", [graph.output[0].name], ["again"]
    output = graph.output[0].copy()
    output.name = "again"
    graph.node = [*graph.node, node]
    graph.output = [*graph.output, output]
    model.graph = graph
    changed = onnx.ModelProto.FromString(model.to_bytes())
    onnx.checker.check_model(changed, full_check=True)
    assert [o.name for o in changed.graph.output] == ["OUTPUT0", "OUTPUT1", "again"]
    assert changed.graph.node[-1].op_type == "Identity"


def test_what_is_unchanged_is_written_as_it_was_read():
    spelled = b"\x0a\x81\x00x"  # an input 'x', whose length is written in two bytes
    graph = proto.Graph(b"\x0a\x04" + spelled + b"\x12\x01g")
    graph.name = "other"
    graph.node = [*graph.node, proto.Node(spelled)]
    assert graph.node[0].input == ["x"]
    assert graph.to_bytes() == b"\x12\x05other" + (b"\x0a\x04" + spelled) * 2


def test_an_assignment_is_not_affected_by_later_changes():
    graph, node = proto.Graph(), proto.Node()
    node.op_type = "Neg"
    graph.node = [node]
    node.op_type = "Abs"
    assert [each.op_type for each in graph.node] == ["Neg"]
    copy = graph.copy()
    copy.node = []
    assert len(graph.node) == 1


def test_a_large_message_is_written_in_parts(monkeypatch):
    monkeypatch.setattr(proto, "_BYTES_A_TURN", 7)
    model = proto.Model(onnx_models.mlp())
    assert bytes(model.to_buffer()) == onnx_models.mlp()
    model.graph = model.graph
    assert bytes(model.to_buffer()) == model.to_bytes()
    assert onnx.ModelProto.FromString(model.to_bytes()) == onnx.ModelProto.FromString(onnx_models.mlp())


def test_long_lists_of_an_attribute_are_not_walked_for_its_name():
    attribute = helper.make_attribute("nodes_values", [0.5] * 100_000)
    data = attribute.SerializeToString() + b"\xff"  # cut off, which would be found out at the end
    ours = proto.Attribute(data)
    assert ours.name == "nodes_values"
    with pytest.raises(ProtoError):
        _ = ours.floats


def test_packed_and_single_numbers_are_the_same():
    assert proto.Attribute(b"\x40\x01\x40\x02").ints == [1, 2]
    assert proto.Attribute(b"\x42\x02\x01\x02").ints == [1, 2]
    assert proto.Attribute(b"\x40" + b"\xff" * 9 + b"\x01").ints == [-1]


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x05abc", b"\x0b", b"\x00\x01", b"\x08" + b"\xff" * 11, b"\x0d\x00", b"\x80"],
    ids=["no size", "too long", "group", "number 0", "long number", "short float", "cut tag"],
)
def test_what_is_no_message_is_an_error(data):
    with pytest.raises(ProtoError):
        _ = proto.Node(data).name


@given(st.binary(max_size=300))
@pytest.mark.hypothesis
def test_any_bytes_have_a_verdict(data):
    assert prove(data).couples is not None


@given(st.data())
@pytest.mark.hypothesis
def test_damaged_models_have_a_verdict(data):
    whole = bytearray(onnx_models.mlp(4))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    prove(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
