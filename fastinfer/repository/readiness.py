"""Decides whether a server is ready: whether the models requested at start have been ready once. Pure data, no I/O.

Later loads and unloads do not make a ready server unready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

NOT_READ = "the model repository has not been read yet"
NO_MODEL = "the model repository holds no model"
NONE_LOADED = "no model is loaded"
_MOST_NAMED = 10  # models that a reason names


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's conditions for readiness.

    Attributes:
        strict: the server is not ready if one model that was requested at start has failed.
        allow_empty: a server without any model may be ready.
        scan: the repository is read at start; before that, its models are unknown.
        names: the models requested at start; None: all models of the repository.
    """

    strict: bool = True
    allow_empty: bool = False
    scan: bool = True
    names: tuple[str, ...] | None = None


_DEFAULT = Rules()


class Readiness:
    """The models requested at start, and their states.

    Attributes:
        pending: models requested at start, neither ready once nor unloaded since; None: the repository is not read yet.
        failures: why models are not served, by name.
        unreadable: why a repository cannot be read; None if all can be.
        served: there has been an endpoint.
        found: the repository had models, or names were requested.
    """

    def __init__(self, rules: Rules = _DEFAULT) -> None:
        self._rules = rules
        self.pending: set[str] | None = None if rules.scan else set()
        self.failures: dict[str, str] = {}
        self.unreadable: str | None = None
        self.served = False
        self.found = False

    def expect(self, names: Iterable[str], unreadable: str | None) -> None:
        """Adds models to wait for, after the repository has been read."""
        names = set(names)
        self.pending = (self.pending or set()) | names
        self.found = self.found or bool(names)
        self.unreadable = unreadable if self._rules.scan else None

    def is_awaited(self, name: str) -> bool:
        """Whether a model of the repository was requested at start, and has been neither ready nor refused."""
        if self.pending is not None:
            return name in self.pending and name not in self.failures
        return self._rules.names is None or name in self._rules.names

    def ready_once(self, name: str) -> None:
        """Notes that an endpoint answers requests."""
        self.served = True
        self.settled(name)

    def settled(self, name: str) -> None:
        """Stops waiting for an endpoint, because it was ready once or is not requested any more."""
        if self.pending is not None:
            self.pending.discard(name)
        self.failures.pop(name, None)

    def why_not_ready(self) -> str | None:
        """Why the server is not ready; None if it is."""
        if self.pending is None:
            return NOT_READ
        unread = None if self.unreadable is None else f"the model repository cannot be read: {self.unreadable}"
        untried = self.pending - self.failures.keys()
        enough = self.served or self._rules.allow_empty
        if untried or ((self.pending or unread) and (self._rules.strict or not enough)):
            missing = [self.failures[name] for name in sorted(self.pending - untried)[:_MOST_NAMED]]
            missing += [f"model '{name}' is loading" for name in nsmallest(_MOST_NAMED - len(missing), untried)]
            if len(missing) < len(self.pending):
                missing.append(f"{len(self.pending) - len(missing)} more models")
            models = f"models are not ready: {'; '.join(missing)}" if missing else None
            return "; ".join(reason for reason in (unread, models) if reason is not None)
        if not enough:
            return NONE_LOADED if self.found else NO_MODEL
        return None

    def why_unknown(self) -> str | None:
        """Why a name without an endpoint may still be a model; None if it cannot be one."""
        if self.pending is None:
            return NOT_READ
        return None if self.unreadable is None else f"the model repository cannot be read: {self.unreadable}"

    def snapshot(self) -> dict[str, Any]:
        """The whole state, as JSON."""
        return {
            "wanted": None if self.pending is None else sorted(self.pending),
            "failures": dict(sorted(self.failures.items())),
            "unreadable": self.unreadable,
            "served": self.served,
            "found": self.found,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Takes over another process's state. Without a scan, the repository counts as read from the beginning."""
        pending = snapshot["wanted"]
        self.pending = set(pending) if pending is not None else None if self._rules.scan else set()
        self.failures = dict(snapshot["failures"])
        self.unreadable, self.served, self.found = snapshot["unreadable"], snapshot["served"], snapshot["found"]
