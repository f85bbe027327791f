"""A repository with ensembles: small models, and configurations of their graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from onnx import helper, numpy_helper
from onnx_models import model, value

ROW = ["batch", 4]


def plus(amount: float = 1, datatype: str = "FP32", shape: Sequence[int | str] = ROW) -> bytes:
    """``y = x + amount``."""
    return _binary("Add", amount, datatype, shape)


def times(factor: float = 2) -> bytes:
    """``y = x * factor``."""
    return _binary("Mul", factor, "FP32", ROW)


def _binary(operator: str, amount: float, datatype: str, shape: Sequence[int | str]) -> bytes:
    kind = {"FP32": np.float32, "INT64": np.int64}[datatype]
    return model(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        [value("x", datatype, shape)],
        [value("y", datatype, shape)],
        [numpy_helper.from_array(np.array(amount, kind), "w")],
    )


def join() -> bytes:
    """``sum = a + b`` and ``difference = a - b``."""
    return model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [value("a", "FP32", ROW), value("b", "FP32", ROW)],
        [value("sum", "FP32", ROW), value("difference", "FP32", ROW)],
    )


def tensors(*names: str, dims: Sequence[int] = (4,), datatype: str = "FP32") -> list[dict[str, Any]]:
    return [{"name": name, "data_type": f"TYPE_{datatype}", "dims": list(dims)} for name in names]


def step(name: str, inputs: Mapping[str, str], outputs: Mapping[str, str], version: int = -1) -> dict[str, Any]:
    return {"model_name": name, "model_version": version, "input_map": dict(inputs), "output_map": dict(outputs)}


def ensemble(
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    *steps: Mapping[str, Any],
    max_batch_size: int = 64,
) -> dict[str, Any]:
    """A configuration, as Triton's JSON has it."""
    return {
        "platform": "ensemble",
        "max_batch_size": max_batch_size,
        "input": list(inputs),
        "output": list(outputs),
        "ensemble_scheduling": {"step": list(steps)},
    }


def linear(first: str = "plus", second: str = "times") -> dict[str, Any]:
    """``y = second(first(x))``."""
    steps = step(first, {"x": "x"}, {"y": "middle"}), step(second, {"x": "middle"}, {"y": "y"})
    return ensemble(tensors("x"), tensors("y"), *steps)


def diamond() -> dict[str, Any]:
    """``sum`` and ``difference`` of ``x + 1`` and ``x * 2``; and ``x + 1`` itself, under another name."""
    return ensemble(
        tensors("x"),
        tensors("sum", "difference", "left"),
        step("join", {"a": "left", "b": "right"}, {"sum": "sum", "difference": "difference"}),
        step("plus", {"x": "x"}, {"y": "left"}),
        step("times", {"x": "x"}, {"y": "right"}),
    )


def outer() -> dict[str, Any]:
    """The diamond's sum plus one, with ensembles as steps."""
    return ensemble(
        tensors("x"),
        tensors("y"),
        step("diamond", {"x": "x"}, {"sum": "between"}),
        step("linear", {"x": "between"}, {"y": "y"}),
    )


def write_model(repository: Path, name: str, content: bytes, config: str = "", version: int = 1) -> None:
    directory = repository / name
    (directory / str(version)).mkdir(parents=True, exist_ok=True)
    (directory / str(version) / "model.onnx").write_bytes(content)
    if config:
        (directory / "config.toml").write_text(config)


def write_ensemble(repository: Path, name: str, config: Mapping[str, Any]) -> None:
    """An ensemble without a version directory, with its configuration as TOML."""
    directory = repository / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(to_toml(config))


def write_python(repository: Path, name: str, code: str, config: str) -> None:
    directory = repository / name
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "1" / "model.py").write_text(code)
    (directory / "config.toml").write_text(config)


def to_toml(config: Mapping[str, Any]) -> str:
    """TOML with inline tables; every JSON value but null is one of TOML, too."""
    return "\n".join(f"{key} = {_toml(each)}" for key, each in config.items()) + "\n"


def _toml(given: Any) -> str:
    if isinstance(given, Mapping):
        return "{ " + ", ".join(f"{_toml(str(key))} = {_toml(each)}" for key, each in given.items()) + " }"
    if isinstance(given, list):
        return "[" + ", ".join(map(_toml, given)) + "]"
    return orjson.dumps(given).decode()


def write_basic(repository: Path) -> None:
    """The models ``plus``, ``times`` and ``join``."""
    for name, content in {"plus": plus(), "times": times(), "join": join()}.items():
        write_model(repository, name, content)
