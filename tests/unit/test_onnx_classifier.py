"""Classifiers as they are exported: the rewritten graph, and the labels of its classes."""

import classifier_models as models
import onnx
import onnx_models
import pytest
from classifier_models import ML, NAMES, NUMBERS
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fastinfer.backends.labels import labels_of_classes
from fastinfer.backends.onnx.graph.classifier import read_classifier
from fastinfer.backends.onnx.graph.facts import read_facts
from fastinfer.backends.onnx.graph.rows import prove

TEXTS = [str(each) for each in NUMBERS]


def rewritten(model):
    """The model that is served, and its classes."""
    read = read_classifier(model.SerializeToString())
    served = onnx.load_model_from_string(bytes(read.model))
    onnx.checker.check_model(served)
    return served, read.classes


def shape_of(served, name):
    (info,) = (each for each in served.graph.output if each.name == name)
    tensor = info.type.tensor_type
    assert tensor.elem_type == TensorProto.FLOAT
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]


@pytest.mark.parametrize(
    ("made", "output", "classes"),
    [
        (models.sklearn, "output_probability", NAMES),
        (lambda: models.sklearn(9), "output_probability", NAMES),
        (models.lightgbm, "probabilities", TEXTS),
        (models.lightgbm_binary, "p", ["0", "1"]),
        (models.xgboost_zipped, "probabilities", TEXTS),
        (models.columns, "probability", ["dead", "survived"]),
        (models.text, "probability", ["neg", "pos"]),
    ],
)
def test_a_map_becomes_the_scores_that_feed_it(made, output, classes):
    original = made()
    served, found = rewritten(original)
    assert found == {output: classes}
    assert shape_of(served, output) == [-1, len(classes)]
    assert [each.name for each in served.graph.output] == [each.name for each in original.graph.output]
    assert "ZipMap" not in {node.op_type for node in served.graph.node}
    others = [node for node in original.graph.node if node.op_type != "ZipMap"]
    assert [node for node in served.graph.node if node.name != "Zip"] == others
    assert served.graph.initializer == original.graph.initializer
    assert prove(read_classifier(original.SerializeToString()).model).couples is None or made is models.text


def test_a_model_without_maps_is_the_same_object():
    for data in (onnx_models.simple(), models.xgboost().SerializeToString(), b"", b"\xff" * 100):
        assert read_classifier(data).model is data


def test_a_classifier_without_a_map_has_labels_too():
    assert read_classifier(models.xgboost().SerializeToString()).classes == {"probabilities": TEXTS}


def test_scores_of_another_number_of_columns_have_no_labels():
    nodes = [models.linear(NAMES, ("label", "p"))]
    outputs = [onnx_models.value("label", "BYTES", [None]), onnx_models.value("p", "FP32", [None, 6])]
    model = models.model(nodes, [models.features()], outputs)
    assert not read_classifier(model.SerializeToString()).classes


def test_the_standard_domain_is_imported_if_it_is_not():
    served, _ = rewritten(models.xgboost_zipped())
    assert sorted(each.domain for each in served.opset_import) == ["", ML]
    served, _ = rewritten(models.sklearn())
    assert sorted(each.domain for each in served.opset_import) == ["", ML]


def test_two_maps_of_scores_that_are_an_output_themselves():
    nodes = [models.linear(NAMES, ("label", "p")), models.zip_map("p", "one"), models.zip_map("p", "two", NUMBERS)]
    outputs = [
        models.scored("one"),
        onnx_models.value("p", "FP32", [None, 3]),
        models.scored("two", TensorProto.INT64),
    ]
    served, classes = rewritten(models.model(nodes, [models.features()], outputs))
    assert classes == {"one": NAMES, "two": TEXTS, "p": NAMES}
    assert [shape_of(served, name) for name in ("one", "p", "two")] == [[-1, 3]] * 3


def test_the_scores_of_one_row_are_a_vector():
    model = models.model([models.zip_map("x", "y")], [onnx_models.value("x", "FP32", [3])], [models.scored("y")])
    served, _ = rewritten(model)
    assert shape_of(served, "y") == [3]


def test_a_declaration_of_the_map_within_the_graph_is_dropped():
    model = models.sklearn()
    model.graph.value_info.extend([models.scored("output_probability"), onnx_models.value("p", "FP32", [None, 3])])
    served, _ = rewritten(model)
    assert [info.name for info in served.graph.value_info] == ["p"]


def test_a_map_within_a_function_stays():
    model = models.sklearn()
    node = helper.make_node("Zipped", ["p"], ["output_probability"], domain="own")
    body = models.zip_map("s", "z")
    function = helper.make_function("own", "Zipped", ["s"], ["z"], [body], [helper.make_opsetid(ML, 1)])
    model.graph.node[-1].CopyFrom(node)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    data = model.SerializeToString()
    assert read_classifier(data).model is data


def test_a_map_that_is_no_output_stays():
    model = models.sklearn()
    del model.graph.output[1]
    data = model.SerializeToString()
    assert read_classifier(data).model is data


def test_long_lists_are_not_walked():
    node = models.trees()
    end = b"\xff\xff"  # as an attribute's end, it is found out by who walks the lists before it
    attribute = helper.make_attribute("nodes_hitrates", [0.5] * 1000).SerializeToString() + end
    data = models.model([node, models.zip_map("raw", "y", NUMBERS)], [models.features()], [models.scored("y")])
    name = b"nodes_hitrates"
    node.attribute.append(helper.make_attribute("nodes_hitrates", [0.5] * 1000))
    data.graph.node[0].CopyFrom(node)
    whole = data.SerializeToString()
    good = helper.make_attribute("nodes_hitrates", [0.5] * 1000).SerializeToString()
    assert whole.count(good) == 1
    damaged = whole.replace(good, attribute[: len(good) - len(end)] + end)
    assert name in damaged
    assert len(damaged) == len(whole)
    read = read_classifier(damaged)
    assert read.classes == {"y": TEXTS}
    assert "TreeEnsembleClassifier" in read_facts(read.model).operators
    assert prove(read.model).couples is None


def test_labels_of_classes(caplog):
    labels = labels_of_classes({"a": ["one", "t\nwo", "", "f\x00ur"], "b": ["x" * 1025]})
    assert len(labels["a"]) == 4
    assert list(labels) == ["a"]
    assert "the classes of output 'b' have no labels" in caplog.text


@given(st.data())
@pytest.mark.hypothesis
def test_damaged_classifiers_are_read_or_left(data):
    whole = bytearray(models.lightgbm().SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert read_classifier(damaged).model is not None
