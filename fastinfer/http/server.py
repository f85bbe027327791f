"""Lifecycle: accepting within limits, draining, signals.

A server is started once and drained once. Before the drain it may *announce* its end: it is not ready, every answer
ends its connection, and everything else continues. The drain refuses new connects, accepts the connections that the
kernel has accepted by then, and closes the listeners; every answer ends its connection; idle connections may send one
more request within a second. When the drain times out, unanswered requests get 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import uvloop
from typing_extensions import Buffer

from fastinfer.base import limits as constants
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.http import listen
from fastinfer.http.connection import Connection
from fastinfer.http.head import Router
from fastinfer.http.hub import Hub
from fastinfer.http.poller import Poller

log = logging.getLogger(__name__)

T = TypeVar("T")

_ACCEPTS_PER_TURN: Final = 64  # connections accepted in a turn of the loop; then open connections are served
_ACCEPT_PAUSE_S: Final = 0.02  # pause if no file descriptor is free: cheap, and short enough for a long queue
_MAX_REFUSED: Final = 128  # connections above the limit that get 503; further ones wait in the accept queue
_LAST_HANDSHAKES_S: Final = 0.25  # time to finish the handshakes that had begun when connects were refused
_MAX_FILTER_S: Final = 0.05  # maximum, if connects are dropped instead: a client retries after a second
_POLL_S: Final = 0.005  # between two checks of the accept queues
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Server:
    """One process's HTTP server.

    Args:
        router: see :class:`fastinfer.http.head.Router`.
        host, port: where to listen; port 0 takes a free one.
        sockets: listening sockets to use instead; the server owns them.
        accepting: whether to accept from the start; otherwise :meth:`accept_from` starts it.
        limits: the HTTP limits.
        poller: how the loop waits for requests; by default it sleeps.
        counters: memory for the counters of the connections (see :class:`fastinfer.http.loop_state.LoopState`).
        budget: limits the memory that requests hold; by default to ``limits.in_flight_bytes``.
        on_drain: called once when the end is announced or the drain starts, so that readiness can change; not if
            another process takes over.
        shutdown_delay_s: seconds between a signal, which announces the end, and the drain.
    """

    def __init__(
        self,
        router: Router,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        sockets: Sequence[socket.socket] = (),
        accepting: bool = True,
        limits: HttpLimits | None = None,
        poller: Poller | None = None,
        counters: Buffer | None = None,
        budget: Budget | None = None,
        on_drain: Callable[[], None] | None = None,
        shutdown_delay_s: float = 0.0,
    ) -> None:
        self._router = router
        self._host = host
        self._port = port
        self._listeners = list(sockets)
        self._accepted_from = self._listeners if accepting else []
        self._limits = limits or HttpLimits()
        self._poller = poller
        self._counters = counters
        self._budget = budget
        self._on_drain = on_drain
        self._shutdown_delay_s = shutdown_delay_s
        self._accepting: set[asyncio.Task[Any]] = set()  # accepted sockets that have no transport yet
        self._pause: asyncio.TimerHandle | None = None
        self._listeners_live_on = False
        self._stopping = asyncio.Event()  # set when the end must be announced or the drain begin
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._hub: Hub | None = None

    @property
    def hub(self) -> Hub:
        """The state that the connections share; the metrics use its counters."""
        if self._hub is None:
            raise RuntimeError("the server is not started")
        return self._hub

    @property
    def port(self) -> int:
        """The port of the first listener."""
        port: int = self._listeners[0].getsockname()[1]
        return port

    @property
    def draining(self) -> bool:
        """Whether the server accepts no more connections, because it ends."""
        return self._hub is not None and self._hub.ending

    async def start(self) -> None:
        """Listens and accepts.

        Raises:
            OSError: the address cannot be used.
        """
        raise_file_limit()
        if not self._listeners:
            self._listeners += listen.bind(self._host, self._port)[0]
        self._hub = Hub(
            self._router, self._limits, asyncio.get_running_loop(), self._poller, self._counters, self._budget
        )
        for listener in self._listeners:
            listener.setblocking(False)
            # Accepted sockets inherit the option.
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._resume_accepting()

    def accept_from(self, listeners: Sequence[socket.socket]) -> None:
        """Accepts only from these of its listeners from now on."""
        if not self.draining:
            self._pause_accepting()
            self._accepted_from = list(listeners)
            self._resume_accepting()

    async def serve(
        self,
        drain_timeout_s: float = constants.DRAIN_TIMEOUT_S,
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
        overdue: Callable[[float], None] | None = None,
    ) -> bool:
        """Serves until :meth:`stop`, :meth:`drain_soon`, :meth:`hand_over` or :meth:`end`, then drains.

        Args:
            drain_timeout_s: seconds that requests in flight get to finish.
            signals: the signals that call :meth:`stop`.
            overdue: called when the drain starts, when a signal cuts it short, and when it ends, with the seconds
                after which the process must have ended.

        Returns:
            Whether every accepted request was answered.
        """
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        if self._hub is None:
            await self.start()
        # Objects that exist now live as long as the server, so the cyclic collector can skip them. Requests create
        # almost no cycles, but many new connections trigger a collection, which would stop the loop for 20 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(constants.COLLECTED_OBJECTS)
        at_once = None
        try:
            await self._stopping.wait()
            if not self._stop.is_set():
                log.info("the drain starts in %g s; connections are still accepted", self._shutdown_delay_s)
                self.announce()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), self._shutdown_delay_s)
                self._stop.set()
            if overdue is not None:
                overdue(drain_timeout_s + constants.GIVE_UP_S + constants.END_TIMEOUT_S)
                at_once = loop.create_task(self._overdue_at_once(overdue))
            clean = await self.drain(drain_timeout_s)
            if overdue is not None:
                overdue(constants.END_TIMEOUT_S)
            return clean
        finally:
            if at_once is not None:
                at_once.cancel()
            for number in signals:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # a signal must not change the exit status any more

    async def _overdue_at_once(self, overdue: Callable[[float], None]) -> None:
        await self._stop_now.wait()
        overdue(constants.GIVE_UP_S + constants.END_TIMEOUT_S)

    def stop(self) -> None:
        """Handles a signal: announces the end, starts the drain of :meth:`serve`, or cuts it short, whichever comes
        next. Without a delay nothing is announced."""
        if self._stop.is_set():
            self._stop_now.set()
        elif self._stopping.is_set() or not self._shutdown_delay_s:
            self.drain_soon()
        else:
            self._stopping.set()

    def announce(self) -> None:
        """Makes the server not ready, and every answer end its connection; connections are still accepted."""
        if not self.hub.draining:
            self.hub.draining = True
            if self._on_drain is not None:
                self._on_drain()

    def drain_soon(self) -> None:
        """Makes :meth:`serve` drain. Idempotent."""
        self._stop.set()
        self._stopping.set()

    def hand_over(self) -> None:
        """Makes :meth:`serve` drain, and leave its listeners and their accept queues to another process."""
        self._listeners_live_on = True
        self.drain_soon()

    def end(self) -> None:
        """Makes :meth:`serve` end without waiting for requests."""
        self.drain_soon()
        self._stop_now.set()

    async def drain(self, timeout_s: float = constants.DRAIN_TIMEOUT_S) -> bool:
        """Stops accepting, lets requests in flight finish, and ends. After the timeout, the rest get 503.

        Returns:
            Whether all connections ended within the timeout.
        """
        hub = self.hub
        if hub.ending:
            raise RuntimeError("the server is draining already")
        if not self._listeners_live_on:
            self.announce()
        hub.draining = hub.ending = True
        hub.draining_since = hub.loop.time()
        closing = hub.loop.create_task(self._close_listeners())
        ended = asyncio.ensure_future(self._ended(closing))
        stopped = asyncio.ensure_future(self._stop_now.wait())
        await asyncio.wait((ended, stopped), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        clean = ended.done()
        if not clean:
            hub.give_up_all()
            await asyncio.wait((ended,), timeout=constants.GIVE_UP_S)
        closing.cancel()
        while not ended.done():
            hub.abort_all()  # repeated, because sockets that are being opened become connections meanwhile
            await asyncio.wait((ended,), timeout=_ACCEPT_PAUSE_S)
        hub.close()
        return clean

    async def _ended(self, closing: asyncio.Task[None]) -> None:
        await asyncio.wait((closing,))
        while self._accepting:
            await asyncio.wait(self._accepting)
        await self.hub.empty()

    # --- Accepting ----------------------------------------------------------------------------------------------------

    async def _close_listeners(self) -> None:
        """Closes the listeners, after accepting the connections that the kernel has accepted or is about to."""
        try:
            if not self._listeners_live_on:
                await self._accept_queued()
        finally:
            self._pause_accepting()
            listen.close([self._listeners])

    async def _accept_queued(self) -> None:
        accepted_from = self._accepted_from
        if not accepted_from:
            return
        refused = [listen.refuse_connects(listener) for listener in accepted_from]
        if all(refused):
            await asyncio.sleep(_LAST_HANDSHAKES_S)
        else:
            end, quiet = self.hub.loop.time() + _MAX_FILTER_S, 0
            while quiet < 2 and self.hub.loop.time() < end:
                await asyncio.sleep(_POLL_S)
                quiet = 0 if any(map(listen.waiting, accepted_from)) else quiet + 1
        while any(map(listen.waiting, accepted_from)):  # no free descriptors, or too many connections: wait
            await asyncio.sleep(_ACCEPT_PAUSE_S)

    def _resume_accepting(self) -> None:
        self._pause = None
        loop = asyncio.get_running_loop()
        for listener in self._accepted_from:
            loop.add_reader(listener, self._ready, listener)

    def _pause_accepting(self, seconds: float | None = None) -> None:
        """Leaves further connections in the accept queue; otherwise a process at its limit would spin on them."""
        loop = asyncio.get_running_loop()
        for listener in self._accepted_from:
            loop.remove_reader(listener)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if seconds is not None:
            self._pause = loop.call_later(seconds, self._resume_accepting)

    def _ready(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if not self._accept(listener):
                return

    def _accept(self, listener: socket.socket) -> bool:
        """Accepts one connection; returns whether there may be more."""
        hub = self.hub
        open_now = hub.connections + hub.opening
        if open_now >= self._limits.max_connections + _MAX_REFUSED:
            self._pause_accepting(_ACCEPT_PAUSE_S)
            return False
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                return True  # the client had gone before it was accepted
            self._pause_accepting(_ACCEPT_PAUSE_S)
            return False
        accepted.setblocking(False)
        refusal = None
        if open_now >= self._limits.max_connections:
            refusal = ApiError(503, "too many connections", retry_after_s=1)
        hub.opening += 1
        task = hub.loop.create_task(self._open(accepted, refusal))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)
        return True

    async def _open(self, accepted: socket.socket, refusal: ApiError | None) -> None:
        hub = self.hub
        try:
            await hub.loop.connect_accepted_socket(lambda: Connection(hub, refusal), accepted)
        except OSError:
            hub.opening -= 1
            accepted.close()  # the client has gone already


def raise_file_limit() -> None:
    """Raises the limit of open files, and so of connections, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on a uvloop event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
