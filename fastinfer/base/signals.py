"""Signals other than those that end the server: SIGUSR1 logs the state, SIGUSR2 toggles debug logging, SIGCHLD.

SIGUSR1 and SIGUSR2 are blocked in all threads, from the process's first line on (see :func:`hold`), so that they never
end the process; one thread waits for them. This thread logs the stacks of all threads itself, so that they appear even
if the event loop is blocked; the loop logs everything else. A C handler that reads the stacks (faulthandler) would work
even if a thread keeps the GIL; but it reads stacks while other threads change them, and crashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

log = logging.getLogger(__name__)

_STATE, _DEBUG = signal.SIGUSR1, signal.SIGUSR2
_BOTH: Final = (_STATE, _DEBUG)
_LOOP_BLOCKED_S: Final = 1.0
_PACKAGE: Final = __name__.partition(".")[0]
_FRAMES: Final = 50  # frames of a thread that are logged
_TASKS: Final = 50


def hold() -> None:
    """Blocks the signals in this thread and in all threads and processes that it starts; they stay pending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BOTH)


class Inspection:
    """Handles SIGUSR1 and SIGUSR2 until :meth:`close`. Created on the loop's thread.

    Args:
        loop: this process's event loop.
        state_lines: called on the loop for SIGUSR1; returns lines for the log.
        toggle: called on the loop for SIGUSR2.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, state_lines: Callable[[], Iterable[str]], toggle: Callable[[], None]
    ) -> None:
        hold()
        self._loop = loop
        self._state_lines = state_lines
        self._toggle = toggle
        self._closed = False
        self._thread = threading.Thread(target=self._wait, name="fastinfer-signals", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(_BOTH)
            if self._closed:
                return
            try:
                if number == _DEBUG:
                    self._loop.call_soon_threadsafe(self._toggle)
                else:
                    self._write_state()
            except RuntimeError:  # the loop is closed
                return
            except Exception:
                log.exception("a signal could not be handled")

    def _write_state(self) -> None:
        _log_always(f"stacks of the threads of process {os.getpid()}")
        for line in stacks():
            _log_always(line)
        started = threading.Event()
        self._loop.call_soon_threadsafe(self._log_state, started)
        if not started.wait(_LOOP_BLOCKED_S):
            _log_always(f"the event loop has been blocked for {_LOOP_BLOCKED_S:g} s; the rest follows later")

    def _log_state(self, started: threading.Event) -> None:
        started.set()
        try:
            for line in self._state_lines():
                _log_always(line)
        except Exception:
            log.exception("the state could not be reported")

    def close(self) -> None:
        """Stops the thread; later signals are ignored."""
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(self._thread.ident or 0, _STATE)
        self._thread.join()


def _log_always(text: str) -> None:
    """Logs a line at every log level, because the operator has requested it."""
    log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, text, (), None))


def stacks() -> Iterator[str]:
    """The stack of each thread as one line, innermost call first. Reads no source file, because a disk may hang."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread '{names.get(ident, ident)}': {' < '.join(_calls(frame))}"


def _calls(frame: FrameType | None) -> Iterator[str]:
    for _ in range(_FRAMES):
        if frame is None:
            return
        parts = Path(frame.f_code.co_filename).parts
        depth = parts[::-1].index(_PACKAGE) + 1 if _PACKAGE in parts else 2
        yield f"{frame.f_code.co_qualname} ({'/'.join(parts[-depth:])}:{frame.f_lineno})"
        frame = frame.f_back
    yield "..."


def waits(tasks: Iterable[asyncio.Task[Any]]) -> list[str]:
    """The functions in which tasks wait, the innermost last; equal lines appear once, with their number."""
    found = Counter(" > ".join(_steps(task.get_coro())) for task in tasks if not task.done())
    return [text if count == 1 else f"{text} ({count} times)" for text, count in found.most_common(_TASKS)]


def _steps(step: Any) -> Iterator[str]:
    while step is not None:
        frame = getattr(step, "cr_frame", None)
        if frame is None:
            if not inspect.iscoroutine(step):
                return  # a future, the end of every chain of awaits
        else:
            values = [frame.f_locals.get(name) for name in ("operation", "name", "call")]
            subject = " ".join(value[:80] for value in values if isinstance(value, str))
            yield f"{frame.f_code.co_qualname}:{frame.f_lineno}" + (f" [{subject}]" if subject else "")
        step = getattr(step, "cr_await", None)


# --- Processes that end -----------------------------------------------------------------------------------------------


def reap(ours: Container[int]) -> list[int]:
    """Reaps ended children that no task of this process waits for.

    A container's first process inherits every process whose parent ends, and must reap it; otherwise it stays a zombie.

    Args:
        ours: processes that a task waits for; they are not reaped.

    Returns:
        The ids of the reaped processes.
    """
    reaped = []
    for pid in _ended_children():
        if pid not in ours:
            with contextlib.suppress(ChildProcessError):  # a thread that waits for it has reaped it
                if os.waitpid(pid, os.WNOHANG)[0]:
                    reaped.append(pid)
    return reaped


def _ended_children() -> list[int]:
    """All zombies of this process. A cheap check comes first, because SIGCHLD arrives for every child that ends."""
    with contextlib.suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return []
        parent, found = str(os.getpid()), []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    # The second field is a name in brackets, with anything in it.
                    state, ppid, *_ = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                    if state == "Z" and ppid == parent:
                        found.append(int(entry.name))
        return found
    return []
