"""The service: what the routes work with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

from fastinfer.api.metrics import Metrics
from fastinfer.base.budget import Budget
from fastinfer.codec import encode
from fastinfer.config.server import ServerConfig
from fastinfer.native.executor import Executor
from fastinfer.repository import watcher
from fastinfer.repository.crashes import Crashes
from fastinfer.repository.index import READY, Entry
from fastinfer.repository.loader import Loader
from fastinfer.repository.readiness import Rules
from fastinfer.repository.replicated import Replica
from fastinfer.shared.banks import Alone
from fastinfer.shared.report import Text

log = logging.getLogger(__name__)

_LOG_S = 0.2  # for the log's last line
_NONFINITE = {"literal": encode.LITERAL, "null": encode.NULL, "error": encode.ERROR}


def _rules(config: ServerConfig) -> Rules:
    nothing = config.load == ("none",)
    return Rules(
        strict=config.strict_readiness,
        allow_empty=config.allow_empty or nothing,
        scan=not nothing or config.model_control == "poll",
    )


class Control(Protocol):
    """What changes the models; see :class:`fastinfer.repository.repository.Repository`."""

    async def load_model(self, name: str, version: int | None, parameters: Mapping[str, Any]) -> str: ...

    async def load_worker(self, name: str, parameters: Mapping[str, Any]) -> str: ...

    async def unload(self, name: str, version: int | None = None, *, dependents: bool = False) -> None: ...


class Service:
    """One process's models and the threads that run them.

    Attributes:
        config: the server's configuration.
        crashes: what ended processes before.
        loop: the event loop, on whose thread everything here is used.
        executor: the native threads.
        budget: of the memory that requests hold.
        repository: the models.
        control: whom to ask for loads and unloads: the repository, where it is the only one.
        counters: where they count.
        metrics: what all processes have counted.
        nonfinite: how NaN and infinities are written in JSON answers.
        draining: the server is about to end.
    """

    def __init__(
        self,
        config: ServerConfig,
        loop: asyncio.AbstractEventLoop,
        control: Control | None = None,
        counters: Alone | None = None,
        crashes: Crashes | None = None,
    ) -> None:
        self.config = config
        self.crashes = crashes or Crashes()
        self.loop = loop
        loop_fd = getattr(loop, "_get_backend_id", lambda: -1)()  # only a uvloop tells in which file it waits
        self.executor = Executor(config.threads, loop_fd, loop.call_later, max(config.processes, 1))
        self.budget = Budget(config.in_flight_bytes)
        self.counters = counters or Alone()
        self._loader = Loader(config, self.executor, self.budget, loop, self.counters, self.crashes)
        self.repository = Replica(config.model_repository, self._loader, _rules(config), config.max_endpoints)
        self.control: Control = control or self.repository
        self._not_ready: str | None = "the server is starting"
        self.metrics = Metrics(self.repository.models, self.counters, self.executor)
        self.metrics.crashes = self.crashes
        self.metrics.stuck_loads = lambda: self._loader.stuck
        self.nonfinite = _NONFINITE[config.json_nonfinite]
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        loop.add_reader(self.executor.fileno(), self.executor.drain)

    def drain(self) -> None:
        """The server begins to end: it is not ready any more; what is in flight is answered."""
        self.draining = True

    def why_not_ready(self) -> str | None:
        """What keeps the server from being ready, or None."""
        if self.draining:
            return "the server is draining"
        return self.repository.why_not_ready() if self.control is self.repository else self._not_ready

    def readiness(self, reason: str | None) -> None:
        """What keeps the whole server from being ready, where this process is not all of it."""
        self._not_ready = reason

    async def statistics(self, name: str | None = None, version: str | None = None) -> Text:
        """The answer of the statistics extension: for all models, one model's versions, or one version.

        Raises:
            ApiError: 404 where there is no such model or version, 503 where it is not ready, or where the repository
                has not been read yet.
        """
        self.repository.check_read()
        if name is None:
            return await self.metrics.statistics()
        self.repository.find(name, version)
        models = self.repository.models()
        chosen = [model for model in models if model.name == name and version in (None, model.version)]
        return await self.metrics.statistics_of(chosen)

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
        wanted = None if config.load_all else config.load_names
        seen = await watcher.load_all(self.repository, wanted)
        reason = self.repository.why_not_ready()
        if reason is None:
            count = len(self.repository.names())
            log.info("ready: %d models, %.1f s", count, time.monotonic() - began)
        else:
            log.error("not ready: %s", reason)
        seen = await watcher.load_rest(self.repository, wanted, seen)
        if config.model_control == "poll":
            await watcher.follow(self.repository, config.poll_interval_s, seen, unload_all=config.poll_unload_all)

    async def close(self) -> None:
        """Ends everything; requests in flight have been answered or given up."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.repository.close()
        self._loader.close()
        if self._loader.stuck:  # inside of the runtime, perhaps, which would not survive the end of its library
            log.warning("ended beside %d calls that have not returned", self._loader.stuck)
            time.sleep(_LOG_S)
            os._exit(0)
        self.loop.remove_reader(self.executor.fileno())
        self.executor.close()
