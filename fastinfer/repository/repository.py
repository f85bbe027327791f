"""The repository: what is on the disk, what is loaded, and the way from one to the other.

A load is prepared (files read, session made, checked and warmed up, on a load thread), then published (on the loop, all
at once), then answered; whatever fails before leaves everything as it was. What is replaced or unloaded takes no more
requests and is released when those in flight have ended. Loads and unloads of one model wait for each other; those of
different models do not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from fastinfer.backends import registry
from fastinfer.backends.onnx.backend import OnnxParameters
from fastinfer.backends.parameters import Parameters, parse
from fastinfer.backends.registry import WorkerKind
from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.repository import files as model_files
from fastinfer.repository.endpoints import MODEL, WORKER, Endpoint, EndpointTable, Identity, identity
from fastinfer.repository.files import FilesChangedError, ModelFiles, NoVersionError, UnknownModelError, fingerprint
from fastinfer.repository.index import NO_VERSION, Entry, entries
from fastinfer.repository.loader import Loader
from fastinfer.repository.operation import Operation, text_mark
from fastinfer.repository.readiness import NOT_READ, Readiness, Rules
from fastinfer.repository.watcher import Look
from fastinfer.schedule.model import Model

log = logging.getLogger(__name__)

ONNX = "onnx"
_WITHDRAWN = "this process of the server is being replaced"
_HANGS = 504  # of what has not ended in time: nobody asks the same disk again
_ATTEMPTS = 3  # a load whose files change meanwhile is begun again
_Versions = Mapping[int, tuple[Model, object]]  # each with what it was made from


@dataclass(slots=True)
class _Lock:
    """Orders the loads and unloads of one name; forgotten when nobody wants it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted: int = 0


class Repository:
    """Models and registry, loaded and to be loaded.

    Args:
        directories: where models lie; the first that has a name wins.
        loader: makes models out of files and parameters.
        rules: when the server is ready.
        max_endpoints: how many may be loaded at a time.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        loader: Loader,
        rules: Rules,
        max_endpoints: int = limits.MAX_ENDPOINTS,
    ) -> None:
        self.directories = tuple(directories)
        self._loader = loader
        self._table = EndpointTable()
        self._locks: dict[str, _Lock] = {}
        self._readiness = Readiness(rules)
        self._loading: dict[str, set[int]] = {}  # with the versions that are made, once they are known
        self._retiring: set[Model] = set()
        self._numbers = count(1)
        self._withdrawn = False
        self._max_endpoints = max_endpoints

    # --- Looking up ---------------------------------------------------------------------------------------------------

    def find(self, name: str, version: str | None = None) -> Model:
        """The model for a request.

        Raises:
            ApiError: 404 where there is no such model or version, 503 where it is known but not ready, or where the
                repository has not been read yet.
        """
        model = self._table.model(name, version)
        if model is None:
            raise self._not_there(name, version)
        return model

    @property
    def ready(self) -> dict[tuple[str, ...], Model]:
        """What :meth:`find` finds, by its arguments; not to be changed, and the same dict for ever."""
        return self._table.models

    def _not_there(self, name: str, version: str | None) -> ApiError:
        if self._withdrawn:
            return ApiError(503, _WITHDRAWN, retry_after_s=1)
        if self._table.get(name) is not None:
            return ApiError(404, f"Request for unknown model: '{name}' version {version} is not found")
        if name in self._loading:
            return ApiError(503, f"model '{name}' is loading", retry_after_s=1)
        if name in (self._readiness.wanted or ()):
            reason = self._readiness.failures.get(name, f"model '{name}' waits to be loaded")
            return ApiError(503, f"not ready: {reason}", retry_after_s=1)
        if (unknown := self._readiness.why_unknown()) is not None:
            return ApiError(503, unknown, retry_after_s=1)
        return ApiError(404, f"Request for unknown model: '{name}' is not found")

    def check_read(self) -> None:
        """Before the repository has been read nobody knows which models there are: ApiError 503 then."""
        if self._readiness.wanted is None:
            raise ApiError(503, NOT_READ, retry_after_s=1)

    def names(self) -> list[str]:
        """All endpoints, sorted."""
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
        # Not on a load thread: those are busy just when somebody wants to see what is loading.
        on_disk = await self._loader.index(model_files.find_all, self.directories)
        refused = {name: found.message for name, found in on_disk.items() if isinstance(found, ApiError)}
        unread = dict.fromkeys(on_disk, NOT_READ) if self._readiness.wanted is None else {}
        ready = [(endpoint.name, version) for endpoint in self._table for version in endpoint.versions]
        withdrawn = {
            (endpoint.name, version): error.message
            for endpoint in self._table
            for version, model in endpoint.versions.items()
            if (error := model.why_withdrawn()) is not None
        }
        unknown = {name: set() if self._table.get(name) else {NO_VERSION} for name in self._loading}
        return entries(
            ready=ready,
            loading=[(name, number) for name, known in self._loading.items() for number in known or unknown[name]],
            unloading=[(model.name, int(model.version)) for model in self._retiring],
            on_disk={name: found.versions if isinstance(found, ModelFiles) else () for name, found in on_disk.items()},
            failures={**unread, **self._readiness.failures, **refused},
            withdrawn=withdrawn,
        )

    def why_not_ready(self) -> str | None:
        """What keeps the server from being ready; None where everything asked for at start has been ready once."""
        return self._readiness.why_not_ready()

    # --- What is asked for at start, and what lies on the disk (see watcher.py) ---------------------------------------

    async def look(self, *, tell: bool = False) -> Look:
        """What lies on the disk; ``tell``: log what cannot be read."""

        def find_all() -> Look:
            found = model_files.find_all(self.directories, tell=tell)
            models = {name: _seen(files) for name, files in found.items()}
            return {"models": models, "unreadable": model_files.unreadable(self.directories)}

        return await self._loader.look(find_all)

    async def expect(self, names: Iterable[str], unreadable: str | None = None) -> None:
        """The repository has been read.

        Args:
            names: these are asked for at start besides those before: the server is not ready before each was loaded
                once, or was unloaded.
            unreadable: why one of the directories cannot be read, if that is so.
        """
        self._readiness.expect(names, unreadable)

    def loaded(self) -> dict[str, str]:
        """For each model of the repository that has endpoints, the state of its directory that they were made from."""
        states: dict[str, set[str]] = {}
        for endpoint in self._table:
            if endpoint.kind == MODEL:
                states.setdefault(endpoint.base, set()).add(endpoint.files)
        return {name: files.pop() if len(files) == 1 else "" for name, files in states.items()}

    async def refuse(self, name: str, reason: str) -> None:
        """A model that is asked for at start could not be loaded."""
        if name in (self._readiness.wanted or ()):
            self._readiness.failures[name] = reason

    async def follow(self, name: str, *, known: bool, gone: bool, by: Operation | None = None) -> None:
        """Makes the endpoints of a model what lies on the disk. ApiError 400 where that does not load.

        Args:
            name: the model.
            known: it has been looked at before; one that is new is loaded.
            gone: it is not there any more.
            by: see :meth:`load_model`.
        """
        by = self._by(by)
        endpoints = [endpoint for endpoint in self._table if (endpoint.kind, endpoint.base) == (MODEL, name)]
        if gone:
            async with self._exclusive(name):
                await by.prepared(name, "")
                self._readiness.settled(name)
                for endpoint in endpoints:
                    if self._table.get(endpoint.name) is endpoint:
                        self._remove(endpoint)
            return
        for endpoint in endpoints:
            await self._load(endpoint.identity, name, None, endpoint.parameters, endpoint.override, by, asked=False)
        if not endpoints and (not known or name in (self._readiness.wanted or ())):
            await self.load_model(name, None, {}, by)

    # --- Loading ------------------------------------------------------------------------------------------------------

    async def load_model(
        self, name: str, version: int | None, parameters: Mapping[str, Any], by: Operation | None = None
    ) -> str:
        """Loads a model of the repository and returns its endpoint's name.

        Args:
            name: its directory. version: one version alone, beside those that are loaded; None: those that the version
            policy names. parameters: of the load (see :mod:`fastinfer.backends.parameters`); ``config`` replaces the
            configuration and
                is not part of the identity.
            by: what the load is part of, where several processes do the same.

        Raises:
            ApiError: 400 with the reason. Nothing has changed then.
        """
        if any(key.startswith("file:") for key in parameters):
            raise ApiError(400, "files cannot be given with a load; of a model only 'config' can be overridden")
        counted = {key: value for key, value in parameters.items() if key != "config"}
        wanted = identity(MODEL, name, counted)
        made, parsed = made_of(MODEL, name, counted)
        return await self._load(wanted, made, version, parsed, parameters.get("config"), self._by(by))

    async def load_worker(self, name: str, parameters: Mapping[str, Any], by: Operation | None = None) -> str:
        """Loads a built-in worker, or ``onnx`` with a ``model``, and returns its endpoint's name. ApiError 400."""
        name = name.lower()
        made, parsed = made_of(WORKER, name, parameters)
        return await self._load(identity(WORKER, name, parameters), made, None, parsed, None, self._by(by))

    def _by(self, operation: Operation | None) -> Operation:
        return operation or Operation(next(self._numbers))

    async def _load(
        self,
        wanted: Identity,
        made_of: str | WorkerKind,
        version: int | None,
        parameters: Parameters,
        override: object,
        by: Operation,
        *,
        asked: bool = True,
    ) -> str:
        """Loads a model of the repository, or a built-in worker, for an identity.

        ``asked``: by a client, so it counts; following the disk does not.
        """
        async with self._exclusive(wanted[1]):
            for _ in range(_ATTEMPTS):
                name = await self._load_once(wanted, made_of, version, parameters, override, by, asked)
                if name is not None:
                    return name
        raise ApiError(503, f"'{wanted[1]}' keeps being unloaded while it loads", retry_after_s=1)

    async def _load_once(
        self,
        wanted: Identity,
        made_of: str | WorkerKind,
        version: int | None,
        parameters: Parameters,
        override: object,
        by: Operation,
        asked: bool,
    ) -> str | None:
        """See :meth:`_load`; None where what was there was unloaded meanwhile, as the successor of another endpoint."""
        endpoint = self._table.same(wanted)
        new = endpoint is None
        if endpoint is None:
            self._check_room()
            endpoint = Endpoint(self._table.free_name(wanted, self._loading), wanted, parameters)
        name = endpoint.name
        successor = self._successor(parameters.next)
        try:
            selection = partial(_selection, endpoint, version)
            with self._shown_as_loading(name):
                versions, files = await self._prepare(endpoint, made_of, parameters, override, selection, successor, by)
                await self._agree(endpoint, versions, by)
        except ApiError as error:
            # Names that no model has are not remembered: there is no end of them.
            if not isinstance(error, UnknownModelError) or name in (self._readiness.wanted or ()):
                self._readiness.failures[name] = error.message
            raise
        if not new and self._table.get(name) is not endpoint:
            self._discard(endpoint, versions)
            return None
        if new and parameters.next is not None:
            self._hold(parameters.next, versions)
        elif not new and asked and not (parameters.share and endpoint.loads):
            endpoint.loads += 1  # there is no load to share where only a chain keeps it
        self._readiness.ready_once(name)
        if version is not None:
            endpoint.chosen.add(version)
        if version is None or new:  # a version that is loaded by itself leaves it open which others there should be
            endpoint.files = files
        endpoint.override = override
        self._publish(endpoint, versions)
        if asked:
            for model in endpoint.versions.values():
                if model.scheduler.reinstate():
                    log.warning("model '%s' version %s is tried again", name, model.version)
        return name

    def _check_room(self) -> None:
        """Before one more endpoint is made. ApiError 503."""
        made = sum(self._table.get(name) is None for name in self._loading)
        if len(self._table) + made >= self._max_endpoints:
            raise ApiError(
                503, f"{self._max_endpoints} models and workers are loaded, and no more may be (--max-endpoints)"
            )

    async def _prepare(
        self,
        endpoint: Endpoint,
        made_of: str | WorkerKind,
        parameters: Parameters,
        override: object,
        selection: Callable[[ModelFiles, ModelConfig], set[int]],
        successor: Callable[[], Model] | None,
        by: Operation,
    ) -> tuple[_Versions, str]:
        """The versions that the endpoint is to have, each with what it was made from; a fingerprint of all files.

        What has not changed is kept. Files that change while they are read are read again: the model is wholly the old
        or wholly the new one.
        """
        if not isinstance(made_of, str):
            worker = endpoint.versions.get(1) or self._loader.worker(endpoint.name, made_of, parameters, successor, by)
            return {1: (worker, None)}, ""
        for _ in range(_ATTEMPTS):
            looking = f"looking at the files of model '{made_of}'"
            files = await self._loader.in_thread(looking, model_files.find, self.directories, made_of)
            reading = f"reading the configuration of model '{made_of}'"
            config = await self._loader.in_thread(reading, _configuration, files, override)
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
                    model = await self._loader.model(endpoint.name, files, number, config, parameters, successor, by)
                    versions[number] = (model, sources[number])
                if await self._unchanged(files):
                    return versions, files.mark
            except FilesChangedError:
                pass
            except ApiError as error:  # perhaps because of files that were replaced one after the other
                if error.status == _HANGS or await self._unchanged(files):
                    self._discard(endpoint, versions)
                    raise
            except BaseException:
                self._discard(endpoint, versions)
                raise
            self._discard(endpoint, versions)
        raise FilesChangedError(made_of)

    async def _unchanged(self, files: ModelFiles) -> bool:
        """Whether a model's files are still those that were found."""
        try:
            looking = f"looking again at the files of model '{files.name}'"
            return await self._loader.in_thread(looking, self._are_still, files)
        except ApiError:
            return False

    def _are_still(self, files: ModelFiles) -> bool:
        return model_files.find(self.directories, files.name) == files

    @contextmanager
    def _shown_as_loading(self, name: str) -> Iterator[None]:
        self._loading[name] = set()
        try:
            yield
        finally:
            del self._loading[name]

    async def _agree(self, endpoint: Endpoint, versions: _Versions, by: Operation) -> None:
        """Waits until other processes have prepared the same. ApiError where one has failed."""
        try:
            await by.prepared(endpoint.name, fingerprint(sorted((n, served(*made)) for n, made in versions.items())))
        except BaseException:
            self._discard(endpoint, versions)
            raise

    def _discard(self, endpoint: Endpoint, versions: _Versions) -> None:
        """Releases what was made and is not going to be published."""
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
        for model in before - after:
            self._retire(model)
        for model in sorted(after - before, key=lambda model: int(model.version)):
            log.info("'%s' version %s: %s", model.name, model.version, model.signature)

    # --- Chains -------------------------------------------------------------------------------------------------------

    def _successor(self, following: str | None) -> Callable[[], Model] | None:
        """How an endpoint finds the model that gets its outputs. ApiError 400.

        It was loaded before and keeps its own successor, so a chain has an end.
        """
        if following is None:
            return None
        if self._table.get(following) is None:
            raise ApiError(400, f"the next endpoint '{following}' is not loaded")
        return lambda: self.find(following)

    def _hold(self, name: str, made: _Versions) -> None:
        """An endpoint keeps its successor loaded."""
        held = self._table.get(name)
        if held is None:
            for model, _ in made.values():
                self._retire(model)
            raise ApiError(400, f"the next endpoint '{name}' was unloaded")
        held.holds += 1

    # --- Unloading ----------------------------------------------------------------------------------------------------

    async def unload(self, name: str, version: int | None = None, *, dependents: bool = False) -> None:
        """Takes one load, or one version, away; an unknown name is no error. In-flight requests are finished.

        Args:
            name: the endpoint's.
            version: one version alone; None: the endpoint.
            dependents: where that removes the endpoint, take one load of its successor away too, and so on.
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
                endpoint.chosen.discard(version)
                rest = {n: (endpoint.versions[n], endpoint.sources[n]) for n in endpoint.versions if n != version}
                self._publish(endpoint, rest)

    def _take_loads(self, endpoint: Endpoint, count: int, *, dependents: bool) -> None:
        endpoint.loads = max(0, endpoint.loads - count)
        if not endpoint.loads and not endpoint.holds:
            self._remove(endpoint, dependents=dependents)

    def _remove(self, endpoint: Endpoint, *, dependents: bool = False) -> None:
        self._table.remove(endpoint)
        self._readiness.failures.pop(endpoint.name, None)  # of a reload, while the old one still served
        for model in endpoint.versions.values():
            self._retire(model)
        log.info("'%s' is unloaded", endpoint.name)
        held = None if endpoint.parameters.next is None else self._table.get(endpoint.parameters.next)
        if held is not None:
            held.holds -= 1
            self._take_loads(held, 1 if dependents else 0, dependents=dependents)

    def _retire(self, model: Model) -> None:
        self._retiring.add(model)
        model.retire(lambda: self._released(model))

    def _released(self, model: Model) -> None:
        self._retiring.discard(model)
        self._loader.released(model)

    async def close(self) -> None:
        """Unloads everything and waits until it is released."""
        for endpoint in list(self._table):
            if self._table.get(endpoint.name) is endpoint:
                self._remove(endpoint)
        while self._retiring:
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def _exclusive(self, base: str) -> AsyncIterator[None]:
        entry = self._locks.setdefault(base, _Lock())
        entry.wanted += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.wanted -= 1
            if not entry.wanted:
                self._locks.pop(base, None)


def made_of(kind: str, base: str, given: Mapping[str, Any]) -> tuple[str | WorkerKind, Parameters]:
    """What a load makes an endpoint of: a model of the repository, by name, or a built-in worker. ApiError 400."""
    if kind == WORKER and base != ONNX:
        return registry.resolve(base, given)
    parameters = parse(OnnxParameters, given)
    model = base if kind == MODEL else parameters.model
    if model is None:
        raise ApiError(400, "worker 'onnx' needs the parameter 'model', the name of a model of the repository")
    return model, parameters


def served(model: Model, source: object) -> str:
    """A fingerprint of what a version answers with: what was read, and the stamps of all files that belong to it."""
    return fingerprint((model.content, source))


def _seen(files: ModelFiles | ApiError) -> str | None:
    """A model on the disk as :meth:`Repository.look` tells it."""
    if isinstance(files, NoVersionError):
        return None
    return fingerprint(files.message) if isinstance(files, ApiError) else files.mark


def _selection(endpoint: Endpoint, version: int | None, files: ModelFiles, config: ModelConfig) -> set[int]:
    """The versions that an endpoint is to have after a load."""
    if version is None:
        wanted = {*config.select_versions(sorted(files.versions)), *endpoint.chosen}
    elif version in files.versions:
        wanted = {version, *endpoint.versions}
    else:
        raise ApiError(400, f"model '{files.name}' has no version {version}")
    selected = wanted & files.versions.keys()
    if not selected:
        raise ApiError(400, f"model '{files.name}' has none of the versions that its version_policy names")
    return selected


def _configuration(files: ModelFiles, override: object) -> ModelConfig:
    if override is None:
        return files.read_config()
    if not isinstance(override, str):
        raise ApiError(400, "parameters.config must be a string that holds JSON")
    try:
        return ModelConfig.from_json(override, files.name)
    except ConfigError as error:
        raise ApiError(400, f"model '{files.name}': {error}") from error
