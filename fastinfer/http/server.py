"""Lifecycle: accepting within limits, draining, signals.

A server is started once and drained once. Before that it may *announce* its end: it is not ready, every answer ends its
connection, and all goes on otherwise. Draining: connects are refused, what the kernel has accepted by then is still
accepted, then the listeners close; every answer ends its connection; idle connections may send one more request for a
moment. After its time what is left is answered with 503.
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
from fastinfer.http.head import Router
from fastinfer.http.hub import Hub
from fastinfer.http.poller import Poller
from fastinfer.http.protocol import HttpProtocol

log = logging.getLogger(__name__)

T = TypeVar("T")

_ACCEPTED_AT_ONCE: Final = 64  # then the connections that exist have their turn
_ACCEPT_PAUSE_S: Final = 0.02  # where there are no files: costs nothing to speak of, and a long queue moves on
_REFUSED_AT_ONCE: Final = 128  # connections above the limit that are told so; further ones wait in the queue
_LAST_HANDSHAKES_S: Final = 0.25  # after connects are refused: round trips of clients whose handshake had begun
_FILTERED_S: Final = 0.05  # the same where connects are dropped instead, most; a client asks again after a second
_LOOK_S: Final = 0.005
_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Server:
    """One process's HTTP server.

    Args:
        router: see :class:`fastinfer.http.head.Router`.
        host, port: where to listen; port 0 takes a free one.
        sockets: listening sockets to use instead, which the server takes over.
        accepting: whether to accept from the start on; otherwise :meth:`accept_from` begins it.
        limits: the HTTP limits.
        poller: how the loop waits for requests; by default it sleeps.
        counters: memory for the counters of the connections (see :class:`fastinfer.http.connection.Shared`).
        budget: of the memory that requests hold; by default one of ``limits.in_flight_bytes``.
        on_drain: called once when the end is announced or draining starts, so that readiness can turn; not if another
            process goes on.
        shutdown_delay_s: how long a signal announces the end before it drains.
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
        self._stopping = asyncio.Event()  # the end is to be announced, or has begun
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._hub: Hub | None = None

    @property
    def hub(self) -> Hub:
        """What the connections share; its counters are for the metrics."""
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
        """Whether the server takes no more connections, because it ends."""
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
            # Accepted sockets inherit it.
            if listener.family in (socket.AF_INET, socket.AF_INET6):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._resume_accepting()

    def accept_from(self, listeners: Sequence[socket.socket]) -> None:
        """Accepts from these of its listeners, and from no others, from now on."""
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
        """Serves until :meth:`stop`, or what is like it, then drains.

        Args:
            drain_timeout_s: what requests in flight get to finish.
            signals: which of them call :meth:`stop`.
            overdue: called when draining starts, when a signal ends that, and at its end, with the seconds after which
                nothing may be left of the server.

        Returns:
            Whether every request that was accepted is answered.
        """
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        if self._hub is None:
            await self.start()
        # What exists now stays: the collector need not look at it again. Requests leave it next to nothing, but many
        # connections at once look like garbage, and to look through them all stops the loop for 20 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(constants.COLLECTED_OBJECTS)
        at_once = None
        try:
            await self._stopping.wait()
            if not self._stop.is_set():
                log.info("the server ends in %g s; it still takes connections", self._shutdown_delay_s)
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
                signal.signal(number, signal.SIG_IGN)  # the rest of the end is short, and has a status of its own

    async def _overdue_at_once(self, overdue: Callable[[float], None]) -> None:
        await self._stop_now.wait()
        overdue(constants.GIVE_UP_S + constants.END_TIMEOUT_S)

    def stop(self) -> None:
        """What a signal does: it announces the end, or lets :meth:`serve` drain, or ends that; each one does the next
        of these. Without a delay nothing is announced."""
        if self._stop.is_set():
            self._stop_now.set()
        elif self._stopping.is_set() or not self._shutdown_delay_s:
            self.drain_soon()
        else:
            self._stopping.set()

    def announce(self) -> None:
        """Is not ready any more, and ends the connection with every answer; goes on accepting."""
        if not self.hub.draining:
            self.hub.draining = True
            if self._on_drain is not None:
                self._on_drain()

    def drain_soon(self) -> None:
        """Lets :meth:`serve` drain; no more than that, however often it is called."""
        self._stop.set()
        self._stopping.set()

    def hand_over(self) -> None:
        """Lets :meth:`serve` drain and leave its listeners, with what waits in them, to another process."""
        self._listeners_live_on = True
        self.drain_soon()

    def end(self) -> None:
        """Ends at once."""
        self.drain_soon()
        self._stop_now.set()

    async def drain(self, timeout_s: float = constants.DRAIN_TIMEOUT_S) -> bool:
        """Stops accepting, lets requests in flight finish, and ends. What is left after the time gets 503.

        Returns:
            Whether all connections ended by themselves within the time.
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
            hub.abort_all()  # again and again: sockets that are being opened become connections meanwhile
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
        """Closes the listeners; connections that the kernel has accepted, or is about to, are accepted before."""
        try:
            if not self._listeners_live_on:
                await self._accept_the_last()
        finally:
            self._pause_accepting()
            listen.close([self._listeners])

    async def _accept_the_last(self) -> None:
        accepted_from = self._accepted_from
        if not accepted_from:
            return
        refused = [listen.refuse_newcomers(listener) for listener in accepted_from]
        if all(refused):
            await asyncio.sleep(_LAST_HANDSHAKES_S)
        else:
            end, quiet = self.hub.loop.time() + _FILTERED_S, 0
            while quiet < 2 and self.hub.loop.time() < end:
                await asyncio.sleep(_LOOK_S)
                quiet = 0 if any(map(listen.waiting, accepted_from)) else quiet + 1
        while any(map(listen.waiting, accepted_from)):  # there are no files, or too many connections: some end
            await asyncio.sleep(_ACCEPT_PAUSE_S)

    def _resume_accepting(self) -> None:
        self._pause = None
        loop = asyncio.get_running_loop()
        for listener in self._accepted_from:
            loop.add_reader(listener, self._ready, listener)

    def _pause_accepting(self, seconds: float | None = None) -> None:
        """Leaves further connections in the accept queue; without this, a full process would spin on them."""
        loop = asyncio.get_running_loop()
        for listener in self._accepted_from:
            loop.remove_reader(listener)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if seconds is not None:
            self._pause = loop.call_later(seconds, self._resume_accepting)

    def _ready(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            if not self._accept(listener):
                return

    def _accept(self, listener: socket.socket) -> bool:
        """Accepts one connection; returns whether there may be more."""
        hub = self.hub
        open_now = hub.connections + hub.opening
        if open_now >= self._limits.max_connections + _REFUSED_AT_ONCE:
            self._pause_accepting(_ACCEPT_PAUSE_S)
            return False
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                return True  # that connection was gone before it was accepted
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
            await hub.loop.connect_accepted_socket(lambda: HttpProtocol(hub, refusal), accepted)
        except OSError:
            hub.opening -= 1
            accepted.close()  # the client is gone already


def raise_file_limit() -> None:
    """Lets the process have as many files, and so connections, as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a program on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
