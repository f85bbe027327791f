"""The supervisor process: listens, starts the serving processes, handles their calls, and ends them.

It has no models and answers no requests, and it imports only what it needs for that. If it ends, for whatever reason,
the serving processes drain and end too.
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
from fastinfer.config.server import OptionError, ServerConfig, unknown_variables
from fastinfer.http import listen
from fastinfer.repository import watcher
from fastinfer.shared import layout
from fastinfer.supervisor.blame import Blame
from fastinfer.supervisor.channel import ChannelClosedError, Handlers
from fastinfer.supervisor.child import Child
from fastinfer.supervisor.operations import Member, Operations
from fastinfer.supervisor.slots import ProcessSlot, log_death

log = logging.getLogger(__name__)

T = TypeVar("T")

EARLY_ACCEPT_S: Final = 10.0  # after this time a loading process accepts, if no other process does
_START_S: Final = 120.0  # how long a process may take until it answers calls, before it loads
_FIRST_S: Final = 10.0  # how long loading waits for the first processes to start
# How long a process may take to end after its drain timeout: a little more than its own timer.
_AFTER_DRAIN_S: Final = limits.GIVE_UP_S + limits.END_TIMEOUT_S + 0.3
_KILLED_S: Final = 0.5  # how long the system may take to kill a process
_OVERDUE_S: Final = 4.5  # after the drain timeout plus this the supervisor exits, whatever it is waiting for
_LAST_HANDSHAKES_S: Final = 0.25  # as in the serving processes
_RESTART_TASK_S: Final = 1.0  # until a failed task begins again
_LOOK_S: Final = 0.1  # between two looks for a free bank
_CONFIG_S: Final = 30.0  # how long reading the configuration again may take
_GAUGES_S: Final = 1.0  # how long a busy process may take to send its gauges
_REPLY_S: Final = 1.0  # how long a process may take to withdraw, or a refused client to close
_DRAINED: Final = 8  # processes that may still drain while their successors are replaced
_FORGET_S: Final = 60.0  # between two removals of expired blame
_TURNED_AWAY_BODY: Final = ApiError(503, "the server is ending").body()
_TURNED_AWAY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_TURNED_AWAY_BODY), _TURNED_AWAY_BODY)
)
_FIXED: Final = ("host", "port", "processes")  # options that cannot change while the server runs


def supervise(
    config: ServerConfig,
    read_config: Callable[[], ServerConfig],
    inherited: Mapping[str, int] | None = None,
) -> int:
    """Serves until a signal ends it; returns the exit status.

    Args:
        config: the configuration; ``processes`` is at least 1.
        read_config: reads the configuration again, for SIGHUP. OptionError if it cannot be used.
        inherited: descriptors that every serving process inherits, by purpose.
    """
    written = logs.start(config.log_level, config.log_format)
    try:
        for sentence in unknown_variables(os.environ):
            log.warning("%s", sentence)
        if reason := config.why_not_servable():
            log.error("%s", reason)
            return 1
        try:
            groups = listen.bind(config.host, config.port, config.processes)
        except OSError as error:
            log.error("%s", listen.why_not(error, config.host, config.port))
            return 1
        try:
            supervisor = Supervisor(config, read_config, groups, inherited or {})
        except OSError as error:
            log.error("memory to share between processes cannot be created: %s", error.strerror or error)
            return 1
        return asyncio.run(supervisor.run())
    finally:
        written.stop()


class Supervisor:
    """Runs the slots with their processes, and the operations on all of them. Loop's thread only.

    Args:
        config, read_config, inherited: see :func:`supervise`.
        groups: the listening sockets of each slot.
    """

    def __init__(
        self,
        config: ServerConfig,
        read_config: Callable[[], ServerConfig],
        groups: Sequence[Sequence[socket.socket]],
        inherited: Mapping[str, int],
    ) -> None:
        self._config = config
        self._read_config = read_config
        self._groups = groups
        self._blame, crashes = Blame.create(2 * config.processes + _DRAINED)
        self._inherited = {**inherited, "crashes": crashes}
        self._counters = layout.create(len(groups))
        self._operations = Operations(self._replace_different)
        self._slots = [
            ProcessSlot(number, group, self._launch, self._assign, self._retire, self._died)
            for number, group in enumerate(groups)
        ]
        self._children: set[Child] = set()  # all processes that have not ended
        self._accepting: dict[Child, list[int]] = {}  # the slots whose connections each process accepts
        self._start_logged = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = 0  # processes that are started but not in _children yet
        self._debug = logs.Debug()
        self._debug_on: bool | None = None  # None: as configured
        self._stopping = asyncio.Event()  # set when the end is announced, or has begun
        self._ending = asyncio.Event()
        self._at_once = asyncio.Event()
        self._renewing = False
        self._reading = BoundedThreads("fastinfer-config", 1, _CONFIG_S, 1)  # the file may be on a dead disk, too
        self._status = 0

    async def run(self) -> int:
        """Serves, drains and ends; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._renew)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        inspection = signals.Inspection(loop, self._state_lines, self._toggle_debug)
        keeping = [self._spawn(self._run_forever(slot.keep)) for slot in self._slots]
        keeping.append(self._spawn(self._run_forever(self._keep_models)))
        keeping.append(self._spawn(self._run_forever(self._forget_old_blame)))
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
            signal.signal(number, signal.SIG_IGN)  # the rest is short, and the exit status is known
        return self._status

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the supervisor has failed; the server keeps running", exc_info=task.exception())

    async def _run_forever(self, task: Callable[[], Awaitable[None]]) -> None:
        """Runs a task, and restarts it after a failure, because a failure must not end the serving processes."""
        while True:
            try:
                await task()
                return
            except Exception:
                log.exception("a task of the supervisor has failed; it begins again in %g s", _RESTART_TASK_S)
            await asyncio.sleep(_RESTART_TASK_S)

    # --- Models -------------------------------------------------------------------------------------------------------

    async def _keep_models(self) -> None:
        """Loads the models requested at start; then polls the disk, if so configured."""
        config, began = self._config, time.monotonic()
        first = [asyncio.ensure_future(slot.served.wait()) for slot in self._slots]
        await asyncio.wait(first, timeout=_FIRST_S)
        requested = None if config.load_all else config.load_names
        seen = await watcher.load_all(self._operations, requested)
        reason = self._operations.record["not_ready"]
        if reason is None:
            count = len(self._operations.record["endpoints"])
            log.info("ready: %d models, %.1f s", count, time.monotonic() - began)
        else:
            log.error("not ready: %s", reason)
        seen = await watcher.load_rest(self._operations, requested, seen)
        if config.model_control == "poll":
            await watcher.follow(
                self._operations,
                config.poll_interval_s,
                seen,
                unload_all=config.poll_unload_all,
                requested=config.load_names,
            )

    async def _forget_old_blame(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_S)
            self._blame.forget_old()

    # --- Processes ----------------------------------------------------------------------------------------------------

    async def _launch(self, slot: ProcessSlot) -> Child | None:
        """Starts a process and makes it equal to the others; None if it has ended, or must not serve."""
        handlers: Handlers = {
            "operate": self._operate,
            "override": self._override,
            "leave": self._leave,
            "gauges": self._gauges,
        }
        share = self._config.share()
        with waits.logged(lambda: f"slot {slot.number} waits until replaced processes have ended"):
            while (bank := self._free_bank(slot)) is None:
                await asyncio.sleep(_LOOK_S)
        memory = (self._counters, bank)
        self._starting += 1
        try:
            crash_slot = self._blame.free_slot()
            child = await Child.start(slot.number, crash_slot, share, self._groups, memory, self._inherited, handlers)
        except OSError as error:
            self._blame.after_death(crash_slot, 0)
            log.error("a process cannot be started: %s", error.strerror)
            return None
        else:
            self._children.add(child)
        finally:
            self._starting -= 1
        child.ended.add_done_callback(lambda _: self._gone(child))
        self._reap()
        if self._debug_on is not None:
            child.channel.notify("debug", on=self._debug_on)
        if self._stopping.is_set():
            child.channel.notify("announce")
        await asyncio.wait((child.up, child.ended), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        if not child.up.done():
            if not child.ended.done():
                log.error("process %d has not started in %g s: it is killed", child.pid, _START_S)
                child.kill()
            await child.ended
            self._ended_early(child)
            return None
        self._spawn(self._watch(child))
        self._log_start(child.up.result())
        early_accept = asyncio.get_running_loop().call_later(EARLY_ACCEPT_S, self._allow_early_accept, child)
        try:
            fit = await self._operations.join(child.channel)
        except ChannelClosedError:
            await child.ended
            self._died(child)
            return None
        except Exception:
            log.exception("process %d cannot take part; the others continue without it", child.pid)
            fit = False
        finally:
            early_accept.cancel()
            child.accepts_early = False
        if not fit:
            self._retire(child)
            self._assign()
            return None
        return child

    def _free_bank(self, slot: ProcessSlot) -> int | None:
        return layout.free_bank(slot.number, [child.bank for child in self._children])

    def _log_start(self, runtime: str) -> None:
        if not self._start_logged:
            self._start_logged = True
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
        """Kills a process whose loop is blocked, or that does not end after it has closed its channel."""
        half_s = self._config.hang_timeout_s / 2
        missed = 0
        while missed < 2:  # twice, because the supervisor itself may have been blocked with the answer unread
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
            log.error("process %d has not answered for %g s: it is killed", child.pid, 2 * half_s)
            child.kill()

    def _ended_early(self, child: Child) -> None:
        """Handles a process that has ended before it answered calls. If none ever has, the server gives up."""
        status = child.ended.result()
        if status > 0 and not self._start_logged:
            self._give_up(status)  # the process has logged why
        elif not self._ending.is_set():
            self._died(child)

    def _gone(self, child: Child) -> None:
        """Cleans up after a process that has ended, for whatever reason."""
        self._blame.after_death(child.crash_slot, -child.ended.result())
        self._children.discard(child)
        self._operations.ended(child.channel)
        child.channel.close()
        self._accepting.pop(child, None)
        if not self._ending.is_set():
            self._assign()

    async def _replace_different(self, channel: Member) -> None:
        """Replaces a process that does not serve the same as the others; returns when it serves no more."""
        child = next((child for child in self._children if child.channel is channel), None)
        if child is None:
            return
        slot = self._slots[child.slot]
        if slot.child is child:
            log.error("process %d does not serve the same models as the others: another one takes its place", child.pid)
            slot.drop(child)
        try:
            await asyncio.wait_for(child.channel.call("withdraw"), _REPLY_S)
            child.channel.notify("hand_over")  # not killed: it may have the client whose request caused this
        except ChannelClosedError:
            pass
        except TimeoutError:
            child.kill()
            await child.ended

    def _died(self, child: Child) -> None:
        """Handles a process that has ended unexpectedly."""
        self._operations.leave(child.channel)
        if not self._ending.is_set():
            log_death(child)

    def _retire(self, child: Child) -> None:
        self._operations.retire(child.channel)
        child.channel.notify("hand_over")

    def _allow_early_accept(self, child: Child) -> None:
        child.accepts_early = True
        self._assign()

    def _assign(self) -> None:
        """Sends each process the slots whose connections it accepts: its own, and those without a process."""
        serving = [slot.child for slot in self._slots if slot.child is not None and not slot.child.ended.done()]
        # Only one process, because several may have loaded different files before they join.
        serving = serving or [
            child for child in self._children if child.accepts_early and self._operations.may_serve_first(child.channel)
        ]
        assigned: dict[Child, list[int]] = {child: [] for child in serving}
        for slot in self._slots:
            own_child = slot.child if slot.child in assigned else None
            acceptor = own_child or (serving[slot.number % len(serving)] if serving else None)
            if acceptor is not None:
                assigned[acceptor].append(slot.number)
        for child, numbers in assigned.items():
            if self._accepting.get(child) != numbers:
                log.debug("process %d accepts for slots %s", child.pid, numbers)
                child.channel.notify("accept_from", slots=numbers)
                self._accepting[child] = numbers

    # --- Calls of serving processes -----------------------------------------------------------------------------------

    async def _operate(self, caller: Child, operation: str, arguments: dict[str, Any]) -> Any:  # noqa: ARG002
        return await self._operations.run_for_client(operation, arguments)

    def _override(self, caller: Child, mark: str) -> str:  # noqa: ARG002
        return self._operations.override(mark)

    async def _gauges(self, caller: Child) -> list[Any]:  # noqa: ARG002
        """The gauges of each process; only the id of one that does not answer, because its CPU time still counts."""

        async def one(child: Child) -> Any:
            try:
                return await asyncio.wait_for(child.channel.call("gauges"), _GAUGES_S)
            except (TimeoutError, ChannelClosedError, ApiError):
                return {"pid": child.pid}

        children = [child for child in self._children if child.up.done()]
        gauges = await asyncio.gather(*map(one, children))
        return [{"pid": os.getpid()}, *gauges]

    async def _leave(self, caller: Child) -> None:
        """Replaces a process that got SIGTERM, unless the whole server ends."""
        slot = self._slots[caller.slot]
        if slot.child is caller and not self._stopping.is_set():
            await slot.renew()

    # --- Signals ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Handles SIGTERM and SIGINT: announces the end, begins it, or ends at once; each signal is the next step."""
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
            log.warning("SIGHUP is ignored: the server is already restarting, or ends")
        else:
            self._renewing = True
            self._spawn(self._renew_all())

    def _reap(self) -> None:
        """Handles SIGCHLD: reaps ended processes that no task waits for."""
        if not self._starting:  # otherwise it may be a process that is not in _children yet
            for pid in signals.reap({child.pid for child in self._children}):
                log.debug("process %d, inherited from its ended parent, has ended", pid)

    def _toggle_debug(self) -> None:
        self._debug.toggle()
        self._debug_on = self._debug.on
        for child in self._children:
            child.channel.notify("debug", on=self._debug_on)

    def _state_lines(self) -> list[str]:
        """This process's state as lines; also makes the serving processes log theirs."""
        stage = "ending" if self._ending.is_set() else "about to drain" if self._stopping.is_set() else "serving"
        lines = [f"state of the supervisor, process {os.getpid()}: {stage}{', restarting' if self._renewing else ''}"]
        for child in sorted(self._children, key=lambda child: (child.slot, child.pid)):
            serves = "serves" if self._slots[child.slot].child is child else "does not serve"
            stage = "started" if child.up.done() else "starting"
            accepts = self._accepting.get(child, [])
            lines.append(
                f"process {child.pid} in slot {child.slot}: {stage}, {serves}, accepts for slots {accepts}, "
                f"{child.lived_s():.1f} s since it was ready"
            )
        record = self._operations.record
        lines.append(f"readiness: {record['not_ready'] or 'ready'}; {len(record['endpoints'])} endpoints")
        lines += [f"task: {text}" for text in signals.waits(asyncio.all_tasks())]
        for child in self._children:
            child.signal(signal.SIGUSR1)
        return lines

    async def _renew_all(self) -> None:
        """Replaces one process after another; stops if a new one cannot serve."""
        try:
            await self._reload_config()
            for slot in self._slots:
                with waits.logged(lambda: f"the restart waits for a new process in slot {slot.number}"):  # noqa: B023
                    renewed = await slot.renew()
                if not renewed:
                    why = "cannot serve" if slot.child is None else "cannot serve the same models as the old one"
                    log.error("the rolling restart has stopped: a new process %s", why)
                    return
            log.info("restarted: %d processes, one after the other", len(self._slots))
        except OptionError as error:
            log.error("nothing is restarted, because the configuration cannot be used: %s", error)
        except ApiError as error:
            log.error("nothing is restarted: %s", error.message)
        finally:
            self._renewing = False

    async def _reload_config(self) -> None:
        before, config = self._config, await self._reading.call("reading the configuration", self._read_config)
        changed = [name for name in _FIXED if getattr(config, name) != getattr(before, name)]
        if changed:
            log.warning("%s cannot change while the server runs; the old values stay", ", ".join(changed))
        self._config = config.model_copy(update={name: getattr(before, name) for name in _FIXED})

    # --- The end ------------------------------------------------------------------------------------------------------

    async def _announce_end(self) -> None:
        """Reports the server as not ready, but keeps serving, until the delay or another signal."""
        delay_s = self._config.shutdown_delay_s
        log.info("the server ends in %g s; it still accepts connections", delay_s)
        for child in self._children:
            child.channel.notify("announce")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), delay_s)
        self._ending.set()

    async def _end(self) -> None:
        listeners = [listener for group in self._groups for listener in group]
        for listener in listeners:
            listen.refuse_connects(listener)
        if not any(self._accepting.values()):
            await self._answer_waiting_clients(listeners)
        for child in self._children:
            self._operations.retire(child.channel)
            child.channel.notify("drain")
        # The processes have these sockets, too, and accept the waiting connections.
        listen.close(self._groups)
        if not self._at_once.is_set():
            await self._wait_for_children(self._config.drain_timeout_s + _AFTER_DRAIN_S, or_until=self._at_once)
        if self._at_once.is_set():
            for child in self._children:
                child.channel.notify("end")
            await self._wait_for_children(_AFTER_DRAIN_S)
        for child in self._children:
            child.kill()
        await self._wait_for_children(_KILLED_S)
        for child in self._children:
            log.error("process %d cannot be killed; it is left to the system", child.pid)
        if not self._status:
            log.info("ended")

    async def _answer_waiting_clients(self, listeners: Sequence[socket.socket]) -> None:
        """Answers clients if no process accepts yet: a loading process accepts, or this process answers with 503."""
        loading = next((child for child in self._children if child.up.done() and not child.ended.done()), None)
        if loading is not None:
            loading.channel.notify("accept_from", slots=list(range(len(self._groups))))
        else:
            servers = [await asyncio.start_server(_turn_away, sock=each.dup()) for each in listeners]
            await asyncio.sleep(_LAST_HANDSHAKES_S)
            for server in servers:
                server.close()

    async def _wait_for_children(self, timeout_s: float | None, or_until: asyncio.Event | None = None) -> None:
        """Waits until all processes have ended, at most this long, or until the event is set."""
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._until_all_ended())]
        if or_until is not None:
            waiting.append(asyncio.ensure_future(or_until.wait()))
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    async def _until_all_ended(self) -> None:
        while self._children:
            await asyncio.wait([child.ended for child in self._children])


async def _turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers a client with 503, because the server ends before it has started."""
    with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _LAST_HANDSHAKES_S)
        writer.write(_TURNED_AWAY)
        writer.write_eof()
        await asyncio.wait_for(_until_closed(reader), _REPLY_S)
    writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass
