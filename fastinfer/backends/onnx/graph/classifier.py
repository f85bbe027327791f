"""Makes classifiers of scikit-learn, LightGBM and XGBoost servable as they are exported, and reads their class labels.

By default their exporters end the graph in ``ZipMap``, which turns a matrix of scores ``[rows, classes]`` into a map
from labels to scores for each row. No request protocol has maps. So each ``ZipMap`` is replaced by an ``Identity``: the
output keeps its name and becomes the matrix, and the labels, which are attributes of the operator, are returned beside
the model. The labels of a classifier without ``ZipMap`` are attributes of its own operator.

Only a ``ZipMap`` of the graph itself is replaced: maps are not allowed in subgraphs, and one in a function stays, so
that the model is refused. Models without operators of ``ai.onnx.ml`` are not read.

Pure, except that long walks and copies yield the GIL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fastinfer.backends.onnx.graph.operators import ML, ONNX
from fastinfer.backends.onnx.graph.proto import (
    Dimension,
    Graph,
    Model,
    Node,
    OperatorSetId,
    ProtoError,
    TensorShape,
    TensorType,
    Type,
    ValueInfo,
)
from fastinfer.backends.onnx.graph.visits import TooLargeError, Visits

_ZIP_MAP = "ZipMap"
_CLASSIFIERS = {"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"}  # output 1 has a score for each class
_SCORES = 1
_KEEP_COLUMNS = {"Cast", "Identity", "Normalizer", "Softmax"}
_LABELS = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
_FLOAT = 1  # TensorProto.DataType, the only type of scores that ZipMap takes
_OPSET = 13  # of Identity, in a model without operators of the standard domain

Classes = Mapping[str, Sequence[str]]
"""The labels of classes in order, by output."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model that answers with tensors.

    Attributes:
        model: its bytes; the same object if nothing had to be replaced.
        classes: the labels of its outputs' columns.
    """

    model: bytes | memoryview
    classes: Classes = field(default_factory=dict)


def read_classifier(model: bytes) -> Classifier:
    """Replace the maps of a model. Never raises: a model that cannot be read is returned as it is."""
    try:
        read = Model(model)
        if not any(each.domain == ML for each in read.opset_import) or read.graph is None:
            return Classifier(model)
        return _Reader(read, read.graph, model).classifier()
    except (ProtoError, RecursionError, TooLargeError):
        return Classifier(model)


class _Reader:
    """Reads one model."""

    def __init__(self, model: Model, graph: Graph, data: bytes) -> None:
        self._model, self._graph, self._data = model, graph, data
        self._outputs = {info.name for info in graph.output}
        self._zipped: dict[str, str] = {}  # outputs of ZipMap, with the values that feed them
        self._classes: dict[str, list[str]] = {}  # by value

    def classifier(self) -> Classifier:
        visits = Visits()
        nodes = []
        for node in self._graph.node:
            visits.next()
            nodes.append(self._follow(node))
        outputs = self._graph.output
        classes = {info.name: labels for info in outputs if (labels := self._labels_of(info))}
        if not self._zipped:
            return Classifier(self._data, classes)
        self._replace(nodes, outputs)
        return Classifier(self._model.to_buffer(), classes)

    def _labels_of(self, info: ValueInfo) -> list[str]:
        """Return the labels of an output's columns; none if they are unknown, or of another number."""
        labels = self._classes.get(info.name, [])
        return labels if info.name in self._zipped or _columns(info) == len(labels) else []

    def _follow(self, node: Node) -> Node:
        """Note the labels of a node's output. Return the node, or what replaces it."""
        op_type, inputs, outputs = node.op_type, node.input, node.output
        if op_type in _CLASSIFIERS and node.domain == ML and len(outputs) > _SCORES:
            self._classes[outputs[_SCORES]] = _labels(node)
        elif op_type in _KEEP_COLUMNS and inputs and outputs:
            self._classes[outputs[0]] = self._classes.get(inputs[0], [])
        elif op_type == _ZIP_MAP and node.domain == ML and inputs and self._outputs.intersection(outputs):
            self._classes[outputs[0]] = _labels(node)
            self._zipped[outputs[0]] = inputs[0]
            return _identity(inputs[0], outputs[0], node.name)
        return node

    def _replace(self, nodes: list[Node], outputs: Sequence[ValueInfo]) -> None:
        """Writes the new nodes, and the types of the outputs that were maps."""
        graph, zipped = self._graph, self._zipped
        ranks = _ranks([*graph.input, *graph.value_info], set(zipped.values()))
        graph.node = nodes
        graph.output = [
            _scores(info, len(self._classes[info.name]), ranks.get(zipped[info.name], 2))
            if info.name in zipped
            else info
            for info in outputs
        ]
        if any(info.name in zipped for info in graph.value_info):
            graph.value_info = [info for info in graph.value_info if info.name not in zipped]
        if all(each.domain not in (ONNX, "ai.onnx") for each in self._model.opset_import):
            standard = OperatorSetId()
            standard.domain, standard.version = ONNX, _OPSET
            self._model.opset_import = [*self._model.opset_import, standard]
        self._model.graph = graph


def _labels(node: Node) -> list[str]:
    """Return a classifier's or ZipMap's labels as text; none if it has no such attribute."""
    attributes = {name: each for each in node.attribute if (name := each.name) in _LABELS}
    for name in _LABELS:
        if name in attributes:
            each = attributes[name]
            labels = [str(label, "utf-8", "replace") for label in each.strings] or [str(label) for label in each.ints]
            if labels:
                return labels
    return []


def _identity(of: str, output: str, name: str) -> Node:
    node = Node()
    node.op_type, node.input, node.output, node.name = "Identity", [of], [output], name
    return node


def _columns(info: ValueInfo) -> int:
    """Return the size of an output's last dimension; 0: it is open, or the output is no tensor."""
    dims = _dims(info)
    return dims[-1].dim_value if dims else 0


def _ranks(infos: Iterable[ValueInfo], names: set[str]) -> dict[str, int]:
    """Return the ranks of those values whose shape is declared. (ZipMap also takes the scores of one row, a vector.)"""
    ranks = {info.name: dims for info in infos if info.name in names and (dims := _dims(info)) is not None}
    return {name: len(dims) for name, dims in ranks.items()}


def _dims(info: ValueInfo) -> list[Dimension] | None:
    tensor = info.type.tensor_type if info.type is not None else None
    return None if tensor is None or tensor.shape is None else tensor.shape.dim


def _scores(info: ValueInfo, classes: int, rank: int) -> ValueInfo:
    """Return an output with the type FP32 ``[-1, classes]``, or of another rank."""
    rows, columns = Dimension(), Dimension()
    if classes:
        columns.dim_value = classes
    tensor, shape, kind, made = TensorType(), TensorShape(), Type(), info.copy()
    shape.dim = [*[rows] * (rank - 1), columns]
    tensor.elem_type, tensor.shape = _FLOAT, shape
    kind.tensor_type = tensor
    made.type = kind
    return made
