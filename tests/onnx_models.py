"""Small ONNX models for tests, as bytes. Made anew each time, so that no binary lies in the repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from onnx import (
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

ONNX_TYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""The ONNX element type of each v2 datatype."""

Shape = Sequence[int | str | None] | None
"""None: of open rank."""


def value(name: str, datatype: str, shape: Shape) -> ValueInfoProto:
    """An input or output."""
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
    metadata: dict[str, str] | None = None,
    opset: int = 17,
    ir_version: int = 9,
) -> bytes:
    """A whole model around a graph."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    made: ModelProto = helper.make_model(
        graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)], producer_name="fastinfer tests"
    )
    helper.set_model_props(made, metadata or {})
    return made.SerializeToString()


def identity(datatype: str, shape: Shape = ("batch", None)) -> bytes:
    """``y = x``, through a node."""
    x, y = value("x", datatype, shape), value("y", datatype, shape)
    return model([helper.make_node("Identity", ["x"], ["y"])], [x], [y])


def identities(datatypes: Mapping[str, str], shape: Shape = ("batch", None)) -> bytes:
    """``same NAME = NAME`` for each input's name and datatype, side by side."""
    return model(
        [helper.make_node("Identity", [name], [f"same {name}"]) for name in datatypes],
        [value(name, datatype, shape) for name, datatype in datatypes.items()],
        [value(f"same {name}", datatype, shape) for name, datatype in datatypes.items()],
    )


def passed_through() -> bytes:
    """Two outputs, the first of which is the input itself."""
    x, y = value("x", "FP32", ["batch", 4]), value("y", "FP32", ["batch", 4])
    return model([helper.make_node("Neg", ["x"], ["y"])], [x], [x, y])


def constant_output() -> bytes:
    """``y`` is a weight of the model."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "y")
    return model(
        [helper.make_node("Neg", ["x"], ["z"])],
        [value("x", "FP32", [2])],
        [value("y", "FP32", [2, 3]), value("z", "FP32", [2])],
        [weight],
    )


def simple() -> bytes:
    """Triton's ``simple``: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1."""
    return model(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [value(name, "INT32", ["batch", 16]) for name in ("INPUT0", "INPUT1")],
        [value(name, "INT32", ["batch", 16]) for name in ("OUTPUT0", "OUTPUT1")],
        metadata={"author": "nobody", "empty": ""},
    )


def mlp(width: int = 64) -> bytes:
    """Two dense layers: ``[batch, width] -> [batch, 8]``."""
    random = np.random.default_rng(7)
    weights = [
        numpy_helper.from_array(random.standard_normal((width, width)).astype(np.float32), "w1"),
        numpy_helper.from_array(random.standard_normal((width, 8)).astype(np.float32), "w2"),
    ]
    return model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["y"]),
        ],
        [value("x", "FP32", ["batch", width])],
        [value("y", "FP32", ["batch", 8])],
        weights,
    )


def endless(trips: int = 2**60, rest: Sequence[int | str] = (1,)) -> bytes:
    """Adds ``x`` to itself in a Loop, ``trips`` times: without end, for practical purposes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Add", ["sum", "x"], ["next"]),
        ],
        "body",
        [value("trip", "INT64", []), value("go_on", "BOOL", []), value("sum", "FP32", ["batch", *rest])],
        [value("still", "BOOL", []), value("next", "FP32", ["batch", *rest])],
    )
    constants = [
        numpy_helper.from_array(np.array(trips, dtype=np.int64), "trips"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    return model(
        [helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)],
        [value("x", "FP32", ["batch", *rest])],
        [value("y", "FP32", ["batch", *rest])],
        constants,
    )


def counter(*, fixed: bool = True) -> bytes:
    """Counts to ``n``, the largest number of its input, one by one: the value decides how long it takes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [value("trip", "INT64", []), value("go_on", "BOOL", []), value("sum", "INT64", [1])],
        [value("still", "BOOL", []), value("next", "INT64", [1])],
    )
    constants = [
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    return model(
        [
            helper.make_node("ReduceMax", ["n"], ["trips"], keepdims=0),
            helper.make_node("Loop", ["trips", "yes", "zero"], ["y"], body=body),
        ],
        [value("n", "INT64", [1] if fixed else ["any"])],
        [value("y", "INT64", [1])],
        constants,
    )


ENDLESS_LOAD = """max_batch_size = 0

[[model_warmup]]
name = "endless"
inputs.x = { data_type = "TYPE_FP32", dims = [1, 1], zero_data = true }
"""
"""The ``config.toml`` with which :func:`endless` never ends to load."""


def slow_rows(steps: int = 20) -> bytes:
    """``y = x`` for whole numbers, about half a millisecond a row; batched without a configuration."""
    width = numpy_helper.from_array(np.array([1, 4096], dtype=np.int64), "width")
    names = ["wide", *(f"step{i}" for i in range(steps))]
    nodes = [helper.make_node("Expand", ["x", "width"], ["wide"])]
    for before, after in pairwise(names):
        nodes.append(helper.make_node("Sin", [before], [f"sine of {before}"]))
        nodes.append(helper.make_node("Round", [f"sine of {before}"], [f"whole {before}"]))
        nodes.append(helper.make_node("Mul", [f"whole {before}", "none"], [f"zero {before}"]))
        nodes.append(helper.make_node("Add", [before, f"zero {before}"], [after]))
    nodes.append(helper.make_node("ReduceMax", [names[-1]], ["y"], axes=[1]))
    none = numpy_helper.from_array(np.float32(0), "none")
    return model(nodes, [value("x", "FP32", ["batch", 1])], [value("y", "FP32", ["batch", 1])], [width, none])


def gather_rows() -> bytes:
    """``y = table[index]``: fails at run time for an index outside of the table's four rows."""
    table = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "table")
    return model(
        [helper.make_node("Gather", ["table", "index"], ["y"], axis=0)],
        [value("index", "INT64", ["batch"])],
        [value("y", "FP32", ["batch", 2])],
        [table],
    )


def divide(datatype: str = "INT32") -> bytes:
    """``y = a / b``; the runtime refuses a division by zero, and the smallest INT64 by -1 ends the process: SIGFPE."""
    return model(
        [helper.make_node("Div", ["a", "b"], ["y"])],
        [value(name, datatype, ["batch", 1]) for name in ("a", "b")],
        [value("y", datatype, ["batch", 1])],
    )


def fatal_load() -> bytes:
    """``y = x + c``, where c is a quotient of constants that the runtime computes when it loads: SIGFPE."""
    lowest, minus_one = numpy_helper.from_array(np.int64([-(2**63)]), "a"), numpy_helper.from_array(-np.int64([1]), "b")
    nodes = [helper.make_node("Div", ["a", "b"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    return model(nodes, [value("x", "INT64", [1])], [value("y", "INT64", [1])], [lowest, minus_one])


def fatal_for_zero(first: int | str = 1) -> bytes:
    """``y = lowest / (x - 1)`` of INT64s: a run on a 0 ends the process, SIGFPE."""
    lowest, one = numpy_helper.from_array(np.int64([-(2**63)]), "a"), numpy_helper.from_array(np.int64([1]), "one")
    nodes = [helper.make_node("Sub", ["x", "one"], ["b"]), helper.make_node("Div", ["a", "b"], ["y"])]
    return model(nodes, [value("x", "INT64", [first])], [value("y", "INT64", [first])], [lowest, one])


def one_long_operator(boxes: int = 400_000) -> bytes:
    """One operator that takes minutes: compares that many boxes with each other, none of which overlap."""
    left = np.arange(boxes, dtype=np.float32) * 2
    zero = np.zeros_like(left)
    constants = {
        "boxes": np.stack([zero, left, zero + 1, left + 1], axis=1)[None],
        "scores": zero[None, None],
        "most": np.array([boxes], np.int64),
        "overlap": np.array([0.5], np.float32),
    }
    return model(
        [
            helper.make_node("Add", ["scores", "x"], ["sums"]),
            helper.make_node("NonMaxSuppression", ["boxes", "sums", "most", "overlap"], ["picked"]),
            helper.make_node("Shape", ["picked"], ["y"]),
        ],
        [value("x", "FP32", [1])],
        [value("y", "INT64", [2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def nonzero() -> bytes:
    """An output whose shape depends on values."""
    return model(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [value("x", "FP32", ["batch", 4])],
        [value("y", "INT64", [2, "found"])],
    )


def batch_mean() -> bytes:
    """Gives one row for the whole batch."""
    return model(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)],
        [value("x", "FP32", ["batch", 4])],
        [value("y", "FP32", [1, 4])],
    )


def scalar_sum() -> bytes:
    """The sum over everything: an output without dimensions."""
    return model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [value("x", "FP32", ["batch", 4])],
        [value("y", "FP32", [])],
    )


def sequence_output(datatype: str = "FP32", shape: Shape = (None, 2)) -> bytes:
    """``x``, cut along its first dimension into parts of the lengths ``sizes``; ``total`` is the number of parts."""
    parts = helper.make_tensor_sequence_value_info("parts", ONNX_TYPES[datatype], shape)
    nodes = [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["parts"]),
        helper.make_node("SequenceLength", ["parts"], ["total"]),
    ]
    inputs = [value("x", datatype, ["rows", 2]), value("sizes", "INT64", ["parts"])]
    return model(nodes, inputs, [parts, value("total", "INT64", [])])


def constructed(datatype: str, shape: Shape = ()) -> bytes:
    """A sequence of the two inputs ``a`` and ``b``."""
    output = helper.make_tensor_sequence_value_info("parts", ONNX_TYPES[datatype], shape)
    nodes = [helper.make_node("SequenceConstruct", ["a", "b"], ["parts"])]
    return model(nodes, [value("a", datatype, shape), value("b", datatype, shape)], [output])


def empty_sequence(datatype: str, shape: Shape) -> bytes:
    """A sequence without elements."""
    output = helper.make_tensor_sequence_value_info("parts", ONNX_TYPES[datatype], shape)
    return model(
        [helper.make_node("SequenceEmpty", [], ["parts"], dtype=ONNX_TYPES[datatype])],
        [value("x", "FP32", [1])],
        [output],
    )


def map_output() -> bytes:
    """A sequence of maps that nothing turns into a tensor: its ZipMap is in a function."""
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("maps", helper.make_sequence_type_proto(kind))
    opset = helper.make_opsetid("ai.onnx.ml", 1)
    zipped = helper.make_node("ZipMap", ["s"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[7, 8])
    made = ModelProto.FromString(
        model([helper.make_node("Zipped", ["x"], ["maps"], domain="own")], [value("x", "FP32", [None, 2])], [output])
    )
    made.functions.append(helper.make_function("own", "Zipped", ["s"], ["z"], [zipped], [opset]))
    made.opset_import.extend([opset, helper.make_opsetid("own", 1)])
    serialized: bytes = made.SerializeToString()
    return serialized


def sequence_input() -> bytes:
    """An input that is not a tensor."""
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    return model([helper.make_node("SequenceLength", ["parts"], ["y"])], [parts], [value("y", "INT64", [])])


def with_defaults(shape: Shape = ("batch", 4), weights: Shape = (4,), ir_version: int = 9) -> bytes:
    """``y = x * scale + bias``; the inputs ``scale`` (ones) and ``bias`` (0, 1, 2, 3) have defaults."""
    defaults = {"scale": np.ones(4, np.float32), "bias": np.arange(4, dtype=np.float32)}
    return model(
        [helper.make_node("Mul", ["x", "scale"], ["scaled"]), helper.make_node("Add", ["scaled", "bias"], ["y"])],
        [value("x", "FP32", shape), *(value(name, "FP32", weights) for name in defaults)],
        [value("y", "FP32", shape)],
        [numpy_helper.from_array(array, name) for name, array in defaults.items()],
        ir_version=ir_version,
    )


def optional_bias(content: Callable[[int, Shape], TypeProto] = helper.make_tensor_type_proto) -> bytes:
    """``y = x + bias`` if the input ``bias``, of an optional type, is given; else ``y = x``."""
    kind = helper.make_optional_type_proto(content(TensorProto.FLOAT, ["batch", 4]))
    added = helper.make_graph(
        [helper.make_node("OptionalGetElement", ["bias"], ["given"]), helper.make_node("Add", ["x", "given"], ["sum"])],
        "added", [], [value("sum", "FP32", None)],
    )  # fmt: skip
    same = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "same", [], [value("same", "FP32", None)])
    nodes = [
        helper.make_node("OptionalHasElement", ["bias"], ["is_given"]),
        helper.make_node("If", ["is_given"], ["y"], then_branch=added, else_branch=same),
    ]
    inputs = [value("x", "FP32", ["batch", 4]), helper.make_value_info("bias", kind)]
    return model(nodes, inputs, [value("y", "FP32", ["batch", 4])], opset=18)


def optional_input() -> bytes:
    """A model whose only input may be left out: ``y`` says whether it is given."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    nodes = [helper.make_node("OptionalHasElement", ["x"], ["y"])]
    return model(nodes, [helper.make_value_info("x", kind)], [value("y", "BOOL", [])])


def optional_output() -> bytes:
    """``y`` is the optional value ``x``, absent unless ``given``; ``z = -x``."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    here = helper.make_node("Optional", ["x"], ["here"])
    absent = helper.make_node("Optional", [], ["absent"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    branches = {
        "then_branch": helper.make_graph([here], "then", [], [helper.make_value_info("here", kind)]),
        "else_branch": helper.make_graph([absent], "else", [], [helper.make_value_info("absent", kind)]),
    }
    nodes = [helper.make_node("If", ["given"], ["y"], **branches), helper.make_node("Neg", ["x"], ["z"])]
    inputs = [value("x", "FP32", [2]), value("given", "BOOL", [])]
    return model(nodes, inputs, [helper.make_value_info("y", kind), value("z", "FP32", [2])])


def map_input() -> bytes:
    """An input of keys and values, as of scikit-learn's DictVectorizer."""
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    nodes = [helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", int64_vocabulary=[1, 2])]
    made = ModelProto.FromString(model(nodes, [helper.make_value_info("x", kind)], [value("y", "FP32", [1, 2])]))
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    serialized: bytes = made.SerializeToString()
    return serialized


def _sparse() -> SparseTensorProto:
    """``w``: 2 x 2, with a 5 beside zeros."""
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [5.0])
    made: SparseTensorProto = helper.make_sparse_tensor(
        values, helper.make_tensor("", TensorProto.INT64, [1], [1]), [2, 2]
    )
    return made


def sparse_constant() -> bytes:
    """An output ``w`` that is sparse: a constant."""
    nodes = [helper.make_node("Constant", [], ["w"], sparse_value=_sparse()), helper.make_node("Neg", ["x"], ["y"])]
    return model(nodes, [value("x", "FP32", [1])], [value("y", "FP32", [1]), value("w", "FP32", [2, 2])])


def sparse_weight(output: bool) -> bytes:
    """``y = x + w``, where w is sparse; it may be an output, too."""
    made = ModelProto.FromString(
        model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", "FP32", [2, 2])], [value("y", "FP32", [2, 2])])
    )
    made.graph.sparse_initializer.append(_sparse())
    if output:
        made.graph.output.append(helper.make_value_info("w", helper.make_sparse_tensor_type_proto(1, [2, 2])))
    serialized: bytes = made.SerializeToString()
    return serialized


def sparse_branches(then: bool, otherwise: bool, condition: bool | None = None) -> bytes:
    """``w`` is the output of an ``If`` whose branches are sparse or dense; the condition is constant, or any x > 0."""
    dense = numpy_helper.from_array(np.ones((2, 2), np.float32), "d")
    branches = {
        name: helper.make_graph(
            [helper.make_node("Constant", [], [name], **({"sparse_value": _sparse()} if sparse else {"value": dense}))],
            name, [], [value(name, "FP32", [2, 2])],
        )
        for name, sparse in (("then_branch", then), ("else_branch", otherwise))
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["is_any"], to=TensorProto.BOOL),
        helper.make_node("If", ["is_any" if condition is None else "constant"], ["w"], **branches),
        helper.make_node("Neg", ["x"], ["y"]),
    ]
    constant = numpy_helper.from_array(np.array(bool(condition)), "constant")
    return model(nodes, [value("x", "FP32", [1])], [value("y", "FP32", [1]), value("w", "FP32", [2, 2])], [constant])


def sparse_loop() -> bytes:
    """``w`` is a sparse constant that a loop carries out of its body."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Constant", [], ["s"], sparse_value=_sparse())],
        "body",
        [value("i", "INT64", []), value("go", "BOOL", []), value("before", "FP32", [2, 2])],
        [value("on", "BOOL", []), value("s", "FP32", [2, 2])],
    )
    constants = {"times": np.array(2), "first": np.array(True), "start": np.ones((2, 2), np.float32)}
    return model(
        [
            helper.make_node("Loop", ["times", "first", "start"], ["w"], body=body),
            helper.make_node("Neg", ["x"], ["y"]),
        ],
        [value("x", "FP32", [1])],
        [value("y", "FP32", [1]), value("w", "FP32", [2, 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def element_input(onnx_type: int) -> bytes:
    """``y = x``, of any element type."""
    x, y = (helper.make_tensor_value_info(name, onnx_type, ["batch"]) for name in "xy")
    return model([helper.make_node("Identity", ["x"], ["y"])], [x], [y], opset=25, ir_version=13)


def element_output(onnx_type: int, *, declared: bool = True) -> bytes:
    """``y`` is ``x`` as another element type, which the graph declares or leaves to the runtime."""
    output = helper.make_tensor_value_info("y", onnx_type, ["batch"]) if declared else ValueInfoProto(name="y")
    cast = helper.make_node("Cast", ["x"], ["y"], to=onnx_type)
    return model([cast], [value("x", "FP32", ["batch"])], [output], opset=25, ir_version=13)


def external_weight(location: str) -> bytes:
    """``y = x + w``, where ``w`` is four FP32 in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=text)
    return model(
        [helper.make_node("Add", ["x", "w"], ["y"])], [value("x", "FP32", [4])], [value("y", "FP32", [4])], [weight]
    )


def compress() -> bytes:
    """``y`` holds the elements of x where keep is true; it is declared to hold all four."""
    return model(
        [helper.make_node("Compress", ["x", "keep"], ["y"])],
        [value("x", "FP32", [4]), value("keep", "BOOL", [4])],
        [value("y", "FP32", [4])],
    )


def expand(elements: int = 4 << 20) -> bytes:
    """One number, many times."""
    shape = numpy_helper.from_array(np.array([1, elements], "i8"), "shape")
    return model(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        [value("x", "FP32", [1, 1])],
        [value("y", "FP32", [1, elements])],
        [shape],
    )


def wide_sum(elements: int) -> bytes:
    """``y`` is the mean of ``x``, a number, repeated; a run needs memory for all the copies."""
    shape = numpy_helper.from_array(np.array([1, elements], "i8"), "shape")
    return model(
        [helper.make_node("Expand", ["x", "shape"], ["wide"]), helper.make_node("ReduceMean", ["wide"], ["y"])],
        [value("x", "FP32", [1, 1])],
        [value("y", "FP32", [1, 1])],
        [shape],
    )
