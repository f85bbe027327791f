"""Counts instructions with callgrind, which repeats where time does not: per small request, per element.

    python bench/micro/instructions.py            count, and compare with instructions.json
    python bench/micro/instructions.py --update   count, and write instructions.json

The work runs in one process under valgrind, which counts only while the work says so, by a library of two calls that is
compiled on demand. Each piece is done N times and 2 N times; the difference, divided by N, is free of what happens
once. Other threads' work and timers can only add to a count, so the least of several is taken. valgrind tells programs
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
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).with_name("instructions.json")
VERSION = f"{sys.implementation.name}-{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}"
TOLERANCE = 1.05
ELEMENTS = 4096
REQUESTS, CALLS = 100, 8  # N
REPEATS = 4
MARKS = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
"""

PIECES = (
    "request",
    *(f"{verb} {datatype} element" for verb in ("decode", "encode") for datatype in ("FP32", "FP64", "INT32", "UINT8")),
)


def count() -> dict[str, float]:
    """Instructions of each piece.

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
    pieces = {}
    for i, name in enumerate(PIECES):
        of_piece = totals[2 * REPEATS * i : 2 * REPEATS * (i + 1)]
        once, twice = min(of_piece[::2]), min(of_piece[1::2])
        pieces[name] = round((twice - once) / (REQUESTS if name == "request" else CALLS * ELEMENTS), 2)
    return pieces


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

    from fastinfer._ext.decode import decode
    from fastinfer._ext.encode import encode
    from fastinfer._ext.message import InferResponse
    from fastinfer._ext.tensor import Tensor

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


async def work(marks: ctypes.CDLL) -> None:
    """Every piece N times, then 2 N times, both counted."""
    import request

    found = calls()
    async with request.running() as service:
        connections = request.Connections(service, 1)
        asked = request.head() + request.body()
        for name in PIECES:
            for times in (0, *(1, 2) * REPEATS):  # first to warm up
                gc.collect()
                if times:
                    marks.begin()
                if name == "request":
                    await connections.ask(REQUESTS * (times or 1), asked)
                else:
                    for _ in range(CALLS * (times or 1)):
                        found[name]()
                if times:
                    marks.end()
        request.check(connections.sinks[0].last)
        connections.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write instructions.json")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        import uvloop

        uvloop.run(work(ctypes.CDLL(str(arguments.work))))
        return 0
    counted, before = count(), baseline() or {}
    for name, instructions in counted.items():
        change = f"{instructions / before[name] - 1:+.1%}" if name in before else "new"
        print(f"{name:22}{instructions:12,.1f}  {change}")
    if arguments.update:
        known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
        BASELINE.write_text(json.dumps(known | {VERSION: counted}, indent=1, sort_keys=True) + "\n")
        return 0
    return int(any(value > before.get(name, value) * TOLERANCE for name, value in counted.items()))


if __name__ == "__main__":
    sys.exit(main())
