"""Models with operators of onnxruntime-extensions: runs, and answers over a socket, beside the engine's own package.

    PYTHONPATH=.:tests python bench/micro/extensions.py > result.json

Needs the extra `extensions`. The engine's own speed is that of the package `onnxruntime` with the same library, in this
process, one run after the other. Rounds of the three alternate, and each figure is the median over the rounds, in
microseconds; machine and versions are in the result.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, time

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

ROUNDS, ROUND_S = 15, 0.4
TEXT = "the cat sat on the mat and the unaffable dog ran " * 4


def photograph(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, "JPEG", quality=85)
    return file.getvalue()


def round_us(call: Callable[[], object]) -> float:
    started, count = perf_counter(), 0
    while (elapsed := perf_counter() - started) < ROUND_S:
        call()
        count += 1
    return elapsed / count * 1e6


def measure(root: Path, port: int, name: str, array: np.ndarray, body: bytes, head_size: int) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as here
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    path = root / name / "1" / "model.onnx"
    engine = onnxruntime.InferenceSession(str(path), options)
    (given,) = engine.get_inputs()
    session = ort.Session(path, operator_libraries=[extensions_library()])
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
            rounds[key].append(round_us(call))
    figures = {key: round(statistics.median(values), 1) for key, values in rounds.items()}
    ratio = statistics.median(a / b for a, b in zip(rounds["run_us"], rounds["engine_us"], strict=True))
    socket = statistics.median(a / b for a, b in zip(rounds["socket_us"], rounds["engine_us"], strict=True))
    return {**figures, "run_to_engine": round(ratio, 3), "socket_to_engine": round(socket, 3)}


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
