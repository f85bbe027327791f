"""Models that are quick for one request and take about a second for another of about the same size.

Of `BY_SHAPE` the shapes decide: with as many bytes, with inputs exchanged, or with a cube of what a side grows by. Of
`BY_VALUES` what the inputs hold decides, and the shapes are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from onnx import helper, numpy_helper

from tests import onnx_models
from tests.support import inference, tensor

Input = tuple[str, str, Sequence[int | str]]  # name, datatype, declared shape


class Costly(NamedTuple):
    """A model, a request that it answers in a moment, and one that takes long."""

    model: bytes
    cheap: dict[str, Any]
    dear: dict[str, Any]


def _model(steps: Sequence[tuple[Any, ...]], inputs: Sequence[Input], constants: Mapping[str, Any] = {}) -> bytes:
    """The sum of what some operators give: each (operator, inputs, output, attributes)."""
    nodes = [helper.make_node(op, ins.split(" "), [out], **more) for op, ins, out, more in steps]
    nodes.append(helper.make_node("ReduceSum", [steps[-1][2]], ["y"], keepdims=0))
    datatype = "INT64" if steps[-1][0] == "Range" else "FP32"
    return onnx_models.model(
        nodes,
        [onnx_models.value(name, datatype, shape) for name, datatype, shape in inputs],
        [onnx_models.value("y", datatype, [])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )


def _zeros(*tensors: tuple[str, str, list[int]], **given: tuple[str, list[int], list[Any]]) -> dict[str, Any]:
    """A request of zeros, but for those inputs whose values are given."""
    return inference(
        *(tensor(name, shape, datatype, [0] * int(np.prod(shape))) for name, datatype, shape in tensors),
        *(tensor(name, shape, datatype, data) for name, (datatype, shape, data) in given.items()),
    )


def _powers(first: str) -> list[tuple[Any, ...]]:
    """The matrix `first` to the eighth power."""
    names = [first, "p2", "p4", "p8"]
    return [("MatMul", f"{a} {a}", b, {}) for a, b in pairwise(names)]


def _scalar(name: str, number: int) -> dict[str, Any]:
    return _zeros(**{name: ("INT64", [], [number])})


_ONE = ("x", "FP32", [1])

BY_SHAPE = {
    "equal_bytes": Costly(
        _model(
            [("Transpose", "x", "t", {}), ("MatMul", "x t", "m", {}), *_powers("m")], [("x", "FP32", ["n", "m"])]
        ),
        _zeros(("x", "FP32", [1, 2000])),
        _zeros(("x", "FP32", [2000, 1])),
    ),
    "exchanged": Costly(
        _model(
            [("Unsqueeze", "a last", "c", {}), ("MatMul", "c b", "m", {}), ("Transpose", "m", "t", {}),
             ("MatMul", "m t", "s", {}), *_powers("s")],
            [("a", "FP32", ["n"]), ("b", "FP32", [1, "k"])],
            {"last": np.int64([1])},
        ),
        _zeros(("a", "FP32", [1]), ("b", "FP32", [1, 1500])),
        _zeros(("a", "FP32", [1500]), ("b", "FP32", [1, 1])),
    ),
    "cubic": Costly(
        _model(_powers("x"), [("x", "FP32", ["n", "n"])]),
        _zeros(("x", "FP32", [8, 8])),
        _zeros(("x", "FP32", [1200, 1200])),
    ),
}  # fmt: skip

BY_VALUES = {
    "Range": Costly(
        _model([("Range", "zero n one", "r", {})], [("n", "INT64", [])], {"zero": np.int64(0), "one": np.int64(1)}),
        _scalar("n", 3),
        _scalar("n", 60_000_000),
    ),
    "OneHot": Costly(
        _model([("OneHot", "x depth values", "o", {})], [("x", "INT64", ["k"]), ("depth", "INT64", [])],
               {"values": np.float32([0, 1])}),
        _zeros(("x", "INT64", [1]), depth=("INT64", [], [2])),
        _zeros(("x", "INT64", [1]), depth=("INT64", [], [80_000_000])),
    ),
    "Tile": Costly(
        _model([("Tile", "x times", "o", {})], [("x", "FP32", ["k"]), ("times", "INT64", [1])]),
        _zeros(_ONE, times=("INT64", [1], [1])),
        _zeros(_ONE, times=("INT64", [1], [80_000_000])),
    ),
    "RoiAlign": Costly(
        _model(
            [("RoiAlign", "x rois batch", "o", {"output_height": 1, "output_width": 1, "sampling_ratio": 0})],
            [("x", "FP32", [1, 1, 4, 4]), ("rois", "FP32", [1, 4])],
            {"batch": np.int64([0])},
        ),
        _zeros(("x", "FP32", [1, 1, 4, 4]), rois=("FP32", [1, 4], [0, 0, 1, 1])),
        _zeros(("x", "FP32", [1, 1, 4, 4]), rois=("FP32", [1, 4], [0, 0, 3000, 3000])),
    ),
    "Expand": Costly(
        _model([("Expand", "x to", "o", {})], [("x", "FP32", ["k"]), ("to", "INT64", [1])]),
        _zeros(_ONE, to=("INT64", [1], [1])),
        _zeros(_ONE, to=("INT64", [1], [80_000_000])),
    ),
    "Pad": Costly(
        _model([("Pad", "x pads", "o", {})], [("x", "FP32", ["k"]), ("pads", "INT64", [2])]),
        _zeros(_ONE, pads=("INT64", [2], [0, 0])),
        _zeros(_ONE, pads=("INT64", [2], [0, 80_000_000])),
    ),
}  # fmt: skip
ALL = BY_SHAPE | BY_VALUES
