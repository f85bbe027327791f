"""Model files that are damaged or hostile: a load says so in a sentence, and the old version serves on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import layouts
import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import Server, inference, serving, tensor

WARM_UP = """
[[model_warmup]]
name = "zeros"
batch_size = 1
inputs.x = { data_type = "TYPE_FP32", dims = [1, 4], zero_data = true }
"""


def flipped(share: float) -> bytes:
    """A model with sixteen bytes changed, after this share of it."""
    model = bytearray(onnx_models.mlp(4))
    at = int(len(model) * share)
    model[at : at + 16] = bytes(byte ^ 0xFF for byte in model[at : at + 16])
    return bytes(model)


def nested_graphs(depth: int) -> bytes:
    """An If in an If in an If …"""
    x, y = onnx_models.value("x", "FP32", ["batch", 4]), onnx_models.value("y", "FP32", ["batch", 4])
    leaf = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "leaf", [], [y])
    graph = leaf
    for _ in range(depth):
        node = helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=leaf)
        graph = helper.make_graph([node], "nested", [], [y])
    return onnx_models.model(list(graph.node), [x], [y], [numpy_helper.from_array(np.array(True), "yes")])


def nested_bytes(field: int, depth: int) -> bytes:
    """A message in a message in a message … of one field."""
    content = b""
    for _ in range(depth):
        size, number = b"", len(content)
        while True:
            size += bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
            number >>= 7
            if not number:
                break
        content = bytes([field << 3 | 2]) + size + content
    return content


def huge_constant() -> bytes:
    """A constant of 2**50 elements, which the runtime would compute while it loads."""
    return onnx_models.model(
        [
            helper.make_node("ConstantOfShape", ["dims"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [onnx_models.value("x", "FP32", ["batch", 4])],
        [onnx_models.value("y", "FP32", ["batch", 4])],
        [numpy_helper.from_array(np.array([2**50], np.int64), "dims")],
    )


def huge_weight() -> bytes:
    """A weight whose dims claim far more than its data."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**31, 2**31], raw_data=bytes(16))
    x, y = onnx_models.value("x", "FP32", ["batch", 4]), onnx_models.value("y", "FP32", ["batch", 4])
    return onnx_models.model([helper.make_node("Add", ["x", "w"], ["y"])], [x], [y], [weight])


def external(offset: int, length: int) -> bytes:
    """A model whose weight is in ``weights`` beside it, from ``offset`` on."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights"), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=str(value))
    x, y = onnx_models.value("x", "FP32", ["batch", 4]), onnx_models.value("y", "FP32", ["batch", 4])
    return onnx_models.model([helper.make_node("Add", ["x", "w"], ["y"])], [x], [y], [weight])


def inputs(count: int) -> bytes:
    names = {f"x{number}": "FP32" for number in range(count)}
    return onnx_models.identities(names)


REFUSED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "zeros": lambda: bytes(10_000),
    "text": lambda: b"not a model\n" * 100,
    "flipped at the beginning": lambda: flipped(0.0),
    "cut in the middle": lambda: onnx_models.mlp()[:9000],
    "cut at the end": lambda: onnx_models.mlp()[:-1],
    "twice": lambda: onnx_models.mlp() + onnx_models.mlp()[:500],
    "a git-lfs pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "an HTML page": lambda: b"<html>404</html>",
    "a message in a message": lambda: nested_bytes(7, 20_000),
    "an attribute in an attribute": lambda: nested_bytes(5, 5_000),
    "a weight that is not there": huge_weight,
    "external data that is missing": lambda: external(0, 16).replace(b"weights", b"missing"),
    "external data that is too short": lambda: external(4096, 16),
    "external data of a wrong length": lambda: external(0, 12),
    "external data before the file": lambda: external(-16, 16),
    "external data outside": lambda: external(0, 16).replace(b"weights", b"../../w"),
    "too many inputs": lambda: inputs(1100),
}
"""Contents that do not load."""

STRANGE: dict[str, Callable[[], bytes]] = {
    "flipped in the middle": lambda: flipped(0.5),
    "flipped near the end": lambda: flipped(0.95),
    "deep": lambda: nested_graphs(20),
    "a huge constant": huge_constant,
}
"""Contents that may load or not; neither may do harm."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for name in ("m", "other"):
        layouts.write(directory / name / "1" / "model.onnx", 2)
    (directory / "m" / "1" / "weights").write_bytes(np.arange(4, dtype="f4").tobytes())
    return directory


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serving("--load-run-timeout-s", "0.5", repository=repository) as server:
        yield server


def answer(server: Server, name: str) -> list[float]:
    answer = server.infer(name, inference(tensor("x", [1, 4], "FP32", [1] * 4)))
    assert answer.status == 200, answer.body
    data: list[float] = answer.json["outputs"][0]["data"]
    return data


@pytest.mark.parametrize("kind", [*REFUSED, *STRANGE])
def test_a_bad_file(server: Server, repository: Path, kind: str) -> None:
    file, pids = repository / "m" / "1" / "model.onnx", server.serving_pids()
    good = file.read_bytes()
    file.write_bytes({**REFUSED, **STRANGE}[kind]())
    try:
        loaded = server.post("/v2/models/m/load")
        if kind in REFUSED:
            assert loaded.status == 400, loaded.body
            assert answer(server, "m") == [3] * 4  # the old one serves on
        if loaded.status != 200:
            assert loaded.status == 400, loaded.body
            assert loaded.error.startswith("model 'm' does not load: ")
            assert str(repository) not in loaded.error
        assert answer(server, "other") == [3] * 4
    finally:
        file.write_bytes(good)
    server.load("models/m")
    assert answer(server, "m") == [3] * 4
    assert server.serving_pids() == pids  # no process has ended


def test_a_warm_up_without_end(server: Server, repository: Path) -> None:
    file, config = repository / "m" / "1" / "model.onnx", repository / "m" / "config.toml"
    good = file.read_bytes()
    file.write_bytes(onnx_models.endless(rest=(4,)))
    config.write_text(WARM_UP)
    try:
        loaded = server.post("/v2/models/m/load")
        assert loaded.status == 400
        assert "took too long" in loaded.error
        assert answer(server, "m") == [3] * 4
    finally:
        file.write_bytes(good)
        config.unlink()
    server.load("models/m")
