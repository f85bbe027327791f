"""The repository: loads, unloads and publishes models from the disk.

A load is prepared (files read, session made, checked and warmed up, on a load thread), then published (on the loop, all
at once), then answered; a failure before publication changes nothing. A replaced or unloaded model takes no more
requests, and is released when its requests in flight have ended. Loads and unloads of one model run one at a time;
those of different models run in parallel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

from fastinfer.backends.builtin import workers
from fastinfer.backends.builtin.workers import WorkerKind
from fastinfer.backends.onnx.options import OnnxParameters, check_given
from fastinfer.backends.parameters import Parameters, parse
from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.base.near import as_question
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.config.model_paths import Root
from fastinfer.repository import files as model_files
from fastinfer.repository.endpoints import MODEL, WORKER, Endpoint, EndpointTable, Identity, identity
from fastinfer.repository.files import FilesChangedError, ModelFiles, NoVersionError, UnknownModelError, fingerprint
from fastinfer.repository.index import NO_VERSION, Entry, entries
from fastinfer.repository.loader import Loader
from fastinfer.repository.operation import Operation, text_mark
from fastinfer.repository.readiness import NOT_READ, Readiness, Rules
from fastinfer.repository.steps import MissingStepsError, with_steps
from fastinfer.repository.watcher import Look
from fastinfer.schedule.ensemble import Ensemble, EnsembleModel
from fastinfer.schedule.model import Model

log = logging.getLogger(__name__)

T = TypeVar("T")

ONNX = "onnx"
_WITHDRAWN = "this process of the server is being replaced"
_TIMED_OUT = 504  # the status of a step that has exceeded its time limit; the disk is not read again
_MOST_LOGGED = 20  # models that change at once, each with its own line in the log
_ATTEMPTS = 3  # how often a load is begun if its files change meanwhile
_Versions = Mapping[int, tuple[Model, object]]  # each model with its source


@dataclass(slots=True)
class _Lock:
    """Orders the loads and unloads of one name; removed when it has no users."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Repository:
    """The models on the disk, and the table of loaded endpoints. Loop's thread only.

    Args:
        roots: the repositories and models; the first that has a name wins.
        loader: makes models from files and parameters.
        rules: the conditions for readiness.
        max_endpoints: how many endpoints may be loaded at a time.
    """

    def __init__(
        self,
        roots: Sequence[Root],
        loader: Loader,
        rules: Rules,
        max_endpoints: int = limits.MAX_ENDPOINTS,
    ) -> None:
        self.roots = tuple(roots)
        self._loader = loader
        self._table = EndpointTable()
        self._locks: dict[str, _Lock] = {}
        self._readiness = Readiness(rules)
        self._loading: dict[str, set[int]] = {}  # by name, the versions being made, once they are known
        self._retiring: set[Model] = set()
        self._ensembles: WeakSet[Ensemble] = WeakSet()
        self._numbers = count(1)
        self._withdrawn = False
        self._max_endpoints = max_endpoints
        self._quiet: set[str] = set()  # endpoints whose next change is not news, because many change at once

    # --- Looking up ---------------------------------------------------------------------------------------------------

    def find(self, name: str, version: str | None = None) -> Model:
        """The model for a request.

        Raises:
            ApiError: 404 if there is no such model or version; 503 if it is known but not ready, or if the repository
                has not been read yet.
        """
        model = self._table.model(name, version)
        if model is None:
            raise self._not_found(name, version)
        return model

    @property
    def ready(self) -> dict[tuple[str, ...], Model]:
        """The models that :meth:`find` returns, by its arguments. Read-only, and always the same dict."""
        return self._table.models

    def watch(self, ensemble: Ensemble) -> None:
        """Makes an ensemble look for the models of its steps again when endpoints have changed."""
        self._ensembles.add(ensemble)

    def _not_found(self, name: str, version: str | None) -> ApiError:
        if self._withdrawn:
            return ApiError(503, _WITHDRAWN, retry_after_s=1)
        if self._table.get(name) is not None:
            return ApiError(404, f"Request for unknown model: '{name}' version {version} is not found")
        if name in self._loading:
            return ApiError(503, f"model '{name}' is loading", retry_after_s=1)
        if name in (self._readiness.pending or ()):
            reason = self._readiness.failures.get(name, f"model '{name}' waits to be loaded")
            return ApiError(503, f"not ready: {reason}", retry_after_s=1)
        if (unknown := self._readiness.why_unknown()) is not None:
            return ApiError(503, unknown, retry_after_s=1)
        meant = as_question(self._table.meant(name))
        return ApiError(404, f"Request for unknown model: '{name}' is not found{meant}")

    def check_read(self) -> None:
        """ApiError 503 if the repository has not been read yet, because its models are unknown then."""
        if self._readiness.pending is None:
            raise ApiError(503, NOT_READ, retry_after_s=1)

    def names(self) -> list[str]:
        """The names of all endpoints, sorted."""
        return sorted(endpoint.name for endpoint in self._table)

    def versions(self, name: str) -> list[str]:
        """The ready versions of an endpoint, ascending."""
        endpoint = self._table.get(name)
        return [] if endpoint is None else [str(version) for version in sorted(endpoint.versions)]

    def models(self) -> list[Model]:
        """Every ready version of every endpoint, in order."""
        return [
            endpoint.versions[version]
            for endpoint in sorted(self._table, key=lambda endpoint: endpoint.name)
            for version in sorted(endpoint.versions)
        ]

    async def index(self) -> list[Entry]:
        """Every version of every endpoint, and the models of the repository that are not served."""
        # On a separate thread, because load threads are busy just when a client asks what is loading.
        on_disk = await self._loader.index(model_files.find_all, self.roots)
        refused = {name: found.message for name, found in on_disk.items() if isinstance(found, ApiError)}
        ready = [(endpoint.name, version) for endpoint in self._table for version in endpoint.versions]
        withdrawn = {
            (endpoint.name, version): error.message
            for endpoint in self._table
            for version, model in endpoint.versions.items()
            if (error := model.why_withdrawn()) is not None
        }
        unknown = {name: set() if self._table.get(name) else {NO_VERSION} for name in self._loading}
        versions = {name: found.versions if isinstance(found, ModelFiles) else () for name, found in on_disk.items()}
        return entries(
            ready=ready,
            loading=[(name, number) for name, known in self._loading.items() for number in known or unknown[name]],
            unloading=[(model.name, int(model.version)) for model in self._retiring],
            on_disk=versions,
            waiting={name for name in versions if self._readiness.is_awaited(name)} - refused.keys(),
            failures={**self._readiness.failures, **refused},
            withdrawn=withdrawn,
        )

    def why_not_ready(self) -> str | None:
        """Why the server is not ready; None if every model requested at start has been ready once."""
        return self._readiness.why_not_ready()

    # --- Loads at start, and the disk (see watcher.py) ----------------------------------------------------------------

    async def look(self, *, log_problems: bool = False) -> Look:
        """The models on the disk; ``log_problems``: log unreadable directories."""

        def find_all() -> Look:
            found = model_files.find_all(self.roots, log_problems=log_problems)
            models = {name: _mark(files) for name, files in found.items()}
            return {"models": models, "unreadable": model_files.unreadable(self.roots)}

        return await self._loader.look(find_all)

    async def expect(self, names: Iterable[str], unreadable: str | None = None) -> None:
        """Notes that the repository has been read.

        Args:
            names: further models requested at start: the server is not ready until each was loaded once or unloaded.
            unreadable: why one of the directories cannot be read; None if all can be.
        """
        names = list(names)
        self._many_change(names)
        self._readiness.expect(names, unreadable)

    def _many_change(self, names: Collection[str]) -> None:
        """Notes that these endpoints change next; if they are many, the log has one line about them."""
        if len(names) > _MOST_LOGGED:
            log.info("%d models change; each has a line in the log at the level debug", len(names))
            self._quiet.update(names)

    def _news_level(self, name: str) -> int:
        """The level of the log's lines about a change of an endpoint; its next change is news again."""
        quiet = name in self._quiet
        self._quiet.discard(name)
        return logging.DEBUG if quiet else logging.INFO

    def loaded(self) -> dict[str, str]:
        """For each loaded model, the fingerprint of the directory that its endpoints were made from."""
        states: dict[str, set[str]] = {}
        for endpoint in self._table:
            if endpoint.kind == MODEL:
                states.setdefault(endpoint.base, set()).add(endpoint.files)
        return {name: files.pop() if len(files) == 1 else "" for name, files in states.items()}

    async def refuse(self, name: str, reason: str) -> None:
        """Notes that a model requested at start could not be loaded."""
        if name in (self._readiness.pending or ()):
            self._readiness.failures[name] = reason

    async def follow(self, name: str, *, known: bool, gone: bool, operation: Operation | None = None) -> None:
        """Updates the endpoints of a model from the disk. ApiError 400 if the files do not load.

        Args:
            name: the model.
            known: the model has been seen before; a new one is loaded.
            gone: the model is no longer on the disk.
            operation: see :meth:`load_model`.
        """
        if operation is None:
            return await self._with_steps(lambda made: self.follow(name, known=known, gone=gone, operation=made))
        endpoints = [endpoint for endpoint in self._table if (endpoint.kind, endpoint.base) == (MODEL, name)]
        if gone:
            async with self._exclusive(name):
                await operation.prepared(name, "")
                self._readiness.settled(name)
                for endpoint in endpoints:
                    if self._table.get(endpoint.name) is endpoint:
                        self._remove(endpoint)
            return None
        for endpoint in endpoints:
            await self._load(
                endpoint.identity, name, None, endpoint.parameters, endpoint.override, operation, asked=False
            )
        if not endpoints and (not known or name in (self._readiness.pending or ())):
            await self.load_model(name, None, {}, operation)
        return None

    # --- Loading ------------------------------------------------------------------------------------------------------

    async def load_model(
        self, name: str, version: int | None, parameters: Mapping[str, Any], operation: Operation | None = None
    ) -> str:
        """Loads a model of the repository and returns its endpoint's name.

        Args:
            name: the model's directory.
            version: one version, in addition to the loaded ones; None: the versions that the version policy names.
            parameters: the load's parameters (see :mod:`fastinfer.backends.parameters`); ``config`` replaces the
                configuration and is not part of the identity.
            operation: the operation that all processes run; None: there is one process, and the models of an
                ensemble's steps are loaded, too.

        Raises:
            ApiError: 400 with the reason; nothing has changed.
            MissingStepsError: the model is an ensemble, and models of its steps are not loaded.
        """
        if operation is None:
            return await self._with_steps(lambda made: self.load_model(name, version, parameters, made))
        if any(key.startswith("file:") for key in parameters):
            raise ApiError(400, "files cannot be given with a load; only 'config' of a model can be overridden")
        counted = {key: value for key, value in parameters.items() if key != "config"}
        requested = identity(MODEL, name, counted)
        target, parsed = resolve_target(MODEL, name, counted)
        return await self._load(requested, target, version, parsed, parameters.get("config"), operation)

    async def load_worker(self, name: str, parameters: Mapping[str, Any], operation: Operation | None = None) -> str:
        """Loads a built-in worker, or ``onnx`` with a ``model``, and returns its endpoint's name. Errors as those of
        :meth:`load_model`."""
        if operation is None:
            return await self._with_steps(lambda made: self.load_worker(name, parameters, made))
        name = name.lower()
        target, parsed = resolve_target(WORKER, name, parameters)
        return await self._load(identity(WORKER, name, parameters), target, None, parsed, None, operation)

    async def load_step(self, name: str, version: int | None, operation: Operation | None = None) -> None:
        """Loads the model of an ensemble's step if no endpoint has that name: a model of the repository, or, if there
        is none, the built-in worker. Arguments and errors as those of :meth:`load_model`."""
        endpoint = self._table.get(name)
        if endpoint is not None and version in (None, *endpoint.versions):
            return
        try:
            await self.load_model(name, version, {}, operation or self._operation())
        except UnknownModelError:
            if name not in workers.KINDS:
                raise
            await self.load_worker(name, {}, operation or self._operation())

    def _operation(self) -> Operation:
        return Operation(next(self._numbers))

    async def _with_steps(self, load: Callable[[Operation], Awaitable[T]]) -> T:
        """Runs the load of a single process, which has no supervisor to load the models of an ensemble's steps."""
        return await with_steps(lambda: load(self._operation()), self.load_step)

    async def _load(
        self,
        requested: Identity,
        target: str | WorkerKind,
        version: int | None,
        parameters: Parameters,
        override: object,
        operation: Operation,
        *,
        asked: bool = True,
    ) -> str:
        """Loads a model of the repository, or a built-in worker, for an identity.

        ``asked``: a client requests the load, so it counts; following the disk does not count.
        """
        async with self._exclusive(requested[1]):
            for _ in range(_ATTEMPTS):
                name = await self._load_once(requested, target, version, parameters, override, operation, asked)
                if name is not None:
                    return name
        raise ApiError(503, f"'{requested[1]}' keeps being unloaded while it loads", retry_after_s=1)

    async def _load_once(
        self,
        requested: Identity,
        target: str | WorkerKind,
        version: int | None,
        parameters: Parameters,
        override: object,
        operation: Operation,
        asked: bool,
    ) -> str | None:
        """See :meth:`_load`. None if the endpoint was unloaded meanwhile, as the successor of another endpoint."""
        endpoint = self._table.with_identity(requested)
        new = endpoint is None
        if endpoint is None:
            self._check_room()
            endpoint = Endpoint(self._table.free_name(requested, self._loading), requested, parameters)
        name = endpoint.name
        successor = self._successor(parameters.next)
        try:
            selection = partial(_selection, endpoint, version)
            with self._shown_as_loading(name):
                versions, files = await self._prepare(
                    endpoint, target, parameters, override, selection, successor, operation
                )
                self._check_steps(endpoint, versions)
                await self._agree(endpoint, versions, operation)
        except ApiError as error:
            awaited = name in (self._readiness.pending or ())
            if awaited and isinstance(error, MissingStepsError):
                raise  # it is loaded again when they are
            self._quiet.discard(name)
            # Unknown names are not recorded, because clients can invent any number of them.
            if not isinstance(error, UnknownModelError) or awaited:
                self._readiness.failures[name] = error.message
            raise
        if not new and self._table.get(name) is not endpoint:
            self._discard(endpoint, versions)
            return None
        if new and parameters.next is not None:
            self._hold(parameters.next, versions)
        elif not new and asked and not (parameters.share and endpoint.loads):
            endpoint.loads += 1  # without a load, only a chain keeps it, and there is none to share
        self._readiness.ready_once(name)
        if version is not None:
            endpoint.chosen |= {version}
        if version is None or new:  # a load of one version does not choose the others
            endpoint.files = files
        endpoint.override = override
        self._publish(endpoint, versions)
        if asked:
            for model in endpoint.versions.values():
                if model.scheduler.reinstate():
                    log.warning("model '%s' version %s is tried again", name, model.version)
        return name

    def _check_room(self) -> None:
        """ApiError 503 if one more endpoint would exceed the limit."""
        new = sum(self._table.get(name) is None for name in self._loading)
        if len(self._table) + new >= self._max_endpoints:
            raise ApiError(
                503, f"{self._max_endpoints} models and workers are loaded, which is the limit (--max-endpoints)"
            )

    async def _prepare(
        self,
        endpoint: Endpoint,
        target: str | WorkerKind,
        parameters: Parameters,
        override: object,
        selection: Callable[[ModelFiles, ModelConfig], set[int]],
        successor: Callable[[], Model] | None,
        operation: Operation,
    ) -> tuple[_Versions, str]:
        """Returns the versions that the endpoint is to have, each with its source, and a fingerprint of all files.

        Unchanged versions are kept. Files that change while they are read are read again, so that a model never mixes
        old and new files.
        """
        if not isinstance(target, str):
            worker = endpoint.versions.get(1) or self._loader.worker(
                endpoint.name, target, parameters, successor, operation
            )
            return {1: (worker, None)}, ""
        for _ in range(_ATTEMPTS):
            looking = f"looking at the files of model '{target}'"
            files, config = await self._loader.in_thread(looking, self._found, target, override)
            given = text_mark(override) if isinstance(override, str) else ""
            sources = {number: (files.marks[0], given, files.marks[number]) for number in selection(files, config)}
            versions: dict[int, tuple[Model, object]] = {
                number: (endpoint.versions[number], source)
                for number, source in sources.items()
                if number in endpoint.versions and endpoint.sources[number] == source
            }
            self._loading[endpoint.name] = sources.keys() - versions.keys()
            try:
                for number in sorted(sources.keys() - versions.keys()):
                    model = await self._loader.model(
                        endpoint.name, files, number, config, parameters, successor, operation, self
                    )
                    versions[number] = (model, sources[number])
                if await self._unchanged(files):
                    return versions, files.mark
            except FilesChangedError:
                pass
            except ApiError as error:  # perhaps because files were replaced one by one
                if error.status == _TIMED_OUT or await self._unchanged(files):
                    self._discard(endpoint, versions)
                    raise
            except BaseException:
                self._discard(endpoint, versions)
                raise
            self._discard(endpoint, versions)
        raise FilesChangedError(target)

    def _found(self, target: str, override: object) -> tuple[ModelFiles, ModelConfig]:
        """A model's files and its configuration. ApiError 400."""
        files = model_files.find(self.roots, target)
        return files, _configuration(files, override)

    async def _unchanged(self, files: ModelFiles) -> bool:
        """Whether a model's files are unchanged."""
        try:
            looking = f"looking again at the files of model '{files.name}'"
            return await self._loader.in_thread(looking, self._are_still, files)
        except ApiError:
            return False

    def _are_still(self, files: ModelFiles) -> bool:
        return model_files.find(self.roots, files.name) == files

    @contextmanager
    def _shown_as_loading(self, name: str) -> Iterator[None]:
        self._loading[name] = set()
        try:
            yield
        finally:
            del self._loading[name]

    async def _agree(self, endpoint: Endpoint, versions: _Versions, operation: Operation) -> None:
        """Waits until the other processes have prepared the same change. ApiError if one has failed."""
        try:
            await operation.prepared(endpoint.name, fingerprint(sorted((n, served(*v)) for n, v in versions.items())))
        except BaseException:
            self._discard(endpoint, versions)
            raise

    def _discard(self, endpoint: Endpoint, versions: _Versions) -> None:
        """Releases new models that are not going to be published."""
        for model, _ in versions.values():
            if model not in endpoint.versions.values():
                self._retire(model)

    def _publish(self, endpoint: Endpoint, versions: _Versions) -> None:
        if self._withdrawn:
            self._discard(endpoint, versions)
            raise ApiError(503, _WITHDRAWN, retry_after_s=1)
        before = set(endpoint.versions.values())
        after = {model for model, _ in versions.values()}
        endpoint.versions = {number: model for number, (model, _) in versions.items()}
        endpoint.sources = {number: source for number, (_, source) in versions.items()}
        self._table.publish(endpoint)
        self._forget_steps()
        for model in before - after:
            self._retire(model)
        level = self._news_level(endpoint.name)
        for model in sorted(after - before, key=lambda model: int(model.version)):
            log.log(level, "'%s' version %s: %s", model.name, model.version, model.signature)
            for note in model.notes:
                log.log(level, "model '%s' %s", model.name, note)

    # --- Chains -------------------------------------------------------------------------------------------------------

    def _successor(self, following: str | None) -> Callable[[], Model] | None:
        """Returns a function that finds the model for an endpoint's outputs. ApiError 400.

        The successor was loaded before and keeps its own successor, so a chain is finite.
        """
        if following is None:
            return None
        if self._table.get(following) is None:
            raise ApiError(400, f"the next endpoint '{following}' is not loaded")
        return lambda: self.find(following)

    def _hold(self, name: str, versions: _Versions) -> None:
        """Keeps the successor of an endpoint loaded."""
        successor = self._table.get(name)
        if successor is None:
            for model, _ in versions.values():
                self._retire(model)
            raise ApiError(400, f"the next endpoint '{name}' was unloaded")
        successor.holds += 1

    # --- Ensembles ----------------------------------------------------------------------------------------------------

    def _check_steps(self, endpoint: Endpoint, versions: _Versions) -> None:
        """MissingStepsError or ApiError 400 if a version is an ensemble that cannot run with the loaded models."""
        for model, _ in versions.values():
            if not isinstance(model, EnsembleModel):
                continue
            if missing := model.ensemble.missing():
                self._discard(endpoint, versions)
                steps = dict.fromkeys((step.model, int(step.version) if step.version else None) for step in missing)
                raise MissingStepsError(endpoint.name, steps)
            if (reason := model.ensemble.why_unfit()) is not None:
                self._discard(endpoint, versions)
                raise ApiError(400, f"ensemble '{endpoint.name}': {reason}")

    def _forget_steps(self) -> None:
        for ensemble in self._ensembles:
            ensemble.forget()

    def _steps_of(self, endpoint: Endpoint) -> list[Endpoint]:
        """The endpoints of an ensemble's steps; none for other models."""
        ensembles = [model.ensemble for model in endpoint.versions.values() if isinstance(model, EnsembleModel)]
        names = dict.fromkeys(step.model for ensemble in ensembles for step in ensemble.wiring.steps)
        return [step for step in map(self._table.get, names) if step is not None]

    # --- Unloading ----------------------------------------------------------------------------------------------------

    async def unload(self, name: str, version: int | None = None, *, dependents: bool = False) -> None:
        """Removes one load or one version; an unknown name is no error. Requests in flight are finished.

        Args:
            name: the endpoint's name.
            version: one version; None: the endpoint.
            dependents: if this removes the endpoint, also remove one load of its successor, or of the models of its
                steps, and so on.
        """
        endpoint = self._table.get(name)
        async with self._exclusive(name if endpoint is None else endpoint.base):
            self._readiness.settled(name)
            endpoint = self._table.get(name)
            if endpoint is None or (version is not None and version not in endpoint.versions):
                return
            if version is None:
                self._take_loads(endpoint, 1, dependents=dependents)
            elif len(endpoint.versions) == 1:
                self._take_loads(endpoint, endpoint.loads, dependents=dependents)
            else:
                endpoint.chosen -= {version}
                rest = {n: (endpoint.versions[n], endpoint.sources[n]) for n in endpoint.versions if n != version}
                self._publish(endpoint, rest)

    def _take_loads(self, endpoint: Endpoint, count: int, *, dependents: bool) -> None:
        endpoint.loads = max(0, endpoint.loads - count)
        if not endpoint.loads and not endpoint.holds:
            self._remove(endpoint, dependents=dependents)

    def _remove(self, endpoint: Endpoint, *, dependents: bool = False) -> None:
        self._table.remove(endpoint)
        self._forget_steps()
        self._readiness.failures.pop(endpoint.name, None)  # of a failed reload while the old versions served
        for model in endpoint.versions.values():
            self._retire(model)
        log.log(self._news_level(endpoint.name), "'%s' is unloaded", endpoint.name)
        successor = None if endpoint.parameters.next is None else self._table.get(endpoint.parameters.next)
        if successor is not None:
            successor.holds -= 1
            self._take_loads(successor, 1 if dependents else 0, dependents=dependents)
        for step in self._steps_of(endpoint) if dependents else ():
            if self._table.get(step.name) is step:  # else it was removed as a step of another step
                self._take_loads(step, 1, dependents=True)

    def _retire(self, model: Model) -> None:
        self._retiring.add(model)
        model.retire(lambda: self._released(model))

    def _released(self, model: Model) -> None:
        self._retiring.discard(model)
        self._loader.released(model)

    async def close(self) -> None:
        """Unloads all endpoints and waits until their models are released."""
        self._many_change([endpoint.name for endpoint in self._table])
        for endpoint in list(self._table):
            if self._table.get(endpoint.name) is endpoint:
                self._remove(endpoint)
        while self._retiring:
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def _exclusive(self, base: str) -> AsyncIterator[None]:
        entry = self._locks.setdefault(base, _Lock())
        entry.users += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.users -= 1
            if not entry.users:
                self._locks.pop(base, None)


def resolve_target(kind: str, base: str, given: Mapping[str, Any]) -> tuple[str | WorkerKind, Parameters]:
    """The target of a load (the name of a model, or a built-in worker) and its parameters. ApiError 400."""
    if kind == WORKER and base != ONNX:
        return workers.resolve(base, given)
    check_given(given, "parameters")
    parameters = parse(OnnxParameters, given)
    model = base if kind == MODEL else parameters.model
    if model is None:
        raise ApiError(400, "worker 'onnx' needs the parameter 'model', the name of a model of the repository")
    return model, parameters


def served(model: Model, source: object) -> str:
    """A fingerprint of a version's source: the bytes that were read, and the stamps of all its files."""
    return fingerprint((model.content, source))


def _mark(files: ModelFiles | ApiError) -> str | None:
    """The fingerprint of a model on the disk, as in :class:`fastinfer.repository.watcher.Look`."""
    if isinstance(files, NoVersionError):
        return None
    return fingerprint(files.message) if isinstance(files, ApiError) else files.mark


def _selection(endpoint: Endpoint, version: int | None, files: ModelFiles, config: ModelConfig) -> set[int]:
    """The versions that an endpoint is to have after a load."""
    if version is None:
        requested = {*config.select_versions(sorted(files.versions)), *endpoint.chosen}
    elif version in files.versions:
        requested = {version, *endpoint.versions}
    else:
        raise ApiError(400, f"model '{files.name}' has no version {version}")
    selected = requested & files.versions.keys()
    if not selected:
        raise ApiError(400, f"model '{files.name}' has none of the versions that its version_policy names")
    return selected


def _configuration(files: ModelFiles, override: object) -> ModelConfig:
    config = _read_configuration(files, override)
    if fields := config.without_effect:
        log.warning("model '%s' runs on the CPU; these fields have no effect: %s", files.name, ", ".join(fields)[:400])
    return config


def _read_configuration(files: ModelFiles, override: object) -> ModelConfig:
    if override is None:
        return files.read_config()
    if not isinstance(override, str):
        raise ApiError(400, "parameters.config must be a string of JSON")
    try:
        config = ModelConfig.from_json(override, files.name)
    except ConfigError as error:
        raise ApiError(400, f"model '{files.name}': {error}") from error
    fields = [name for name in ("model_operations", "extensions") if name in config.model_fields_set]
    check_given([*fields, *config.parameters], "config")
    if config.label_files and files.place.directory is None:  # the files beside it are not the model's
        raise ApiError(400, f"model '{files.name}' is a file without a directory, and has no label files")
    return config
