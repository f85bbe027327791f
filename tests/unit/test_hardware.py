"""What the machine has, and the sentences of ``/v2/hardware``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from fastinfer.api import hardware
from fastinfer.api.routes import hardware as routes
from fastinfer.base.errors import ApiError
from fastinfer.base.machine import usable_cores
from fastinfer.http.exchange import Exchange


def with_gpus(root: Path, *texts: str) -> Path:
    for number, text in enumerate(texts):
        directory = root / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        directory.mkdir(parents=True)
        (directory / "information").write_text(text)
    return root


def test_this_machine() -> None:
    found = hardware.available()
    assert found["CPU"] == usable_cores() >= 1
    assert found["GPU"] >= 0
    assert found["CPUExecutionProvider"] == 1


def test_without_a_driver_there_is_no_gpu(tmp_path: Path) -> None:
    assert hardware.gpu_models(tmp_path) == []
    assert hardware.available(tmp_path)["GPU"] == 0


def test_gpus_are_counted_by_model(tmp_path: Path) -> None:
    a100 = "Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 42\n"
    root = with_gpus(tmp_path, a100, "Model: \t\t NVIDIA L4\n", a100, "IRQ: 1\n")
    found = hardware.available(root)
    assert found["GPU"] == 4
    assert (found["NVIDIA A100-SXM4-40GB"], found["NVIDIA L4"], found["NVIDIA GPU"]) == (2, 1, 1)


def ask(body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """The answer to a POST on a machine with two cores."""
    monkeypatch.setattr(hardware, "available", lambda: {"CPU": 2, "GPU": 0})
    answers: list[tuple[int, Any]] = []
    connection: Any = SimpleNamespace(answer=lambda _, status, _type, text, _fields: answers.append((status, text)))
    exchange = Exchange(connection, "POST", (), {}, body, True)
    service: Any = SimpleNamespace(config=SimpleNamespace(request_timeout_s=30.0))
    handler = routes.routes(service)[1].handler
    coroutine = handler(exchange)
    assert coroutine is not None
    try:
        asyncio.run(coroutine)
    except ApiError as error:
        exchange.fail(error)
    status, text = answers[0]
    return status, orjson.loads(text)


@pytest.mark.parametrize(("given", "num"), [({}, 1), ({"num": 1}, 1), ({"num": 2}, 2), ({"unknown": [1]}, 1)])
def test_enough(given: dict[str, Any], num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ask(orjson.dumps({"name": "CPU", **given}), monkeypatch)
    assert answer == (200, {"name": "CPU", "num": num, "available": 2})


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"name": "CPU", "num": 3}, 404, '2 of "CPU" exist, 3 are requested'),
        ({"name": "GPU"}, 404, '0 of "GPU" exist, 1 are requested'),
        ({"name": "cpu"}, 404, '0 of "cpu" exist, 1 are requested'),
        ({"name": ""}, 404, '0 of "" exist, 1 are requested'),
        ({"name": "x" * 100_000}, 404, f'0 of "{"x" * 56}... exist, 1 are requested'),
        ({"num": 1}, 400, "name is required"),
        ({"name": 1}, 400, "name must be text, got 1"),
        ({"name": "CPU", "num": 0}, 400, "num must be at least 1, got 0"),
        ({"name": "CPU", "num": -1}, 400, "num must be at least 1, got -1"),
        ({"name": "CPU", "num": 1.0}, 400, "num must be a whole number, got 1.0"),
        ({"name": "CPU", "num": "1"}, 400, 'num must be a whole number, got "1"'),
        ({"name": "CPU", "num": True}, 400, "num must be a whole number, got true"),
        ({"name": "CPU", "num": None}, 400, "num must be a whole number, got null"),
        ({"name": [[[]] * 2] * 3}, 400, "name must be text, got [[[],[]],[[],[]],[[],[]]]"),
        ([], 400, 'the body must be an object: {"name": ..., "num": ...}'),
    ],
)
def test_refusals(body: Any, status: int, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(orjson.dumps(body), monkeypatch) == (status, {"error": sentence})


def test_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(depth: int) -> bytes:
        return b'{"name":"CPU","x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    assert ask(nested(100), monkeypatch)[0] == 200
    assert ask(nested(101), monkeypatch) == (400, {"error": "the body is nested deeper than 100 levels"})


@pytest.mark.parametrize("body", [b"", b" ", b"{", b'{"name":"\xff"}', b"CPU"])
def test_what_is_not_json(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    status, answer = ask(body, monkeypatch)
    assert status == 400
    assert answer["error"].startswith("the body is not JSON")
