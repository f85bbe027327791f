"""Makes a :class:`~fastinfer.schedule.model.Model`, ready to be published, from files and parameters.

Long steps (reading, making a session, trial and warm-up runs) run on load threads, so that a load never delays
inference. Objects of the loop (queue, statistics) are made on the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fastinfer.backends.backend import Backend, BackendContext, Loaded, Source
from fastinfer.backends.builtin.item import WorkerContext
from fastinfer.backends.builtin.workers import WorkerKind
from fastinfer.backends.ensemble import wiring_of
from fastinfer.backends.findings import Findings
from fastinfer.backends.parameters import Parameters, check_configured, parse, warn_of_misspelt
from fastinfer.backends.registry import Backends
from fastinfer.base import limits, waits
from fastinfer.base.bounded import BoundedThreads
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.config import devices, queueing
from fastinfer.config.ensemble import PLATFORM
from fastinfer.config.model import ModelConfig
from fastinfer.config.queueing import DynamicBatching
from fastinfer.config.server import ServerConfig
from fastinfer.native.executor import Executor
from fastinfer.repository.crashes import Crashes
from fastinfer.repository.files import ModelFiles, fingerprint
from fastinfer.repository.operation import Operation
from fastinfer.schedule.ensemble import CONCURRENT_RUNS, Endpoints, Ensemble, EnsembleModel
from fastinfer.schedule.model import Model, why_not_chained
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.queue import QueuePolicy
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.schedule.wiring import Wiring
from fastinfer.shared.model_counters import ModelCounters

P = ParamSpec("P")
T = TypeVar("T")

_LOAD_THREADS = 2
_MAX_STUCK_LOOKS = 2
_LOGGED_S = 30.0  # a step of a load that takes longer is logged
_IN_OTHER_FIELDS = {"share", "batch_size", "timeout", "instances"}  # a configuration has other fields for these

Successor = Callable[[], Model] | None


class Loader:
    """Makes models for the repository.

    Args:
        config: the server's configuration.
        executor: the native threads on which sessions run.
        budget: counts the memory of their outputs.
        loop: the event loop whose thread owns the models.
        counters: provides the counters of models.
        crashes: the crash record, which notes loads and refuses quarantined ones.

    Attributes:
        findings: the results of slow checks of models, from this process or an earlier one.
    """

    def __init__(
        self,
        config: ServerConfig,
        executor: Executor,
        budget: Budget,
        loop: asyncio.AbstractEventLoop,
        counters: ModelCounters,
        crashes: Crashes,
    ) -> None:
        self._config = config
        self._crashes = crashes
        self._loop = loop
        self._counters = counters
        self._workers = WorkerContext(loop, budget)
        self.findings = Findings()
        self._backends = Backends(BackendContext(config, loop, executor, budget, self.findings))
        limit_s = config.load_timeout_s
        self._threads = BoundedThreads("fastinfer-load", _LOAD_THREADS, limit_s, limits.MAX_STUCK_LOADS)
        self._looks = BoundedThreads("fastinfer-look", 1, limit_s, _MAX_STUCK_LOOKS)
        self._indices = BoundedThreads("fastinfer-index", 1, config.request_timeout_s, _MAX_STUCK_LOOKS)

    async def in_thread(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function on a load thread; see :meth:`BoundedThreads.call`."""
        with waits.logged(lambda: what, _LOGGED_S):
            return await self._threads.call(what, function, *args, **kwargs)

    async def look(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a function that only looks at the repository, on a thread apart from the load threads."""
        return await self._looks.call("looking at the model repository", function, *args, **kwargs)

    async def index(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a client's request for the index, on another thread."""
        return await self._indices.call("reading the model repository", function, *args, **kwargs)

    @property
    def stuck(self) -> int:
        """The number of threads whose calls were given up and have not returned."""
        return self._threads.stuck + self._looks.stuck + self._indices.stuck

    async def model(
        self,
        name: str,
        files: ModelFiles,
        version: int,
        config: ModelConfig,
        given: Parameters,
        successor: Successor,
        operation: Operation,
        endpoints: Endpoints,
    ) -> Model:
        """Loads one version of a model of the repository, checks it and warms it up. An ensemble only takes its steps.

        Args:
            name: the endpoint's name.
            files: the model's files on the disk.
            version: the version to load.
            config: the model's configuration.
            given: the load's parameters, which override those of the configuration.
            successor: finds the endpoint that gets the outputs; None: there is none.
            operation: the operation that loads the version.
            endpoints: the models of an ensemble's steps are among them.

        Raises:
            FilesChangedError: the model file is no longer that of ``files``.
            ApiError: 400 with the reason.
        """
        what = f"model '{files.name}' version {version}"
        if config.ensemble_scheduling is not None:
            config = _with_parameters(config, given)
            wiring, content = await self.in_thread(f"reading {what}", _read_ensemble, files, config)
            ensemble = Ensemble(name, wiring, endpoints, self._loop)
            loaded = Loaded(ensemble, 1, given.instances or CONCURRENT_RUNS)
            shown = config.effective(wiring.signature).model_copy(update={"platform": PLATFORM})
            number = operation.number_of(version)
            return self._model(name, version, loaded, shown, successor, number, content=content)

        def look() -> _Found:
            return _look(self._backends, files, version, config, given)

        found = await self.in_thread(f"looking for the file of {what}", look)
        fingerprints = (files.marks[0], files.marks[version], found.configured)
        digest = blake2b(found.configured.encode(), digest_size=16)
        recorded = self._crashes.load(files.name, version, fingerprints)

        async def read(load: Callable[[bytes], T]) -> T:
            def in_thread() -> T:
                content = files.read_model(version, found.path)
                digest.update(content)
                with recorded.noted():
                    return load(content)

            return await self.in_thread(f"loading {what}", in_thread)

        notes = recorded.run_notes
        source = Source(files.name, version, files.directory, found.path, found.config, found.parameters, read, notes)
        async with recorded.turn():
            loaded = await found.backend.load(source)
        update = {"default_model_filename": found.path.name, "platform": loaded.implementation.platform}
        number, content = operation.number_of(version), digest.hexdigest()
        try:
            shown = found.config.effective(loaded.implementation.signature).model_copy(update=update)
            return self._model(name, version, loaded, shown, successor, number, notes, content)
        except BaseException:
            loaded.implementation.close()  # it may have processes
            raise

    def worker(
        self, name: str, kind: WorkerKind, parameters: Parameters, successor: Successor, operation: Operation
    ) -> Model:
        """Makes a built-in worker. ApiError 400 for bad parameters."""
        implementation = kind.factory(parameters, self._workers)
        config = ModelConfig.model_construct(name=name, platform=implementation.platform)
        signature = implementation.signature
        config = _with_parameters(config, parameters).effective(signature)
        rows = signature.max_batch_size if signature.batched else 1
        loaded = Loaded(implementation, rows, parameters.instances or kind.instances)
        return self._model(name, 1, loaded, config, successor, operation.number_of(1))

    def _model(
        self,
        name: str,
        version: int,
        loaded: Loaded,
        config: ModelConfig,
        successor: Successor,
        number: int,
        notes: RunNotes | None = None,
        content: str = "",
    ) -> Model:
        """Makes a version with its queue."""
        signature = loaded.implementation.signature
        if successor is not None:
            reason = why_not_chained(signature, successor().signature)
            if reason is not None:
                raise ApiError(400, f"'{name}' cannot be followed by '{successor().name}': {reason}")
        batching = config.dynamic_batching
        policies = queue_policies(batching, self._config.max_queue_size, self._config.request_timeout_s)
        longest_us = max(policy.timeout_us for policy in policies.values())
        stats = self._counters.counters_for(name, str(version), number)
        scheduler = Scheduler(
            loaded.implementation.start,
            BatchingPolicy(
                max_batch_size=loaded.rows,
                preferred_batch_size=tuple(sorted(batching.preferred_batch_size)),
                max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
            ),
            instances=loaded.instances,
            priority_levels=batching.priority_levels,
            default_priority=batching.default_priority_level,
            max_queue_size=policies[0].max_size,
            timeout_s=longest_us * 1e-6,
            policies=policies if _are_needed(policies) else None,
            stats=stats,
            loop=self._loop,
            notes=notes,
        )
        shown = config.running(name, loaded.instances)
        implementation, text = loaded.implementation, str(version)
        if isinstance(implementation, Ensemble):
            return EnsembleModel(name, text, implementation, scheduler, stats, shown, successor, number, content)
        return Model(name, text, implementation, scheduler, stats, shown, successor, number, content, loaded.notes)

    def released(self, model: Model) -> None:
        """Takes back the counters of a model that is gone."""
        self._counters.release(model.stats)

    def close(self) -> None:
        """Closes the backends, and waits for the load threads to finish the sessions that they are making."""
        self._backends.close()
        self._threads.join()


def queue_policies(batching: DynamicBatching, max_size: int, timeout_s: float) -> dict[int, QueuePolicy]:
    """Make the policies of the priorities that have one, and under 0 that of all others.

    Args:
        batching: the model's configuration.
        max_size, timeout_s: of the server, if the configuration does not say.
    """

    def policy(given: queueing.QueuePolicy) -> QueuePolicy:
        timeout_us = given.default_timeout_microseconds
        delays = given.timeout_action == "DELAY"
        return QueuePolicy(
            max_size=given.max_queue_size or max_size,
            timeout_us=(0 if delays else timeout_us) or round(timeout_s * 1e6),
            delay_us=timeout_us if delays else 0,
            allow_override=given.allow_timeout_override,
        )

    levels = {0: batching.default_policy, **batching.priority_queue_policy}
    return {level: policy(given) for level, given in levels.items()}


def _are_needed(policies: Mapping[int, QueuePolicy]) -> bool:
    """Whether the policies are more than one limit and one timeout for all requests, which need no look-up."""
    return len(policies) > 1 or policies[0].delay_ns > 0 or not policies[0].allow_override


async def try_version(backends: Backends, files: ModelFiles, version: int, config: ModelConfig) -> Loaded:
    """Loads a version as a server would, without its threads and crash record. ApiError 400 with the reason."""
    found = _look(backends, files, version, config, Parameters())

    async def read(load: Callable[[bytes], T]) -> T:
        return load(files.read_model(version, found.path))

    source = Source(files.name, version, files.directory, found.path, found.config, found.parameters, read)
    return await found.backend.load(source)


def _read_ensemble(files: ModelFiles, config: ModelConfig) -> tuple[Wiring, str]:
    """The steps of an ensemble, and a fingerprint of its configuration. Runs on a load thread. ApiError 400."""
    return wiring_of(files.directory, config), fingerprint(config)


@dataclass(frozen=True, slots=True)
class _Found:
    """The inputs of a version's load.

    Attributes:
        backend: loads the version.
        path: its model file.
        config: the model's configuration, overridden by the load's parameters.
        parameters: the configuration's parameters, overridden by the load's.
        configured: a fingerprint of both.
    """

    backend: Backend[Any]
    path: Path
    config: ModelConfig
    parameters: Parameters
    configured: str


def _look(backends: Backends, files: ModelFiles, version: int, config: ModelConfig, given: Parameters) -> _Found:
    """Finds the inputs of a version's load. Runs on a load thread. ApiError 400."""
    try:
        backend = backends.choose(config, partial(files.has_file, version))
    except ApiError as error:
        raise ApiError(error.status, f"model '{files.name}': {error.message}") from error
    try:
        names = [name for name in config.worker_parameters if name not in devices.PARAMETERS]
        check_configured(backend.parameters, names)
    except ApiError as error:
        raise ApiError(error.status, f"model '{files.name}': {error.message}") from error
    warn_of_misspelt(backend.parameters, given.model_extra or (), f"model '{files.name}'")
    overrides = given.model_dump(exclude_unset=True)
    parameters = parse(backend.parameters, {**config.worker_parameters, **overrides})
    config = _with_parameters(config, parameters)
    path = files.model_file(version, config.default_model_filename, backend.pattern)
    return _Found(backend, path, config, parameters, fingerprint((config, parameters)))


def _with_parameters(config: ModelConfig, parameters: Parameters) -> ModelConfig:
    """The configuration, overridden by the load's parameters."""
    given = parameters.model_dump(exclude_unset=True, exclude=_IN_OTHER_FIELDS)
    plain = {key: value for key, value in given.items() if isinstance(value, str | bool | int | float)}
    config = config.model_copy(update={"parameters": {**config.parameters, **plain}})
    if parameters.batch_size is not None:
        config = config.model_copy(update={"max_batch_size": parameters.batch_size})
    if parameters.timeout:
        batching = {"max_queue_delay_microseconds": int(parameters.timeout * 1000)}
        config = config.model_copy(update={"dynamic_batching": config.dynamic_batching.model_copy(update=batching)})
    return config
