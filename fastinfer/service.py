"""The service: what the routes work with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from fastinfer._ext import encode
from fastinfer._ext.executor import Executor
from fastinfer.config.server import ServerConfig
from fastinfer.metrics import Metrics
from fastinfer.models.loader import Loader
from fastinfer.models.repository import Repository

log = logging.getLogger(__name__)

_NONFINITE = {"literal": encode.LITERAL, "null": encode.NULL, "error": encode.ERROR}


class Service:
    """One process's models and the threads that run them.

    Attributes:
        config: the server's configuration.
        loop: the event loop, on whose thread everything here is used.
        executor: the native threads.
        repository: the models.
        metrics: what they have counted.
        nonfinite: how NaN and infinities are written in JSON answers.
        draining: the server is about to end.
    """

    def __init__(self, config: ServerConfig, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.loop = loop
        loop_fd = getattr(loop, "_get_backend_id", lambda: -1)()  # only a uvloop tells in which file it waits
        self.executor = Executor(config.threads, loop_fd)
        self._loader = Loader(config, self.executor, loop)
        self.repository = Repository(config.model_repository, self._loader)
        self.metrics = Metrics(self.repository.models)
        self.nonfinite = _NONFINITE[config.json_nonfinite]
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        loop.add_reader(self.executor.fileno(), self.executor.drain)

    def drain(self) -> None:
        """The server begins to end: it is not ready any more; what is in flight is answered."""
        self.draining = True

    def why_not_ready(self) -> str | None:
        """What keeps the server from being ready, or None."""
        return "the server is draining" if self.draining else self.repository.why_not_ready()

    def start(self) -> None:
        """Begins to load what is asked for at start, and to follow the disk where that is asked for."""
        task = self.loop.create_task(self._load_and_follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_and_follow(self) -> None:
        config, began = self.config, time.monotonic()
        await self.repository.start(None if config.load_all else config.load_names)
        reason = self.repository.why_not_ready()
        if reason is None:
            count = len(self.repository.names())
            log.info("ready: %d models, %.1f s", count, time.monotonic() - began)
        else:
            log.error("not ready: %s", reason)
        if config.model_control == "poll":
            await self.repository.follow(config.poll_interval_s)

    async def close(self) -> None:
        """Ends everything; requests in flight have been answered or given up."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.repository.close()
        self._loader.close()
        self.loop.remove_reader(self.executor.fileno())
        self.executor.close()
