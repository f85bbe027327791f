"""The service: what the routes work with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from fastinfer._ext import encode
from fastinfer._ext.executor import Executor
from fastinfer.config.server import ServerConfig
from fastinfer.metrics import Metrics
from fastinfer.models.index import READY, Entry
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

    def statistics(self, name: str | None = None, version: str | None = None) -> list[dict[str, Any]]:
        """The entries of the statistics extension: of all models, of one model's versions, or of one version.

        Raises:
            ApiError: 404 where there is no such model or version, 503 where it is not ready.
        """
        models = self.repository.models()
        if name is not None:
            self.repository.find(name, version)
            models = [model for model in models if model.name == name and version in (None, model.version)]
        return [model.stats.to_triton(model.name, model.version) for model in models]

    async def index(self, *, ready_only: bool) -> list[Entry]:
        """The entries of the repository's index, those that answer requests or all."""
        return [entry for entry in await self.repository.index() if entry.state == READY or not ready_only]

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
