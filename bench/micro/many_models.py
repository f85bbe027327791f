"""How long a server with many models takes to start: `python bench/micro/many_models.py [--models N] [--rounds N]`.

Each model is a perceptron of its own: another width, other weights. In each round ONNX Runtime makes a session for each
model, in one process and one after the other, and then a server starts with all of them, from its first line of code to
its first "ready". The ratio of the two is shown, each round's and their median; then the same with models that have one
graph and other weights.
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
from onnx import TensorProto, helper, numpy_helper

SESSIONS = """
import sys, time, onnxruntime
paths = sys.argv[1:]
began = time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # no threads of the session's own, which cost more than the rest
kept = [onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in paths]
print(time.perf_counter() - began)
"""


def perceptron(inputs: int, hidden: int, seed: int) -> bytes:
    random = np.random.default_rng(seed)
    nodes, constants, value = [], [], "x"
    for layer, (rows, columns) in enumerate(((inputs, hidden), (hidden, hidden), (hidden, 10))):
        weight, bias = random.standard_normal((rows, columns)), random.standard_normal(columns)
        constants += [numpy_helper.from_array(weight.astype("f4"), f"w{layer}")]
        constants += [numpy_helper.from_array(bias.astype("f4"), f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [f"h{layer}"]))
        nodes.append(helper.make_node("Relu", [f"h{layer}"], [value := f"a{layer}"]))
    nodes.append(helper.make_node("Softmax", [value], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", inputs])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "perceptron", [x], [y], constants)
    model: onnx.ModelProto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    return model.SerializeToString()


def repository(directory: Path, models: int, one_graph: bool) -> list[Path]:
    paths = []
    for number in range(models):
        path = directory / f"m{number:04d}" / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(perceptron(32 if one_graph else 8 + number, 64, number))
        paths.append(path)
    return paths


def sessions_s(paths: list[Path]) -> float:
    command = [sys.executable, "-c", SESSIONS, *map(str, paths)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def start_s(directory: Path, log: Path) -> float:
    command = [sys.executable, "-m", "fastinfer", "serve", "--port", "0", "--model-repository", str(directory)]
    began = time.perf_counter()
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            while not is_ready(log.read_text()):
                if server.poll() is not None or time.perf_counter() - began > 600:
                    raise SystemExit(log.read_text())
                time.sleep(0.01)
            return time.perf_counter() - began
        finally:
            server.terminate()


def is_ready(log: str) -> bool:
    port = re.search(r"http://[^ ]*:(\d+)", log)
    if port is None:
        return False
    connection = http.client.HTTPConnection("127.0.0.1", int(port[1]), timeout=60)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for one_graph in (False, True):
        with tempfile.TemporaryDirectory() as place:
            directory = Path(place) / "models"
            paths = repository(directory, options.models, one_graph)
            ratios = []
            for _ in range(options.rounds):
                engine, server = sessions_s(paths), start_s(directory, Path(place) / "log")
                ratios.append(server / engine)
                print(f"  sessions {engine:6.2f} s, server {server:6.2f} s: {ratios[-1]:.2f}")
            graphs = "one graph, other weights" if one_graph else "a graph of its own each"
            print(f"{options.models} models, {graphs}: {statistics.median(ratios):.2f} times ONNX Runtime's sessions")


if __name__ == "__main__":
    main()
