"""The index of the repository: what there is, served or not, and how each of it stands. Pure.

States and fields are those of Triton's model repository extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"

NO_VERSION = 0
"""Stands for the version where there is none, or none is known yet."""

Served = tuple[str, int]  # an endpoint's name and a version
_NONE: Mapping[Served, str] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A version of an endpoint, or of a model on the disk.

    Attributes:
        name: the endpoint's, or the directory's.
        version: as on the wire; empty: there is none, or it is not known yet.
        state: READY, LOADING, UNLOADING or UNAVAILABLE.
        reason: why it is unavailable; else empty.
    """

    name: str
    version: str
    state: str
    reason: str = ""


def entries(
    *,
    ready: Iterable[Served],
    loading: Iterable[Served],
    unloading: Iterable[Served],
    on_disk: Mapping[str, Iterable[int]],
    failures: Mapping[str, str],
    withdrawn: Mapping[Served, str] = _NONE,
) -> list[Entry]:
    """The index, by name and version.

    Args:
        ready: versions that are being served; READY wins over LOADING and UNLOADING.
        loading: what is being made.
        unloading: what only ends the requests that it has.
        on_disk: the versions of each model of the repository. Of a model that is served in any state these are told,
            and not those that lie beside them.
        failures: by name, why a model is not served; without one it is unloaded.
        withdrawn: why versions that are loaded are not run.
    """
    states: dict[Served, str] = {}
    for state, those in ((READY, ready), (LOADING, loading), (UNLOADING, unloading)):
        for served in those:
            states.setdefault(served, state)
    told = {name for name, _ in states}
    found = []
    for name, version in sorted(states):
        state, reason = states[name, version], ""
        if state == READY and (name, version) in withdrawn:
            state, reason = UNAVAILABLE, withdrawn[name, version]
        found.append(Entry(name, _shown(version), state, reason))
    for name, versions in on_disk.items():
        if name not in told:
            reason = failures.get(name, "unloaded")
            found += [Entry(name, _shown(version), UNAVAILABLE, reason) for version in sorted(versions) or [NO_VERSION]]
    return sorted(found, key=lambda entry: entry.name)


def _shown(version: int) -> str:
    return "" if version == NO_VERSION else str(version)
