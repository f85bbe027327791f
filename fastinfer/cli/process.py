"""The main function of a serving process, alone or for a supervisor: service, routes, HTTP server, drain."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import fastinfer.base.light_numpy  # noqa: F401 - before numpy is imported
from fastinfer import __version__
from fastinfer.api import routes
from fastinfer.api.metrics import Gauges
from fastinfer.api.service import Service
from fastinfer.backends.onnx import ort
from fastinfer.base import limits, logs
from fastinfer.base.errors import ApiError
from fastinfer.base.signals import Inspection
from fastinfer.cli import state
from fastinfer.config.server import ServerConfig, unknown_variables
from fastinfer.http import listen
from fastinfer.http.poller import Poller
from fastinfer.http.server import Server, run
from fastinfer.repository.crashes import Crashes
from fastinfer.repository.two_phase import TwoPhaseOperations
from fastinfer.shared.model_counters import SharedCounters
from fastinfer.supervisor.assignment import Assignment, end_with
from fastinfer.supervisor.channel import Channel, ChannelClosedError

log = logging.getLogger(__name__)

_LOG_FLUSH_S = 0.2  # time to write the log's last line
_DEV_NULL = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def serve(config: ServerConfig) -> int:
    """Serve without a supervisor until a signal; returns the exit status."""
    log_writer = logs.start(config.log_level, config.log_format)
    try:
        return run(_serve(config, log_writer))
    finally:
        log_writer.stop()


def serve_for(descriptor: int) -> int:
    """Serve for the supervisor at the other end of a socket until it ends this process; returns the exit status."""
    # The supervisor handles these signals, and sends this process a message.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=descriptor)
    try:
        given = Assignment.receive(end)
    except EOFError:
        return 1
    end_with(given.supervisor)
    config, counters = given.config, SharedCounters(given.counters, given.bank)
    slot = given.slot if config.processes > 1 else None
    log_writer = logs.start(config.log_level, config.log_format, slot=slot, lost=counters.log)
    try:
        return run(_serve_for(given, counters, end, log_writer))
    finally:
        log_writer.stop()


async def _serve(config: ServerConfig, log_writer: logs.Logs) -> int:
    for sentence in unknown_variables(os.environ):
        log.warning("%s", sentence)
    if reason := config.why_not_servable():
        log.error("%s", reason)
        return 1
    _prepare(config)
    service = Service(config, asyncio.get_running_loop())
    server = _server(service, host=config.host, port=config.port)
    try:
        await server.start()
    except OSError as error:
        log.error("%s", listen.why_not(error, config.host, config.port))
        await service.close()
        return 1
    service.metrics.http, service.metrics.logs = server.hub, log_writer
    host = f"[{config.host}]" if ":" in config.host else config.host
    log.info("fastinfer %s on http://%s:%d, ONNX Runtime %s", __version__, host, server.port, ort.version())
    log.info("threads: 1 for the loop, %d native, %d of ONNX Runtime's pool", config.threads, config.intra_op_threads)
    debug = logs.Debug()
    inspection = Inspection(service.loop, lambda: state.lines(service, server), debug.toggle)
    service.start()
    clean = await server.serve(config.drain_timeout_s, overdue=_end_after)
    await service.close()
    inspection.close()
    log.info("ended" if clean else "ended; some requests were aborted")
    return 0


async def _serve_for(given: Assignment, counters: SharedCounters, end: socket.socket, log_writer: logs.Logs) -> int:
    config, loop = given.config, asyncio.get_running_loop()
    _prepare(config)
    control = _SupervisorControl()
    crashes = Crashes.attach(given.inherited["crashes"], given.crash_slot)
    service = Service(config, loop, control, counters, crashes)
    groups = [[socket.socket(fileno=descriptor) for descriptor in group] for group in given.listeners]
    server = _server(service, sockets=[listener for group in groups for listener in group], accepting=False)
    await server.start()
    service.metrics.http, service.metrics.logs = server.hub, log_writer
    repository = service.repository
    repository.override_of = control.override
    rounds = TwoPhaseOperations(repository)
    debug = logs.Debug()
    inspection = Inspection(loop, lambda: state.lines(service, server), debug.toggle)
    channel = await Channel.open(
        end,
        {
            "restore": repository.restore,
            "state": repository.state,
            "changed": repository.changed,
            "withdraw": repository.withdraw,
            "look": repository.look,
            "begin": rounds.begin,
            "decide": rounds.decide,
            "readiness": service.readiness,
            "gauges": service.metrics.gauges,
            "pulse": lambda: None,
            "accept_from": lambda slots: server.accept_from([each for slot in slots for each in groups[slot]]),
            "debug": debug.set,
            "announce": server.announce,
            "hand_over": server.hand_over,
            "drain": server.drain_soon,
            "end": server.end,
        },
    )
    control.channel = channel
    service.metrics.collect_gauges = control.gauges
    channel.closed.add_done_callback(lambda _: server.drain_soon())  # the supervisor has died
    loop.add_signal_handler(signal.SIGTERM, channel.notify, "leave")
    channel.notify("up", runtime=ort.version())
    clean = await server.serve(config.drain_timeout_s, signals=(), overdue=_end_after)
    channel.close()
    await service.close()
    inspection.close()
    if not clean:
        log.warning("some requests were aborted")
    return 0


def _end_after(seconds: float) -> None:
    """Ends the process after this time at the latest, because a run inside an operator or a hanging load cannot be."""
    overdue = threading.Timer(seconds - _LOG_FLUSH_S, _end)
    overdue.daemon = True
    overdue.start()
    # The second timer is a C thread, which does not need the GIL.
    faulthandler.dump_traceback_later(seconds + _LOG_FLUSH_S, file=_DEV_NULL, exit=True)


def _end() -> None:
    log.error("ended with unfinished work: a run inside an operator or a load did not end")
    time.sleep(_LOG_FLUSH_S)
    os._exit(0)


def _prepare(config: ServerConfig) -> None:
    """Applies the settings of the whole process. Call it before the first session is made."""
    # A load thread that runs Python releases the GIL for the loop's thread after this time.
    sys.setswitchinterval(limits.SWITCH_INTERVAL_S)
    if config.telemetry:
        os.environ["FASTINFER_ORT_TELEMETRY"] = "1"
    ort.configure(config.intra_op_threads)


def _server(service: Service, **where: Any) -> Server:
    config = service.config
    return Server(
        routes.build(service),
        **where,
        limits=config.http_limits,
        poller=Poller(service.loop, service.executor, config.busy_poll_us),
        counters=service.counters.http,
        budget=service.budget,
        on_drain=service.drain,
        shutdown_delay_s=config.shutdown_delay_s,
    )


class _SupervisorControl:
    """Sends the loads and unloads of clients to the supervisor, which performs them in all processes."""

    channel: Channel

    async def load_model(self, name: str, version: int | None, parameters: Mapping[str, Any]) -> str:
        return str(await self._ask("load_model", name=name, version=version, parameters=parameters))

    async def load_worker(self, name: str, parameters: Mapping[str, Any]) -> str:
        return str(await self._ask("load_worker", name=name, parameters=parameters))

    async def unload(self, name: str, version: int | None = None, *, dependents: bool = False) -> None:
        await self._ask("unload", name=name, version=version, dependents=dependents)

    async def override(self, mark: str) -> str:
        """Return a configuration that came with a load before this process started."""
        try:
            return str(await self.channel.call("override", mark=mark))
        except ChannelClosedError:
            raise ApiError(503, "the server is ending") from None

    async def gauges(self) -> list[Gauges]:
        """Return the gauges of each process."""
        found: list[Gauges] = await self.channel.call("gauges")
        return found

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        try:
            return await self.channel.call("operate", operation=operation, arguments=arguments)
        except ChannelClosedError:
            raise ApiError(503, "the server is ending") from None
