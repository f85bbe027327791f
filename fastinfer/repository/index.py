"""The repository index: all models and endpoints with their states. A pure function, no I/O.

States and fields are those of Triton's model repository extension.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"

NO_VERSION = 0
"""Stands for the version if there is none, or none is known yet."""

Served = tuple[str, int]  # an endpoint's name and a version
_NONE: Mapping[Served, str] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A version of an endpoint, or of a model on the disk.

    Attributes:
        name: the endpoint's or the directory's name.
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
    waiting: Container[str] = (),
    failures: Mapping[str, str],
    withdrawn: Mapping[Served, str] = _NONE,
) -> list[Entry]:
    """The index, by name and version.

    Args:
        ready: versions that are being served; READY wins over LOADING and UNLOADING.
        loading: versions that are being loaded.
        unloading: versions that only finish the requests that they have.
        on_disk: the versions of each model of the repository. If a name is in one of the states above, its further
            versions on the disk are not listed.
        waiting: names of models that wait to be loaded; they count as LOADING.
        failures: by name, why a model is not served; a model without a reason is unloaded.
        withdrawn: why loaded versions are not run.
    """
    states: dict[Served, str] = {}
    for state, versions_in_state in ((READY, ready), (LOADING, loading), (UNLOADING, unloading)):
        for served in versions_in_state:
            states.setdefault(served, state)
    listed = {name for name, _ in states}
    found = []
    for name, version in sorted(states):
        state, reason = states[name, version], ""
        if state == READY and (name, version) in withdrawn:
            state, reason = UNAVAILABLE, withdrawn[name, version]
        found.append(Entry(name, _shown(version), state, reason))
    for name, versions in on_disk.items():
        if name not in listed:
            state, reason = (LOADING, "") if name in waiting else (UNAVAILABLE, failures.get(name, "unloaded"))
            found += [Entry(name, _shown(version), state, reason) for version in sorted(versions) or [NO_VERSION]]
    return sorted(found, key=lambda entry: entry.name)


def _shown(version: int) -> str:
    return "" if version == NO_VERSION else str(version)
