"""What is asked of the servers: for each scenario a handful of requests, and what the answers must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from numpy.typing import NDArray

Tensors = dict[str, NDArray[Any]]
DATATYPES = {np.dtype("float32"): "FP32", np.dtype("int32"): "INT32", np.dtype("int64"): "INT64"}


@dataclass(frozen=True)
class Part:
    """Requests of one kind: a model, how its inputs are made from random numbers, and how they are written."""

    name: str
    model: str
    make: Callable[[np.random.Generator], Tensors]
    weight: int = 1
    variants: int = 16
    binary: bool = False


@dataclass(frozen=True)
class Scenario:
    """Parts that are asked in blocks of their weights, by so many connections.

    Attributes:
        quick: the numbers of connections of a quick run; none: it is left out there.
        loads: of the open loop, as shares of the rate that the same server reached in the closed loop.
        distant: whether servers that are ten times slower are asked, too.
        batching: whether ONNX Runtime's own best is measured beside, and the same server without batches.
        client_apart: whether the client gets a core of its own, and the servers all others. Where a tail is the
            question: on shared cores the client often waits for the server's threads, and its own lateness is the tail.
    """

    name: str
    parts: tuple[Part, ...]
    connections: tuple[int, ...]
    quick: tuple[int, ...] = ()
    loads: tuple[float, ...] = ()
    distant: bool = True
    batching: bool = False
    client_apart: bool = False

    @property
    def binary(self) -> bool:
        """Whether a server must take binary tensors."""
        return any(part.binary for part in self.parts)


@dataclass(frozen=True)
class Case:
    """One request and the outputs that ONNX Runtime itself gives."""

    path: str
    body: bytes
    json_size: int | None
    outputs: Tensors
    fields: tuple[tuple[str, str], ...] = ()  # of the head, beside those that the request needs

    def headers(self) -> dict[str, str]:
        """The fields of the head, but its length."""
        if self.json_size is None:
            return {"Content-Type": "application/json", **dict(self.fields)}
        length = str(self.json_size)
        needed = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": length}
        return needed | dict(self.fields)

    def request(self) -> bytes:
        """The request as it is sent."""
        fields = {"Host": "127.0.0.1", **self.headers(), "Content-Length": str(len(self.body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body

    def answer(self) -> bytes:
        """An answer that is right."""
        return tensors_json("outputs", self.outputs)

    def check(self, body: bytes, json_size: int = -1) -> None:
        """Raises ValueError unless the answer has the right names, shapes and values (FP32: to 1e-4 relative).

        Where its JSON text ends is said by json_size; -1: it is nothing else.
        """
        end = len(body) if json_size < 0 else json_size
        got = {tensor["name"]: tensor for tensor in orjson.loads(body[:end])["outputs"]}
        raw = memoryview(body)[end:]
        for name, expected in self.outputs.items():
            tensor = got.get(name)
            if tensor is None:
                raise ValueError(f"{name}: missing")
            if list(tensor["shape"]) != list(expected.shape) or tensor["datatype"] != DATATYPES[expected.dtype]:
                raise ValueError(f"{name}: {tensor['datatype']} {tensor['shape']}")
            if "data" in tensor:
                values = np.array(tensor["data"], expected.dtype).reshape(expected.shape)
            else:
                size = tensor["parameters"]["binary_data_size"]
                values, raw = np.frombuffer(raw[:size], expected.dtype).reshape(expected.shape), raw[size:]
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


def tensors_binary(tensors: Tensors) -> tuple[bytes, int]:
    """A request with its inputs as raw bytes behind the JSON text, and that text's size; it asks for such outputs."""
    listed = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": DATATYPES[array.dtype],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]
    text = orjson.dumps({"parameters": {"binary_data_output": True}, "inputs": listed})
    return text + b"".join(array.tobytes() for array in tensors.values()), len(text)


def cases(part: Part, models: dict[str, Path]) -> list[Case]:
    """The part's requests, always the same ones."""
    session = onnxruntime.InferenceSession(models[part.model], providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    made = []
    for seed in range(part.variants):
        inputs = part.make(np.random.default_rng(seed))
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        body, size = tensors_binary(inputs) if part.binary else (tensors_json("inputs", inputs), None)
        made.append(Case(f"/v2/models/{part.model}/infer", body, size, outputs))
    return made


# --- The scenarios ----------------------------------------------------------------------------------------------------


def two_rows_of_integers(random: np.random.Generator) -> Tensors:
    return {name: random.integers(-1000, 1000, (1, 16), np.int32) for name in ("INPUT0", "INPUT1")}


def pixels(random: np.random.Generator) -> Tensors:
    return {"pixels": random.integers(0, 17, (1, 64)).astype(np.float32)}


def image(random: np.random.Generator) -> Tensors:
    return {"image": random.random((1, 3, 224, 224), np.float32)}


def floats(name: str, size: int) -> Callable[[np.random.Generator], Tensors]:
    return lambda random: {name: random.random((1, size), np.float32)}


SIMPLE = Part("simple", "simple", two_rows_of_integers)
IMAGE = Part("image", "convnet", image, variants=3)
LARGE_MLP = Part("large MLP", "mlp_large", floats("input", 1024))
PAYLOAD = Part("payload", "identity_fp32", floats("INPUT0", 1), variants=4)
PAYLOADS = (16, 256, 4096, 65536)  # elements

SCENARIOS = [
    Scenario("simple", (SIMPLE,), (1, 16, 64, 1000), (1, 64), loads=(0.25, 0.5, 0.75)),
    Scenario("digits", (Part("digits", "digits", pixels),), (1, 64), distant=False),
    Scenario("MLP", (Part("MLP", "mlp", floats("input", 64)),), (1, 64), batching=True),
    Scenario("large MLP", (LARGE_MLP,), (1, 64), (64,), batching=True),
    Scenario("large MLP binary", (replace(LARGE_MLP, binary=True),), (64,)),
    Scenario("image JSON", (IMAGE,), (1, 8), (8,)),
    Scenario("image binary", (replace(IMAGE, binary=True),), (1, 16), (16,)),
    Scenario(
        "mix",
        (replace(SIMPLE, name="small", weight=100), IMAGE),
        (64,),
        (64,),
        loads=(0.5,),
        distant=False,
        client_apart=True,
    ),
    *(
        Scenario(f"payload {size}", (replace(PAYLOAD, make=floats("INPUT0", size)),), (8,), distant=False)
        for size in PAYLOADS
    ),
]
