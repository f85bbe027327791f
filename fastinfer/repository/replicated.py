"""A repository replicated across processes and restored in a replacement process.

What is loaded changes only by operations that the supervisor hands to all processes. Each prepares an operation and
says so; when all have, all publish, and where one has failed, none does. What a process holds can be told
(:meth:`Replica.state`), and made again by another (:meth:`Replica.restore`): the same endpoints with the same versions,
as the files are now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from fastinfer.base.errors import ApiError
from fastinfer.repository.endpoints import Endpoint
from fastinfer.repository.files import ModelFiles, fingerprint
from fastinfer.repository.operation import Operation, text_mark
from fastinfer.repository.repository import Repository, made_of, served


@dataclass(frozen=True, slots=True)
class _Entry:
    """An endpoint as it was reported.

    Attributes:
        seen: what of the endpoint may change; the rest follows from it.
        told: see :func:`_told`.
        digest: a fingerprint of what replicas must have in common.
    """

    seen: tuple[object, ...]
    told: dict[str, Any]
    digest: str


class Replica(Repository):
    """A repository whose contents can be told and made again.

    Attributes:
        override_of: gets the configuration that a load has given, by its mark. ApiError.
    """

    override_of: Callable[[str], Awaitable[str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reported: dict[str, _Entry] = {}
        self._start = b""
        self._mark = ""

    def state(self) -> dict[str, Any]:
        """What is loaded, and what is asked for and is not: all that :meth:`restore` needs, as JSON.

        ``digest`` is equal where the same is served, ``mark`` where everything is equal.
        """
        self._reported, self._mark = {}, ""
        state = self.changes()
        state["endpoints"] = state.pop("changed")
        state["trials"] = self._loader.trial_results.told()
        del state["removed"], state["base"]
        return state

    def changes(self) -> dict[str, Any]:
        """The same as changes since it was told last, the state of that ``mark`` being the ``base``."""
        before, base, start_before = self._reported, self._mark, self._start
        entries = {endpoint.name: self._entry(endpoint) for endpoint in self._table}
        start = self._readiness.told()
        self._start = orjson.dumps(start, option=orjson.OPT_SORT_KEYS)
        reason = self.why_not_ready()
        digest = fingerprint(sorted((name, entry.digest) for name, entry in entries.items()))
        files = sorted((name, entry.told["files"]) for name, entry in entries.items())
        self._mark = fingerprint((digest, files, self._start, reason))
        self._reported = entries
        changes = {
            "base": base,
            "mark": self._mark,
            "digest": digest,
            "not_ready": reason,
            "changed": [entry.told for name, entry in sorted(entries.items()) if before.get(name) is not entry],
            "removed": sorted(before.keys() - entries.keys()),
            "trials": self._loader.trial_results.news(),
        }
        return changes if base and self._start == start_before else {**changes, "start": start}

    def _entry(self, endpoint: Endpoint) -> _Entry:
        versions = tuple(endpoint.versions.items())
        seen = (endpoint.loads, endpoint.override, frozenset(endpoint.chosen), versions, endpoint.files)
        known = self._reported.get(endpoint.name)
        if known is not None and known.seen == seen:
            return known
        told = _told(endpoint)
        return _Entry(seen, told, fingerprint([told[key] for key in sorted(told.keys() - {"files"})]))

    async def restore(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Makes the endpoints what another process told, as far as they are not already.

        Returns:
            What could not be loaded as it was, with the reason. Where its files have gone or do not load any more, an
            endpoint is missing, and the server is not ready before it is loaded or unloaded.
        """
        self._loader.trial_results.restore(state.get("trials", {}))
        told = _in_order(state["endpoints"])
        for endpoint in reversed(list(self._table)):
            there = self._table.get(endpoint.name) is endpoint  # not removed with the one that it came after
            if there and told.get(endpoint.name, {}).get("versions") != _told(endpoint)["versions"]:
                self._remove(endpoint)
        failed: dict[str, str] = {}
        readiness = self._readiness
        readiness.restore(state["start"])
        if readiness.wanted is not None:
            readiness.wanted |= told.keys()
        kept = {endpoint.name: endpoint for endpoint in self._table}

        def restored(each: Mapping[str, Any]) -> Coroutine[Any, Any, None]:
            return self._restore(each, kept.get(each["name"]), failed)

        # Successors first, as they were loaded; what has none waits for nobody.
        alone = [each for each in told.values() if "next" not in orjson.loads(each["key"])]
        await asyncio.gather(*map(restored, alone))
        for each in told.values():
            if each not in alone:
                await restored(each)
        return failed

    async def _restore(self, told: Mapping[str, Any], endpoint: Endpoint | None, failed: dict[str, str]) -> None:
        name, wanted = told["name"], (told["kind"], told["base"], told["key"].encode())
        async with self._exclusive(told["base"]):
            try:
                made, parameters = made_of(told["kind"], told["base"], orjson.loads(told["key"]))
                override = await self._override(told["override"], endpoint)
                new = endpoint is None
                endpoint = endpoint or Endpoint(name, wanted, parameters)
                with self._shown_as_loading(name):
                    versions, _ = await self._prepare(
                        endpoint,
                        made,
                        parameters,
                        override,
                        lambda files, _: _still_there(told, files),
                        self._successor(parameters.next),
                        _Again({int(version): each["number"] for version, each in told["versions"].items()}),
                    )
            except ApiError as error:
                failed[name] = self._readiness.failures[name] = error.message
                return
            if new and parameters.next is not None:
                self._hold(parameters.next, versions)
            endpoint.loads, endpoint.override, endpoint.chosen = told["loads"], override, set(told["chosen"])
            self._publish(endpoint, versions)
            endpoint.files = told["files"] if _told(endpoint)["versions"] == told["versions"] else ""
            if self._readiness.wanted is not None:
                self._readiness.wanted.discard(name)

    async def _override(self, mark: str | None, endpoint: Endpoint | None) -> str | None:
        """The configuration that a load has given; an endpoint that there is may have it already. ApiError."""
        if mark is None:
            return None
        held = None if endpoint is None else endpoint.override
        if isinstance(held, str) and text_mark(held) == mark:
            return held
        return await self.override_of(mark)

    async def refresh(self, name: str, by: Operation) -> None:
        """Loads the versions of an endpoint again, from the files as they are now. ApiError 400."""
        endpoint = self._table.get(name)
        if endpoint is None:
            return
        async with self._exclusive(endpoint.base):
            kind, base, key = endpoint.identity
            made, parameters = made_of(kind, base, orjson.loads(key))
            told, successor = _told(endpoint), self._successor(parameters.next)
            anew = Endpoint(name, endpoint.identity, parameters)  # has nothing that could be kept
            with self._shown_as_loading(name):
                versions, _ = await self._prepare(
                    anew, made, parameters, endpoint.override, lambda files, _: _still_there(told, files), successor, by
                )
                await self._agree(anew, versions, by)
            if self._table.get(name) is endpoint:
                endpoint.files = ""
                self._publish(endpoint, versions)
            else:
                self._discard(anew, versions)

    def withdraw(self) -> None:
        """Serves no more, for good: others serve something else. Requests in flight are finished."""
        self._withdrawn = True
        for endpoint in list(self._table):
            if self._table.get(endpoint.name) is endpoint:
                self._remove(endpoint)

    def changed(self, state: Mapping[str, Any]) -> list[str]:
        """The endpoints that are made of other files than in another process."""
        mine = {endpoint.name: _told(endpoint)["versions"] for endpoint in self._table}
        return [each["name"] for each in state["endpoints"] if mine.get(each["name"], {}) != each["versions"]]


class _Again(Operation):
    """Makes what there was; the versions have the numbers that they had."""

    def __init__(self, numbers: Mapping[int, int]) -> None:
        super().__init__(0)
        self._numbers = numbers

    def number_of(self, version: int) -> int:
        return self._numbers[version]


def _told(endpoint: Endpoint) -> dict[str, Any]:
    kind, base, key = endpoint.identity
    return {
        "name": endpoint.name,
        "kind": kind,
        "base": base,
        "key": key.decode(),
        "loads": endpoint.loads,
        "override": text_mark(endpoint.override) if isinstance(endpoint.override, str) else None,
        "files": endpoint.files,
        "chosen": sorted(endpoint.chosen),
        "versions": {
            str(version): {"number": model.number, "files": served(model, endpoint.sources[version])}
            for version, model in sorted(endpoint.versions.items())
        },
    }


def _in_order(told: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Endpoints by name, those first that others have as their successor, since they must be there before."""
    by_name = {each["name"]: each for each in told}
    following = {name: orjson.loads(each["key"]).get("next") for name, each in by_name.items()}

    def place(name: str) -> tuple[int, str]:
        length, at = 0, following[name]
        while at in following and length < len(following):
            length, at = length + 1, following[at]
        return length, name

    return {name: by_name[name] for name in sorted(by_name, key=place)}


def _still_there(told: Mapping[str, Any], files: ModelFiles) -> set[int]:
    """The versions that were served, without those that are gone. ApiError 400 where none is left."""
    versions = {int(version) for version in told["versions"]} & files.versions.keys()
    if not versions:
        raise ApiError(400, f"the versions of model '{files.name}' that were loaded are gone")
    return versions
