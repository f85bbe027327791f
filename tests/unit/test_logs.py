"""Log lines: their forms, what clients cannot do with them, and sinks that do not take them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from fastinfer.base import logs
from fastinfer.base.logs import JsonFormatter, Logs, TextFormatter, printable


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if isinstance(handler, Logs):
            handler.stop()
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)


def record(message: str, *args: object, level: int = logging.INFO, exc_info: object = None) -> logging.LogRecord:
    made = logging.LogRecord("fastinfer.test", level, "", 0, message, args, exc_info)  # type: ignore[arg-type]
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def failure() -> object:
    try:
        raise ValueError("first\n2026-01-01 00:00:00.000 ERROR    forged \x1b[2J")
    except ValueError as error:
        return (type(error), error, error.__traceback__)


HOSTILE = "a\r\nb\x1b[31m\x00\x7f\x9b\u2028\u202e\ud800ü"


def test_hostile_text_stays_on_one_line() -> None:
    assert printable(HOSTILE) == "a\\r\\nb\\x1b[31m\\x00\\x7f\\x9b\\u2028\\u202e\\ud800ü"


def test_text() -> None:
    line = TextFormatter().format(record("load of %s", HOSTILE, level=logging.WARNING))
    assert line.splitlines() == [line]
    assert line.endswith(".250 WARNING  load of " + printable(HOSTILE))
    assert "\x1b" not in line


def test_colours_only_where_they_are_wanted() -> None:
    assert "\x1b[33mWARNING \x1b[0m" in TextFormatter(colours=True).format(record("x", level=logging.WARNING))
    assert "\x1b" not in TextFormatter(colours=True).format(record("x"))


def test_the_lines_of_a_traceback_cannot_pass_for_log_lines() -> None:
    first, *rest = TextFormatter().format(record("failed", exc_info=failure())).split("\n")
    assert first.endswith("failed")
    assert len(rest) > 2
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in "".join(rest)


def test_json() -> None:
    line = JsonFormatter().format(record("load of %s", HOSTILE))
    assert "\n" not in line
    body = orjson.loads(line)
    assert list(body) == ["time", "level", "logger", "process", "message"]
    assert body["time"] == "2023-11-14T22:13:20.250Z"
    assert (body["level"], body["logger"], body["process"]) == ("info", "fastinfer.test", os.getpid())
    assert body["message"] == "load of " + HOSTILE.replace("\ud800", "\\ud800")
    assert "ValueError" in orjson.loads(JsonFormatter().format(record("x", exc_info=failure())))["exception"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_arrive_in_order(tmp_path: Path, form: str) -> None:
    with (tmp_path / "log").open("wb") as file:
        handler = logs.start("info", form, file.fileno())  # type: ignore[arg-type]
        for number in range(100):
            logging.getLogger("fastinfer.test").info("line %d", number)
        logging.getLogger("fastinfer.test").debug("not wanted")
        handler.stop()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 100
    assert all(f"line {number}" in line for number, line in enumerate(lines))
    assert handler.dropped == 0


def test_a_second_start_takes_the_place_of_the_first(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as first, (tmp_path / "b").open("wb") as second:
        logs.start("info", "text", first.fileno())
        logging.getLogger("x").info("one")
        handler = logs.start("error", "text", second.fileno())
        logging.getLogger("x").info("nothing")
        logging.getLogger("x").error("two")
        handler.stop()
    assert "one" in (tmp_path / "a").read_text()
    assert "two" in (tmp_path / "b").read_text()
    assert "nothing" not in (tmp_path / "b").read_text()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_sink_that_takes_nothing_stops_nobody(blocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    handler = Logs(writer, TextFormatter(), size=10)
    try:
        for _ in range(2000):
            handler.handle(record("x" * 1000))  # 2 MB into a pipe of 64 KiB that nobody reads
        assert handler.dropped > 1000
        received: list[bytes] = []

        def drain() -> None:
            while chunk := os.read(reader, 1 << 16):
                received.append(chunk)

        thread = threading.Thread(target=drain)
        thread.start()
        handler.stop()
        os.close(writer)
        thread.join()
        lines = b"".join(received).decode().splitlines()
        told = [int(line.split(" WARNING  ")[1].split()[0]) for line in lines if "could not be written" in line]
        assert "could not be written fast enough" in lines[-1]
        assert sum(told) == handler.dropped == 2000 - (len(lines) - len(told))
    finally:
        os.close(reader)


def test_a_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_STOP_S", 0.05)
    reader, writer = os.pipe()
    handler = Logs(writer, TextFormatter(), size=2)
    for _ in range(100):
        handler.handle(record("x" * 10_000))
    handler.stop()
    os.close(reader)  # lets the thread go: EPIPE
    handler._thread.join(10)
    os.close(writer)


def test_a_closed_or_full_sink_is_survived() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    handler = Logs(writer, TextFormatter())
    for _ in range(3):
        handler.handle(record("x"))
    handler.stop()
    assert handler.dropped == 3
    os.close(writer)
    with Path("/dev/full").open("wb") as full:
        handler = Logs(full.fileno(), TextFormatter())
        handler.handle(record("x"))
        handler.stop()
        assert handler.dropped == 1


def test_a_bad_message_is_logged_all_the_same(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        handler = Logs(file.fileno(), TextFormatter())
        handler.handle(record("%d of %d", 1))
        handler.stop()
    assert "%d of %d (bad arguments)" in (tmp_path / "log").read_text()
