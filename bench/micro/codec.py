"""Decoder and encoder against orjson with numpy, and simdjson, on one core: the best of interleaved rounds.

    python bench/micro/codec.py [--rounds 40] [--json FILE]

Sizes are those of one image, 1x3x224x224 = 150,528 numbers. `decode` is a whole request body to an InferRequest;
`orjson.loads + np.array` is the least that a server in Python does. `encode` is a response to its text;
`orjson.dumps` writes numpy's array with OPT_SERIALIZE_NUMPY. simdjson's on-demand API reads the same text in C++, the
array only, with no check of what is around it; simdjson.cpp is compiled on demand where the library is installed
(Debian: libsimdjson-dev), else its column says so. Ratios: how many times longer the other takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from fastinfer.codec.decode import decode
from fastinfer.codec.encode import encode
from fastinfer.tensor.message import InferResponse
from fastinfer.tensor.tensor import Tensor

COUNT = 3 * 224 * 224
SIMDJSON = ("FP32", "FP64", "INT32", "INT64", "UINT8")  # what simdjson.cpp reads


def body_of(array: np.ndarray, datatype: str) -> bytes:
    tensor = {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": array}
    return orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)


def loads(body: bytes, dtype: np.dtype) -> np.ndarray:
    return np.array(orjson.loads(body)["inputs"][0]["data"], dtype=dtype)


def dumps(array: np.ndarray) -> bytes:
    return orjson.dumps({"outputs": [{"name": "x", "data": array}]}, option=orjson.OPT_SERIALIZE_NUMPY)


def simdjson() -> Path | None:
    """The program that reads with simdjson; None if it cannot be built."""
    source = Path(__file__).with_name("simdjson.cpp")
    program = source.parents[2] / "build" / "bench" / "simdjson"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(parents=True, exist_ok=True)
        words = ["g++", "-std=c++17", "-O3", "-march=native", str(source), "-lsimdjson", "-o", str(program)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            return None
    return program


def simdjson_us(program: Path, datatype: str, body: bytes, expected: np.ndarray, rounds: int) -> float:
    """The best of its rounds; its sum of the elements must be ours."""
    done = subprocess.run(
        [program, datatype, str(rounds), str(expected.ndim)], input=body, capture_output=True, check=True
    )
    said = json.loads(done.stdout)
    if said["count"] != expected.size or not np.isclose(said["sum"], expected.astype(np.float64).sum()):
        raise ValueError(f"simdjson read something else: {said}")
    return float(said["best_ns"]) / 1e3


# A case: ours, theirs, bytes; and for simdjson the datatype, the body and what it says.
Case = tuple[Callable[[], object], Callable[[], object], int, tuple[str, bytes, np.ndarray] | None]


def cases() -> dict[str, Case]:
    source = np.random.default_rng(1)
    image = source.standard_normal(COUNT).astype(np.float32)
    unit = source.random(COUNT, dtype=np.float32)
    pixels = source.integers(0, 256, COUNT, dtype=np.uint8)
    wide = source.integers(-(2**31), 2**31, COUNT, dtype=np.int32)
    doubles = source.random(COUNT)
    probabilities = np.exp(8 * source.standard_normal(COUNT) - 12).astype(np.float32)
    mask = source.integers(0, 2, COUNT).astype(np.float32)
    ids = source.integers(0, 50_000, COUNT, dtype=np.int64)
    wider = source.integers(-(2**63), 2**63, COUNT, dtype=np.int64)
    found: dict[str, Case] = {}

    def add(
        name: str,
        array: np.ndarray,
        datatype: str,
        text_of: np.ndarray | None = None,
        separator: str = ",",
        decode_only: bool = False,
    ) -> None:
        body = body_of(array if text_of is None else text_of, datatype).replace(b",", separator.encode())
        found[f"decode {name}"] = (
            lambda: decode(body),
            lambda: loads(body, array.dtype),
            len(body),
            (datatype, body, array),
        )
        if text_of is None and not decode_only:
            response = InferResponse("m", "1", [Tensor.from_numpy("x", array)])
            size = len(bytes(encode(response)))
            found[f"encode {name}"] = (lambda: encode(response), lambda: dumps(array), size, None)

    add("FP32 normal", image, "FP32")
    add("FP32 0..1", unit, "FP32")
    add("FP32 written as doubles", unit, "FP32", unit.astype(np.float64))
    add("FP32 probabilities", probabilities, "FP32")
    add("FP32 0 or 1", mask, "FP32")
    add("UINT8", pixels, "UINT8")
    add("INT32", wide, "INT32")
    add("INT64 token ids", ids, "INT64")
    add("INT64 wide", wider, "INT64")
    add("FP64 0..1", doubles, "FP64")
    add("FP64 normal", source.standard_normal(COUNT), "FP64")
    half = image.astype(np.float16)
    add("FP16 normal", half, "FP16")
    add("INT64", source.integers(-(2**63), 2**63 - 1, COUNT, dtype=np.int64), "INT64", decode_only=True)
    add("INT64 tokens", source.integers(0, 50_000, COUNT, dtype=np.int64), "INT64", decode_only=True)
    add("FP32 two digits", image.round(2), "FP32", decode_only=True)
    add("FP32 with exponents", image * np.float32(1e-6), "FP32", decode_only=True)
    add("FP32 in rows of 3", image.reshape(-1, 3), "FP32", decode_only=True)
    add("UINT8 in rows of 3", pixels.reshape(-1, 3), "UINT8", decode_only=True)
    add("UINT8 by json.dumps", pixels, "UINT8", separator=", ", decode_only=True)
    add("FP32 by json.dumps, indented", image, "FP32", image.astype(np.float64), ",\n        ")
    tiny = source.integers(0, 100, 16, dtype=np.int32)
    add("INT32 x 16", tiny, "INT32")
    return found


def measured(call: Callable[[], object], repeat: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeat):
        call()
    return (time.perf_counter_ns() - start) / repeat / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    results = []
    program = simdjson()
    if program is None:
        print("simdjson is absent: libsimdjson-dev and g++ are needed")
    print(f"{'':34}{'ours':>10}{'orjson':>10}{'ratio':>7}{'simdjson':>11}{'ratio':>7}{'ns/byte':>9}")
    for name, (ours, theirs, size, text) in cases().items():
        repeat = 1000 if size < 10_000 else 1
        reads = program is not None and text is not None and text[0] in SIMDJSON
        pairs, blocks = [], []
        for number in range(arguments.rounds):
            pairs.append((measured(ours, repeat), measured(theirs, repeat)))
            if reads and number % 10 == 0:
                blocks.append(simdjson_us(program, *text, 10))
        us, orjson_us = (min(column) for column in zip(*pairs, strict=True))
        line = f"{name:34}{us:8.1f}µs{orjson_us:8.1f}µs{orjson_us / us:7.2f}"
        result = {"case": name, "us": us, "orjson_us": orjson_us, "bytes": size}
        if reads:
            result["simdjson_us"] = min(blocks)
            line += f"{result['simdjson_us']:9.1f}µs{result['simdjson_us'] / us:7.2f}"
        else:
            line += " " * 18
        print(f"{line}{us * 1e3 / size:9.3f}")
        results.append(result)
    if arguments.json:
        machine = {"processor": platform.processor(), "python": platform.python_version(), "numpy": np.__version__}
        document = {**machine, "orjson": orjson.__version__, "rounds": arguments.rounds, "results": results}
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
