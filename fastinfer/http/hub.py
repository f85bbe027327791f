"""What all HTTP connections of one event loop share: limits, read buffer, counters, and the clock that ends slow ones.

Loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, Protocol

from typing_extensions import Buffer

from fastinfer.base import limits as constants
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.base.machine import usable_cores
from fastinfer.http.connection import Shared
from fastinfer.http.exchange import Exchange
from fastinfer.http.head import Router
from fastinfer.http.pieces import Pieces
from fastinfer.http.poller import Poller

log = logging.getLogger(__name__)

_SLOTS: Final = 64
_PERIOD_S: Final = 4.0


class Sweepable(Protocol):
    """What the hub needs of a connection."""

    def check(self, now: float) -> None:
        """Ends what takes too long."""

    def probe(self) -> None:
        """Sends something harmless to a client that has closed its side."""

    def socket_error(self) -> int:
        """The error that the system has noted for the socket, 0 for none."""

    def state(self) -> str:
        """What it does, for people."""

    def requests(self) -> Iterable[tuple[int, str, str]]:
        """Its requests without an answer, for people: arrival in ns, stage, description."""

    def give_up(self) -> None:
        """Answers what is not answered with 503, and ends."""

    def abort(self) -> None:
        """Ends at once."""


class Hub(Shared):
    """The connections of a loop.

    What every request needs of it stands in :class:`fastinfer.http.connection.Shared`.

    Attributes:
        opening: accepted sockets that have no transport yet.
        connections: open now.
        ending: no more connections are accepted, and idle ones end; ``draining``: each answer ends its connection.
        draining_since: when that began.
        pieces: threads that inflate bodies and compress answers.
        half_closed: connections whose client has closed its side and waits for answers, and since when.
    """

    __slots__ = (
        "_slots",
        "_tasks",
        "_tick_s",
        "_ticks",
        "_timer",
        "_turns",
        "_when_empty",
        "connections",
        "draining_since",
        "ending",
        "half_closed",
        "opening",
        "pieces",
        "router",
    )

    def __init__(
        self,
        router: Router,
        limits: HttpLimits,
        loop: asyncio.AbstractEventLoop,
        poller: Poller | None = None,
        counters: Buffer | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(limits, loop, poller, counters, budget)
        self.router = router
        self.opening = 0
        self.connections = 0
        self.ending = False
        self.draining_since = 0.0
        self.half_closed: dict[Sweepable, tuple[float, bool]] = {}
        self._slots: list[set[Sweepable]] = [set() for _ in range(_SLOTS)]
        self._ticks = 0
        shortest = min(limits.head_timeout_s, limits.body_idle_timeout_s, limits.keep_alive_timeout_s,
                       limits.write_timeout_s, limits.upload_timeout_s)  # fmt: skip
        self._tick_s = min(_PERIOD_S, shortest / 2) / _SLOTS
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self.pieces = Pieces(loop, usable_cores())
        self._turns: deque[Callable[[], None]] = deque()
        self._when_empty: list[asyncio.Future[None]] = []
        self._tick()

    # --- Connections --------------------------------------------------------------------------------------------------

    def connected(self, connection: Sweepable) -> set[Sweepable]:
        """A connection is open; it keeps what is returned for :meth:`disconnected`."""
        slot = self._slots[self.connections_total % _SLOTS]
        slot.add(connection)
        self.opening -= 1
        self.connections += 1
        self.connections_total += 1
        return slot

    def disconnected(self, connection: Sweepable, slot: set[Sweepable]) -> None:
        """A connection is gone."""
        slot.discard(connection)
        self.half_closed.pop(connection, None)
        self.connections -= 1
        if not self.connections:
            self._wake_waiters()

    def each(self) -> Iterator[Sweepable]:
        """The connections that are open."""
        for slot in self._slots:
            yield from list(slot)

    async def empty(self) -> None:
        """Returns when no connection is open."""
        if self.connections:
            waiter = self.loop.create_future()
            self._when_empty.append(waiter)
            await waiter

    def _wake_waiters(self) -> None:
        waiters, self._when_empty = self._when_empty, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def give_up_all(self) -> None:
        """Answers with 503 what is not answered yet, and ends every connection so that its client can read that."""
        for slot in self._slots:
            for connection in list(slot):
                connection.give_up()

    def abort_all(self) -> None:
        """Ends every connection at once."""
        for slot in self._slots:
            for connection in list(slot):
                connection.abort()

    def close(self) -> None:
        """Stops the clock and the threads; no connection is open any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.pieces.close()

    def is_short_of_memory(self) -> bool:
        """Whether requests hold most of what they may; clients that hold memory and do not get on have to go then."""
        return self.budget.used > constants.PRESSED_SHARE * self.budget.limit

    # --- The clock ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Looks at a few of the connections, so that each is seen every few seconds and no tick is long; while
        draining, every now and then at all."""
        self.now = now = self.loop.time()
        self._timer = self.loop.call_later(self._tick_s, self._tick)
        if not self.ending:
            for connection in self.restless(self._slots[self._ticks % _SLOTS]):
                connection.check(now)
        elif self._ticks % (_SLOTS // 16) == 0:
            for slot in self._slots:
                for connection in list(slot):
                    connection.check(now)
        self._ticks += 1
        if self._ticks % (_SLOTS // 4) == 0:
            self.bodies.age()
        if self.half_closed:
            self._look_at_half_closed(now)

    def _look_at_half_closed(self, now: float) -> None:
        """A client that has gone and one that only has nothing more to say look the same until something is sent."""
        for connection, (since, probed) in list(self.half_closed.items()):
            if probed:
                if connection.socket_error():
                    connection.abort()
                elif now - since > 4 * constants.HALF_CLOSED_PROBE_S:
                    del self.half_closed[connection]  # it is there
            elif now - since >= constants.HALF_CLOSED_PROBE_S:
                connection.probe()
                self.half_closed[connection] = (since, True)

    # --- Work that is not done at once --------------------------------------------------------------------------------

    def spawn(self, exchange: Exchange, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs the rest of a handler as a task; what it raises is the answer."""

        def done(task: asyncio.Future[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                exchange.fail(ApiError(503, "the server is ending", retry_after_s=1))
            else:
                exchange.guard(task.result)

        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(done)

    def in_turn(self, step: Callable[[], None]) -> None:
        """Calls it soon, one such step in a turn of the loop: however many there are, others wait for one at most."""
        self._turns.append(step)
        if len(self._turns) == 1:
            self.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        step = self._turns[0]
        try:
            step()
        finally:
            self._turns.popleft()
            if self._turns:
                self.loop.call_soon(self._next_turn)
