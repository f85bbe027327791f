"""Finds facts in a model's graph besides its signature: its operators, and whether run times follow from input shapes.

If input values decide the amount of work, a run can take any time: a ``Resize`` whose sizes are an input, a
``ConstantOfShape`` of a number, a ``Loop``. Such a model never runs on the event loop's thread. For any other model it
is proven that each operator is known, and that the sizes of its outputs follow from constants and the shapes of inputs.

Every node is visited once, also in functions and subgraphs. Values in a function are assumed to depend on inputs.

Pure, except that :mod:`fastinfer.backends.onnx.graph.visits` yields the GIL to other threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastinfer.backends.onnx.graph.operators import ML, ONNX, RULES
from fastinfer.backends.onnx.graph.proto import Graph, Model, Node, ProtoError
from fastinfer.backends.onnx.graph.visits import MAX_NODES, TooLargeError, Visits

MAX_INLINED = MAX_NODES
_MAX_DEPTH = 32  # of nested subgraphs

# Inputs whose values decide the amount of work: mostly the sizes of outputs, but also the lengths of sequences and the
# number of sampling points of a region.
_SIZES = {
    "AffineGrid": {1}, "Attention": {6}, "CenterCropPad": {1}, "Col2Im": {1, 2}, "Compress": {1},
    "ConstantOfShape": {0}, "DFT": {1, 2}, "DynamicQuantizeLSTM": {4}, "Expand": {1}, "GRU": {4},
    "GroupQueryAttention": {5, 6}, "LSTM": {4}, "MaxRoiPool": {1}, "MaxUnpool": {2}, "OneHot": {1}, "Pad": {1, 3},
    "RNN": {4}, "Range": {0, 1, 2}, "Reshape": {1}, "Resize": {1, 2, 3}, "RoiAlign": {1}, "Slice": {1, 2, 3, 4},
    "Split": {1}, "Squeeze": {1}, "Tile": {1}, "TopK": {1}, "Unsqueeze": {1}, "Upsample": {1},
} | {
    f"Reduce{name}": {1}
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
}  # fmt: skip

# Operators without a rule for rows, whose outputs' sizes follow from their inputs' sizes.
_SIZED = {
    ("", name)
    for name in (
        "AffineGrid", "Bernoulli", "CenterCropPad", "Col2Im", "Constant", "DFT", "Det", "DynamicQuantizeLinear",
        "EyeLike", "If", "MaxRoiPool", "MaxUnpool", "Multinomial", "NegativeLogLikelihoodLoss", "RandomNormal",
        "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "ReverseSequence", "RoiAlign", "ScatterND",
        "SoftmaxCrossEntropyLoss",
    )
} | {
    ("com.microsoft", name)
    for name in ("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GroupQueryAttention", "PackedAttention")
}  # fmt: skip

_SHAPES = {"Shape", "Size"}  # operators whose outputs depend only on their inputs' sizes


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a graph.

    Attributes:
        operators: the types of all operators, those of functions and subgraphs included.
        sized_by_values: why the amount of work may depend on input values, as a clause; None: it does not.
        sparse_outputs: outputs that are sparse tensors.
        inlined: the number of operators after the runtime has inlined the model's functions at load; at most a little
            above :data:`MAX_INLINED`.
        opsets: the version of each operator set that the model imports, by domain; the standard one is ``""``.
    """

    operators: frozenset[str] = frozenset()
    sized_by_values: str | None = "its graph is not read"
    sparse_outputs: tuple[str, ...] = ()
    inlined: int = 0
    opsets: Mapping[str, int] = field(default_factory=dict)


def read_facts(model: bytes | memoryview) -> Facts:
    """Read the facts from a model file's bytes. Never raises: an unreadable graph has the default facts."""
    try:
        return _Reader(Model(model)).facts()
    except (ProtoError, RecursionError, TooLargeError):
        return Facts()


_Function = tuple[str, str, str]  # domain, name, overload


class _Reader:
    """Walks one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.operators: set[str] = set()
        self.sparse: set[str] = set()  # values that are sparse tensors
        self.reason: str | None = None
        self._visits = Visits()
        self._bodies: dict[_Function | None, list[_Function]] = {}  # the operators of each function; None: the graph
        self._body: list[_Function] = []
        self.functions = {(each.domain, each.name) for each in model.functions}

    def facts(self) -> Facts:
        graph = self.model.graph
        if graph is None:
            return Facts()
        for function in self.model.functions:
            self._body = self._bodies[function.domain, function.name, function.overload] = []
            self._follow(function.node, set(function.input), 0)
        self._body = self._bodies[None] = []
        constants = {tensor.name for tensor in graph.initializer}
        self._follow(graph.node, {info.name for info in graph.input} - constants, 0)
        for sparse in graph.sparse_initializer:
            if sparse.values is not None:
                self.sparse.add(sparse.values.name)
        outputs = tuple(info.name for info in graph.output if info.name in self.sparse)
        opsets = {each.domain: each.version for each in self.model.opset_import}
        return Facts(frozenset(self.operators), self.reason, outputs, self._inlined(), opsets)

    def _inlined(self) -> int:
        """Compute :attr:`Facts.inlined`. A recursive function counts as too many operators."""
        sizes: dict[_Function | None, int] = {}
        open_: list[_Function | None] = [None]
        while open_:
            of = open_[-1]
            called = [each for each in self._bodies[of] if each in self._bodies]
            unknown = {each for each in called if each not in sizes}
            if unknown and of not in sizes:
                sizes[of] = MAX_INLINED + 1  # while it is open, so that recursion counts as too many
                open_ += unknown
                continue
            open_.pop()
            calls = Counter(called)
            size = len(self._bodies[of]) + sum(sizes[each] * count for each, count in calls.items())
            sizes[of] = min(size, MAX_INLINED + 1)
        return sizes[None]

    def _follow(self, nodes: Sequence[Node], given: set[str], depth: int) -> None:
        """Visits nodes; adds the names of values that depend on input values to ``given``."""
        if depth > _MAX_DEPTH:
            raise ProtoError(f"subgraphs are nested in more than {_MAX_DEPTH} levels")
        for node in nodes:
            self._visits.next()
            op_type, inputs, outputs = node.op_type, node.input, node.output
            self.operators.add(op_type)
            self._body.append((node.domain, op_type, node.overload))
            if op_type == "Constant" and any(attribute.name == "sparse_value" for attribute in node.attribute):
                self.sparse |= set(outputs)
            for graph in self._subgraphs(node, op_type):
                inner = given | {info.name for info in graph.input}
                self._follow(graph.node, inner, depth + 1)
                if any(info.name in inner for info in graph.output):
                    given |= set(outputs)
            if self.reason is None:
                self.reason = self._why(node, op_type, [name in given for name in inputs])
            if op_type not in _SHAPES and any(name in given for name in inputs):
                given |= set(outputs)

    def _why(self, node: Node, op_type: str, given: Sequence[bool]) -> str | None:
        """Return why a node's amount of work may depend on values, or None."""
        key = ONNX if node.domain == "ai.onnx" else node.domain, op_type
        if key not in RULES and key not in _SIZED and (node.domain, op_type) not in self.functions:
            return f"operator '{op_type}' is not known to take a time that follows from shapes"
        by_values = any(at in _SIZES.get(op_type, ()) for at, depends in enumerate(given) if depends)
        if by_values or (op_type == "If" and any(given)):
            return f"operator '{op_type}' has work that depends on values"
        return None

    def _subgraphs(self, node: Node, op_type: str) -> Iterator[Graph]:
        key = ML, op_type
        if node.domain == ML and key in RULES and key not in self.functions:
            return  # it has none; to read an attribute's type is to walk its list, which may have millions of numbers
        for attribute in node.attribute:
            if attribute.type in (5, 10):  # GRAPH, GRAPHS
                yield from ([attribute.g] if attribute.g is not None else attribute.graphs)
