"""Slots, the places of serving processes: each always has a process, and a new one takes over before the old one ends.

A slot has listening sockets, which stay open as long as the server runs. When a process ends, the next one accepts the
connections that wait in them; until then, a process of another slot does.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from fastinfer.supervisor.child import Child, how_it_ended

log = logging.getLogger(__name__)

STABLE_S: Final = 1.0  # a process that has served this long has started well
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
# A serving process is ended by a request or from outside. Its replacement can serve all other clients, so a long pause
# would do more harm; starting and loading is a pause by itself.
LONGEST_PAUSE_AFTER_SERVING_S: Final = 0.2


def pause_s(failures: int, longest_s: float = LONGEST_PAUSE_S) -> float:
    """How long to wait before the next process, after this many consecutive failures."""
    return 0.0 if failures == 0 else min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30), longest_s)


class ProcessSlot:
    """The place of one serving process. Loop's thread only.

    Args:
        number: the slot's number, from 0.
        listeners: its listening sockets.
        launch: starts a process and returns it when it can serve; None: it has ended before, or must not serve.
        changed: called when the slot's process has changed.
        retire: called with a process that has been replaced.
        died: called with a process that has ended unexpectedly, before the next one is started.

    Attributes:
        child: the process that serves, if there is one.
    """

    def __init__(
        self,
        number: int,
        listeners: Sequence[socket.socket],
        launch: Callable[[ProcessSlot], Awaitable[Child | None]],
        changed: Callable[[], None],
        retire: Callable[[Child], None],
        died: Callable[[Child], None],
    ) -> None:
        self.number = number
        self.listeners = listeners
        self.child: Child | None = None
        self.served = asyncio.Event()  # set when the first process serves
        self._launch = launch
        self._changed = changed
        self._retire = retire
        self._died = died
        self._failures = 0  # consecutive processes that ended, or were rejected, before they served
        self._short_lives = 0  # consecutive processes that served, but not for long
        self._renewal: asyncio.Future[bool] | None = None
        self._wake = asyncio.Event()

    async def keep(self) -> None:
        """Keeps a process in the slot, forever."""
        while True:
            if self.child is None or self._renewal is not None:
                await self._fill()
            else:
                await self._wait(self.child)

    async def renew(self) -> bool:
        """Replaces the process; returns whether that worked. Otherwise the old process stays."""
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_future()
            self._wake.set()
        return await asyncio.shield(self._renewal)

    def drop(self, child: Child) -> None:
        """Takes the slot from a process that must stop serving; another one is started."""
        if self.child is child:
            self.child = None
            self._changed()
            self._wake.set()

    async def _fill(self) -> None:
        renewal = self._renewal  # a renewal that is requested later needs a process that is started later
        new = await self._launch(self)
        if new is not None:
            old, self.child = self.child, new
            new.is_ready()
            self._failures = 0
            self.served.set()
            self._changed()
            if old is not None:
                self._retire(old)
        if renewal is not None:
            renewal.set_result(new is not None)
            self._renewal = None
            self._wake.clear()
        if new is None and (renewal is None or self.child is None):
            self._failures += 1
            await asyncio.sleep(pause_s(self._failures))

    async def _wait(self, child: Child) -> None:
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((child.ended, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
        if self._renewal is None:
            self._wake.clear()
        if child.ended.done() and self.child is child:
            self.child = None
            self._died(child)
            self._changed()
            if child.lived_s() >= STABLE_S:
                self._short_lives = 0
            else:
                self._short_lives += 1
                await asyncio.sleep(pause_s(self._short_lives, LONGEST_PAUSE_AFTER_SERVING_S))


def log_death(child: Child) -> None:
    """Logs that a process has ended unexpectedly."""
    status = child.ended.result()
    level = logging.WARNING if status == 0 else logging.ERROR
    log.log(level, "process %d has ended: %s; another one takes its place", child.pid, how_it_ended(status))
