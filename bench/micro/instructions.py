"""Counts instructions with callgrind, which repeats where time does not: per small request, per element.

    python bench/micro/instructions.py            count, and compare with instructions.json
    python bench/micro/instructions.py --update   count, and write instructions.json
    python bench/micro/instructions.py --profile  where the instructions of a request go, by library and module

The work runs in one process under valgrind, which counts only while the work says so, by a library of two calls that is
compiled on demand. Each piece is done N times and 2 N times; the difference, divided by N, is free of what happens
once. Timers and other threads disturb single counts, so the median of several is taken. valgrind tells programs
of no vector unit beyond AVX2, so machines with wider ones count alike; other versions of Python do not, so each has
figures of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).with_name("instructions.json")
VERSION = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}"
TOLERANCE = 1.05
ELEMENTS = 4096
REQUESTS, CALLS = 100, 8  # N
REPEATS = 5
MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""

PIECES = (
    "request",
    "request with a head of its own",
    *(f"{verb} {datatype} element" for verb in ("decode", "encode") for datatype in ("FP32", "FP64", "INT32", "UINT8")),
)


def count() -> tuple[dict[str, float], dict[str, float]]:
    """Instructions of each piece; of a request also those of each library and of each of our modules.

    Raises:
        RuntimeError: valgrind failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise RuntimeError("valgrind is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        out, marks = Path(directory, "out"), Path(directory, "marks.so")
        subprocess.run(
            [os.environ.get("CC", "gcc"), "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", marks],
            input=MARKS,
            text=True,
            check=True,
        )
        options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        variables = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [valgrind, *options, sys.executable, __file__, "--work", str(marks)]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=directory)
        if done.returncode:
            raise RuntimeError(f"valgrind: {done.stderr[-2000:]}")
        totals = [dumped(Path(f"{out}.{i + 1}")) for i in range(2 * REPEATS * len(PIECES))]
        once, twice = (by_library(Path(f"{out}.{i}")) for i in (1, 2))
    libraries = {name: round((twice[name] - once[name]) / REQUESTS) for name in twice}
    pieces = {}
    for i, name in enumerate(PIECES):
        of_piece = totals[2 * REPEATS * i : 2 * REPEATS * (i + 1)]
        once, twice = statistics.median(of_piece[::2]), statistics.median(of_piece[1::2])
        pieces[name] = round((twice - once) / (REQUESTS if name.startswith("request") else CALLS * ELEMENTS), 2)
    return pieces, libraries


def by_library(file: Path) -> Counter[str]:
    """The instructions in one dump, by the file that they were in."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    library, called = "", False
    for line in file.read_text().splitlines():
        if match := re.match(r"c?ob=\((\d+)\)(?: (.+))?", line):
            number, path = match.groups()
            if path:
                names[number] = Path(path).name.split(".")[0]
            if line.startswith("ob"):
                library = names[number]
        elif line.startswith("calls="):
            called = True  # the next line is what the called one cost
        elif re.match(r"[\d+*-]", line):
            if not called:
                found[library] += int(line.split()[1])
            called = False
    return found


def dumped(file: Path) -> int:
    """The instructions in one dump."""
    found = re.search(r"^(?:summary|totals): (\d+)", file.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{file.name} has no total")
    return int(found[1])


def baseline() -> dict[str, float] | None:
    """The committed figures for this Python; None if there are none."""
    found: dict[str, float] | None = json.loads(BASELINE.read_text()).get(VERSION) if BASELINE.exists() else None
    return found


# --- Under valgrind ---------------------------------------------------------------------------------------------------


def calls() -> dict[str, Callable[[], object]]:
    """The pieces that are one call; each has ELEMENTS elements."""
    import numpy as np
    import orjson

    from fastinfer.codec.decode import decode
    from fastinfer.codec.encode import encode
    from fastinfer.tensor.message import InferResponse
    from fastinfer.tensor.tensor import Tensor

    source = np.random.default_rng(1)
    arrays = {
        "FP32": source.random(ELEMENTS, np.float32),
        "FP64": source.random(ELEMENTS),
        "INT32": source.integers(-(2**31), 2**31, ELEMENTS, np.int32),
        "UINT8": source.integers(0, 256, ELEMENTS, np.uint8),
    }
    made: dict[str, Callable[[], object]] = {}
    for datatype, array in arrays.items():
        tensor = {"name": "x", "shape": array.shape, "datatype": datatype, "data": array}
        text = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
        response = InferResponse("m", "1", [Tensor.from_numpy("x", array)])
        made[f"decode {datatype} element"] = lambda text=text: decode(text)
        made[f"encode {datatype} element"] = lambda response=response: encode(response)
    return made


def counted(marks: ctypes.CDLL) -> Iterator[int]:
    """How often to do a piece, again and again: first uncounted, to warm up."""
    for times in (0, *(1, 2) * REPEATS):
        gc.collect()
        if times:
            marks.begin()
        yield times or 1
        if times:
            marks.end()


async def requests(marks: ctypes.CDLL) -> None:
    """The first pieces."""
    import request

    async with request.running() as service:
        for asked in ([request.head() + request.body()], request.own_requests(4 * REQUESTS)):
            connections = request.Connections(service, 1)
            for times in counted(marks):
                await connections.ask(REQUESTS * times, asked)
            request.check(connections.sinks[0].last)
            connections.close()


def work(marks: ctypes.CDLL) -> None:
    """All pieces; those without a server come when it has ended, with its threads and timers."""
    import uvloop

    uvloop.run(requests(marks))
    found = calls()
    for name in PIECES[2:]:
        for times in counted(marks):
            for _ in range(CALLS * times):
                found[name]()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write instructions.json")
    parser.add_argument("--profile", action="store_true", help="where the instructions of a request go")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(ctypes.CDLL(str(arguments.work)))
        return 0
    (found, libraries), before = count(), baseline() or {}
    if arguments.profile:
        for name, instructions in sorted(libraries.items(), key=lambda each: -each[1]):
            print(f"{name:22}{instructions:12,}  {instructions / max(1, sum(libraries.values())):6.1%}")
        return 0
    for name, instructions in found.items():
        change = f"{instructions / before[name] - 1:+.1%}" if name in before else "new"
        print(f"{name:22}{instructions:12,.1f}  {change}")
    if arguments.update:
        known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        BASELINE.write_text(json.dumps(known | {VERSION: found}, indent=1, sort_keys=True) + "\n")
        return 0
    return int(any(value > before.get(name, value) * TOLERANCE for name, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
