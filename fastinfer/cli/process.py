"""One serving process: the service, its routes and its HTTP server, from start to drain; alone or for a supervisor."""

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

from fastinfer import __version__
from fastinfer.api import routes
from fastinfer.api.metrics import Gauges
from fastinfer.api.service import Service
from fastinfer.backends.onnx import ort
from fastinfer.base import limits, logs
from fastinfer.base.errors import ApiError
from fastinfer.base.signals import Inspection
from fastinfer.cli import state
from fastinfer.config.server import ServerConfig
from fastinfer.http.poller import Poller
from fastinfer.http.server import Server, run
from fastinfer.repository.crashes import Crashes
from fastinfer.repository.two_phase import Rounds
from fastinfer.shared.banks import Banks
from fastinfer.supervisor.assignment import Assignment, end_with
from fastinfer.supervisor.channel import Channel, ChannelClosedError

log = logging.getLogger(__name__)

_LOG_S = 0.2  # for the log's last line
_NOWHERE = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def serve(config: ServerConfig) -> int:
    """Serves alone until a signal ends it; returns the process's exit status."""
    written = logs.start(config.log_level, config.log_format)
    try:
        return run(_serve(config, written))
    finally:
        written.stop()


def serve_for(descriptor: int) -> int:
    """Serves for the supervisor at the other end of a socket until it says so; returns the process's exit status."""
    # These are for the supervisor, which tells when to end.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=descriptor)
    try:
        given = Assignment.receive(end)
    except EOFError:
        return 1
    end_with(given.supervisor)
    config, counters = given.config, Banks(given.counters, given.bank)
    slot = given.slot if config.processes > 1 else None
    written = logs.start(config.log_level, config.log_format, slot=slot, lost=counters.log)
    try:
        return run(_serve_for(given, counters, end, written))
    finally:
        written.stop()


async def _serve(config: ServerConfig, written: logs.Logs) -> int:
    if reason := config.why_not_servable():
        log.error("%s", reason)
        return 1
    _prepare(config)
    service = Service(config, asyncio.get_running_loop())
    server = _server(service, host=config.host, port=config.port)
    try:
        await server.start()
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", config.host, config.port, error.strerror or error)
        await service.close()
        return 1
    service.metrics.http, service.metrics.logs = server.hub, written
    host = f"[{config.host}]" if ":" in config.host else config.host
    log.info("fastinfer %s on http://%s:%d, ONNX Runtime %s", __version__, host, server.port, ort.version())
    log.info("threads: 1 for the loop, %d native, %d of ONNX Runtime's pool", config.threads, config.intra_op_threads)
    debug = logs.Debug()
    inspection = Inspection(service.loop, lambda: state.lines(service, server), debug.toggle)
    service.start()
    clean = await server.serve(config.drain_timeout_s, overdue=_end_after)
    await service.close()
    inspection.close()
    log.info("ended" if clean else "ended; some requests were given up")
    return 0


async def _serve_for(given: Assignment, counters: Banks, end: socket.socket, written: logs.Logs) -> int:
    config, loop = given.config, asyncio.get_running_loop()
    _prepare(config)
    asked = _Asked()
    crashes = Crashes.attach(given.inherited["crashes"], given.crash_slot)
    service = Service(config, loop, asked, counters, crashes)
    groups = [[socket.socket(fileno=descriptor) for descriptor in group] for group in given.listeners]
    server = _server(service, sockets=[listener for group in groups for listener in group], accepting=False)
    await server.start()
    service.metrics.http, service.metrics.logs = server.hub, written
    repository = service.repository
    repository.override_of = asked.override
    rounds = Rounds(repository)
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
    asked.channel = channel
    service.metrics.everywhere = asked.gauges
    channel.closed.add_done_callback(lambda _: server.drain_soon())  # the supervisor is gone
    loop.add_signal_handler(signal.SIGTERM, channel.tell, "leave")
    channel.tell("up", runtime=ort.version())
    clean = await server.serve(config.drain_timeout_s, signals=(), overdue=_end_after)
    channel.close()
    await service.close()
    inspection.close()
    if not clean:
        log.warning("some requests were given up")
    return 0


def _end_after(seconds: float) -> None:
    """Ends the process then at the latest: a run cannot be ended inside of an operator, nor a load that hangs."""
    overdue = threading.Timer(seconds - _LOG_S, _end)
    overdue.daemon = True
    overdue.start()
    # A thread of C, which needs no GIL.
    faulthandler.dump_traceback_later(seconds + _LOG_S, file=_NOWHERE, exit=True)


def _end() -> None:
    log.error("ended with work that could not be ended by itself: a run inside of an operator, or a load")
    time.sleep(_LOG_S)
    os._exit(0)


def _prepare(config: ServerConfig) -> None:
    """Settles what holds for the whole process, before there is a session."""
    # A load thread that runs Python gives way to the loop's thread after this long.
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


class _Asked:
    """Control by the supervisor: what clients of this process ask for is done in all."""

    channel: Channel

    async def load_model(self, name: str, version: int | None, parameters: Mapping[str, Any]) -> str:
        return str(await self._ask("load_model", name=name, version=version, parameters=parameters))

    async def load_worker(self, name: str, parameters: Mapping[str, Any]) -> str:
        return str(await self._ask("load_worker", name=name, parameters=parameters))

    async def unload(self, name: str, version: int | None = None, *, dependents: bool = False) -> None:
        await self._ask("unload", name=name, version=version, dependents=dependents)

    async def override(self, mark: str) -> str:
        """A configuration that a load has given to the other processes."""
        try:
            return str(await self.channel.call("override", mark=mark))
        except ChannelClosedError:
            raise ApiError(503, "the server is ending") from None

    async def gauges(self) -> list[Gauges]:
        """What is so now in each process."""
        found: list[Gauges] = await self.channel.call("gauges")
        return found

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        try:
            return await self.channel.call("operate", operation=operation, arguments=arguments)
        except ChannelClosedError:
            raise ApiError(503, "the server is ending") from None
