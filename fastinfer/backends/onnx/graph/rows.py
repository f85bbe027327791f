"""Proves from a model's graph alone that the rows of a batch do not depend on each other, for any values.

One dimension of each input (the first, unless the caller names another) is assumed to be the batch dimension, and
followed through every operator (:mod:`fastinfer.backends.onnx.graph.operators`). If it becomes one dimension of every
output, each row's answer depends on that row alone, so rows may be batched and split freely. An input may also have no
batch dimension; then a batch has one value of it. Rounding may still differ, because the number of rows selects the
runtime's kernels; :attr:`Proof.rounds` names an operator whose results may.

The proof uses the stored graph, quantized operators included; the runtime's optimizer keeps its meaning. Subgraphs and
model-local functions are followed. All work is bounded: visited operators, nesting, and elements of constants.

Pure, except that :mod:`fastinfer.backends.onnx.graph.visits` yields the GIL to other threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fastinfer.backends.onnx.graph import branches, contents, loops
from fastinfer.backends.onnx.graph.dims import BATCH, DependsOnBatch, Dim, Symbols
from fastinfer.backends.onnx.graph.nodes import (
    Attributes,
    constant_of,
    domain_of,
    named,
    opsets_of,
    with_known,
)
from fastinfer.backends.onnx.graph.operators import (
    COUPLES,
    MICROSOFT,
    ML,
    ONNX,
    RANDOM,
    RULES,
    SAME_BITS,
    SHAPE_INPUTS,
    Call,
    places,
    texts,
)
from fastinfer.backends.onnx.graph.proto import (
    Attribute,
    Function,
    Graph,
    Model,
    Node,
    ProtoError,
    ValueInfo,
)
from fastinfer.backends.onnx.graph.values import Mixes, NeverRuns, Value, constant, free
from fastinfer.backends.onnx.graph.visits import TooLargeError, Visits

_MAX_DEPTH = 32  # of nested functions and subgraphs
_MIN_OPSET = 7  # older versions broadcast by attributes; ONNX Runtime does not promise to run them
_RUNTIME_FORMAT = b"ORTM"


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a proof.

    Attributes:
        couples: why rows may depend on each other, as a clause; None: they do not. The proof does not cover a request
            with a dimension of 0, so that request runs alone.
        rounds: the operator whose rounding of a row may depend on the batch; None: none.
        id_limits: for inputs whose elements select rows of tables: the number of rows of the smallest table.
        output_axes: the batch dimension of each output.
        never: the runtime refuses to run the graph.
    """

    couples: str | None
    rounds: str | None = None
    id_limits: Mapping[str, int] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)
    never: bool = False


def prove(model: bytes | memoryview, axes: Mapping[str, int] | None = None) -> Proof:
    """Prove from a model file's bytes. Never raises: an unreadable graph has no proof.

    Args:
        model: the file's content.
        axes: the batch dimension of inputs for which it is not the first; -1: the input has none.
    """
    if bytes(memoryview(model)[4:8]) == _RUNTIME_FORMAT:
        return Proof("it is in ONNX Runtime's own format (.ort), whose graph is not read")
    try:
        return _prove(Model(model), axes or {})
    except ProtoError as error:
        return Proof(f"its graph cannot be read: {error}")
    except TooLargeError as error:
        return Proof(str(error))
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError):
        return Proof("its graph cannot be followed")


def _prove(model: Model, axes: Mapping[str, int]) -> Proof:
    """Prove for each combination of choices in branches that depend on sizes."""
    visits = Visits()
    left: list[branches.Choices] = [()]
    proofs: list[Proof] = []
    never = None
    for _ in range(branches.MAX_COMBINATIONS):
        choices = left.pop()
        try:
            proof = _Prover(model, axes, visits, choices).proof()
        except branches.UndecidedError:
            left += [(*choices, False), (*choices, True)]
            continue
        if proof.never:
            never = proof
        elif proof.couples is not None:
            return proof
        else:
            proofs.append(proof)
        if not left:
            return _combined(proofs) if proofs else never or Proof("it has no graph")
    return Proof("it has too many branches that depend on sizes")


def _combined(proofs: Sequence[Proof]) -> Proof:
    """Combine the proofs for all choices."""
    first = proofs[0]
    if any(proof.output_axes != first.output_axes for proof in proofs):
        return Proof("sizes decide along which dimension of an output the rows are")
    limits: dict[str, int] = {}
    for proof in proofs:
        for name, limit in proof.id_limits.items():
            limits[name] = min(limit, limits.get(name, limit))
    return Proof(None, next((proof.rounds for proof in proofs if proof.rounds), None), limits, first.output_axes)


Scope = dict[str, Value]

# The value of an input of an optional type: a request that gives one runs alone.
_LEFT_OUT = Value(None, mixed="an optional input is used without a check whether it is there")


class _Prover:
    """Follows the rows of one model."""

    def __init__(self, model: Model, axes: Mapping[str, int], visits: Visits, choices: branches.Choices) -> None:
        self._model = model
        self._axes = axes
        self._decisions = branches.Decisions(choices)
        self._symbols = Symbols()
        self._functions = {(each.domain, each.name, each.overload): each for each in model.functions}
        self._id_limits: dict[str, int] = {}
        self._visits = visits

    def proof(self) -> Proof:
        graph = self._model.graph
        if graph is None:
            return Proof("it has no graph")
        opsets = opsets_of(self._model.opset_import)
        if opsets.get(ONNX, _MIN_OPSET) < _MIN_OPSET:
            return Proof(
                f"its operators are of version {opsets[ONNX]}; only versions from {_MIN_OPSET} on are supported"
            )
        scope = self._constants(graph)
        for info in graph.input:
            if info.name not in scope:
                scope[info.name] = self._input(info)
        self._run(graph.node, scope, opsets, {}, 0)
        rounds = None
        output_axes = {}
        for info in graph.output:
            value = scope.get(info.name) or Value(None, mixed=f"output '{info.name}' is not computed")
            reason = _why_not_rows(value)
            if reason is not None:
                return Proof(value.mixed or f"output '{info.name}' {reason}", never=value.never)
            rounds = rounds or value.rounds
            output_axes[info.name] = value.axis or 0
        return Proof(None, rounds, self._id_limits, output_axes)

    def _constants(self, graph: Graph) -> Scope:
        scope: Scope = {}
        for tensor in graph.initializer:
            content = contents.stored(tensor)
            scope[tensor.name] = Value(tuple(Dim(dim) for dim in tensor.dims), content=content)
        for sparse in graph.sparse_initializer:
            if sparse.values is not None:
                scope[sparse.values.name] = free([Dim(dim) for dim in sparse.dims])
        return scope

    def _input(self, info: ValueInfo) -> Value:
        """Make the value of a graph input, with one dimension as the batch."""
        if info.type is not None and info.type.optional_type is not None:
            return _LEFT_OUT
        axis = self._axes.get(info.name, 0)
        tensor = info.type.tensor_type if info.type is not None else None
        shape = tensor.shape if tensor is not None else None
        if shape is None or axis >= len(shape.dim):
            which = "first dimension" if axis == 0 else f"dimension {axis}"
            return Value(None, mixed=f"input '{info.name}' has no {which}")
        given = shape.dim
        if axis >= 0 and not given[axis].is_open and given[axis].dim_value >= 0:
            which = "the first dimension" if axis == 0 else f"dimension {axis}"
            return Value(None, mixed=f"{which} of input '{info.name}' is always {given[axis].dim_value}")
        # Dimensions of one name are assumed equal. The runtime does not check that, but the signature does: a request
        # in which they differ runs alone (Signature.check).
        dims = [
            Dim(dim.dim_value)
            if not dim.is_open and dim.dim_value >= 0
            else self._symbols.size(("named", dim.dim_param) if dim.dim_param else (info.name, i), filled=True)
            for i, dim in enumerate(given)
            if i != axis
        ]
        if axis < 0:
            return free(dims)
        return Value((*dims[:axis], BATCH, *dims[axis:]), axis, source=info.name)

    # --- Nodes --------------------------------------------------------------------------------------------------------

    def _run(
        self,
        nodes: Sequence[Node],
        scope: Scope,
        opsets: Mapping[str, int],
        given: Mapping[str, Attribute],
        depth: int,
    ) -> None:
        """Adds the values of the nodes' outputs to the scope; ``given``: attributes of the enclosing call."""
        if depth > _MAX_DEPTH:
            raise TooLargeError(f"its functions or subgraphs are nested in more than {_MAX_DEPTH} levels")
        for node in nodes:
            self._visits.next()
            names = node.output
            made = self._apply(node, len(names), scope, opsets, given, depth)
            for i, name in enumerate(names):
                if name:
                    scope[name] = made[i]

    def _apply(
        self,
        node: Node,
        outputs: int,
        scope: Scope,
        opsets: Mapping[str, int],
        given: Mapping[str, Attribute],
        depth: int,
    ) -> list[Value]:
        """Compute a value for each output of a node."""
        inputs = [scope.get(name) if name else None for name in node.input]
        domain = domain_of(node.domain)
        attributes = Attributes(node, given)
        for name, value in zip(node.input, inputs, strict=True):
            if name and value is None:
                raise ProtoError(f"'{name[:60]}' is used before it is computed")
        function = self._functions.get((node.domain, node.op_type, node.overload))
        if (domain, node.op_type) == (ONNX, "OptionalHasElement") and inputs[:1] == [_LEFT_OUT]:
            return [constant(False)]
        mixed = [value for value in inputs if value is not None and value.mixed is not None]
        if mixed:
            worst = max(mixed, key=lambda value: value.never)
            return [Value(None, mixed=worst.mixed, never=worst.never)] * outputs
        if function is not None and (domain in (ONNX, ML, MICROSOFT) or (domain, node.op_type) in RULES):
            reason = "is defined both by the model and by ONNX"
            return [Value(None, mixed=f"operator '{node.op_type}'{named(node)} {reason}")] * outputs
        if function is not None:
            return self._call(function, inputs, attributes, outputs, depth)
        call = Call(
            domain, node.op_type, opsets.get(domain, 1), attributes, inputs, self._symbols, outputs, self._id_limits
        )
        try:
            made = self._follow(call, scope, opsets, given, depth)
        except Mixes as reason:
            # A deterministic operator whose inputs have no rows has outputs without rows.
            if _draws_nothing(call) and all(value is None or value.is_free for value in inputs):
                return [free(None)] * outputs
            text = f"operator '{node.op_type}'{named(node)} {reason}"
            made = [Value(None, mixed=text, never=isinstance(reason, NeverRuns))] * outputs
        made += [Value(None, mixed=f"operator '{node.op_type}'{named(node)} has an output without a rule")] * (
            outputs - len(made)
        )
        return [self._with_rounding(value, call) for value in made]

    def _with_rounding(self, value: Value, call: Call) -> Value:
        if value.axis is None or value.rounds is not None:
            return value
        rounds = next((each.rounds for each in call.inputs if each is not None and each.rounds is not None), None)
        if rounds is None and call.op_type not in SAME_BITS:
            rounds = call.op_type
        return value if rounds is None else replace(value, rounds=rounds)

    def _follow(
        self, call: Call, scope: Scope, opsets: Mapping[str, int], given: Mapping[str, Attribute], depth: int
    ) -> list[Value]:
        if call.domain == ONNX:
            if opsets.get(ONNX, 0) < _MIN_OPSET:
                raise Mixes("is of a version that is not known")
            if call.op_type == "Constant":
                return [constant_of(call)]
            if call.op_type == "If":
                return self._branch(call, scope, opsets, given, depth)
            if call.op_type in ("Loop", "Scan"):
                follow_body = loops.loop if call.op_type == "Loop" else loops.scan
                return follow_body(call, partial(self._body, scope, opsets, given, depth))
            computed = self._compute(call)
            if computed is not None:
                return computed
        positions = SHAPE_INPUTS.get(call.op_type, set())
        if any(value is not None and value.counts_rows and at not in positions for at, value in enumerate(call.inputs)):
            raise Mixes("computes with the batch size")
        follow = RULES.get((call.domain, call.op_type))
        if follow is None:
            raise Mixes(COUPLES.get(call.op_type, "is not known to keep rows apart"))
        try:
            place = places.place_of(call)
            filling = texts.filling_of(call)
            loose = [i for i, value in enumerate(call.inputs) if value is not None and value.loose]
            if loose and (call.domain != ONNX or call.op_type not in _KEEP_EMPTY or loose != [0]):
                raise Mixes("computes with sizes that may differ if one of them is 0")
            made = places.placed(follow(call), place)
            if filling is not None:
                return [replace(value, filled_with=filling) for value in made]
            return [replace(value, loose=True) for value in made] if loose and call.op_type != "Reshape" else made
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, ProtoError):
                raise
            raise Mixes("has inputs or attributes that are not supported") from error

    def _compute(self, call: Call) -> list[Value] | None:
        """Evaluate an operator with known contents; None: that is not possible."""
        known = [None if value is None else value.content for value in call.inputs]
        if not known or any(value is not None and value.content is None for value in call.inputs):
            return None
        try:
            return [constant(content) for content in contents.compute(call.op_type, call, known)]
        except DependsOnBatch:
            raise Mixes("computes with the batch size") from None
        except (contents.Unknown, ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, ProtoError):
                raise
            return None

    # --- Functions and subgraphs --------------------------------------------------------------------------------------

    def _call(
        self,
        function: Function,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Attribute],
        outputs: int,
        depth: int,
    ) -> list[Value]:
        """Follow the call of a model-local function."""
        scope = {name: value for name, value in zip(function.input, inputs, strict=False) if value is not None}
        given = {each.name: each for each in function.attribute_proto} | dict(attributes)
        self._run(with_known(function, scope), scope, opsets_of(function.opset_import), given, depth + 1)
        made = [scope.get(name) for name in function.output[:outputs]]
        return [
            value if value is not None else Value(None, mixed=f"function '{function.name[:60]}' lacks an output")
            for value in made + [None] * (outputs - len(made))
        ]

    def _branch(
        self, call: Call, scope: Scope, opsets: Mapping[str, int], given: Mapping[str, Attribute], depth: int
    ) -> list[Value]:
        condition = call.need(0)
        if not condition.is_free:
            raise Mixes("chooses for all rows together")
        graphs = [call.attributes[name].g for name in ("then_branch", "else_branch") if name in call.attributes]
        if len(graphs) != 2 or any(graph is None for graph in graphs):
            raise Mixes("lacks a branch")
        sizes = branches.by_sizes(condition.content)
        if condition.content is not None and condition.content.size == 1 and sizes is None:
            graphs = graphs[:1] if condition.content.flat[0] else graphs[1:]
        made = [self._subgraph(graph, scope, opsets, given, depth) for graph in graphs if graph is not None]
        if len(made) == 1:
            return made[0]
        if len(made[0]) != len(made[1]):
            raise Mixes("has branches with different numbers of outputs")
        merged = branches.merged(made)
        if sizes is None or all(value.mixed is None for value in merged):
            return merged
        return made[0] if self._decisions.decide(sizes) else made[1]

    def _subgraph(
        self, graph: Graph, scope: Scope, opsets: Mapping[str, int], given: Mapping[str, Attribute], depth: int
    ) -> list[Value]:
        inner = {**scope, **self._constants(graph)}
        self._run(graph.node, inner, opsets, given, depth + 1)
        return _outputs(graph, inner)

    def _body(
        self,
        scope: Scope,
        opsets: Mapping[str, int],
        given: Mapping[str, Attribute],
        depth: int,
        graph: Graph,
        inputs: Sequence[Value],
    ) -> list[Value]:
        """Follow a subgraph with inputs."""
        named = {info.name: value for info, value in zip(graph.input, inputs, strict=True)}
        inner = {**scope, **self._constants(graph), **named}
        self._run(graph.node, inner, opsets, given, depth + 1)
        return _outputs(graph, inner)


def _outputs(graph: Graph, scope: Scope) -> list[Value]:
    return [scope.get(info.name) or Value(None, mixed="a subgraph lacks an output") for info in graph.output]


def _why_not_rows(value: Value) -> str | None:
    """Return why no dimension of an output is the batch; None: one is."""
    if value.mixed is not None:
        return value.mixed
    if value.axis is None:
        return "does not depend on the rows, or only on how many there are"
    if value.loose:
        return "may have a different shape if a size is 0"
    if value.filled_with is not None:
        return "is filled up to the longest of all rows"
    if value.place is not None:
        return "depends on the places of rows in the batch"
    if value.known_dims[value.axis] != BATCH:
        return "does not have the rows along one dimension"
    return None


# Operators whose output is empty if the first input is.
_KEEP_EMPTY = frozenset({"Identity", "Reshape", "Transpose"})


def _draws_nothing(call: Call) -> bool:
    """Whether an operator is known to be deterministic."""
    return call.op_type not in RANDOM and ((call.domain, call.op_type) in RULES or call.op_type in _DETERMINISTIC)


# Deterministic operators without a rule; used on constants and shapes.
_DETERMINISTIC = frozenset(
    {
        "BlackmanWindow", "Col2Im", "DFT", "Det", "DynamicQuantizeLinear", "EyeLike", "HammingWindow", "HannWindow",
        "MelWeightMatrix", "NonZero", "ScatterND", "Unique",
    }
)  # fmt: skip
