"""Everything that one serving process owns: models, native threads, counters, the memory budget. Loop's thread only."""

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
from fastinfer.repository.replicated import ReplicatedRepository
from fastinfer.shared.model_counters import LocalCounters, ModelCounters
from fastinfer.shared.report import Text

log = logging.getLogger(__name__)

_LOG_FLUSH_S = 0.2  # time to write the log's last line
_NONFINITE = {"literal": encode.LITERAL, "null": encode.NULL, "error": encode.ERROR}


def _rules(config: ServerConfig) -> Rules:
    nothing = config.load == ("none",)
    return Rules(
        strict=config.strict_readiness,
        allow_empty=config.allow_empty or nothing,
        scan=not nothing or config.model_control == "poll",
        names=None if config.load_all else tuple(config.load_names),
    )


class Control(Protocol):
    """Loads and unloads models; see :class:`fastinfer.repository.repository.Repository`."""

    async def load_model(self, name: str, version: int | None, parameters: Mapping[str, Any]) -> str: ...

    async def load_worker(self, name: str, parameters: Mapping[str, Any]) -> str: ...

    async def unload(self, name: str, version: int | None = None, *, dependents: bool = False) -> None: ...


class Service:
    """One process's models and the threads that run them.

    Attributes:
        config: the server's configuration.
        crashes: which requests and loads have ended processes.
        loop: the event loop; everything here is used on its thread.
        executor: the native threads.
        budget: limits the memory that requests hold.
        repository: the models.
        control: performs loads and unloads: the repository, or the supervisor if there are several processes.
        counters: the counters of models and connections.
        metrics: the reports over all processes.
        nonfinite: how NaN and infinities are written in JSON answers.
        draining: the server is ending.
    """

    def __init__(
        self,
        config: ServerConfig,
        loop: asyncio.AbstractEventLoop,
        control: Control | None = None,
        counters: ModelCounters | None = None,
        crashes: Crashes | None = None,
    ) -> None:
        self.config = config
        self.crashes = crashes or Crashes()
        self.loop = loop
        loop_fd = getattr(loop, "_get_backend_id", lambda: -1)()  # only uvloop exposes its epoll descriptor
        self.executor = Executor(config.threads, loop_fd, loop.call_later, max(config.processes, 1))
        self.budget = Budget(config.in_flight_bytes)
        self.counters = counters or LocalCounters()
        self._loader = Loader(config, self.executor, self.budget, loop, self.counters, self.crashes)
        self.repository = ReplicatedRepository(config.roots, self._loader, _rules(config), config.max_endpoints)
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
        """Makes the server not ready; requests in flight are still answered."""
        self.draining = True

    def why_not_ready(self) -> str | None:
        """Return why the server is not ready, or None."""
        if self.draining:
            return "the server is draining"
        return self.repository.why_not_ready() if self.control is self.repository else self._not_ready

    def readiness(self, reason: str | None) -> None:
        """Sets why the whole server is not ready; the supervisor calls it."""
        self._not_ready = reason

    async def statistics(self, name: str | None = None, version: str | None = None) -> Text:
        """Return the JSON of the statistics extension: for all models, one model's versions, or one version.

        Raises:
            ApiError: 404 if there is no such model or version, 503 if it is not ready or the repository has not been
                read yet.
        """
        self.repository.check_read()
        if name is None:
            return await self.metrics.statistics()
        self.repository.find(name, version)
        models = self.repository.models()
        chosen = [model for model in models if model.name == name and version in (None, model.version)]
        return await self.metrics.statistics_of(chosen)

    async def index(self, *, ready_only: bool) -> list[Entry]:
        """Return the entries of the repository's index, optionally only those that are READY."""
        return [entry for entry in await self.repository.index() if entry.state == READY or not ready_only]

    def start(self) -> None:
        """Starts the task that loads the configured models, then polls the repository if configured."""
        task = self.loop.create_task(self._load_and_follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_and_follow(self) -> None:
        config, began = self.config, time.monotonic()
        requested = None if config.load_all else config.load_names
        seen = await watcher.load_all(self.repository, requested)
        reason = self.repository.why_not_ready()
        if reason is None:
            count = len(self.repository.names())
            log.info("ready: %d models, %.1f s", count, time.monotonic() - began)
        else:
            log.error("not ready: %s", reason)
        seen = await watcher.load_rest(self.repository, requested, seen)
        if config.model_control == "poll":
            await watcher.follow(
                self.repository,
                config.poll_interval_s,
                seen,
                unload_all=config.poll_unload_all,
                requested=config.load_names,
            )

    async def close(self) -> None:
        """Releases everything. Requests in flight must have been answered or aborted."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.repository.close()
        self._loader.close()
        if self._loader.stuck:  # they may be in the runtime, which would crash if its library were unloaded
            log.warning("ended while %d calls of loads had not returned", self._loader.stuck)
            time.sleep(_LOG_FLUSH_S)
            os._exit(0)
        self.loop.remove_reader(self.executor.fileno())
        self.executor.close()
