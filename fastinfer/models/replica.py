"""A repository that is alike in several processes, or in one and the next.

What is loaded changes only by operations that the supervisor hands to all processes. Each prepares an operation and
says so; when all have, all publish, and where one has failed, none does. What a process holds can be told
(:meth:`Replica.state`), and made again by another (:meth:`Replica.restore`): the same endpoints with the same versions,
as the files are now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import orjson

from fastinfer.errors import ApiError
from fastinfer.models.endpoints import Endpoint
from fastinfer.models.files import ModelFiles
from fastinfer.models.operation import Operation
from fastinfer.models.repository import Repository, made_of, served


class Replica(Repository):
    """A repository whose contents can be told and made again."""

    def state(self) -> dict[str, Any]:
        """What is loaded, and what is asked for and is not: all that :meth:`restore` needs, as JSON."""
        return {
            "not_ready": self.why_not_ready(),
            "start": self._readiness.told(),
            "files": self.loaded(),
            "trials": self._loader.trial_results.told(),
            "endpoints": [_told(endpoint) for endpoint in sorted(self._table, key=self._place)],
        }

    def _place(self, endpoint: Endpoint) -> tuple[int, str]:
        """Orders endpoints, in all processes alike: successors come first, since they must be there before."""
        following, length = endpoint.parameters.next, 0
        while following is not None and (held := self._table.get(following)) is not None:
            following, length = held.parameters.next, length + 1
        return length, endpoint.name

    async def restore(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Makes the endpoints what another process told, as far as they are not already.

        Returns:
            What could not be loaded as it was, with the reason. Where its files have gone or do not load any more, an
            endpoint is missing, and the server is not ready before it is loaded or unloaded.
        """
        self._loader.trial_results.restore(state.get("trials", {}))
        told = {each["name"]: each for each in state["endpoints"]}
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
            return self._restore(each, state["files"].get(each["base"], ""), kept.get(each["name"]), failed)

        # Successors first, as they were loaded; what has none waits for nobody.
        alone = [each for each in told.values() if "next" not in orjson.loads(each["key"])]
        await asyncio.gather(*map(restored, alone))
        for each in told.values():
            if each not in alone:
                await restored(each)
        return failed

    async def _restore(
        self, told: Mapping[str, Any], files: str, endpoint: Endpoint | None, failed: dict[str, str]
    ) -> None:
        name, wanted = told["name"], (told["kind"], told["base"], told["key"].encode())
        async with self._exclusive(told["base"]):
            try:
                made, parameters = made_of(told["kind"], told["base"], orjson.loads(told["key"]))
                new = endpoint is None
                endpoint = endpoint or Endpoint(name, wanted, parameters)
                with self._shown_as_loading(name):
                    versions, _ = await self._prepare(
                        endpoint,
                        made,
                        parameters,
                        told["override"],
                        lambda files, _: _still_there(told, files),
                        self._successor(parameters.next),
                        _Again({int(version): each["number"] for version, each in told["versions"].items()}),
                    )
            except ApiError as error:
                failed[name] = self._readiness.failures[name] = error.message
                return
            if new and parameters.next is not None:
                self._hold(parameters.next, versions)
            endpoint.loads, endpoint.override, endpoint.chosen = told["loads"], told["override"], set(told["chosen"])
            self._publish(endpoint, versions)
            endpoint.files = files if _told(endpoint)["versions"] == told["versions"] else ""
            if self._readiness.wanted is not None:
                self._readiness.wanted.discard(name)

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
        mine = {each["name"]: each["versions"] for each in self.state()["endpoints"]}
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
        "override": endpoint.override,
        "chosen": sorted(endpoint.chosen),
        "versions": {
            str(version): {"number": model.number, "files": served(model, endpoint.sources[version])}
            for version, model in sorted(endpoint.versions.items())
        },
    }


def _still_there(told: Mapping[str, Any], files: ModelFiles) -> set[int]:
    """The versions that were served, without those that are gone. ApiError 400 where none is left."""
    versions = {int(version) for version in told["versions"]} & files.versions.keys()
    if not versions:
        raise ApiError(400, f"the versions of model '{files.name}' that were loaded are gone")
    return versions
