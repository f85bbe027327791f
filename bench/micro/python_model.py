"""What a Python model costs beside the same model in ONNX: `python bench/micro/python_model.py [--requests N]`.

The model multiplies by two. One server has it three times: in ONNX, as Python in a process of its own, as Python on a
thread. One connection asks them in turns, so that noise meets all three alike; the median is shown, for rows of several
sizes, as binary tensors (JSON would cost all three the same on top).
"""

from __future__ import annotations

import argparse
import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper

CODE = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"] * 2}
"""
CONFIG = """
max_batch_size = 64
input = [{ name = "x", data_type = "FP32", dims = [-1] }]
output = [{ name = "y", data_type = "FP32", dims = [-1] }]
"""
SIZES = (16, 4096, 262_144)


def twice() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "n"])],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    model: onnx.ModelProto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    return model.SerializeToString()


def repository(directory: Path) -> None:
    for name, file, content, more in (
        ("onnx", "model.onnx", twice(), ""),
        ("process", "model.py", CODE.encode(), ""),
        ("thread", "model.py", CODE.encode(), "parameters = { isolation = 'thread' }\n"),
    ):
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / file).write_bytes(content)
        (directory / name / "config.toml").write_text(more + CONFIG)


def request(elements: int) -> tuple[bytes, dict[str, str]]:
    values = np.random.default_rng(0).random((1, elements), np.float32)
    tensor = {"name": "x", "shape": [1, elements], "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": values.nbytes}  # type: ignore[assignment]
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def ask(connection: http.client.HTTPConnection, model: str, body: bytes, headers: dict[str, str]) -> float:
    began = time.perf_counter()
    connection.request("POST", f"/v2/models/{model}/infer", body, headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{model} answers {answer.status}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000, help="for each model and size")
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as directory:
        repository(Path(directory))
        command = [sys.executable, "-m", "fastinfer", "serve", "--port", "0", "--model-repository", directory]
        with subprocess.Popen([*command, "--allow-python-models"], stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                log = ""
                while "ready: " not in log:
                    log += server.stderr.readline()
                found = re.search(r"http://127.0.0.1:(\d+)", log)
                assert found is not None, log
                connection = http.client.HTTPConnection("127.0.0.1", int(found[1]))
                print("median µs of a request, 1 connection, FP32 rows of n elements, binary")
                print(f"{'n':>8} {'onnx':>8} {'process':>8} {'thread':>8}")
                for elements in SIZES:
                    body, headers = request(elements)
                    times: dict[str, list[float]] = {"onnx": [], "process": [], "thread": []}
                    for round_ in range(count + count // 10):
                        for model, taken in times.items():
                            taken.append(ask(connection, model, body, headers))
                            if round_ < count // 10:
                                taken.clear()
                    cells = [f"{statistics.median(taken) * 1e6:8.0f}" for taken in times.values()]
                    print(f"{elements:>8} {' '.join(cells)}")
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
