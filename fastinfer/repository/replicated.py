"""A repository replicated across processes and restored in a replacement process.

What is loaded changes only by operations that the supervisor sends to all processes. Each process prepares an operation
and reports that; when all have, all publish; if one has failed, none does. A process can export its state
(:meth:`ReplicatedRepository.state`), and another can restore it (:meth:`ReplicatedRepository.restore`): the same
endpoints with the same versions, from the files as they are now.
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
from fastinfer.repository.repository import Repository, resolve_target, served


@dataclass(frozen=True, slots=True)
class _Entry:
    """An endpoint as it was last reported.

    Attributes:
        revision: the endpoint's; the rest is valid while it is the same object.
        snapshot: see :func:`_snapshot`.
        served: a hash of the fields that must be equal in all processes.
        whole: a hash of all fields.
    """

    revision: object
    snapshot: dict[str, Any]
    served: int
    whole: int


class ReplicatedRepository(Repository):
    """A repository whose state can be exported and restored.

    Attributes:
        override_of: returns the configuration that a load has given, by its digest. ApiError.
    """

    override_of: Callable[[str], Awaitable[str]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reported: dict[str, _Entry] = {}
        self._served = self._whole = 0  # sums of the reported entries' hashes, in which their order has no effect
        self._start: dict[str, Any] = {}
        self._mark = ""

    def state(self) -> dict[str, Any]:
        """The loaded endpoints and the readiness: everything that :meth:`restore` needs, as JSON.

        Two states have the same ``digest`` if they serve the same, and the same ``mark`` if they are wholly equal.
        """
        self._reported, self._mark = {}, ""
        self._served = self._whole = 0
        state = self.changes()
        state["endpoints"] = state.pop("changed")
        state["trials"] = self._loader.findings.snapshot()
        del state["removed"], state["base"]
        return state

    def changes(self) -> dict[str, Any]:
        """The changes since the last report; ``base`` is the ``mark`` of the state that they apply to.

        The readiness is in ``start`` as a whole, or in ``settled`` if names have only left its ``wanted``: with a
        thousand models to load at start, a thousand reports have no thousand names each.
        """
        before, base, start_before = self._reported, self._mark, self._start
        entries = {endpoint.name: self._entry(endpoint) for endpoint in self._table}
        changed = sorted(name for name, entry in entries.items() if before.get(name) is not entry)
        removed = sorted(before.keys() - entries.keys())
        old = [before[name] for name in (*changed, *removed) if name in before]
        new = [entries[name] for name in changed]
        self._served += sum(entry.served for entry in new) - sum(entry.served for entry in old)
        self._whole += sum(entry.whole for entry in new) - sum(entry.whole for entry in old)
        self._start = self._readiness.snapshot()
        reason = self.why_not_ready()
        self._mark = fingerprint((self._whole, sorted(self._start.items()), reason))
        self._reported = entries
        changes = {
            "base": base,
            "mark": self._mark,
            "digest": f"{self._served:x}",
            "not_ready": reason,
            "changed": [entry.snapshot for entry in new],
            "removed": removed,
            "trials": self._loader.findings.news(),
        }
        settled = _settled(start_before, self._start) if base else None
        return {**changes, "start": self._start} if settled is None else {**changes, "settled": settled}

    def _entry(self, endpoint: Endpoint) -> _Entry:
        known = self._reported.get(endpoint.name)
        if known is not None and known.revision is endpoint.revision:
            return known
        snapshot = _snapshot(endpoint)
        fields = sorted(snapshot.items())
        served = [each for each in fields if each[0] != "files"]
        return _Entry(endpoint.revision, snapshot, int(fingerprint(served), 16), int(fingerprint(fields), 16))

    async def restore(self, state: Mapping[str, Any]) -> dict[str, str]:
        """Makes the endpoints equal to another process's state; equal ones are kept.

        Returns:
            By name, why an endpoint could not be restored. If its files are gone or no longer load, the endpoint is
            missing, and the server is not ready until it is loaded or unloaded.
        """
        self._loader.findings.restore(state.get("trials", {}))
        snapshots = _in_order(state["endpoints"])
        for endpoint in reversed(list(self._table)):
            loaded = self._table.get(endpoint.name) is endpoint  # False if it was removed as a successor
            if loaded and snapshots.get(endpoint.name, {}).get("versions") != _snapshot(endpoint)["versions"]:
                self._remove(endpoint)
        self._many_change(snapshots.keys())
        failed: dict[str, str] = {}
        readiness = self._readiness
        readiness.restore(state["start"])
        if readiness.pending is not None:
            readiness.pending |= snapshots.keys()
        kept = {endpoint.name: endpoint for endpoint in self._table}

        def restored(each: Mapping[str, Any]) -> Coroutine[Any, Any, None]:
            return self._restore(each, kept.get(each["name"]), failed)

        # Successors come first, as when they were loaded; endpoints without a successor load in parallel.
        unchained = [each for each in snapshots.values() if "next" not in orjson.loads(each["key"])]
        await asyncio.gather(*map(restored, unchained))
        for each in snapshots.values():
            if each not in unchained:
                await restored(each)
        return failed

    async def _restore(self, snapshot: Mapping[str, Any], endpoint: Endpoint | None, failed: dict[str, str]) -> None:
        name, identity = snapshot["name"], (snapshot["kind"], snapshot["base"], snapshot["key"].encode())
        async with self._exclusive(snapshot["base"]):
            try:
                target, parameters = resolve_target(snapshot["kind"], snapshot["base"], orjson.loads(snapshot["key"]))
                override = await self._override(snapshot["override"], endpoint)
                new = endpoint is None
                endpoint = endpoint or Endpoint(name, identity, parameters)
                with self._shown_as_loading(name):
                    versions, _ = await self._prepare(
                        endpoint,
                        target,
                        parameters,
                        override,
                        lambda files, _: _remaining_versions(snapshot, files),
                        self._successor(parameters.next),
                        _Restoration({int(version): each["number"] for version, each in snapshot["versions"].items()}),
                    )
            except ApiError as error:
                failed[name] = self._readiness.failures[name] = error.message
                return
            if new and parameters.next is not None:
                self._hold(parameters.next, versions)
            endpoint.loads, endpoint.override, endpoint.chosen = (
                snapshot["loads"],
                override,
                frozenset(snapshot["chosen"]),
            )
            self._publish(endpoint, versions)
            endpoint.files = snapshot["files"] if _snapshot(endpoint)["versions"] == snapshot["versions"] else ""
            if self._readiness.pending is not None:
                self._readiness.pending.discard(name)

    async def _override(self, mark: str | None, endpoint: Endpoint | None) -> str | None:
        """The configuration that a load has given; a loaded endpoint may already have it. ApiError."""
        if mark is None:
            return None
        current = None if endpoint is None else endpoint.override
        if isinstance(current, str) and text_mark(current) == mark:
            return current
        return await self.override_of(mark)

    async def refresh(self, name: str, operation: Operation) -> None:
        """Reloads the versions of an endpoint from the files as they are now. ApiError 400."""
        endpoint = self._table.get(name)
        if endpoint is None:
            return
        async with self._exclusive(endpoint.base):
            kind, base, key = endpoint.identity
            target, parameters = resolve_target(kind, base, orjson.loads(key))
            snapshot, successor = _snapshot(endpoint), self._successor(parameters.next)
            fresh = Endpoint(name, endpoint.identity, parameters)  # without versions, so that none is kept
            with self._shown_as_loading(name):
                versions, _ = await self._prepare(
                    fresh,
                    target,
                    parameters,
                    endpoint.override,
                    lambda files, _: _remaining_versions(snapshot, files),
                    successor,
                    operation,
                )
                await self._agree(fresh, versions, operation)
            if self._table.get(name) is endpoint:
                endpoint.files = ""
                self._publish(endpoint, versions)
            else:
                self._discard(fresh, versions)

    def withdraw(self) -> None:
        """Stops serving for good, because the other processes differ. Requests in flight are finished."""
        self._withdrawn = True
        self._many_change([endpoint.name for endpoint in self._table])
        for endpoint in list(self._table):
            if self._table.get(endpoint.name) is endpoint:
                self._remove(endpoint)

    def changed(self, state: Mapping[str, Any]) -> list[str]:
        """The endpoints whose files differ from those of another process's state."""
        versions = {endpoint.name: _snapshot(endpoint)["versions"] for endpoint in self._table}
        return [each["name"] for each in state["endpoints"] if versions.get(each["name"], {}) != each["versions"]]


def _settled(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str] | None:
    """The names that have left the readiness's ``wanted``; None if more has changed."""
    if before == now:
        return []
    rest = now.keys() - {"wanted"}
    if None in (before["wanted"], now["wanted"]) or any(before[key] != now[key] for key in rest):
        return None
    left = set(before["wanted"]).difference(now["wanted"])
    return sorted(left) if len(before["wanted"]) - len(left) == len(now["wanted"]) else None


class _Restoration(Operation):
    """Restores versions with the numbers that they had."""

    def __init__(self, numbers: Mapping[int, int]) -> None:
        super().__init__(0)
        self._numbers = numbers

    def number_of(self, version: int) -> int:
        return self._numbers[version]


def _snapshot(endpoint: Endpoint) -> dict[str, Any]:
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


def _in_order(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Endpoints by name; successors come first, because they must be loaded before."""
    by_name = {each["name"]: each for each in snapshots}
    following = {name: orjson.loads(each["key"]).get("next") for name, each in by_name.items()}

    def place(name: str) -> tuple[int, str]:
        length, at = 0, following[name]
        while at in following and length < len(following):
            length, at = length + 1, following[at]
        return length, name

    return {name: by_name[name] for name in sorted(by_name, key=place)}


def _remaining_versions(snapshot: Mapping[str, Any], files: ModelFiles) -> set[int]:
    """The versions that were served and are still on the disk. ApiError 400 if there is none."""
    versions = {int(version) for version in snapshot["versions"]} & files.versions.keys()
    if not versions:
        raise ApiError(400, f"the versions of model '{files.name}' that were loaded are gone")
    return versions
