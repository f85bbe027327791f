"""One serving process, from the view of the supervisor: its start, its channel, its end."""

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
    """A process that serves, or is about to. Created by :meth:`start`.

    Attributes:
        slot: the number of its slot.
        bank: the bank of the shared counters that it writes.
        crash_slot: its slot in the crash record, or None.
        channel: the channel to it.
        up: done when it answers calls; the result is the version of its ONNX Runtime.
        ended: done when it has ended; the result is its exit status, negative for a signal.
        accepts_early: it has been loading for so long that it may accept before it is loaded, if no process serves.
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
        self.accepts_early = False
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
            slot: the number of its slot.
            crash_slot: its slot in the crash record; None: it has none.
            config: its configuration.
            listeners: the listening sockets of all slots.
            counters: the descriptor of the shared counters, and its bank.
            inherited: further descriptors that it inherits, by purpose.
            handlers: the functions that it may call; each also gets the child as ``caller``.

        Raises:
            OSError: the system cannot start another process.
        """
        ours, theirs = socket.socketpair()
        descriptors = [*(each.fileno() for group in listeners for each in group), counters[0], *inherited.values()]
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *_command(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *descriptors],
                    process_group=0,  # a terminal's Ctrl-C must reach only the supervisor
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
        """Notes that the process serves from now on."""
        self.ready_at = time.monotonic()

    def lived_s(self) -> float:
        """The seconds that it has served so far."""
        return 0.0 if self.ready_at is None else time.monotonic() - self.ready_at

    def kill(self) -> None:
        """Ends the process with SIGKILL."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Sends it a signal. SIGUSR1 and SIGUSR2 are blocked from its start on, and wait until it can handle them."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # Popen.send_signal would reap the process, which asyncio waits for


class _Bound:
    """A handler that also gets the calling child."""

    def __init__(self, child: Child, handler: Any) -> None:
        self._child = child
        self._handler = handler

    def __call__(self, **arguments: Any) -> Any:
        return self._handler(caller=self._child, **arguments)


def how_it_ended(status: int) -> str:
    """An exit status as text: ``SIGKILL``, ``status 3``."""
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _python() -> list[str]:
    # The child imports the same package: from the working directory only if this process did.
    here = Path(fastinfer.__file__).parents[1]
    flags = [] if here == Path.cwd() else ["-P"]
    return [sys.executable, *flags, "-m", "fastinfer", "process"]


_COMMAND: Final = _python()  # computed once, because the working directory may be gone when a process is replaced


def _command(descriptor: int) -> list[str]:
    return [*_COMMAND, str(descriptor)]
