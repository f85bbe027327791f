"""What grows with what: time by open connections and loaded models, conversion by bytes, memory by requests in flight.

Every figure has its small case beside it, measured in the same round:

    connections   1 or 64 ask, alone or among 10,000 open connections; 1,000 ask at once. The floor is measured, too:
                  what the kernel and the client need for many connections is in its figures as well
    models        `simple`, asked in a server with 1 model and in one with 100; one of them asked, and all in turn
    heads         the server's CPU time a request, 64 connections: heads that are equal, and heads that differ in each
                  request as gateways make them, by an id, a trace and the length of the body
    bytes         decoder and encoder without a server, 1 KiB to 64 MiB of FP32 text
    memory        the most that a fresh server ever held, with 1 and with 32 requests of 2 MB in flight
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from bench.load import loadgen
from bench.load.compare import apart
from bench.load.progress import Progress
from bench.load.scenarios import SIMPLE, Case, Part, cases, tensors_json
from bench.load.servers import Server, read, serving
from bench.peers import Models
from fastinfer.codec.decode import decode
from fastinfer.codec.encode import encode
from fastinfer.tensor.message import InferResponse
from fastinfer.tensor.tensor import Tensor

MANY_CONNECTIONS = 10_000
CONNECTIONS = ((1, 1), (1, MANY_CONNECTIONS), (64, 64), (64, MANY_CONNECTIONS), (1000, 1000))  # asking, open
OTHER_FILES = 200  # that a server has open beside its connections
MODELS = 100
SIZES = tuple(2**n << 10 for n in (0, 3, 6, 9, 12, 16))  # 1 KiB ... 64 MiB of text
IN_FLIGHT = 32
ELEMENTS = 200_000  # of such a request
STEP_S = 0.5  # of each measurement
HEADS_S = 2.0  # of one whose figure is CPU time, which is counted in hundredths of a second
OWN_HEADS = 4000
OPENING_S = 0.6  # of ten thousand connections
BYTES_S = 3.0  # of all sizes
MEMORY_S = 2 * STEP_S + 1.5  # and a fresh server


def planned_s(options: argparse.Namespace) -> float:
    connections = 2 * (len(CONNECTIONS) * (STEP_S + 0.2) + 2 * OPENING_S)
    return 3 + options.rounds * (connections + 4 * (STEP_S + 0.2) + 2 * HEADS_S + BYTES_S + MEMORY_S)


def measure(options: argparse.Namespace, served: Models, servers: dict[str, Server], say: Progress) -> dict[str, Any]:
    """Everything; each value has its rounds."""
    server_cores, cores = apart(options.pin)
    made: dict[str, Any] = {"connections": {}, "models": {}, "heads": {}, "bytes": [], "absent": {}}
    asked = [(SIMPLE, cases(SIMPLE, served.files))]
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - OTHER_FILES
    possible = [(asking, among) for asking, among in CONNECTIONS if among <= room]
    for _, among in set(CONNECTIONS) - set(possible):
        made["absent"][f"{among}"] = f"the hard limit of open files, {room + OTHER_FILES:,}, forbids it"
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="bench-models-") as directory:
        beside = {name: servers[name] for name in ("floor", "fastinfer") if name in servers}
        say(f"starting servers with 1 and {MODELS} models", 3)
        one, many = (
            stack.enter_context(serving("fastinfer", copies(served, Path(directory, str(count)), count), server_cores))
            for count in (1, MODELS)
        )
        for number in range(options.rounds):
            for asking, among in possible:
                for name, server in beside.items():
                    planned = STEP_S + 0.2 + (OPENING_S if among > 1000 else 0)
                    say(f"growth: {number + 1}/{options.rounds}, {asking} of {among} connections, {name}", planned)
                    got = loadgen.run(
                        server.port, asked, asking, STEP_S, silent=among - asking, cores=cores, check=name != "floor"
                    )
                    rounds = made["connections"].setdefault(f"{asking}/{among}", {}).setdefault(name, [])
                    rounds.append(us_a_request(got, asking))
            for label, server, count, asking in models_order(one, many):
                say(f"growth: {number + 1}/{options.rounds}, {label}", STEP_S + 0.2)
                got = loadgen.run(server.port, [(SIMPLE, named(asked[0][1], count))], asking, STEP_S, cores=cores)
                made["models"].setdefault(label, []).append(us_a_request(got, asking))
            for label, own in (("equal", 1), ("own", OWN_HEADS)):
                say(f"growth: {number + 1}/{options.rounds}, {label} heads", HEADS_S + 0.2)
                before = sum(one.cpu_s())
                got = loadgen.run(one.port, [(SIMPLE, headed(asked[0][1], own))], 64, HEADS_S, cores=cores)
                made["heads"].setdefault(label, []).append(1e6 * (sum(one.cpu_s()) - before) / got["answered"])
            say(f"growth: {number + 1}/{options.rounds}, bytes", BYTES_S)
            made["bytes"].append([ns_a_byte(size) for size in SIZES])
    made["memory"] = []
    for number in range(options.rounds):
        say(f"growth: {number + 1}/{options.rounds}, memory of a request", MEMORY_S)
        made["memory"].append(memory(served, server_cores, cores))
    return made


def us_a_request(got: dict[str, Any], asking: int) -> float:
    """One connection: the median of its latencies; many: the time that each request takes of the server's."""
    return float(got["p50_us"]) if asking == 1 else 1e6 / float(got["requests_per_s"])


# --- Models -----------------------------------------------------------------------------------------------------------


def copies(served: Models, directory: Path, count: int) -> Models:
    """A repository with so many copies of `simple`."""
    for number in range(count):
        version = directory / f"simple_{number}" / "1"
        version.mkdir(parents=True)
        shutil.copyfile(served.files["simple"], version / "model.onnx")
    return Models((directory,), {})


def named(asked: Sequence[Case], count: int) -> list[Case]:
    """The same requests, to so many models in turn."""
    every = [asked[i % len(asked)] for i in range(max(count, len(asked)))]
    return [replace(case, path=f"/v2/models/simple_{i % count}/infer") for i, case in enumerate(every)]


def models_order(one: Server, many: Server) -> list[tuple[str, Server, int, int]]:
    """What is measured: its name, the server, how many models are asked, by how many connections."""
    return [
        ("1 connection, 1 model", one, 1, 1),
        ("1 connection, 100 models in turn", many, MODELS, 1),
        ("64 connections, 1 model", one, 1, 64),
        ("64 connections, 1 of 100 models", many, 1, 64),
    ]


# --- Heads ------------------------------------------------------------------------------------------------------------


def headed(asked: Sequence[Case], count: int) -> list[Case]:
    """The same requests to the first model, with ``count`` different heads."""
    made = []
    for number in range(count):
        case = asked[number % len(asked)] if count > 1 else asked[0]
        trace = f"00-{number * 7919:032x}-{number * 104729:016x}-01"
        fields = (("X-Request-Id", f"{number:032x}"), ("Traceparent", trace))
        body = case.body + b" " * (number % 90)
        made.append(replace(case, path="/v2/models/simple_0/infer", body=body, fields=fields))
    return made


# --- Bytes ------------------------------------------------------------------------------------------------------------


def ns_a_byte(size: int) -> dict[str, float]:
    """Decoder and encoder on about so many bytes of FP32 text."""
    array = np.random.default_rng(size).random(size // 11, dtype=np.float32)  # some 11 characters each
    tensor = {"name": "x", "shape": list(array.shape), "datatype": "FP32", "data": array}
    body = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    response = InferResponse("m", "1", [Tensor.from_numpy("x", array)])
    text = len(bytes(encode(response)))
    return {
        "bytes": size,
        "decode_ns": best_ns(lambda: decode(body), size) / len(body),
        "encode_ns": best_ns(lambda: encode(response), size) / text,
    }


def best_ns(call: Callable[[], object], size: int) -> float:
    """The best of five, each long enough for the clock."""
    repeat = max(1, (256 << 10) // size)
    times = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(repeat):
            call()
        times.append((time.perf_counter_ns() - start) / repeat)
    return min(times)


# --- Memory -----------------------------------------------------------------------------------------------------------


def memory(served: Models, server_cores: set[int] | None, cores: set[int] | None) -> dict[str, float]:
    """What each further request in flight adds to the server's peak, in bytes, and the least that it must."""
    values = np.random.default_rng(0).random((1, ELEMENTS), np.float32)
    request = orjson.loads(tensors_json("inputs", {"INPUT0": values})) | {"parameters": {"binary_data_output": True}}
    body = orjson.dumps(request)  # the answer is the tensor itself: no text is held beside it
    case = Case("/v2/models/identity_fp32/infer", body, None, {"OUTPUT0": values})
    part = Part("large", "identity_fp32", lambda _: {}, variants=1)
    peaks = []
    with serving("fastinfer", served, server_cores) as server:
        for connections in (1, IN_FLIGHT):
            loadgen.run(server.port, [(part, [case])], connections, STEP_S, cores=cores)
            peaks.append(peak_bytes(server))
    return {
        "peak_1": peaks[0],
        "peak_many": peaks[1],
        "in_flight": IN_FLIGHT,
        "a_request": (peaks[1] - peaks[0]) / (IN_FLIGHT - 1),
        "body": len(body),
        "tensors": 2 * values.nbytes,  # in and out
    }


def peak_bytes(server: Server) -> int:
    """The most that was ever resident, of each of its processes."""
    found = [re.search(r"VmHWM:\s+(\d+) kB", read(Path(f"/proc/{pid}/status"))) for pid in server.processes()]
    return sum(int(each[1]) * 1024 for each in found if each)
