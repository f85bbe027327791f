"""ONNX Runtime in a bare loop: `python bench/load/bare.py MODEL.onnx`, the process that runtime.py measures.

Reads JSON lines, {"ways": [{"loops", "threads", "batch"}...], "seconds"}; answers each with the ways and their items/s.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time

import numpy as np
import onnxruntime


@functools.cache
def session(model: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def items_per_s(runs: onnxruntime.InferenceSession, loops: int, batch: int, seconds: float) -> float:
    """Rows of all loops together; each runs at least once."""
    random = np.random.default_rng(0)
    feeds = {
        each.name: random.random((batch, *each.shape[1:]), np.float32)  # the models that are asked take FP32
        for each in runs.get_inputs()
    }
    runs.run(None, feeds)
    rates = []

    def loop() -> None:
        count, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < seconds or not count:
            runs.run(None, feeds)
            count += 1
        rates.append(count * batch / took)

    threads = [threading.Thread(target=loop) for _ in range(loops - 1)]
    for thread in threads:
        thread.start()
    loop()
    for thread in threads:
        thread.join()
    return sum(rates)


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        answer = []
        for way in asked["ways"]:
            runs = session(sys.argv[1], way["threads"])
            answer.append(way | {"items_per_s": items_per_s(runs, way["loops"], way["batch"], asked["seconds"])})
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
