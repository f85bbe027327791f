"""Results of checks that take long, by what was checked: a restart does not check again what is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Lock

from fastinfer.base import limits

log = logging.getLogger(__name__)


class Findings:
    """What checks have found in this process and in those before it.

    A key names what was checked and how, so an entry never becomes wrong. Thread-safe: written on load threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._found: dict[str, str | None] = {}
        self._news: dict[str, str | None] = {}  # found here, and in no snapshot yet

    def once(self, key: str, check: Callable[[], str | None]) -> str | None:
        """Returns what ``check`` finds, or found before: a reason, or None. Raises what ``check`` raises."""
        with self._lock:
            known = key in self._found
            found = self._found.pop(key, None)
        if known:
            log.debug("the trial of rows is known from before: %s", found or "they are independent")
        else:
            found = check()
            with self._lock:
                self._news[key] = found
        self._keep(key, found)
        return found

    def _keep(self, key: str, found: str | None) -> None:
        with self._lock:
            self._found[key] = found
            while len(self._found) > limits.MAX_TRIAL_RESULTS:
                del self._found[next(iter(self._found))]

    def snapshot(self) -> dict[str, str | None]:
        """All entries, the latest last."""
        with self._lock:
            self._news = {}
            return dict(self._found)

    def news(self) -> dict[str, str | None]:
        """The entries since the last snapshot or news."""
        with self._lock:
            news, self._news = self._news, {}
            return news

    def restore(self, entries: Mapping[str, str | None]) -> None:
        """Adds another process's entries."""
        for key, found in entries.items():
            self._keep(key, found)
