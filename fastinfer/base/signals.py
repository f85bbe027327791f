"""Signals of a server besides those that end it: its state to the log, debug logging, and processes that end.

SIGUSR1 and SIGUSR2 are blocked in all threads, from the process's first line on (see :func:`hold`), so that they never
end it; one thread waits for them. It writes the stacks of all threads itself, so that they come even if the event loop
stands still, and has the loop write everything else. A handler in C that reads the stacks (faulthandler) would come
through even if a thread keeps the interpreter's lock; but it reads them while other threads change them, and crashes.
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
_STANDS_STILL_S: Final = 1.0
_PACKAGE: Final = __name__.partition(".")[0]
_FRAMES: Final = 50  # of a thread
_TASKS: Final = 50


def hold() -> None:
    """Has this thread, those that it starts, and processes that it starts keep the signals until they can answer."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _BOTH)


class Inspection:
    """Answers SIGUSR1 and SIGUSR2 until :meth:`close`. Made by the loop's thread.

    Args:
        loop: of this process.
        tell: called on the loop for SIGUSR1: lines for the log.
        toggle: called on the loop for SIGUSR2.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tell: Callable[[], Iterable[str]], toggle: Callable[[], None]
    ) -> None:
        hold()
        self._loop = loop
        self._tell = tell
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
            except RuntimeError:  # the loop has ended
                return
            except Exception:
                log.exception("a signal could not be answered")

    def _write_state(self) -> None:
        _say(f"stacks of the threads of process {os.getpid()}")
        for line in stacks():
            _say(line)
        told = threading.Event()
        self._loop.call_soon_threadsafe(self._told, told)
        if not told.wait(_STANDS_STILL_S):
            _say(f"the event loop has stood still for {_STANDS_STILL_S:g} s; the rest comes when it goes on")

    def _told(self, told: threading.Event) -> None:
        told.set()
        try:
            for line in self._tell():
                _say(line)
        except Exception:
            log.exception("the state could not be told")

    def close(self) -> None:
        """Leaves them unanswered from now on."""
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(self._thread.ident or 0, _STATE)
        self._thread.join()


def _say(text: str) -> None:
    """Logs it whatever the level: somebody has asked."""
    log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, text, (), None))


def stacks() -> Iterator[str]:
    """What each thread is in, a line each, the innermost call first. Reads no source file: a disk may hang."""
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
    """What tasks wait for: the functions that each is in, the innermost last; equal ones once, with their number."""
    found = Counter(" > ".join(_steps(task.get_coro())) for task in tasks if not task.done())
    return [text if count == 1 else f"{text} ({count} times)" for text, count in found.most_common(_TASKS)]


def _steps(step: Any) -> Iterator[str]:
    while step is not None:
        frame = getattr(step, "cr_frame", None)
        if frame is None:
            if not inspect.iscoroutine(step):
                return  # a future, which is what all wait for in the end
        else:
            known = frame.f_locals
            of = " ".join(str(known[name])[:80] for name in ("operation", "name", "call") if name in known)
            yield f"{frame.f_code.co_qualname}:{frame.f_lineno}" + (f" [{of}]" if of else "")
        step = getattr(step, "cr_await", None)


# --- Processes that end -----------------------------------------------------------------------------------------------


def reap(ours: Container[int]) -> list[int]:
    """Collects children that have ended and that nobody here waits for.

    A container's first process inherits every process whose parent ends, and has to collect it, or it stays in the
    table of processes.

    Args:
        ours: the processes that somebody waits for; their status is left alone.

    Returns:
        The process numbers of those that were collected.
    """
    reaped = []
    for pid in _ended_children():
        if pid not in ours:
            with contextlib.suppress(ChildProcessError):  # a thread that waits for it was quicker
                if os.waitpid(pid, os.WNOHANG)[0]:
                    reaped.append(pid)
    return reaped


def _ended_children() -> list[int]:
    """All zombies of this process. The cheap question first: signals come for each child that ends."""
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
