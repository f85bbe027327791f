"""Makes models: from files and parameters to a :class:`~fastinfer.schedule.model.Model` that is ready to be published.

What takes long (reading, making a session, trial and warm-up runs) is done on load threads, so that a
load never delays inference; what belongs to the loop (queue, statistics) is made on the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastinfer.backends.builtin.item import WorkerContext
from fastinfer.backends.onnx import load as onnx_load
from fastinfer.backends.onnx import ort
from fastinfer.backends.onnx.backend import OnnxParameters, OnnxWorker
from fastinfer.backends.onnx.load import LoadedModel
from fastinfer.backends.onnx.trial import TrialResults, TrialRuns
from fastinfer.backends.parameters import Parameters, parse
from fastinfer.backends.registry import WorkerKind
from fastinfer.backends.watchdog import Watchdog
from fastinfer.base import limits, waits
from fastinfer.base.bounded import BoundedThreads
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.config.server import ServerConfig
from fastinfer.native.executor import Executor
from fastinfer.repository.crashes import Crashes
from fastinfer.repository.files import ModelFiles, fingerprint
from fastinfer.repository.operation import Operation
from fastinfer.schedule.backend import Implementation
from fastinfer.schedule.model import Model, why_not_chained
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.shared.banks import Alone

P = ParamSpec("P")
T = TypeVar("T")

_LOAD_THREADS = 2
_MAX_STUCK_LOOKS = 2
_LASTS_S = 30.0  # a load that takes longer is worth a line in the log
_IN_OTHER_FIELDS = {"share", "batch_size", "timeout", "instances"}  # parameters that a configuration tells elsewhere

Successor = Callable[[], Model] | None


class Loader:
    """Makes models for the repository.

    Args:
        config: the server's.
        executor: the native threads on which sessions run.
        budget: where the memory of their outputs counts.
        loop: on whose thread models live.
        counters: where they count.
        crashes: what ended processes before.

    Attributes:
        trial_results: of models that were loaded here or in a process before.
    """

    def __init__(
        self,
        config: ServerConfig,
        executor: Executor,
        budget: Budget,
        loop: asyncio.AbstractEventLoop,
        counters: Alone,
        crashes: Crashes,
    ) -> None:
        self._config = config
        self._crashes = crashes
        self._executor = executor
        self._budget = budget
        self._loop = loop
        self._counters = counters
        self._workers = WorkerContext(loop, budget)
        self._trials = TrialRuns()
        self._watchdog = Watchdog(config.inline_run_us)
        self.trial_results = TrialResults()
        limit_s = config.load_timeout_s
        self._threads = BoundedThreads("fastinfer-load", _LOAD_THREADS, limit_s, limits.MAX_STUCK_LOADS)
        self._looks = BoundedThreads("fastinfer-look", 1, limit_s, _MAX_STUCK_LOOKS)
        self._indices = BoundedThreads("fastinfer-index", 1, config.request_timeout_s, _MAX_STUCK_LOOKS)

    async def in_thread(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on a load thread; see :meth:`BoundedThreads.call`."""
        with waits.logged(lambda: what, _LASTS_S):
            return await self._threads.call(what, function, *args, **kwargs)

    async def look(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, of something that only looks at the repository, on a thread apart from loads."""
        return await self._looks.call("looking at the model repository", function, *args, **kwargs)

    async def index(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, for a client who waits."""
        return await self._indices.call("reading the model repository", function, *args, **kwargs)

    @property
    def stuck(self) -> int:
        """How many threads there are whose calls have been given up and have not returned."""
        return self._threads.stuck + self._looks.stuck + self._indices.stuck

    async def model(
        self,
        name: str,
        files: ModelFiles,
        version: int,
        config: ModelConfig,
        parameters: Parameters,
        successor: Successor,
        by: Operation,
    ) -> Model:
        """One version of a model of the repository, loaded, checked and warm.

        Raises:
            FilesChangedError: the model file is not that of ``files`` any more.
            ApiError: 400 with the reason.
        """
        what = f"model '{files.name}' version {version}"
        given = parameters.model_dump(exclude_unset=True)
        parameters = parse(OnnxParameters, {**config.worker_parameters, **given})
        config = _with_parameters(config, parameters)

        def look() -> tuple[Path, str]:
            return files.model_file(version, config), fingerprint((config, parameters))

        path, configured = await self.in_thread(f"looking for the file of {what}", look)
        options = parameters.session_options()
        made_of = (files.marks[0], files.marks[version], configured)
        digest = blake2b(configured.encode(), digest_size=16)
        recorded = self._crashes.load(files.name, version, made_of)

        def load() -> LoadedModel:
            content = files.read_model(version, path)
            digest.update(content)
            once = partial(self.trial_results.once, self._trial_key(digest.hexdigest(), made_of))
            with recorded.noted():
                return onnx_load.load(path, config, files.name, options, self._config, self._trials, content, once)

        async with recorded.turn():
            loaded = await self.in_thread(f"loading {what}", load)
        session, signature = loaded.session, loaded.signature
        session.budget = self._budget
        notes = recorded.run_notes
        inline_us = self._config.inline_run_us if loaded.steady else 0
        implementation = OnnxWorker(session, signature, self._executor, inline_us, notes, self._watchdog)
        # One native thread is always left to the other models.
        instances = min(parameters.instances or config.instances, max(1, self._executor.threads - 1))
        config = config.effective(signature).model_copy(update={"default_model_filename": path.name})
        number = by.number_of(version)
        rows = signature.max_batch_size if loaded.combines else 1
        content = digest.hexdigest()
        return self._model(name, version, implementation, config, instances, successor, number, rows, notes, content)

    def _trial_key(self, content: str, made_of: object) -> str:
        """What the result of a trial follows from: the files, how the model is configured, and what runs it."""
        options = self._config.batching, self._config.load_run_timeout_s, ort.version()
        return blake2b(repr((content, made_of, options)).encode(), digest_size=16).hexdigest()

    def worker(self, name: str, kind: WorkerKind, parameters: Parameters, successor: Successor, by: Operation) -> Model:
        """A built-in worker. ApiError 400 for bad parameters."""
        implementation = kind.factory(parameters, self._workers)
        config = ModelConfig.model_construct(name=name, platform=implementation.platform)
        config = _with_parameters(config, parameters).effective(implementation.signature)
        instances = parameters.instances or kind.instances
        signature = implementation.signature
        rows = signature.max_batch_size if signature.batched else 1
        return self._model(name, 1, implementation, config, instances, successor, by.number_of(1), rows)

    def _model(
        self,
        name: str,
        version: int,
        implementation: Implementation,
        config: ModelConfig,
        instances: int,
        successor: Successor,
        number: int,
        rows: int,
        notes: RunNotes | None = None,
        content: str = "",
    ) -> Model:
        """A version with its queue; requests share a batch of up to ``rows`` rows."""
        signature = implementation.signature
        if successor is not None:
            reason = why_not_chained(signature, successor().signature)
            if reason is not None:
                raise ApiError(400, f"'{name}' cannot be followed by '{successor().name}': {reason}")
        batching = config.dynamic_batching
        stats = self._counters.stats(name, str(version), number)
        scheduler = Scheduler(
            implementation.start,
            BatchingPolicy(
                max_batch_size=rows,
                preferred_batch_size=tuple(sorted(batching.preferred_batch_size)),
                max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
            ),
            instances=instances,
            priority_levels=batching.priority_levels,
            default_priority=batching.default_priority_level,
            max_queue_size=batching.max_queue_size or self._config.max_queue_size,
            timeout_s=batching.default_timeout_microseconds * 1e-6 or self._config.request_timeout_s,
            stats=stats,
            loop=self._loop,
            notes=notes,
        )
        shown = config.running(name, instances)
        return Model(name, str(version), implementation, scheduler, stats, shown, successor, number, content)

    def released(self, model: Model) -> None:
        """A model is gone."""
        self._counters.release(model.stats)

    def close(self) -> None:
        """Ends trial runs, and waits for what is on a load thread: a session that is being made is finished first."""
        self._trials.end()
        self._watchdog.close()
        self._threads.join()


def _with_parameters(config: ModelConfig, parameters: Parameters) -> ModelConfig:
    """The configuration with what the load's parameters say instead."""
    given = parameters.model_dump(exclude_unset=True, exclude=_IN_OTHER_FIELDS)
    plain = {key: value for key, value in given.items() if isinstance(value, str | bool | int | float)}
    config = config.model_copy(update={"parameters": {**config.parameters, **plain}})
    if parameters.batch_size is not None:
        config = config.model_copy(update={"max_batch_size": parameters.batch_size})
    if parameters.timeout:
        batching = {"max_queue_delay_microseconds": int(parameters.timeout * 1000)}
        config = config.model_copy(update={"dynamic_batching": config.dynamic_batching.model_copy(update=batching)})
    return config
