"""Whether what was asked for at start is there: what keeps a server from being ready, and what models' paths answer
before it is. Pure.

A server that has been ready is not made unready by later loads and unloads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NOT_READ = "the model repository has not been read yet"
NO_MODEL = "the model repository holds no model"
NONE_LOADED = "no model is loaded"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator wants.

    Attributes:
        strict: one model that was asked for at start and failed keeps the server from being ready.
        allow_empty: a server without any model may be ready.
        scan: models are looked for at start, so that before that nobody knows which there are.
    """

    strict: bool = True
    allow_empty: bool = False
    scan: bool = True


_DEFAULT = Rules()


class Readiness:
    """What was asked for at start, and what has become of it.

    Attributes:
        wanted: asked for at start, neither ready once nor unloaded since; None: the repository has not been read yet.
        failures: why models are not served, by name.
        unreadable: why a repository cannot be read; None where all can.
        served: there was an endpoint once.
        found: the repository held models, or names were asked for.
    """

    def __init__(self, rules: Rules = _DEFAULT) -> None:
        self._rules = rules
        self.wanted: set[str] | None = None if rules.scan else set()
        self.failures: dict[str, str] = {}
        self.unreadable: str | None = None
        self.served = False
        self.found = False

    def expect(self, names: Iterable[str], unreadable: str | None) -> None:
        """The repository has been read: these are asked for besides those that are waited for already."""
        names = set(names)
        self.wanted = (self.wanted or set()) | names
        self.found = self.found or bool(names)
        self.unreadable = unreadable if self._rules.scan else None

    def ready_once(self, name: str) -> None:
        """An endpoint answers requests."""
        self.served = True
        self.settled(name)

    def settled(self, name: str) -> None:
        """An endpoint was ready once, or is not wanted any more: the server does not wait for it."""
        if self.wanted is not None:
            self.wanted.discard(name)
        self.failures.pop(name, None)

    def why_not_ready(self) -> str | None:
        """What keeps the server from being ready, or None."""
        if self.wanted is None:
            return NOT_READ
        unread = None if self.unreadable is None else f"the model repository cannot be read: {self.unreadable}"
        untried = self.wanted - self.failures.keys()
        enough = self.served or self._rules.allow_empty
        if untried or ((self.wanted or unread) and (self._rules.strict or not enough)):
            missing = [self.failures.get(name, f"model '{name}' is loading") for name in sorted(self.wanted)]
            models = f"models are not ready: {'; '.join(missing)}" if missing else None
            return "; ".join(reason for reason in (unread, models) if reason is not None)
        if not enough:
            return NONE_LOADED if self.found else NO_MODEL
        return None

    def why_unknown(self) -> str | None:
        """Why a name that no endpoint has may still be a model's; None where it is none."""
        if self.wanted is None:
            return NOT_READ
        return None if self.unreadable is None else f"the model repository cannot be read: {self.unreadable}"

    def told(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "wanted": None if self.wanted is None else sorted(self.wanted),
            "failures": dict(sorted(self.failures.items())),
            "unreadable": self.unreadable,
            "served": self.served,
            "found": self.found,
        }

    def restore(self, told: Mapping[str, Any]) -> None:
        """Becomes what another process has told; a server that need not look for models knows them before that."""
        wanted = told["wanted"]
        self.wanted = set(wanted) if wanted is not None else None if self._rules.scan else set()
        self.failures = dict(told["failures"])
        self.unreadable, self.served, self.found = told["unreadable"], told["served"], told["found"]
