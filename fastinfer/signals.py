"""Signals of a server besides those that end it: its state to the log, debug logging, and processes that end.

SIGUSR1 has two parts. The stacks of all threads are written by a handler in C, straight to the standard error, so that
they come even if the event loop stands still. Whatever else there is to say is written to the log by the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import logging
import os
import signal
import stat
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

_STATE, _DEBUG = signal.SIGUSR1, signal.SIGUSR2
_TASKS: Final = 50
_FAILED: Final = "the state could not be told"


def ignore() -> None:
    """Before a server can answer these signals they do nothing; by default they would end the process."""
    for number in (_STATE, _DEBUG):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """A process that is started inside keeps them until it can answer them; see :class:`Inspection`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (_STATE, _DEBUG))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Inspection:
    """Answers SIGUSR1 and SIGUSR2 until :meth:`close`. Made on the main thread, which runs the loop.

    Args:
        loop: of this process.
        tell: called for SIGUSR1, after the stacks: the lines for the log.
        toggle: called for SIGUSR2.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, tell: Callable[[], Iterable[str]], toggle: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._tell = tell
        loop.add_signal_handler(_STATE, self._told)
        loop.add_signal_handler(_DEBUG, toggle)
        self._descriptor = _never_waiting(2)
        # After the loop's handler, which it calls.
        faulthandler.register(_STATE, self._descriptor, all_threads=True, chain=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (_STATE, _DEBUG))

    def _told(self) -> None:
        try:
            for line in self._tell():
                log.info("%s", line)
        except Exception:
            log.exception(_FAILED)

    def close(self) -> None:
        """Ignores them from now on."""
        faulthandler.unregister(_STATE)
        for number in (_STATE, _DEBUG):
            self._loop.remove_signal_handler(number)
        ignore()
        os.close(self._descriptor)


def _never_waiting(descriptor: int) -> int:
    """A descriptor for the same file. A write to a full pipe fails at once: a signal handler must not wait for a reader.

    A pipe is opened again for that, so that nobody else's descriptor changes. A file must not be, since its position is
    shared by all who write to it. A socket cannot be: there the handler waits.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.dup(descriptor)


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
            of = " ".join(str(frame.f_locals[name])[:80] for name in ("operation", "name", "call") if name in frame.f_locals)
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
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                with contextlib.suppress(OSError):
                    # The second field is a name in brackets, with anything in it.
                    state, ppid = Path("/proc", entry, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
                    if state == "Z" and ppid == parent:
                        found.append(int(entry))
        return found
    return []


