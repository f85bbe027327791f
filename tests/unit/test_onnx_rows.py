"""The proof that rows do not depend on each other: what is proven, what is not, and why."""

import re

import numpy as np
import onnx_models
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from fastinfer.backends.onnx.graph import visits
from fastinfer.backends.onnx.graph.rows import prove


def tensor(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def graph(*nodes, inputs=None, outputs=("y",), constants=None, opset=17, functions=(), domains=()):
    """A model; nodes are (operator, inputs, outputs, attributes), a constant is an array."""
    inputs = {"x": ["n", 4]} if inputs is None else inputs
    made = [
        helper.make_node(op, ins, outs, name=f"the {op.lower()}", domain=rest.pop("domain", ""), **rest)
        for op, ins, outs, rest in ((op, ins, outs, dict(rest)) for op, ins, outs, rest in nodes)
    ]
    infos = [tensor(name, *(shape if isinstance(shape, tuple) else (shape,))) for name, shape in inputs.items()]
    body = helper.make_graph(
        made, "g", infos, [tensor(name, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)] if opset else []
    opsets += [helper.make_opsetid(domain, 1) for domain in domains or ([] if opset else ["acme"])]
    return helper.make_model(body, opset_imports=opsets, functions=list(functions)).SerializeToString()


def node(op, ins="x", outs="y", /, **attributes):
    return op, ins.split(" ") if ins else [], outs.split(" "), attributes


i64 = np.int64
W = np.ones((4, 4), np.float32)
INT8 = {"w": np.ones((4, 4), np.int8), "s": np.float32(0.1), "z": np.int8(0)}

APART = {
    "relu": graph(node("Relu")),
    "broadcast a bias": graph(node("Add", "x b"), constants={"b": np.ones(4, np.float32)}),
    "a constant of length 1 along the batch": graph(node("Add", "x b"), constants={"b": np.ones((1, 4), np.float32)}),
    "a list of texts": graph(
        node("Constant", "", "w", value_strings=["a", "b"]),
        node("Equal", "x w"),
        inputs={"x": (["n", 2], TensorProto.STRING)},
        opset=19,
    ),
    "a long list of numbers": graph(
        node("Constant", "", "w", value_floats=[0.5] * 300), node("Add", "x w"), inputs={"x": ["n", 300]}
    ),
    "two inputs": graph(node("Add", "x z"), inputs={"x": ["n", 4], "z": ["m", 4]}),
    "a row of weights": graph(node("MatMul", "x w"), constants={"w": W}),
    "weights from the left": graph(
        node("Transpose", "x", "t"), node("MatMul", "w t", "m"), node("Transpose", "m"), constants={"w": W}
    ),
    "gemm": graph(node("Gemm", "x w b", transB=1), constants={"w": W, "b": np.ones(4, np.float32)}),
    "attention scores": graph(
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("MatMul", "x t", "s"),
        node("Softmax", "s", "p", axis=-1),
        node("MatMul", "p x"),
        inputs={"x": ["n", "s", 8]},
    ),
    "reduce over another axis": graph(node("ReduceMax", axes=[1], keepdims=0)),
    "softmax of the last axis, long ago": graph(node("Softmax"), opset=11),
    "flatten": graph(node("Flatten"), inputs={"x": ["n", 2, 3]}),
    "view(size(0), -1)": graph(
        node("Shape", "x", "s"),
        node("Gather", "s zero", "b", axis=0),
        node("Unsqueeze", "b axes", "b1"),
        node("Concat", "b1 rest", "to", axis=0),
        node("Reshape", "x to"),
        inputs={"x": ["n", 2, "m"]},
        constants={"zero": i64(0), "axes": i64([0]), "rest": i64([-1])},
    ),
    "through [batch * seq, features] and back": graph(
        node("Shape", "x", "shape"),
        node("Reshape", "x flat", "f"),
        node("MatMul", "f w", "m"),
        node("Reshape", "m shape"),
        inputs={"x": ["n", "seq", 4]},
        constants={"flat": i64([-1, 4]), "w": W},
    ),
    "sequence first, and back": graph(
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("Relu", "t", "r"),
        node("Transpose", "r", "y", perm=[1, 0, 2]),
        inputs={"x": ["n", 3, 4]},
    ),
    "windows": graph(
        node("Reshape", "x to", "w"),
        node("Transpose", "w", "t", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "t rows", "r"),
        node("Softmax", "r", "p", axis=-1),
        node("Reshape", "p back", "b"),
        node("Transpose", "b", "u", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "u last"),
        inputs={"x": ["n", 4, 4, 3]},
        constants={
            "to": i64([-1, 2, 2, 2, 2, 3]),
            "rows": i64([-1, 4, 3]),
            "back": i64([-1, 2, 2, 2, 2, 3]),
            "last": i64([-1, 4, 4, 3]),
        },
    ),
    "embedding": graph(node("Gather", "w x"), inputs={"x": (["n", "s"], TensorProto.INT64)}, constants={"w": W}),
    "lstm": graph(
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("LSTM", "t w r", "h", hidden_size=2),
        node("Squeeze", "h one", "q"),
        node("Transpose", "q", "y", perm=[1, 0, 2]),
        inputs={"x": ["n", 5, 3]},
        constants={"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32), "one": i64([1])},
    ),
    "a state for each row": graph(
        node("Shape", "x", "s", end=1),
        node("Concat", "one s two", "to", axis=0),
        node("ConstantOfShape", "to", "h"),
        node("Transpose", "x", "t", perm=[1, 0, 2]),
        node("GRU", "t w r   h", "a b", hidden_size=2),
        node("Squeeze", "b none"),
        inputs={"x": ["n", 5, 3]},
        constants={
            "one": i64([1]),
            "two": i64([2]),
            "none": i64([0]),
            "w": np.ones((1, 6, 3), np.float32),
            "r": np.ones((1, 6, 2), np.float32),
        },
    ),
    "static quantization": graph(
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s z", "v"),
        node("MatMul", "d v"),
        constants=INT8,
    ),
    "a branch that a constant chooses": graph(
        node(
            "If",
            "c",
            "y",
            then_branch=helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "t", [], [tensor("a", None)]),
            else_branch=helper.make_graph([helper.make_node("ReduceSum", ["x"], ["b"])], "e", [], [tensor("b", None)]),
        ),
        constants={"c": np.bool_(True)},
    ),
    "einsum": graph(node("Einsum", "x w", equation="bi,io->bo"), constants={"w": W}),
    "a mask from another input": graph(
        node("Unsqueeze", "m axes", "u"),
        node("Add", "x u"),
        inputs={"x": ["n", 8, "s", "s"], "m": ["n", "s"]},
        constants={"axes": i64([1, 2])},
    ),
    "a whole slice": graph(
        node("Slice", "x a b c"),
        constants={"a": i64([0]), "b": i64([2**63 - 1]), "c": i64([0])},
    ),
    "a whole slice, as tf2onnx writes it": graph(
        node("Slice", "x a b c"), constants={"a": i64([0, 1]), "b": i64([10**9, 3]), "c": i64([0, 1])}
    ),
    "parts along another axis": graph(node("Split", "x", "a b", axis=1), node("Concat", "b a", axis=1)),
}

APART["a mask of the same named length"] = graph(
    node("Shape", "m", "s", start=1),
    node("Concat", "any s four", "to", axis=0),
    node("Reshape", "x to"),
    inputs={"x": ["n", "length", 4], "m": ["n", "length"]},
    constants={"any": i64([-1]), "four": i64([4])},
)

COUPLED = {
    "a mask of another length": (
        graph(
            node("Shape", "m", "s", start=1),
            node("Concat", "any s four", "to", axis=0),
            node("Reshape", "x to"),
            inputs={"x": ["n", "length", 4], "m": ["n", "width"]},
            constants={"any": i64([-1]), "four": i64([4])},
        ),
        "may be mixed",
    ),
    "a list of texts along the batch": (
        graph(
            node("Constant", "", "w", value_strings=["a", "b"]),
            node("Equal", "x w"),
            inputs={"x": (["n"], TensorProto.STRING)},
            opset=19,
        ),
        "constant that has a length along the batch dimension",
    ),
    "a long list of numbers along the batch": (
        graph(
            node("Constant", "", "w", value_ints=[7] * 300),
            node("Add", "x w"),
            inputs={"x": (["n"], TensorProto.INT64)},
        ),
        "constant that has a length along the batch dimension",
    ),
    "reduce": (
        graph(node("ReduceMax", "x", "m", keepdims=0), node("Sub", "x m")),
        "'ReduceMax' .* reduces over the batch",
    ),
    "softmax": (graph(node("Softmax", axis=0)), "'Softmax' .* normalizes over the batch"),
    "softmax of everything, long ago": (graph(node("Softmax", axis=0), opset=11), "'Softmax'"),
    "rows with rows": (graph(node("Transpose", "x", "t"), node("MatMul", "x t")), "rows with other rows"),
    "gram": (graph(node("Transpose", "x", "t"), node("MatMul", "t x")), "sums over the batch"),
    "cumulative sum": (graph(node("CumSum", "x a"), constants={"a": i64(0)}), "sums up over the batch"),
    "top k": (graph(node("TopK", "x k", "y i", axis=0), constants={"k": i64([1])}), "sorts over the batch"),
    "dynamic quantization": (
        graph(node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z")),
        "'DynamicQuantizeLinear'",
    ),
    "dynamic quantization, fused": (
        graph(
            node("DynamicQuantizeMatMul", "x w s", domain="com.microsoft"), constants=INT8, domains=["com.microsoft"]
        ),
        "'DynamicQuantizeMatMul'",
    ),
    "dynamic scales": (
        graph(
            node("DynamicQuantizeLinear", "x", "q t p"),
            node("MatMulIntegerToFloat", "q w t s p", domain="com.microsoft"),
            constants=INT8,
            domains=["com.microsoft"],
        ),
        "'DynamicQuantizeLinear'",
    ),
    "joined rows": (graph(node("Concat", "x x", axis=0)), "does not have the rows along one dimension"),
    "rows joined with a constant": (
        graph(node("Concat", "x c", axis=0), constants={"c": np.ones((1, 4), np.float32)}),
        "joins rows with a value",
    ),
    "columns joined with rows": (
        graph(node("Transpose", "x", "t"), node("Concat", "x t", axis=0), inputs={"x": ["n", "n"]}),
        "joins rows with a value",
    ),
    "rows joined, and cut otherwise": (
        graph(node("Concat", "x x", "j", axis=0), node("Reshape", "j to"), constants={"to": i64([-1, 2, 4])}),
        "does not have the rows along one dimension|may be mixed",
    ),
    "reversed rows": (
        graph(
            node("Slice", "x a b c d"), constants={"a": i64([-1]), "b": i64([-(2**63)]), "c": i64([0]), "d": i64([-1])}
        ),
        "takes a part over the batch",
    ),
    "the first row for all": (
        graph(node("Gather", "x i", "f", axis=0), node("Add", "x f"), constants={"i": i64([0])}),
        "selects over the batch",
    ),
    "a long constant along the batch": (
        graph(node("Add", "x b"), constants={"b": np.ones((8, 4), np.float32)}),
        "a length along the batch",
    ),
    "divided by the number of rows": (
        graph(node("Shape", "x", "s", end=1), node("Cast", "s", "f", to=1), node("Div", "x f")),
        "the batch size",
    ),
    "numbered rows": (
        graph(
            node("Shape", "x", "s", end=1),
            node("Squeeze", "s", "n"),
            node("Range", "a n o", "r"),
            node("Cast", "r", "f", to=1),
            node("Unsqueeze", "f o1", "u"),
            node("Add", "x u"),
            constants={"a": i64(0), "o": i64(1), "o1": i64([1])},
        ),
        "the places of rows",
    ),
    "across rows": (graph(node("Reshape", "x to"), constants={"to": i64([-1, 8])}), "may be mixed"),
    "a fixed shape": (graph(node("Reshape", "x to"), constants={"to": i64([1, 4])}), "does not follow the batch size"),
    "folded into features": (
        graph(
            node("Reshape", "x to", "f"),
            node("ReduceMean", "f", "m", axes=[0]),
            node("Sub", "x m"),
            constants={"to": i64([-1, 2])},
        ),
        "'ReduceMean'",
    ),
    "training": (
        graph(
            node("BatchNormalization", "x a a a a", "y m v", training_mode=1), constants={"a": np.ones(4, np.float32)}
        ),
        "its training form",
    ),
    "random": (graph(node("RandomNormalLike", "x", "r"), node("Add", "x r")), "'RandomNormalLike' .* random numbers"),
    "random, without rows": (graph(node("RandomNormal", "", "r", shape=[4]), node("Add", "x r")), "'RandomNormal'"),
    "dropout": (graph(node("Dropout", "x r t"), constants={"r": np.float32(0.5), "t": np.bool_(True)}), "at random"),
    "unique": (graph(node("Unique", "x"), outputs=["y"]), "'Unique'"),
    "nonzero": (graph(node("NonZero")), "'NonZero'"),
    "a squeeze that may take the batch": (graph(node("Squeeze"), inputs={"x": ["n", 1, 4]}), "so the batch dimension"),
    "places in all rows": (
        graph(node("MaxPool", "x", "p y", kernel_shape=[1]), inputs={"x": ["n", 2, 3]}),
        "'MaxPool'",
    ),
    "a branch that rows choose": (
        graph(
            node("ReduceMax", "x", "m", keepdims=0, axes=[1]),
            node(
                "If",
                "m",
                "y",
                then_branch=helper.make_graph([helper.make_node("Relu", ["x"], ["a"])], "t", [], [tensor("a", None)]),
                else_branch=helper.make_graph([helper.make_node("Neg", ["x"], ["b"])], "e", [], [tensor("b", None)]),
            ),
        ),
        "chooses for all rows",
    ),
    "an operator of somebody's own": (graph(node("Mystery", domain="acme"), domains=["acme"]), "'Mystery'"),
    "the batch for time": (
        graph(
            node("LSTM", "x w r", "y", hidden_size=2),
            inputs={"x": ["n", 5, 3]},
            constants={"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)},
        ),
        "for time",
    ),
    "one vector": (
        graph(node("Scaler", domain="ai.onnx.ml"), inputs={"x": ["n"]}, domains=["ai.onnx.ml"]),
        "for features",
    ),
    "a constant": (graph(node("Identity", "w"), constants={"w": W}), "does not depend on the rows"),
    "a shape": (graph(node("Shape")), "only on how many there are"),
    "a fixed input": (graph(node("Relu"), inputs={"x": [2, 4]}), "the first dimension of input 'x' is always 2"),
    "a scalar": (graph(node("Add", "x z"), inputs={"x": ["n", 4], "z": []}), "input 'z' has no first dimension"),
    "old operators": (graph(node("Relu"), opset=6), "versions from 7 on"),
    "instances as channels": (
        graph(
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("InstanceNormalization", "t s s", "i"),
            node("Transpose", "i", "y", perm=[1, 0, 2]),
            inputs={"x": ["n", 4, 4]},
            constants={"s": np.ones(4, np.float32)},
        ),
        "'InstanceNormalization'",
    ),
}


def size(of, at, to):
    """The node that gives a dimension of a value, as a vector."""
    return node("Shape", of, to, start=at, end=at + 1)


def softmax_in_shape(of, to):
    """Nodes that normalize the last axis of a value in the shape ``to``, and give it the shape back that it had."""
    return [
        node("Reshape", f"{of} {to}", "folded"),
        node("Softmax", "folded", "softened"),
        node("Shape", of, "before"),
        node("Reshape", "softened before", "unfolded"),
        node("Transpose", "unfolded", "y", perm=[1, 0, 2]),
    ]


def places(data, *nodes, constants=None, **shapes):
    """A graph that numbers the rows of ``x`` as ``r``, and goes on with ``nodes``."""
    return graph(
        node("Shape", "x", "s", end=1),
        node("Squeeze", "s", "n"),
        node("Range", "zero n step", "r"),
        *nodes,
        inputs={"x": data} | shapes,
        constants={"zero": i64(0), "step": i64(1), "last": i64([-1])} | (constants or {}),
    )


INTEGERS = (["n"], TensorProto.INT64)
APART |= {
    "from each row what another input says": places(
        ["n", "s", 4],
        node("Unsqueeze", "r last", "a"),
        node("Unsqueeze", "at last", "b"),
        node("Concat", "a b", "i", axis=-1),
        node("GatherND", "x i"),
        at=INTEGERS,
    ),
    "each row itself": places(["n", 4], node("Unsqueeze", "r last", "i"), node("GatherND", "x i")),
    "a mask for each row": places(
        ["n", "s"],
        node("Shape", "x", "w", start=1),
        node("Squeeze", "w", "m"),
        node("Range", "zero m step", "c"),
        node("Unsqueeze", "r last", "a"),
        node("Max", "a c", "both"),
        node("Shape", "both", "to"),
        node("Expand", "a to", "d"),
        node("Expand", "c to", "e"),
        node("Unsqueeze", "d last", "f"),
        node("Unsqueeze", "e last", "g"),
        node("Concat", "f g", "i", axis=-1),
        node("GatherND", "x i"),
    ),
    "positions": graph(
        size("x", 1, "s"),
        node("Squeeze", "s", "m"),
        node("Range", "zero m step", "r"),
        node("Gather", "w r", "p"),
        node("Add", "x p"),
        inputs={"x": ["n", "s", 4]},
        constants={"w": W, "zero": i64(0), "step": i64(1)},
    ),
    "columns that are selected along another axis": graph(
        node("Transpose", "x", "t", perm=[1, 0]),
        node("GatherND", "t i", "g"),
        node("Transpose", "g", "y", perm=[1, 0]),
        constants={"i": i64([[2], [0]])},
    ),
}
APART |= {
    "classes by name": graph(
        node("ArgMax", "x", "a", axis=1, keepdims=0),
        node("ArrayFeatureExtractor", "names a", "f", domain="ai.onnx.ml"),
        node("Reshape", "f flat"),
        constants={"names": i64([7, 8, 9, 10]), "flat": i64([-1])},
        domains=["ai.onnx.ml"],
    ),
    "categories": graph(
        node("OneHotEncoder", "x", "h", domain="ai.onnx.ml", cats_int64s=[0, 1, 2]),
        node("Reshape", "h flat"),
        inputs={"x": (["n", 2], TensorProto.INT64)},
        constants={"flat": i64([-1, 6])},
        domains=["ai.onnx.ml"],
    ),
    "a tree in a file that has no other operators": graph(
        node("Normalizer", domain="ai.onnx.ml", norm="L2"), opset=None, domains=["ai.onnx.ml"]
    ),
}
COUPLED |= {
    "a row's place, added": (places(["n"], node("Cast", "r", "f", to=1), node("Add", "x f")), "the places of rows"),
    "the next row": (
        places(["n", 4], node("Add", "r step", "q"), node("Unsqueeze", "q last", "i"), node("GatherND", "x i")),
        "the places of rows",
    ),
    "a place as the second index": (
        places(
            ["n", "s", 4],
            node("Unsqueeze", "r last", "a"),
            node("Unsqueeze", "at last", "b"),
            node("Concat", "b a", "i", axis=-1),
            node("GatherND", "x i"),
            at=INTEGERS,
        ),
        "the places of rows",
    ),
    "a place in what is joined along another axis": (
        places(
            ["n", 4],
            node("Unsqueeze", "r last", "a"),
            node("Unsqueeze", "a last", "b"),
            node("Concat", "b b", "i", axis=1),
            node("GatherND", "x i"),
        ),
        "the places of rows",
    ),
    "from a constant what the place says": (
        places(["n", 4], node("Gather", "w r", "g"), node("Add", "x g"), constants={"w": W}),
        "the places of rows",
    ),
    "from flat rows what a place and another input say": (
        places(
            ["n", 3, 4],
            node("Flatten", "x", "f", axis=2),
            node("Mul", "r three", "q"),
            node("Add", "q at", "i"),
            node("Gather", "f i"),
            constants={"three": i64(3)},
            at=INTEGERS,
        ),
        "the places of rows",
    ),
    "numbers from 1": (
        graph(
            node("Shape", "x", "s", end=1),
            node("Squeeze", "s", "n"),
            node("Range", "one n one", "r"),
            node("Unsqueeze", "r last", "i"),
            node("GatherND", "x i"),
            constants={"one": i64(1), "last": i64([-1])},
        ),
        "the batch size",
    ),
}


# What the proof once took for apart; each is wrong for some request.
COUPLED |= {
    "a size that may be 0, for which a reshape copies another": (
        graph(
            size("z", 1, "s"),
            node("Sub", "s one", "k"),  # 0 if s is 1
            size("x", 0, "b"),
            node("Concat", "b k left", "to", axis=0),
            node("Reshape", "x to", "r"),
            node("Transpose", "r", "t", perm=[1, 0, 2]),
            node("Mul", "k b", "kb"),
            node("Concat", "kb left", "flat", axis=0),
            *softmax_in_shape("t", "flat"),
            inputs={"x": ["n", 4], "z": ["n", "s"]},
            constants={"one": i64([1]), "left": i64([-1])},
        ),
        "may be empty",
    ),
    "a half that is rounded up, and one that is rounded down": (
        graph(
            size("x", 1, "s"),
            node("Div", "s two", "a"),
            node("Cast", "s", "real", to=1),
            node("Div", "real twice", "half"),
            node("Ceil", "half", "up"),
            node("Cast", "up", "c", to=7),
            size("x", 0, "b"),
            node("Concat", "a b c", "there", axis=0),
            node("Unsqueeze", "x one", "u"),
            node("Transpose", "u", "v", perm=[1, 0, 2]),
            node("Slice", "v zero c end", "w"),
            node("Expand", "w there", "t"),
            node("Concat", "c b a", "to", axis=0),
            *softmax_in_shape("t", "to"),
            inputs={"x": ["n", "s"]},
            constants={"two": i64([2]), "twice": np.float32([2]), "zero": i64([0]), "one": i64([1]), "end": i64([2])},
        ),
        "may be mixed",
    ),
    "the size of what is empty, but for the batch": (
        graph(
            size("x", 0, "b"),
            node("Concat", "zero b", "to", axis=0),
            node("ConstantOfShape", "to", "c"),
            size("c", 1, "k"),
            node("Cast", "k", "f", to=1),
            node("Mul", "x f"),
            constants={"zero": i64([0])},
        ),
        "the batch size",
    ),
    "scaled by the batch size": (
        graph(
            size("x", 0, "b"),
            node("Cast", "b", "f", to=1),
            node("Concat", "o o f o", "s", axis=0),
            node("Resize", "x  s"),
            inputs={"x": ["n", 1, 2, 2]},
            constants={"o": np.float32([1])},
        ),
        "the batch size",
    ),
    "interpolated with NaN times 0 of another row": (
        graph(node("Resize", "x  s", mode="linear"), inputs={"x": ["n", 1, 4]}, constants={"s": np.float32([1, 1, 2])}),
        "interpolates over the batch",
    ),
    "dropout of a constant": (
        graph(
            node("Dropout", "w r t", "d"),
            node("MatMul", "x d"),
            constants={"w": W, "r": np.float32(0.5), "t": np.bool_(True)},
        ),
        "'Dropout' .* at random",
    ),
    "an empty list of axes to squeeze": (
        graph(node("Squeeze", "x e"), inputs={"x": ["n", 1, 4]}, constants={"e": i64([])}),
        "so the batch dimension",
    ),
    "a slice backwards from before the first element": (
        graph(
            node("Slice", "two from to at back", "p"),  # [0]
            node("Concat", "p rows", "e", axis=0),  # [0, 7]
            size("e", 0, "k"),
            node("Sub", "k one", "s"),  # 1
            node("Slice", "x s end at"),
            constants={
                "one": i64([1]),
                "two": i64([0]),
                "from": i64([-3]),
                "to": i64([-(2**62)]),
                "at": i64([0]),
                "back": i64([-1]),
                "rows": i64([7]),
                "end": i64([2**62]),
            },
        ),
        "takes a part over the batch",
    ),
    "an empty list of axes to slice": (
        graph(node("Slice", "x a b e"), constants={"a": i64([0]), "b": i64([1]), "e": i64([])}),
        "takes a part over the batch",
    ),
    "an axis twice": (graph(node("Unsqueeze", "x a"), constants={"a": i64([1, 1])}), "names an axis twice"),
    "a scale for each row": (
        graph(node("LayerNormalization", "x s"), inputs={"x": ["n", 3, 4]}, constants={"s": np.ones((2, 1, 4), "f")}),
        "a length along the batch",
    ),
    "angles for each row": (
        graph(
            node("RotaryEmbedding", "x c c"),
            inputs={"x": ["n", 2, 3, 4]},
            constants={"c": np.ones((2, 3, 2), np.float32)},
            opset=23,
        ),
        "'RotaryEmbedding'",
    ),
    "numbers that 32 bits do not hold": (
        graph(
            node("Mul", "p p", "e"), node("Slice", "x z e z"), constants={"p": np.int32([2**16]), "z": np.int32([0])}
        ),
        "'Slice'",
    ),
    "numbers that 8 bits do not hold": (
        graph(
            node("Cast", "p", "q", to=2),
            node("Cast", "q", "r", to=7),
            node("Mul", "r r", "e"),
            node("Slice", "x z e z"),
            constants={"p": i64([2**16]), "z": i64([0])},
        ),
        "'Slice'",
    ),
    "a product of no axes": (
        graph(
            node("ReduceProd", "p", "m", noop_with_empty_axes=1),
            node("Gather", "m zero", "e"),
            node("Slice", "x z e z"),
            constants={"p": i64([1, 2**31]), "z": i64([0]), "zero": i64([0])},
            opset=18,
        ),
        "'Slice'",
    ),
    "a grid of other rows": (
        graph(
            node("Transpose", "x", "t", perm=[1, 0, 2, 3, 4]),
            node("Reshape", "t images", "a"),
            node("Reshape", "g grids", "b"),
            node("GridSample", "a b", "s"),
            node("Reshape", "s to", "u"),
            node("Transpose", "u", "y", perm=[1, 0, 2, 3, 4]),
            inputs={"x": ["n", 2, 1, 2, 2], "g": ["n", 2, 2, 2, 2]},
            constants={"images": i64([-1, 1, 2, 2]), "grids": i64([-1, 2, 2, 2]), "to": i64([2, -1, 1, 2, 2])},
        ),
        "does not have the same rows",
    ),
    "a bias with rows": (graph(node("Gemm", "v w x"), constants={"v": np.ones((1, 4), "f"), "w": W}), "adds rows"),
    "a size of 1 that is broadcast": (
        graph(
            node("Einsum", "x w", "t", equation="bs,cs->sbc"),
            size("x", 1, "s"),
            size("x", 0, "b"),
            node("Mul", "s b", "sb"),
            node("Concat", "sb left", "to", axis=0),
            *softmax_in_shape("t", "to"),
            inputs={"x": ["n", "s"]},
            constants={"w": W, "left": i64([-1])},
        ),
        "'Reshape'",
    ),
    "numbers that an unsigned type does not hold": (graph(node("Cast", to=12)), "out of range"),
    "an operator of no version": (
        graph(node("Slice", "x a b c"), constants={"a": i64([0]), "b": i64([1]), "c": i64([0])}, opset=None),
        "of a version that is not known",
    ),
}


def test_an_optional_input_counts_as_left_out():
    assert prove(onnx_models.optional_bias()).couples is None
    unchecked = graph(node("OptionalGetElement", "o", "t"), node("Add", "x t"))
    made = ModelProto.FromString(unchecked)
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 4]))
    made.graph.input.append(helper.make_value_info("o", kind))
    assert "without a check" in (prove(made.SerializeToString()).couples or "")


def test_an_initializer_counts_with_its_default_though_an_input_overrides_it():
    assert prove(onnx_models.with_defaults()).couples is None


# --- Classical models, and loops --------------------------------------------------------------------------------------


def classical(*nodes, **more):
    return graph(*nodes, domains=["ai.onnx.ml"], **more)


def ml(op, ins, outs, **attributes):
    return node(op, ins, outs, domain="ai.onnx.ml", **attributes)


def repeated(op, ins, outs, body, made, *, inputs, **attributes):
    """A Scan or Loop with a body of nodes, whose outputs are ``made``."""
    nodes = [helper.make_node(each, a, b, **rest) for each, a, b, rest in body]
    graph = helper.make_graph(nodes, "body", [tensor(name, None) for name in inputs], [tensor(n, None) for n in made])
    return node(op, ins, outs, body=graph, **attributes)


SQUARES = [
    node("Identity", "s", "s1"), node("Sub", "s row", "d"), node("ReduceSumSquare", "d", "q", axes=[1], keepdims=0),
]  # fmt: skip
TRAINING = np.arange(12, dtype=np.float32).reshape(3, 4)
LINEAR = {"coefficients": [1.0] * 12, "intercepts": [0.0, 1.0, 2.0], "classlabels_ints": [7, 8, 9]}
DISTANCES = repeated("Scan", "x t", "last far", SQUARES, ["s1", "q"], inputs=["s", "row"], num_scan_inputs=1)
TIMES = {"t": i64(5), "go": np.bool_(True)}


def looped(*body, **more):
    loop = repeated("Loop", "t go x", "y", body, ["go2", "s1"], inputs=["i", "go0", "s"])
    return graph(loop, constants=TIMES, **more)


APART |= {
    "rows stacked twice, and taken apart": graph(
        node("Concat", "x x", "j", axis=0),
        node("Reshape", "j to", "r"),
        node("Transpose", "r", perm=[1, 0, 2]),
        constants={"to": i64([2, -1, 4])},
    ),
    "the mean of two models' scores": classical(
        ml("LinearClassifier", "x", "l a", **LINEAR),
        ml("LinearClassifier", "x", "m b", **LINEAR),
        node("Reshape", "a to", "c"),
        node("Reshape", "b to", "d"),
        node("Concat", "c d", "e", axis=0),
        node("ReduceMean", "e", axes=[0], keepdims=0),
        constants={"to": i64([1, -1, 3])},
    ),
    "nearest neighbours": classical(
        DISTANCES,
        node("Transpose", "far", "f", perm=[1, 0]),
        node("TopK", "f k", "v at", largest=0),
        node("Flatten", "at", "flat"),
        ml("ArrayFeatureExtractor", "labels flat", "found"),
        node("Reshape", "found to"),
        constants={"t": TRAINING, "k": i64([2]), "labels": np.float32([5, 6, 7]), "to": i64([-1, 2])},
    ),
    "tables of leaves": classical(
        node("ArgMax", "x", "at", axis=1, keepdims=0),
        node("Reshape", "at one", "leaf"),
        ml("ArrayFeatureExtractor", "tables leaf", "scores"),
        node("Transpose", "scores", perm=[2, 0, 1]),
        constants={"one": i64([1, -1]), "tables": np.ones((2, 3, 4), np.float32)},
    ),
    "columns, each encoded": classical(
        ml("ArrayFeatureExtractor", "x zero", "a"),
        ml("ArrayFeatureExtractor", "x one", "b"),
        node("Reshape", "a to", "c"),
        node("Reshape", "b to", "d"),
        node("Concat", "c d", axis=1),
        constants={"zero": i64(0), "one": i64(1), "to": i64([-1, 1])},
    ),
    "a loop over time": looped(
        node("Identity", "go0", "go2"),
        node("Gather", "z i", "step", axis=1),
        node("Add", "s step", "s1"),
        inputs={"x": ["n", 4], "z": ["n", 5, 4]},
    ),
    "a loop that keeps each step": graph(
        repeated(
            "Loop",
            "t go x",
            "last steps",
            [node("Identity", "go0", "go2"), node("Tanh", "s", "s1"), node("Identity", "s1", "step")],
            ["go2", "s1", "step"],
            inputs=["i", "go0", "s"],
        ),
        node("Transpose", "steps", perm=[1, 0, 2]),
        constants=TIMES,
    ),
}
COUPLED |= {
    "a scan over rows": (
        graph(
            repeated("Scan", "s x", "y all", [node("Add", "a row", "b"), node("Identity", "b", "c")], ["b", "c"],
                     inputs=["a", "row"], num_scan_inputs=1),
            constants={"s": np.zeros(4, np.float32)},
        ),
        "from row to row",
    ),
    "a scan that mixes its state": (
        graph(
            repeated("Scan", "x t", "y all", [node("Softmax", "s", "s1", axis=0), node("Add", "s row", "q")],
                     ["s1", "q"], inputs=["s", "row"], num_scan_inputs=1),
            constants={"t": TRAINING},
        ),
        "'Softmax'",
    ),
    "a scan that turns its state": (
        graph(
            repeated("Scan", "x t", "y all", [node("Transpose", "s", "s1"), node("Identity", "row", "q")],
                     ["s1", "q"], inputs=["s", "row"], num_scan_inputs=1),
            inputs={"x": ["n", "n"]}, constants={"t": TRAINING},
        ),
        "where the rows of its state are",
    ),
    "distances between rows": (
        graph(
            repeated("Scan", "x x", "last y", SQUARES, ["s1", "q"], inputs=["s", "row"], num_scan_inputs=1),
        ),
        "from row to row",
    ),
    "a loop until all rows are small": (
        looped(node("Mul", "s s", "s1"), node("ReduceMax", "s1", "m", keepdims=0), node("Cast", "m", "go2", to=9)),
        "'ReduceMax'",
    ),
    "a loop until a row is small": (
        looped(node("Mul", "s s", "s1"), node("Cast", "s1", "go2", to=9)), "where the rows of its state are",
    ),
    "a loop without an end": (
        graph(
            repeated(
                "Loop", "t go x", "y", [node("Identity", "go0", "go2"), node("Tanh", "s", "s1")],
                ["go2", "s1"], inputs=["i", "go0", "s"],
            ),
            constants={"t": i64(2**60), "go": np.bool_(True)},
        ),
        "unknown number of times",
    ),
    "a loop for each row": (
        graph(
            node("Shape", "x", "shape"), node("Gather", "shape zero", "count"),
            repeated("Loop", "count go x", "y", [node("Identity", "go0", "go2"), node("Tanh", "s", "s1")],
                     ["go2", "s1"], inputs=["i", "go0", "s"]),
            constants=TIMES | {"zero": i64(0)},
        ),
        "as often as rows say",
    ),
    "labels of rows, of which a row takes another's": (
        classical(
            node("ArgMax", "x", "at", axis=1, keepdims=0), ml("ArrayFeatureExtractor", "x at", "y"),
        ),
        "parameters that differ",
    ),
    "scores of unknown classes, cut": (
        classical(
            ml("SVMClassifier", "x", "l a", classlabels_ints=[1, 2, 3]), node("Reshape", "a to"),
            constants={"to": i64([-1, 3])},
        ),
        "may be mixed",
    ),
}  # fmt: skip


# --- Branches that depend on sizes ------------------------------------------------------------------------------------


def part_of(name, *body):
    nodes = [helper.make_node(each, a, b, **rest) for each, a, b, rest in body]
    return helper.make_graph(nodes, name, [], [tensor(body[-1][2][0], None)])


def if_size_is_one(value, axis, into, then, other):
    """Nodes that choose a branch by a dimension of a value."""
    return [
        node("Shape", value, f"{into}shape", start=axis, end=axis + 1),
        node("Equal", f"{into}shape one", f"{into}is"),
        node("If", f"{into}is", into, then_branch=part_of("a", then), else_branch=part_of("b", other)),
    ]


ONE = {"one": i64([1]), "last": i64([-1])}
SQUEEZE, KEEP = node("Squeeze", "x last", "then"), node("Identity", "x", "else")


def chosen(*nodes, other=KEEP, inputs=None, **constants):
    branch = if_size_is_one("x", 2, "c", SQUEEZE, other)
    return graph(*branch, *nodes, inputs=inputs or {"x": ["n", 4, "t"]}, constants=ONE | constants)


RECURRENT = [
    node("Unsqueeze", "c first", "u"),
    node("LSTM", "u w r", "all y", hidden_size=2),
]
WEIGHTS = {"first": i64([0]), "w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)}
APART |= {
    "another rank in each branch": chosen(node("Relu", "c")),
    "a branch with which nothing runs": chosen(*RECURRENT, **WEIGHTS),
    "the same condition again": graph(
        *if_size_is_one("x", 2, "c", SQUEEZE, KEEP),
        *if_size_is_one("x", 2, "d", SQUEEZE, KEEP),
        node("Add", "c d"),
        inputs={"x": ["n", 4, "t"]},
        constants=ONE,
    ),
}
COUPLED |= {
    "a branch by size that mixes": (
        chosen(node("Relu", "c"), other=node("Softmax", "x", "else", axis=0)), "'Softmax'",
    ),
    "no branch that runs": (
        chosen(node("Unsqueeze", "c both", "u"), node("LSTM", "u w r", "all y", hidden_size=2),
               both=i64([0, 1]), w=WEIGHTS["w"], r=WEIGHTS["r"]),
        "not a sequence",
    ),
    "too many branches": (
        graph(
            *(each for i in range(5) for each in if_size_is_one(f"x{i}", 2, f"c{i}",
              node("Squeeze", f"x{i} last", "then"), node("Identity", f"x{i}", "else"))),
            *(node("Relu", f"c{i}", f"y{i}") for i in range(5)),
            inputs={f"x{i}": ["n", 4, f"t{i}"] for i in range(5)},
            outputs=[f"y{i}" for i in range(5)], constants=ONE,
        ),
        "too many branches",
    ),
}  # fmt: skip


# --- Texts ------------------------------------------------------------------------------------------------------------


def texts(*nodes, inputs=None, pad="#", **attributes):
    tokens = node("Tokenizer", "low", "words", domain="com.microsoft", mark=0, mincharnum=1, pad_value=pad,
                  tokenexp="[a-z]+")  # fmt: skip
    return graph(
        node("Reshape", "x flat", "r"),
        node("StringNormalizer", "r", "low", case_change_action="LOWER", **attributes),
        tokens,
        *nodes,
        inputs=inputs or {"x": (["n", 1], TensorProto.STRING)},
        constants={"flat": i64([-1]), "pads": np.array(["#"], object)},
        domains=["com.microsoft"],
    )


COUNT = {"mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 1, "ngram_counts": [0, 2]}
COUNTED = node("TfIdfVectorizer", "f", "y", **COUNT, ngram_indexes=[0, 1, 2], pool_strings=["cat", "dog", "cat", "dog"])
APART["a text vectoriser"] = texts(node("Flatten", "words", "f"), COUNTED)
COUPLED |= {
    "words of all rows": (texts(node("Identity", "words", "y")), "filled up to the longest of all rows"),
    "the number of words": (texts(node("Shape", "words", "s"), node("Reshape", "words s", "y")), "'Shape'.*filled up"),
    "fillings that are counted": (texts(node("Flatten", "words", "f"), COUNTED, pad="dog"), "filled up"),
    "words joined": (
        texts(node("Concat", "words words", "f", axis=1), COUNTED), "'Concat'.*filled up",
    ),
    "words of two texts": (
        graph(
            node("Tokenizer", "x", "words", domain="com.microsoft", mark=0, mincharnum=1, pad_value="#", tokenexp="."),
            node("Flatten", "words", "f"), COUNTED,
            inputs={"x": (["n", 2], TensorProto.STRING)}, domains=["com.microsoft"],
        ),
        "several texts",
    ),
    "stop words": (texts(node("Flatten", "words", "f"), COUNTED, stopwords=["the"]), "drops words"),
}  # fmt: skip


def test_rows_may_be_along_another_dimension():
    turned = graph(node("Transpose"))
    assert prove(turned).output_axes == {"y": 1}
    assert prove(graph(node("Transpose"), inputs={"x": [4, "n"]}), {"x": 1}).output_axes == {"y": 0}
    assert prove(graph(node("Relu"), inputs={"x": [4, "n"]}), {"x": 1}).output_axes == {"y": 1}
    assert prove(graph(node("Relu"), inputs={"x": [4, 3]}), {"x": 1}).couples == (
        "dimension 1 of input 'x' is always 3"
    )
    assert prove(graph(node("Relu")), {"x": 2}).couples == "input 'x' has no dimension 2"


def test_an_input_without_rows_is_a_constant_of_a_batch():
    added = graph(node("Add", "x at"), inputs={"x": ["n", 4], "at": []})
    assert prove(added, {"at": -1}).couples is None
    assert prove(added).couples == "input 'at' has no first dimension"
    assert prove(graph(node("Relu", "at", "y"), inputs={"x": ["n", 4], "at": [2]}), {"at": -1}).couples == (
        "output 'y' does not depend on the rows, or only on how many there are"
    )


@pytest.mark.parametrize("name", APART)
def test_rows_that_are_apart_are_proven_so(name):
    assert prove(APART[name]).couples is None


@pytest.mark.parametrize("name", COUPLED)
def test_rows_that_may_depend_on_each_other_are_not(name):
    model, reason = COUPLED[name]
    couples = prove(model).couples
    assert couples is not None
    assert re.search(reason, couples), couples


def test_what_couples_is_named_by_operator_and_node():
    assert prove(graph(node("Softmax", axis=0))).couples == (
        "operator 'Softmax' ('the softmax') normalizes over the batch dimension"
    )


def test_what_is_not_asked_for_may_couple():
    assert prove(graph(node("ReduceMax", "x", "m"), node("Relu"))).couples is None


def test_bits_are_the_same_if_nothing_is_summed():
    assert prove(APART["broadcast a bias"]).rounds is None
    assert prove(graph(node("Max", "x b"), constants={"b": np.float32(0)})).rounds == "Max"  # the sign of a zero
    assert prove(APART["gemm"]).rounds == "Gemm"
    assert prove(APART["attention scores"]).rounds == "MatMul"


def test_ids_have_the_limit_of_the_smallest_table():
    model = graph(
        node("Gather", "big x", "a"), node("Gather", "small x", "b"), node("Add", "a b"),
        inputs={"x": (["n", "s"], TensorProto.INT64)},
        constants={"big": np.ones((50, 4), np.float32), "small": np.ones((20, 4), np.float32)},
    )  # fmt: skip
    assert prove(model).id_limits == {"x": 20}


def function(name, *nodes, inputs=("a",), outputs=("b",), attributes=()):
    made = [helper.make_node(op, ins.split(), outs.split(), domain=domain) for op, ins, outs, domain in nodes]
    return helper.make_function(
        "own", name, list(inputs), list(outputs), made,
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)], list(attributes),
    )  # fmt: skip


def test_functions_of_the_model_are_followed():
    halves = function("Halves", ("Split", "a", "c d", ""), ("Add", "c d", "b", ""))
    whole = function("Whole", ("Relu", "a", "c", ""), ("Sigmoid", "c", "b", ""))
    outer = function("Outer", ("Whole", "a", "b", "own"))
    assert prove(graph(node("Outer", domain="own"), functions=[whole, outer], domains=["own"])).couples is None
    couples = prove(graph(node("Halves", domain="own"), functions=[halves], domains=["own"])).couples
    assert couples == "operator 'Split' divides over the batch dimension"


def test_functions_get_their_attributes():
    softmax = function("Any", ("Softmax", "a", "b", ""), attributes=["along"])
    reference = softmax.node[0].attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "axis", "along", 2
    for axis, apart in ((1, True), (0, False)):
        model = graph(node("Any", domain="own", along=axis), functions=[softmax], domains=["own"])
        assert (prove(model).couples is None) is apart


def test_a_function_that_calls_itself_has_an_end():
    twice = function("Twice", ("Twice", "a", "c", "own"), ("Twice", "c", "b", "own"))
    assert "nested" in (prove(graph(node("Twice", domain="own"), functions=[twice], domains=["own"])).couples or "")


def test_functions_that_multiply_have_an_end(monkeypatch):
    monkeypatch.setattr(visits, "MAX_NODES", 10_000)  # as many take two seconds
    levels = [function("F0", *[("Relu", "a", "b", "")] * 10)]
    levels += [function(f"F{i}", *[(f"F{i - 1}", "a", "b", "own")] * 10) for i in range(1, 12)]
    assert "more than 10000 operators" in (
        prove(graph(node("F11", domain="own"), functions=levels, domains=["own"])).couples or ""
    )


def test_a_function_does_not_replace_a_known_operator():
    relu = helper.make_function("", "Relu", ["X"], ["Y"], [helper.make_node("ReduceMax", ["X"], ["Y"])],
                                [helper.make_opsetid("", 17)])  # fmt: skip
    assert "defined both by the model and by ONNX" in (prove(graph(node("Relu"), functions=[relu])).couples or "")
    unknown = helper.make_function("", "NonZero", ["X"], ["Y"], [helper.make_node("Relu", ["X"], ["Y"])],
                                   [helper.make_opsetid("", 17)])  # fmt: skip
    assert "defined both by the model and by ONNX" in (prove(graph(node("NonZero"), functions=[unknown])).couples or "")


def test_a_branch_in_a_function_gets_the_functions_attributes():
    softmax = helper.make_node("Softmax", ["a"], ["c"])
    reference = softmax.attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "axis", "along", 2
    branches = {
        "then_branch": helper.make_graph([softmax], "t", [], [tensor("c", None)]),
        "else_branch": helper.make_graph([helper.make_node("Relu", ["a"], ["d"])], "e", [], [tensor("d", None)]),
    }
    body = helper.make_function("own", "Any", ["a", "i"], ["b"], [helper.make_node("If", ["i"], ["b"], **branches)],
                                [helper.make_opsetid("", 17)], ["along"])  # fmt: skip
    for axis, apart in ((1, True), (0, False)):
        model = graph(
            node("Any", "x i", "y", domain="own", along=axis),
            functions=[body], domains=["own"], constants={"i": np.bool_(True)},
        )  # fmt: skip
        assert (prove(model).couples is None) is apart


def test_a_function_of_an_unknown_version_is_not_followed():
    old = helper.make_function("own", "Old", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])],
                               [helper.make_opsetid("", 6)])  # fmt: skip
    couples = prove(graph(node("Old", domain="own"), functions=[old], domains=["own"])).couples
    assert "version that is not known" in (couples or "")


def test_a_message_in_parts_is_read_as_one():
    first = helper.make_model(helper.make_graph([helper.make_node("Softmax", ["x"], ["h"], axis=0)], "g", [], []))
    rest = graph(node("Relu", "h", "y"))
    assert "'Softmax'" in (prove(first.SerializeToString() + rest).couples or "")


def test_sizes_that_multiply_have_an_end():
    nodes = [node("Shape", "x", "s0", start=1)] + [node("Mul", f"s{i} s{i}", f"s{i + 1}") for i in range(80)]
    model = graph(*nodes, node("Relu"), inputs={"x": ["n", "s"]})
    assert prove(model).couples is None


def test_the_runtimes_own_format_is_named():
    assert ".ort" in (prove(b"\x18\x00\x00\x00ORTM" + bytes(100)).couples or "")
