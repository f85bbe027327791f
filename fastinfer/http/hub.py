"""State that all HTTP connections of a loop share: limits, read buffer, counters, the timer that ends slow ones.

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
from fastinfer.http.connection import to_check
from fastinfer.http.exchange import Exchange
from fastinfer.http.head import Router
from fastinfer.http.loop_state import LoopState
from fastinfer.http.poller import Poller

log = logging.getLogger(__name__)

_SWEEP_BUCKETS: Final = 64
_PERIOD_S: Final = 4.0


class Sweepable(Protocol):
    """A connection, as the hub uses it."""

    def check(self, now: float) -> None:
        """Ends what takes too long."""

    def probe(self) -> None:
        """Sends ``100 Continue`` to a client that has closed its side, to learn whether it is still there."""

    def socket_error(self) -> int:
        """The pending error of the socket, 0 for none."""

    def state(self) -> str:
        """What it does, for the SIGUSR1 report."""

    def requests(self) -> Iterable[tuple[int, str, str]]:
        """Its unanswered requests, for the SIGUSR1 report: arrival in ns, stage, description."""

    def give_up(self) -> None:
        """Answers every unanswered request with 503, and closes."""

    def abort(self) -> None:
        """Closes immediately."""


class Hub(LoopState):
    """The connections of a loop.

    The base class :class:`fastinfer.http.loop_state.LoopState` has what every request needs.

    Attributes:
        opening: accepted sockets that have no transport yet.
        connections: number of open connections.
        ending: no more connections are accepted, and idle ones end; with ``draining`` alone, each answer ends its
            connection.
        draining_since: when ``ending`` was set.
        half_closed: connections whose client has closed its side and waits for answers: since when, and whether
            it was probed.
    """

    __slots__ = (
        "_buckets",
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
        super().__init__(router, limits, loop, poller, counters, budget)
        self.opening = 0
        self.connections = 0
        self.ending = False
        self.draining_since = 0.0
        self.half_closed: dict[Sweepable, tuple[float, bool]] = {}
        self._buckets: list[set[Sweepable]] = [set() for _ in range(_SWEEP_BUCKETS)]
        self._ticks = 0
        shortest = min(limits.head_timeout_s, limits.body_idle_timeout_s, limits.keep_alive_timeout_s,
                       limits.write_timeout_s, limits.upload_timeout_s)  # fmt: skip
        self._tick_s = min(_PERIOD_S, shortest / 2) / _SWEEP_BUCKETS
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._turns: deque[Callable[[], None]] = deque()
        self._when_empty: list[asyncio.Future[None]] = []
        self._tick()

    # --- Connections --------------------------------------------------------------------------------------------------

    def connected(self, connection: Sweepable) -> set[Sweepable]:
        """Registers an open connection; returns its sweep bucket, which :meth:`disconnected` needs."""
        bucket = self._buckets[self.connections_total % _SWEEP_BUCKETS]
        bucket.add(connection)
        self.opening -= 1
        self.connections += 1
        self.connections_total += 1
        return bucket

    def disconnected(self, connection: Sweepable, bucket: set[Sweepable]) -> None:
        """Unregisters a connection that is lost."""
        bucket.discard(connection)
        self.half_closed.pop(connection, None)
        self.connections -= 1
        if not self.connections:
            self._wake_waiters()

    def each(self) -> Iterator[Sweepable]:
        """Yield the open connections."""
        for bucket in self._buckets:
            yield from list(bucket)

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
        """Answers every unanswered request with 503, and closes every connection after its client can read that."""
        for bucket in self._buckets:
            for connection in list(bucket):
                connection.give_up()

    def abort_all(self) -> None:
        """Closes every connection immediately."""
        for bucket in self._buckets:
            for connection in list(bucket):
                connection.abort()

    def close(self) -> None:
        """Stops the timer and the threads. Call it when no connection is open."""
        if self._timer is not None:
            self._timer.cancel()
        self.pieces.close()

    def is_short_of_memory(self) -> bool:
        """Whether requests hold most of their budget; connections that hold memory without progress are then closed."""
        return self.budget.used > constants.PRESSED_SHARE * self.budget.limit

    # --- The timer ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Checks one bucket of the connections, so that each is checked every few seconds and no tick is long; during
        the drain, checks all of them at every fourth tick."""
        self.now = now = self.loop.time()
        self._timer = self.loop.call_later(self._tick_s, self._tick)
        if not self.ending:
            idle_since = now - self.limits.keep_alive_timeout_s
            for connection in to_check(self._buckets[self._ticks % _SWEEP_BUCKETS], idle_since):
                connection.check(now)
        elif self._ticks % (_SWEEP_BUCKETS // 16) == 0:
            for bucket in self._buckets:
                for connection in list(bucket):
                    connection.check(now)
        self._ticks += 1
        if self._ticks % (_SWEEP_BUCKETS // 4) == 0:
            self.bodies.age()
        if self.half_closed:
            self._probe_half_closed(now)

    def _probe_half_closed(self, now: float) -> None:
        """Finds clients that have gone: they differ from clients that only wait for answers once something is sent."""
        for connection, (since, probed) in list(self.half_closed.items()):
            if probed:
                if connection.socket_error():
                    connection.abort()
                elif now - since > 4 * constants.HALF_CLOSED_PROBE_S:
                    del self.half_closed[connection]  # the client is still there
            elif now - since >= constants.HALF_CLOSED_PROBE_S:
                connection.probe()
                self.half_closed[connection] = (since, True)

    # --- Deferred work ------------------------------------------------------------------------------------------------

    def spawn(self, exchange: Exchange, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs the rest of a handler as a task; an exception becomes the answer."""

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
        """Calls ``step`` soon. Each turn of the loop runs one such step, so other callbacks wait for one at most."""
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
