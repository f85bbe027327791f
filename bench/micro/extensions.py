"""Models with operators of onnxruntime-extensions: runs, and answers over a socket, beside the engine's own package.

    PYTHONPATH=.:tests python bench/micro/extensions.py > result.json

Needs the extra `extensions`. The engine's own speed is that of the package `onnxruntime` with the same library, in this
process, on one thread. Short rounds of the three alternate, and each figure is the best round, in microseconds a run:
of the thread's processor time, or for the socket of wall time; machine and versions are in the result.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time, time

import numpy as np
import onnxruntime
import onnxruntime_extensions
from PIL import Image
from support import serving

from bench.make_models import EXTENDED, make
from fastinfer.backends.batch_run import BatchRun
from fastinfer.backends.onnx import ort
from fastinfer.backends.onnx.places import extensions_library
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor

ROUNDS, ROUND_S = 150, 0.03
TEXT = "the cat sat on the mat and the unaffable dog ran " * 4


def photograph(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, "JPEG", quality=85)
    return file.getvalue()


def round_us(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started, count = clock(), 0
    while (elapsed := clock() - started) < ROUND_S:
        call()
        count += 1
    return elapsed / count * 1e6


def measure(root: Path, port: int, name: str, array: np.ndarray, body: bytes, head_size: int) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    path = root / name / "1" / "model.onnx"
    engine = onnxruntime.InferenceSession(str(path), options)
    (given,) = engine.get_inputs()
    session = ort.Session(path, intra_op_threads=1, operator_libraries=[extensions_library()])
    request = InferRequest([Tensor.from_numpy(given.name, array)])

    def run() -> object:
        made = BatchRun(session, [request], False)
        made.run()
        return made.split()

    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Inference-Header-Content-Length": str(head_size)} if head_size else {}

    def ask() -> object:
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        with connection.getresponse() as response:
            assert response.status == 200
            return response.read()

    calls = {"engine_us": lambda: engine.run(None, {given.name: array}), "run_us": run, "socket_us": ask}
    rounds: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            clock = perf_counter if key == "socket_us" else thread_time
            rounds[key].append(round_us(call, clock))
    best = {key: min(values) for key, values in rounds.items()}
    ratios = {key: best[f"{key}_us"] / best["engine_us"] for key in ("run", "socket")}
    return {key: round(value, 1) for key, value in best.items()} | {
        f"{key}_to_engine": round(ratio, 3) for key, ratio in ratios.items()
    }


def main() -> None:
    result: dict[str, object] = {
        "time": int(time()),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_extensions": onnxruntime_extensions.__version__,
    }
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make(root, list(EXTENDED))
        for name in EXTENDED:
            with (root / name / "config.toml").open("a") as config:
                config.write("parameters.intra_op_threads = 1\n")
        text = json.dumps({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]}).encode()
        with serving(repository=root) as server:
            array = np.array([TEXT], object)
            result["text_embedding"] = measure(root, server.port, "text_embedding", array, text, 0)
            for size in ((640, 480), (1920, 1080)):
                jpeg = photograph(*size)
                tensor = {"name": "image", "shape": [len(jpeg)], "datatype": "UINT8"}
                head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(jpeg)}}]}).encode()
                array = np.frombuffer(jpeg, np.uint8)
                key = f"jpeg_classifier {size[0]}x{size[1]}"
                result[key] = measure(root, server.port, "jpeg_classifier", array, head + jpeg, len(head))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
