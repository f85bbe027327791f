"""One serving process, as the supervisor sees it: started, talked to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import fastinfer
from fastinfer.config.server import ServerConfig
from fastinfer.supervisor.assignment import Assignment
from fastinfer.supervisor.channel import Channel, Handlers


class Child:
    """A process that serves, or is about to. Made by :meth:`start`.

    Attributes:
        slot: its place.
        bank: the part of the shared counters that it writes.
        crash_slot: its slot in the record of crashes, or None.
        channel: to it.
        up: done when it can be talked to; the result is the version of its ONNX Runtime.
        ended: done when it has ended; the result is its status, a negative number for a signal.
        impatient: it has been loading for so long that it accepts meanwhile if nobody else does.
    """

    channel: Channel

    def __init__(self, slot: int, bank: int, crash_slot: int | None, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self.slot = slot
        self.bank = bank
        self.crash_slot = crash_slot
        self.pid = process.pid
        self.up: asyncio.Future[str] = loop.create_future()
        self.ended = loop.create_task(process.wait())
        self.impatient = False
        self.ready_at: float | None = None

    @classmethod
    async def start(
        cls,
        slot: int,
        crash_slot: int | None,
        config: ServerConfig,
        listeners: Sequence[Sequence[socket.socket]],
        counters: tuple[int, int],
        inherited: Mapping[str, int],
        handlers: Handlers,
    ) -> Child:
        """Starts a process.

        Args:
            slot: its place.
            crash_slot: its slot in the record of crashes; None: it does without.
            config: its configuration.
            listeners: of all slots.
            counters: the descriptor of the shared counters, and its part of them.
            inherited: further descriptors that it gets, by what they are for.
            handlers: what it may call; each gets the child as ``caller`` besides.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        descriptors = [*(each.fileno() for group in listeners for each in group), counters[0], *inherited.values()]
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *_command(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *descriptors],
                    process_group=0,  # a terminal's Ctrl-C is for the supervisor alone
                )
            except BaseException:
                ours.close()
                raise
        child = cls(slot, counters[1], crash_slot, process)
        numbers = tuple(tuple(each.fileno() for each in group) for group in listeners)
        Assignment(config, slot, os.getpid(), numbers, *counters, dict(inherited), crash_slot).send(ours)
        bound = {name: _Bound(child, handler) for name, handler in handlers.items()}
        child.channel = await Channel.open(ours, {"up": child._is_up, **bound})
        return child

    def _is_up(self, runtime: str) -> None:
        if not self.up.done():
            self.up.set_result(runtime)

    def is_ready(self) -> None:
        """It serves from now on."""
        self.ready_at = time.monotonic()

    def lived_s(self) -> float:
        """For how long it has served."""
        return 0.0 if self.ready_at is None else time.monotonic() - self.ready_at

    def kill(self) -> None:
        """Ends it without asking."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Sends it a signal; from its start on it keeps SIGUSR1 and SIGUSR2 until it can answer them."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # Popen's own method would collect its status first, which asyncio waits for


class _Bound:
    """A handler that is told who calls."""

    def __init__(self, child: Child, handler: Any) -> None:
        self._child = child
        self._handler = handler

    def __call__(self, **arguments: Any) -> Any:
        return self._handler(caller=self._child, **arguments)


def how_it_ended(status: int) -> str:
    """A process's status in words: ``SIGKILL``, ``status 3``."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _python() -> list[str]:
    # The module is found where this one was: in the working directory only if that is where this one came from.
    here = Path(fastinfer.__file__).parents[1]
    flags = [] if here == Path.cwd() else ["-P"]
    return [sys.executable, *flags, "-m", "fastinfer", "process"]


_COMMAND: Final = _python()  # found once: the working directory may have vanished when a process has to be replaced


def _command(descriptor: int) -> list[str]:
    return [*_COMMAND, str(descriptor)]
