"""One serving process: the service, its routes and its HTTP server, from start to drain."""

from __future__ import annotations

import asyncio
import logging
import os

from fastinfer import __version__, logs, routes
from fastinfer._ext import ort
from fastinfer._ext.poller import Poller
from fastinfer.config.server import ServerConfig
from fastinfer.http.server import Server, run
from fastinfer.service import Service

log = logging.getLogger(__name__)


def serve(config: ServerConfig) -> int:
    """Serves until a signal ends it; returns the process's exit status."""
    written = logs.start(config.log_level, config.log_format)
    try:
        return run(_serve(config, written))
    finally:
        written.stop()


async def _serve(config: ServerConfig, written: logs.Logs) -> int:
    missing = [directory for directory in config.model_repository if not directory.is_dir()]
    if missing:
        log.error("there is no directory '%s'; name the one with the models: --model-repository DIR", missing[0])
        return 1
    if config.telemetry:
        os.environ["FASTINFER_ORT_TELEMETRY"] = "1"
    ort.configure(config.intra_op_threads)
    service = Service(config, asyncio.get_running_loop())
    server = Server(
        routes.build(service),
        host=config.host,
        port=config.port,
        limits=config.http_limits,
        poller=Poller(service.loop, service.executor, config.busy_poll_us),
        on_drain=service.drain,
    )
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
    service.start()
    clean = await server.serve(config.drain_timeout_s)
    await service.close()
    log.info("ended" if clean else "ended; some requests were given up")
    return 0
