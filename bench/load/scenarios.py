"""What is asked of the servers: for each scenario a handful of requests, and what the answers must say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
DATATYPES = {np.dtype("float32"): "FP32", np.dtype("int32"): "INT32", np.dtype("int64"): "INT64"}


@dataclass(frozen=True)
class Scenario:
    """A model, how many connections ask it, and how its inputs are made from random numbers."""

    name: str
    model: str
    connections: tuple[int, ...]
    make: Callable[[np.random.Generator], Tensors]
    variants: int = 16


@dataclass(frozen=True)
class Case:
    """One request and the outputs that ONNX Runtime itself gives."""

    body: bytes
    outputs: Tensors

    def answer(self) -> bytes:
        """An answer that is right."""
        return tensors_json("outputs", self.outputs)

    def check(self, body: bytes) -> None:
        """Raises ValueError unless the answer has the right names, shapes and values (FP32: to 1e-4 relative)."""
        got = {tensor["name"]: tensor for tensor in orjson.loads(body)["outputs"]}
        for name, expected in self.outputs.items():
            tensor = got[name]
            if tensor["shape"] != list(expected.shape) or tensor["datatype"] != DATATYPES[expected.dtype]:
                raise ValueError(f"{name}: {tensor['datatype']} {tensor['shape']}")
            values = np.array(tensor["data"], expected.dtype).reshape(expected.shape)
            tolerance = 1e-4 if expected.dtype.kind == "f" else 0
            if not np.allclose(values, expected, rtol=tolerance, atol=tolerance):
                raise ValueError(f"{name}: {values.ravel()[:8]}, expected {expected.ravel()[:8]}")


def tensors_json(key: str, tensors: Tensors) -> bytes:
    """`{"<key>": [...]}`, with FP32 in as many digits as it takes to read it back."""
    listed = [
        {"name": name, "shape": array.shape, "datatype": DATATYPES[array.dtype], "data": array.ravel()}
        for name, array in tensors.items()
    ]
    return orjson.dumps({key: listed}, option=orjson.OPT_SERIALIZE_NUMPY)


def cases(scenario: Scenario, repositories: Sequence[Path]) -> list[Case]:
    """The scenario's requests, always the same ones."""
    (file,) = [file for root in repositories for file in root.glob(f"{scenario.model}/1/model.onnx")]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    made = []
    for seed in range(scenario.variants):
        inputs = scenario.make(np.random.default_rng(seed))
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        made.append(Case(tensors_json("inputs", inputs), outputs))
    return made


def two_rows_of_integers(random: np.random.Generator) -> Tensors:
    return {name: random.integers(-1000, 1000, (1, 16), np.int32) for name in ("INPUT0", "INPUT1")}


SCENARIOS = [
    Scenario("simple", "simple", (1, 16, 64), two_rows_of_integers),
    Scenario(
        "digits", "digits", (1, 16, 64), lambda random: {"pixels": random.integers(0, 17, (1, 64)).astype(np.float32)}
    ),
    Scenario("mlp", "mlp", (1, 64), lambda random: {"input": random.random((1, 64), np.float32)}),
    Scenario(
        "image JSON",
        "convnet",
        (1, 8),
        lambda random: {"image": random.random((1, 3, 224, 224), np.float32)},
        variants=3,
    ),
    Scenario("large mlp", "mlp_large", (1, 64), lambda random: {"input": random.random((1, 1024), np.float32)}),
]
