"""Finds facts in a model's graph besides its signature: its operators, and whether run times follow from input shapes.

If input values decide the amount of work, a run can take any time: a ``Resize`` whose sizes are an input, a
``ConstantOfShape`` of a number, a ``Loop``. Such a model never runs on the event loop's thread. For any other model it
is proven that each operator is known, and that the sizes of its outputs follow from constants and the shapes of inputs.

Every node is visited once, also in functions and subgraphs. Values in a function are assumed to depend on inputs.

Pure, except that :mod:`fastinfer.backends.onnx.graph.visits` yields the GIL to other threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastinfer.backends.onnx import elements
from fastinfer.backends.onnx.graph import contents
from fastinfer.backends.onnx.graph.operators import ML, ONNX, RULES
from fastinfer.backends.onnx.graph.proto import Graph, Model, Node, ProtoError, Tensor, ValueInfo
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
        "EyeLike", "If", "MaxRoiPool", "MaxUnpool", "Multinomial", "NegativeLogLikelihoodLoss", "OptionalGetElement",
        "OptionalHasElement", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range",
        "ReverseSequence", "RoiAlign", "ScatterND", "SoftmaxCrossEntropyLoss",
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
        unserved: why an input or output cannot be served, as a sentence; None: nothing is known against them. The
            runtime describes sparse tensors as dense ones, and does not name some element types.
        inlined: the number of operators after the runtime has inlined the model's functions at load; at most a little
            above :data:`MAX_INLINED`.
        opsets: the version of each operator set that the model imports, by domain; the standard one is ``""``.
    """

    operators: frozenset[str] = frozenset()
    sized_by_values: str | None = "its graph is not read"
    unserved: str | None = None
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
        self._constants: dict[str, Tensor] = {}  # by name, for conditions of branches
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
            self._constants = {}
            self._follow(function.node, set(function.input), set(), 0)
        self._body = self._bodies[None] = []
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        sparse = _sparse_initializers(graph)
        # Optional inputs are left out: a request that gives one never runs on the event loop's thread.
        required = [info for info in graph.input if not _is_optional(info)]
        required = [info for info in required if info.name not in self._constants and info.name not in sparse]
        self._follow(graph.node, {info.name for info in required}, sparse, 0)
        unserved = _why_unserved(required, graph.output, sparse)
        opsets = {each.domain: each.version for each in self.model.opset_import}
        return Facts(frozenset(self.operators), self.reason, unserved, self._inlined(), opsets)

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

    def _follow(self, nodes: Sequence[Node], given: set[str], sparse: set[str], depth: int) -> None:
        """Visits nodes; adds the names of values that depend on input values to ``given``, and those of sparse tensors
        to ``sparse``."""
        if depth > _MAX_DEPTH:
            raise ProtoError(f"subgraphs are nested in more than {_MAX_DEPTH} levels")
        for node in nodes:
            self._visits.next()
            op_type, inputs, outputs = node.op_type, node.input, node.output
            self.operators.add(op_type)
            self._body.append((node.domain, op_type, node.overload))
            if op_type == "Constant":
                self._keep_constant(node, sparse)
            bodies: dict[str, list[bool]] = {}  # whether each output of a subgraph is sparse
            for name, graph in self._subgraphs(node, op_type):
                inner = given | {info.name for info in graph.input}
                inner_sparse = _sparse_initializers(graph)
                self._follow(graph.node, inner, inner_sparse, depth + 1)
                if any(info.name in inner for info in graph.output):
                    given |= set(outputs)
                bodies[name] = [info.name in inner_sparse for info in graph.output]
            sparse |= self._sparse_outputs(op_type, inputs, outputs, bodies)
            if self.reason is None:
                self.reason = self._why(node, op_type, [name in given for name in inputs])
            if op_type not in _SHAPES and any(name in given for name in inputs):
                given |= set(outputs)

    def _keep_constant(self, node: Node, sparse: set[str]) -> None:
        for attribute in node.attribute:
            if attribute.name == "sparse_value":
                sparse |= set(node.output)
            elif attribute.name == "value" and attribute.t is not None:
                self._constants |= dict.fromkeys(node.output, attribute.t)

    def _sparse_outputs(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str], bodies: Mapping[str, Sequence[bool]]
    ) -> set[str]:
        """Return the outputs of an operator with subgraphs that are sparse tensors, whichever subgraph runs."""
        if op_type == "If" and inputs and inputs[0] in self._constants:
            condition = contents.stored(self._constants[inputs[0]])
            if condition is not None and condition.size == 1:
                chosen = "then_branch" if condition.flat[0] else "else_branch"
                bodies = {name: body for name, body in bodies.items() if name == chosen}
        first = 1 if op_type == "Loop" else 0  # a loop's body begins with the condition
        return {
            name
            for at, name in enumerate(outputs, first)
            if bodies and all(at < len(body) and body[at] for body in bodies.values())
        }

    def _why(self, node: Node, op_type: str, given: Sequence[bool]) -> str | None:
        """Return why a node's amount of work may depend on values, or None."""
        key = ONNX if node.domain == "ai.onnx" else node.domain, op_type
        if key not in RULES and key not in _SIZED and (node.domain, op_type) not in self.functions:
            return f"operator '{op_type}' is not known to take a time that follows from shapes"
        by_values = any(at in _SIZES.get(op_type, ()) for at, depends in enumerate(given) if depends)
        if by_values or (op_type == "If" and any(given)):
            return f"operator '{op_type}' has work that depends on values"
        return None

    def _subgraphs(self, node: Node, op_type: str) -> Iterator[tuple[str, Graph]]:
        """Yield a node's subgraphs, each with its attribute's name."""
        key = ML, op_type
        if node.domain == ML and key in RULES and key not in self.functions:
            return  # it has none; to read an attribute's type is to walk its list, which may have millions of numbers
        for attribute in node.attribute:
            if attribute.type in (5, 10):  # GRAPH, GRAPHS
                for graph in [attribute.g] if attribute.g is not None else attribute.graphs:
                    yield attribute.name, graph


def _sparse_initializers(graph: Graph) -> set[str]:
    return {sparse.values.name for sparse in graph.sparse_initializer if sparse.values is not None}


def _is_optional(info: ValueInfo) -> bool:
    return info.type is not None and info.type.optional_type is not None


def _why_unserved(inputs: Sequence[ValueInfo], outputs: Sequence[ValueInfo], sparse: Collection[str]) -> str | None:
    """Compute :attr:`Facts.unserved`."""
    for what, infos in (("input", inputs), ("output", outputs)):
        for info in infos:
            if what == "output" and info.name in sparse:
                return f"output '{info.name}' is a sparse tensor; only tensors can be served"
            tensor = info.type.tensor_type if info.type is not None else None
            element = elements.UNSUPPORTED.get(tensor.elem_type) if tensor is not None else None
            if element is not None:
                return f"{what} '{info.name}' is {element}; {elements.NO_DATATYPE}"
    return None
