"""The supervisor's life: it listens, starts the serving processes, hands their calls on, and ends them.

It holds no model and answers no request; what it imports is what it needs for that. Its end, however it comes, ends the
serving processes: they drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from fastinfer import __version__
from fastinfer.base import limits, logs, signals, waits
from fastinfer.base.bounded import BoundedThreads
from fastinfer.base.errors import ApiError
from fastinfer.config.server import OptionError, ServerConfig
from fastinfer.http import listen
from fastinfer.repository import watcher
from fastinfer.shared import layout
from fastinfer.supervisor.blame import Suspects
from fastinfer.supervisor.channel import ChannelClosedError, Handlers
from fastinfer.supervisor.child import Child
from fastinfer.supervisor.operations import Member, Operations
from fastinfer.supervisor.slots import Slot, tell_death

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S: Final = 10.0  # what a process may load before it accepts, if no other one does
_START_S: Final = 120.0  # what a process may take until it can be talked to, before it loads
_FIRST_S: Final = 10.0  # what the first processes may take until those that are there begin to load
# What a process may take to end when its time to drain is over: a little more than it allows itself.
_AFTER_DRAIN_S: Final = limits.GIVE_UP_S + limits.END_TIMEOUT_S + 0.3
_KILLED_S: Final = 0.5  # what it takes the system to end a process
_OVERDUE_S: Final = 4.5  # after the drain: then the supervisor itself ends, whatever it is waiting for
_LAST_HANDSHAKES_S: Final = 0.25  # as in the serving processes
_AGAIN_S: Final = 1.0  # after a task has failed
_LOOK_S: Final = 0.1
_CONFIG_S: Final = 30.0  # what the configuration may take to be read again
_GAUGES_S: Final = 1.0  # what a busy process may take to tell how it is
_AT_ONCE_S: Final = 1.0
_DRAINED: Final = 8  # processes that may still be drained while their successors are replaced
_FORGET_S: Final = 60.0  # between two looks for suspects that are none any more
_TURNED_AWAY_BODY: Final = ApiError(503, "the server is ending").body()
_TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_TURNED_AWAY_BODY), _TURNED_AWAY_BODY)
)
_FIXED: Final = ("host", "port", "processes")  # what another configuration cannot change while the server runs


def supervise(
    config: ServerConfig,
    again: Callable[[], ServerConfig],
    inherited: Mapping[str, int] | None = None,
) -> int:
    """Serves until a signal ends it; returns the exit status.

    Args:
        config: the configuration; ``processes`` is at least 1.
        again: reads the configuration anew, for SIGHUP. OptionError where it cannot be used.
        inherited: descriptors that every serving process gets, by what they are for.
    """
    written = logs.start(config.log_level, config.log_format)
    try:
        if reason := config.why_not_servable():
            log.error("%s", reason)
            return 1
        try:
            groups = listen.bind(config.host, config.port, config.processes)
        except OSError as error:
            log.error("cannot listen on %s:%d: %s", config.host, config.port, error.strerror or error)
            return 1
        try:
            supervisor = Supervisor(config, again, groups, inherited or {})
        except OSError as error:
            log.error("there is no memory that processes can share: %s", error.strerror or error)
            return 1
        return asyncio.run(supervisor.run())
    finally:
        written.stop()


class Supervisor:
    """Slots with their processes, and what is loaded in all of them.

    Args:
        config, again, inherited: see :func:`supervise`.
        groups: the listening sockets of each slot.
    """

    def __init__(
        self,
        config: ServerConfig,
        again: Callable[[], ServerConfig],
        groups: Sequence[Sequence[socket.socket]],
        inherited: Mapping[str, int],
    ) -> None:
        self._config = config
        self._again = again
        self._groups = groups
        self._suspects, crashes = Suspects.create(2 * config.processes + _DRAINED)
        self._inherited = {**inherited, "crashes": crashes}
        self._counters = layout.create(len(groups))
        self._operations = Operations(self._differs)
        self._slots = [
            Slot(number, group, self._launch, self._assign, self._retire, self._died)
            for number, group in enumerate(groups)
        ]
        self._children: set[Child] = set()  # all that have not ended
        self._accepting: dict[Child, list[int]] = {}  # which slots' connections each was told to accept
        self._told = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = 0  # processes that are not among the children yet
        self._debug = logs.Debug()
        self._debug_on: bool | None = None  # None: as configured
        self._stopping = asyncio.Event()  # the end is announced, or has begun
        self._ending = asyncio.Event()
        self._at_once = asyncio.Event()
        self._renewing = False
        self._reading = BoundedThreads("fastinfer-config", 1, _CONFIG_S, 1)  # its file may be on a dead disk, too
        self._status = 0

    async def run(self) -> int:
        """Serves, drains and ends; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._renew)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        inspection = signals.Inspection(loop, self._tell_state, self._toggle_debug)
        keeping = [self._spawn(self._insist(slot.keep)) for slot in self._slots]
        keeping.append(self._spawn(self._insist(self._keep_models)))
        keeping.append(self._spawn(self._insist(self._forget_suspects)))
        await self._stopping.wait()
        if not self._ending.is_set():
            await self._announce_end()
        overdue = threading.Timer(self._config.drain_timeout_s + _OVERDUE_S, lambda: os._exit(self._status))
        overdue.daemon = True
        overdue.start()
        for task in keeping:
            task.cancel()
        await self._end()
        inspection.close()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # the rest is short, and the status is known
        return self._status

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor has failed; the server goes on", exc_info=task.exception())

    async def _insist(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Does something forever, and begins again after a failure: none ends the processes that serve."""
        while True:
            try:
                await keep()
                return
            except Exception:
                log.exception("a task of the supervisor has failed; it begins again in %g s", _AGAIN_S)
            await asyncio.sleep(_AGAIN_S)

    # --- Models -------------------------------------------------------------------------------------------------------

    async def _keep_models(self) -> None:
        """Loads what is asked for at start; with model control by polling, follows the disk."""
        config, began = self._config, time.monotonic()
        first = [asyncio.ensure_future(slot.served.wait()) for slot in self._slots]
        await asyncio.wait(first, timeout=_FIRST_S)
        wanted = None if config.load_all else config.load_names
        seen = await watcher.load_all(self._operations, wanted)
        reason = self._operations.record["not_ready"]
        if reason is None:
            count = len(self._operations.record["endpoints"])
            log.info("ready: %d models, %.1f s", count, time.monotonic() - began)
        else:
            log.error("not ready: %s", reason)
        seen = await watcher.load_rest(self._operations, wanted, seen)
        if config.model_control == "poll":
            await watcher.follow(self._operations, config.poll_interval_s, seen, unload_all=config.poll_unload_all)

    async def _forget_suspects(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_S)
            self._suspects.forget_old()

    # --- Processes ----------------------------------------------------------------------------------------------------

    async def _launch(self, slot: Slot) -> Child | None:
        """Starts a process and makes it equal to the others; None where it has ended, or is not fit to serve."""
        handlers: Handlers = {
            "operate": self._operate,
            "override": self._override,
            "leave": self._leave,
            "gauges": self._gauges,
        }
        share = self._config.share()
        with waits.logged(lambda: f"place {slot.number} waits for the end of processes that were replaced"):
            while (bank := self._free_bank(slot)) is None:
                await asyncio.sleep(_LOOK_S)
        memory = (self._counters, bank)
        self._starting += 1
        try:
            crash_slot = self._suspects.free_slot()
            child = await Child.start(slot.number, crash_slot, share, self._groups, memory, self._inherited, handlers)
        except OSError as error:
            self._suspects.after_death(crash_slot, 0)
            log.error("a process cannot be started: %s", error.strerror)
            return None
        else:
            self._children.add(child)
        finally:
            self._starting -= 1
        child.ended.add_done_callback(lambda _: self._gone(child))
        self._reap()
        if self._debug_on is not None:
            child.channel.tell("debug", on=self._debug_on)
        if self._stopping.is_set():
            child.channel.tell("announce")
        await asyncio.wait((child.up, child.ended), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        if not child.up.done():
            if not child.ended.done():
                log.error("process %d has not started in %g s: it is killed", child.pid, _START_S)
                child.kill()
            await child.ended
            self._ended_early(child)
            return None
        self._spawn(self._watch(child))
        self._tell_start(child.up.result())
        patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._lose_patience, child)
        try:
            fit = await self._operations.join(child.channel)
        except ChannelClosedError:
            await child.ended
            self._died(child)
            return None
        except Exception:
            log.exception("process %d cannot take part; the others go on without it", child.pid)
            fit = False
        finally:
            patience.cancel()
            child.impatient = False
        if not fit:
            self._retire(child)
            self._assign()
            return None
        return child

    def _free_bank(self, slot: Slot) -> int | None:
        return layout.free_bank(slot.number, [child.bank for child in self._children])

    def _tell_start(self, runtime: str) -> None:
        if not self._told:
            self._told = True
            config = self._config
            host = f"[{config.host}]" if ":" in config.host else config.host
            port = self._groups[0][0].getsockname()[1]
            log.info("fastinfer %s on http://%s:%d, ONNX Runtime %s", __version__, host, port, runtime)
            share = config.share()
            log.info(
                "processes: %d, each with threads: 1 for the loop, %d native, %d of ONNX Runtime's pool",
                config.processes,
                share.threads,
                share.intra_op_threads,
            )

    async def _watch(self, child: Child) -> None:
        """Kills a process whose loop stands still, or that does not come to its end."""
        half_s = self._config.hang_timeout_s / 2
        missed = 0
        while missed < 2:  # not at once: perhaps the supervisor itself stood still, and the answer is about to be read
            try:
                await asyncio.wait_for(child.channel.call("pulse"), half_s)
            except TimeoutError:
                missed += 1
            except ChannelClosedError:
                await asyncio.wait([child.ended], timeout=2 * half_s)
                break
            else:
                missed = 0
                await asyncio.sleep(half_s / 2)
        if not child.ended.done():
            log.error("process %d has said nothing for %g s: it is killed", child.pid, 2 * half_s)
            child.kill()

    def _ended_early(self, child: Child) -> None:
        """A process has ended before it could be talked to. Where none ever could, none ever will."""
        status = child.ended.result()
        if status > 0 and not self._told:
            self._give_up(status)  # it has said why
        elif not self._ending.is_set():
            self._died(child)

    def _gone(self, child: Child) -> None:
        """A process has ended, for whatever reason."""
        self._suspects.after_death(child.crash_slot, -child.ended.result())
        self._children.discard(child)
        self._operations.ended(child.channel)
        child.channel.close()
        self._accepting.pop(child, None)
        if not self._ending.is_set():
            self._assign()

    async def _differs(self, channel: Member) -> None:
        """A process does not serve what the others do: it serves no more, and another one takes its place."""
        child = next((child for child in self._children if child.channel is channel), None)
        if child is None:
            return
        slot = self._slots[child.slot]
        if slot.child is child:
            log.error("process %d does not serve the same models as the others: another one takes its place", child.pid)
            slot.drop(child)
        try:
            await asyncio.wait_for(child.channel.call("withdraw"), _AT_ONCE_S)
            child.channel.tell("hand_over")  # it may have the request that this is an answer to
        except ChannelClosedError:
            pass
        except TimeoutError:
            child.kill()
            await child.ended

    def _died(self, child: Child) -> None:
        """A process has ended unasked."""
        self._operations.leave(child.channel)
        if not self._ending.is_set():
            tell_death(child)

    def _retire(self, child: Child) -> None:
        self._operations.retire(child.channel)
        child.channel.tell("hand_over")

    def _lose_patience(self, child: Child) -> None:
        child.impatient = True
        self._assign()

    def _assign(self) -> None:
        """Tells each process whose connections to accept: its own slot's, and those of slots without a process."""
        serving = [slot.child for slot in self._slots if slot.child is not None and not slot.child.ended.done()]
        # One alone: several may have loaded different files, and are not equal before they take part.
        serving = serving or [
            child for child in self._children if child.impatient and self._operations.found(child.channel)
        ]
        wanted: dict[Child, list[int]] = {child: [] for child in serving}
        for slot in self._slots:
            own = slot.child if slot.child in wanted else None
            helper = own or (serving[slot.number % len(serving)] if serving else None)
            if helper is not None:
                wanted[helper].append(slot.number)
        for child, numbers in wanted.items():
            if self._accepting.get(child) != numbers:
                log.debug("process %d accepts for slots %s", child.pid, numbers)
                child.channel.tell("accept_from", slots=numbers)
                self._accepting[child] = numbers

    # --- What serving processes ask for -------------------------------------------------------------------------------

    async def _operate(self, caller: Child, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ARG002
        return await self._operations.ask(operation, arguments)

    def _override(self, caller: Child, mark: str) -> str:  # noqa: ARG002
        return self._operations.override(mark)

    async def _gauges(self, caller: Child) -> list[Any]:  # noqa: ARG002
        """What is so now in each process; of one that does not answer only its number, since it has used CPU time."""

        async def one(child: Child) -> Any:
            try:
                return await asyncio.wait_for(child.channel.call("gauges"), _GAUGES_S)
            except (TimeoutError, ChannelClosedError, ApiError):
                return {"pid": child.pid}

        children = [child for child in self._children if child.up.done()]
        told = await asyncio.gather(*map(one, children))
        return [{"pid": os.getpid()}, *told]

    async def _leave(self, caller: Child) -> None:
        """A process was sent SIGTERM: another one takes over, unless the whole server ends."""
        slot = self._slots[caller.slot]
        if slot.child is caller and not self._stopping.is_set():
            await slot.renew()

    # --- Signals ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """A signal: announces the end, or begins it, or ends at once; each one does the next of these."""
        if self._ending.is_set():
            self._at_once.set()
        elif self._stopping.is_set() or not self._config.shutdown_delay_s:
            self._stopping.set()
            self._ending.set()
        else:
            self._stopping.set()

    def _give_up(self, status: int) -> None:
        if not self._ending.is_set():
            self._status = status
            self._at_once.set()
            self._stopping.set()
            self._ending.set()

    def _renew(self) -> None:
        if self._renewing or self._stopping.is_set():
            log.warning("SIGHUP is ignored: the server is being restarted already, or ends")
        else:
            self._renewing = True
            self._spawn(self._renew_all())

    def _reap(self) -> None:
        """A process has ended: if nobody waits for it, its entry in the system's table is released here."""
        if not self._starting:  # or it may be one that is about to become a child
            for pid in signals.reap({child.pid for child in self._children}):
                log.debug("process %d, left to this one by its parent, has ended", pid)

    def _toggle_debug(self) -> None:
        self._debug.toggle()
        self._debug_on = self._debug.on
        for child in self._children:
            child.channel.tell("debug", on=self._debug_on)

    def _tell_state(self) -> list[str]:
        """This process's state as lines; has the serving processes write theirs."""
        stage = "ending" if self._ending.is_set() else "about to drain" if self._stopping.is_set() else "serving"
        lines = [f"state of the supervisor, process {os.getpid()}: {stage}{', restarting' if self._renewing else ''}"]
        for child in sorted(self._children, key=lambda child: (child.slot, child.pid)):
            place = "serves" if self._slots[child.slot].child is child else "does not serve"
            stage = "started" if child.up.done() else "starting"
            accepts = self._accepting.get(child, [])
            lines.append(
                f"process {child.pid} in slot {child.slot}: {stage}, {place}, accepts for slots {accepts}, "
                f"{child.lived_s():.1f} s since it was ready"
            )
        record = self._operations.record
        lines.append(f"readiness: {record['not_ready'] or 'ready'}; {len(record['endpoints'])} endpoints")
        lines += [f"task: {text}" for text in signals.waits(asyncio.all_tasks())]
        for child in self._children:
            child.signal(signal.SIGUSR1)
        return lines

    async def _renew_all(self) -> None:
        """Replaces one process after the other; stops where a new one is not fit."""
        try:
            await self._read_again()
            for slot in self._slots:
                with waits.logged(lambda: f"the restart waits for a new process in place {slot.number}"):  # noqa: B023
                    renewed = await slot.renew()
                if not renewed:
                    why = "cannot serve" if slot.child is None else "cannot serve what the old one does"
                    log.error("the rolling restart has stopped: a new process %s", why)
                    return
            log.info("restarted: %d processes, one after the other", len(self._slots))
        except OptionError as error:
            log.error("nothing is restarted, because the configuration cannot be used: %s", error)
        except ApiError as error:
            log.error("nothing is restarted: %s", error.message)
        finally:
            self._renewing = False

    async def _read_again(self) -> None:
        before, config = self._config, await self._reading.call("reading the configuration", self._again)
        changed = [name for name in _FIXED if getattr(config, name) != getattr(before, name)]
        if changed:
            log.warning("%s cannot change while the server runs; the old values stay", ", ".join(changed))
        self._config = config.model_copy(update={name: getattr(before, name) for name in _FIXED})

    # --- The end ------------------------------------------------------------------------------------------------------

    async def _announce_end(self) -> None:
        """Is not ready any more, and otherwise goes on, until the delay or another signal."""
        delay_s = self._config.shutdown_delay_s
        log.info("the server ends in %g s; it still takes connections", delay_s)
        for child in self._children:
            child.channel.tell("announce")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), delay_s)
        self._ending.set()

    async def _end(self) -> None:
        listeners = [listener for group in self._groups for listener in group]
        for listener in listeners:
            listen.refuse_newcomers(listener)
        if not any(self._accepting.values()):
            await self._answer_who_waits(listeners)
        for child in self._children:
            self._operations.retire(child.channel)
            child.channel.tell("drain")
        # The processes have them too: what waits in them is accepted there.
        listen.close(self._groups)
        if not self._at_once.is_set():
            await self._all_ended(self._config.drain_timeout_s + _AFTER_DRAIN_S, or_until=self._at_once)
        if self._at_once.is_set():
            for child in self._children:
                child.channel.tell("end")
            await self._all_ended(_AFTER_DRAIN_S)
        for child in self._children:
            child.kill()
        await self._all_ended(_KILLED_S)
        for child in self._children:
            log.error("process %d cannot be killed; it is left to the system", child.pid)
        if not self._status:
            log.info("ended")

    async def _answer_who_waits(self, listeners: Sequence[socket.socket]) -> None:
        """No process accepts yet: one that is loading does, or if there is none, this one answers with 503."""
        loading = next((child for child in self._children if child.up.done() and not child.ended.done()), None)
        if loading is not None:
            loading.channel.tell("accept_from", slots=list(range(len(self._groups))))
        else:
            servers = [await asyncio.start_server(_turn_away, sock=each.dup()) for each in listeners]
            await asyncio.sleep(_LAST_HANDSHAKES_S)
            for server in servers:
                server.close()

    async def _all_ended(self, timeout_s: float | None, or_until: asyncio.Event | None = None) -> None:
        """Waits until no process lives, at most so long, or until something else happens."""
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._none_lives())]
        if or_until is not None:
            waiting.append(asyncio.ensure_future(or_until.wait()))
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async def _none_lives(self) -> None:
        while self._children:
            await asyncio.wait([child.ended for child in self._children])


async def _turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a client of a server that ends before it has started."""
    with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _LAST_HANDSHAKES_S)
        writer.write(_TURNED_AWAY)
        writer.write_eof()
        await asyncio.wait_for(_until_closed(reader), _AT_ONCE_S)
    writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass
