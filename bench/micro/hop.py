"""What a batch costs on the loop's thread, and what the hop to a native thread and back adds.

    PYTHONPATH=.:tests python bench/micro/hop.py > result.json

Each figure is the best of several repeats, in microseconds; machine and versions are in the result.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from collections.abc import Callable
from time import perf_counter, time

import numpy as np
import onnx_models as models
import uvloop

from fastinfer.backends.batch_run import BatchRun
from fastinfer.backends.onnx import ort
from fastinfer.native.executor import Executor
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor

REPEATS = 9


def best_us(call: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        started = perf_counter()
        for _ in range(times):
            call()
        best = min(best, perf_counter() - started)
    return round(best / times * 1e6, 3)


def requests(count: int) -> list[InferRequest]:
    arrays = [np.full((1, 16), number, "i4") for number in range(count)]
    return [InferRequest([Tensor.from_numpy(name, a) for name in ("INPUT0", "INPUT1")]) for a in arrays]


async def closed_loop(session: ort.Session, executor: Executor, outstanding: int, total: int) -> float:
    """Microseconds a job, with so many jobs under way at any time."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    batch = requests(1)
    submitted = ended = 0

    def submit() -> None:
        nonlocal submitted
        submitted += 1
        executor.submit(BatchRun(session, batch, True), done)

    def done(run: BatchRun) -> None:
        nonlocal ended
        run.split()
        ended += 1
        if submitted < total:
            submit()
        elif ended == total:
            finished.set_result(None)

    loop.add_reader(executor.fileno(), executor.drain)
    started = perf_counter()
    for _ in range(outstanding):
        submit()
    await finished
    loop.remove_reader(executor.fileno())
    return round((perf_counter() - started) / total * 1e6, 3)


def main() -> None:
    ort.configure(1)
    session = ort.Session(model=models.simple())
    figures: dict[str, float] = {}
    for count in (1, 64):
        batch = requests(count)

        def run(batch: list[InferRequest] = batch) -> BatchRun:
            made = BatchRun(session, batch, True)
            made.run()
            return made

        times = 20_000 // count + 1000
        figures[f"make, {count} requests"] = best_us(lambda batch=batch: BatchRun(session, batch, True), times)
        figures[f"make and run, {count} requests"] = best_us(run, times)
        figures[f"make, run and split, {count} requests"] = best_us(lambda run=run: run().split(), times)
    executor = Executor(1)
    for outstanding, total in ((1, 10_000), (32, 50_000)):
        repeats = [uvloop.run(closed_loop(session, executor, outstanding, total)) for _ in range(REPEATS)]
        figures[f"job on a native thread, {outstanding} outstanding"] = min(repeats)
    executor.close()
    machine = {"cpu": platform.machine(), "cores": len(os.sched_getaffinity(0)), "kernel": platform.release()}
    versions = {"python": platform.python_version(), "onnxruntime": ort.version(), "uvloop": uvloop.__version__}
    result = {"model": "simple", "unix_time": int(time()), "machine": machine, "versions": versions, "us": figures}
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
