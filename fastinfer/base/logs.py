"""Writes log lines to the standard error on a separate thread.

Logging only puts a record into a bounded queue, so that a full disk or a stopped reader never blocks the server.
Records that do not fit are dropped and counted, and the count is logged when there is room again. Text from clients
cannot forge lines or control a terminal, because control characters are written as escapes.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import re
import select
import threading
import time
from typing import Any, Literal

import orjson

log = logging.getLogger(__name__)

MAX_QUEUED = 10_000
_STOP_S = 1.0  # how long stop() waits for a slow sink
_POLL_MS = 1000
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def printable(text: str) -> str:
    """``text`` on one line: line breaks, control and direction characters and lone surrogates as escapes."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


class TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00.000 WARNING  message``, in local time; the lines of a traceback are indented.

    Args:
        colours: whether the level is coloured.
        slot: the process's slot, written before the message: ``[1] message``; None: there is one process.
    """

    def __init__(self, colours: bool = False, slot: int | None = None) -> None:
        super().__init__()
        self._colours = colours
        self._prefix = "" if slot is None else f"[{slot}] "

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<8}"
        if self._colours and record.levelname in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelname]}m{level}\x1b[0m"
        line = f"{stamp}.{int(record.msecs):03d} {level} {self._prefix}{printable(record.getMessage())}"
        trace = _traceback(self, record)
        return "\n    ".join([line, *(printable(part) for part in trace.splitlines())]) if trace else line


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``process``, ``message``; ``slot`` if there are several
    serving processes; and ``exception`` if any."""

    def __init__(self, slot: int | None = None) -> None:
        super().__init__()
        self._slot = {} if slot is None else {"slot": slot}

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        body: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            **self._slot,
            "message": _encodable(record.getMessage()),
        }
        trace = _traceback(self, record)
        if trace:
            body["exception"] = _encodable(trace)
        return orjson.dumps(body).decode()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class Logs(logging.Handler):
    """The queue, and the thread that empties it.

    Args:
        descriptor: the file descriptor to write to; it stays open. The thread writes to it directly, because a thread
            stuck in a stream object would hold the stream's lock while the interpreter shuts down.
        formatter: makes the lines.
        size: how many records may wait.
        lost: a 64-bit integer that counts lost records; it may continue an earlier process's count.
    """

    def __init__(
        self, descriptor: int, formatter: logging.Formatter, size: int = MAX_QUEUED, lost: memoryview | None = None
    ) -> None:
        super().__init__()
        self._lost = memoryview(bytearray(8)).cast("q") if lost is None else lost
        self._reported = self.dropped
        self._descriptor = descriptor
        self.setFormatter(formatter)
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(size)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="fastinfer-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """The number of records lost so far."""
        return int(self._lost[0])

    def emit(self, record: logging.LogRecord) -> None:
        """Any thread: formats the message and queues the record."""
        try:
            record.msg, record.args = record.getMessage(), None
        except Exception:  # a wrong format string must not fail a request
            record.msg, record.args = f"{record.msg!s} (bad arguments)", None
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._lost[0] += 1  # logging holds the handler's lock here

    def stop(self) -> None:
        """Writes the waiting records, but does not wait long for a sink that accepts nothing."""
        deadline = time.monotonic() + _STOP_S
        self._stopped = True
        try:
            self._queue.put(None, timeout=_STOP_S)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            self._write(record)
            if self.dropped > self._reported and self._queue.empty():
                self._report_dropped()
        if self.dropped > self._reported:
            self._report_dropped()

    def _report_dropped(self) -> None:
        missing, self._reported = self.dropped - self._reported, self.dropped
        text = f"{missing} log lines were dropped, because they could not be written fast enough"
        self._write(logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            left = memoryview(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    while not poll.poll(_POLL_MS):
                        if self._stopped:
                            return
        except Exception:  # disk full, pipe closed, a record that cannot be formatted: the next one may succeed
            self.acquire()
            self._lost[0] += 1
            self._reported += 1  # the report would fail as well
            self.release()


def start(
    level: str = "info",
    form: Literal["text", "json"] = "text",
    descriptor: int = 2,
    slot: int | None = None,
    lost: memoryview | None = None,
) -> Logs:
    """Sets logging up for this process.

    Args:
        level: the lowest level that is logged: debug, info, warning, error.
        form: lines for people, or JSON.
        descriptor: the file descriptor of the sink; colours are used if it is a terminal.
        slot: this process's slot, which every line names; None: there is one process.
        lost: memory for the count of lost lines (see :class:`Logs`).

    Returns:
        The handler; ``stop()`` it at the end.
    """
    coloured = os.isatty(descriptor) and "NO_COLOR" not in os.environ
    handler = Logs(descriptor, JsonFormatter(slot) if form == "json" else TextFormatter(coloured, slot), lost=lost)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        if isinstance(old, Logs):
            old.stop()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    return handler


class Debug:
    """Switches debug logging on and off, on a signal."""

    def __init__(self) -> None:
        self._level = logging.getLogger().level
        self.on = self._level <= logging.DEBUG

    def toggle(self) -> None:
        """Turns it on if it is off, and off if it is on."""
        self.set(on=not self.on)

    def set(self, *, on: bool) -> None:
        """Turns it on or off, and logs a change. If it is off, the level is the configured one, or info."""
        if on == self.on:
            return
        self.on = on
        root = logging.getLogger()
        root.setLevel(logging.DEBUG)
        usual = self._level if self._level > logging.DEBUG else logging.INFO
        if on:
            log.info("debug logging is on")
        else:
            log.info("debug logging is off; the level is %s", logging.getLevelName(usual).lower())
            root.setLevel(usual)
