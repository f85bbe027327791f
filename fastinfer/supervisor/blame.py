"""Who is to blame when a serving process dies: a query of death kills once or twice, and is then harmless.

Every serving process notes in a :class:`~fastinfer.shared.crash_record.CrashRecord` what it is about to run: for each
run the model and the fingerprints of the requests, for each load what it loads. The notes outlive it. When it dies of a
crash, what was under way becomes *suspect*, and all processes know of it at once:

- A suspect request is run alone, never in a batch. If that ends well, it is cleared: the mates of a query of death are
  answered on their second try. If the process dies again, the request is a *culprit* and is answered with 500.
- Where only one request can have done it (it was alone in its run, and the crash came on that run's thread, or nothing
  else was under way), it is a culprit at once.
- The same holds for loads, with their trial and warm-up runs: suspect loads wait for each other, a culprit is
  *quarantined*: it is refused with 400 as long as its files, configuration and parameters stay the same.

A *model* that ends :data:`~fastinfer.base.limits.MODEL_DEATHS` processes within a minute, each with another request, is
*withdrawn*: new values or a new shape each time would stop everybody else each time. No process runs any of it, and its
requests are answered with 503, for a minute; then it is on trial, where one more death withdraws it for twice as long.
Other files or another configuration make it another model, and whoever loads it again has it tried at once.

A death that does not tell who did it (SIGKILL by a person or for want of memory; a crash on another thread while
several runs were under way) only counts: :data:`~fastinfer.base.limits.STRIKES` such deaths with the request alone in
its run, and not one run that ended well, make it a culprit.

What the supervisor does::

    suspects, fd = Suspects.create(slots)   # a slot for each process that may live at the same time
    slot = suspects.free_slot()             # for a process that is about to start, and inherits fd
    suspects.after_death(slot, signal)      # when it has ended, however it did: the slot is free again
    suspects.forget_old()                   # every minute or so

A new process loads what the others hold. Where that is quarantined it is refused with 400 at
once, and so is a load that a client asks for: otherwise whoever may load could end a process with each request. Changed
files (``touch`` is enough), configuration or parameters make it another load.
"""

from __future__ import annotations

import logging
import mmap
import signal as signals
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fastinfer.base import limits, machine
from fastinfer.shared import crash_record
from fastinfer.shared.crash_record import (
    CULPRIT,
    LOAD_SUSPECT,
    QUARANTINED,
    SUSPECT,
    WITHDRAWN,
    CrashRecord,
    Death,
    Running,
)

log = logging.getLogger(__name__)

_CRASHES: Final = frozenset(
    {signals.SIGFPE, signals.SIGSEGV, signals.SIGABRT, signals.SIGILL, signals.SIGBUS, signals.SIGKILL}
)


_FORGIVEN: Final = 10  # times a withdrawal without another death: then the next one is as short as the first


@dataclass(slots=True)
class _Deaths:
    """The processes that a model has ended.

    Attributes:
        recent: of those of the last minute when, and which requests may have done it.
        withdrawn_s: how long it was withdrawn for last; 0: it never was.
        until: when that was over.
    """

    recent: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    withdrawn_s: float = 0.0
    until: float = 0.0

    def forget(self, now: float) -> None:
        """Forgets what does not count any more."""
        self.recent = [(when, requests) for when, requests in self.recent if now - when < limits.MODEL_DEATHS_S]
        if now > self.until + _FORGIVEN * self.withdrawn_s:
            self.withdrawn_s = 0.0

    def count(self, now: float, requests: frozenset[int]) -> int:
        """Counts a death; returns how many requests there must be that have ended processes.

        Two deaths with a request in common may both be its doing: a batch, and then that request alone.
        """
        for place, (_, others) in enumerate(self.recent):
            if requests & others:
                self.recent[place] = now, requests & others
                return len(self.recent)
        self.recent.append((now, requests))
        return len(self.recent)

    def withdraw(self, now: float) -> float:
        """For how long."""
        self.withdrawn_s = min(2 * self.withdrawn_s, limits.MAX_WITHDRAWN_S) or limits.WITHDRAWN_S
        self.until = now + self.withdrawn_s
        self.recent.clear()
        return self.withdrawn_s


class Suspects:
    """The supervisor's side of a crash record.

    Args:
        record: the record.
        now: the time in seconds; a test may bring one that stands still.
    """

    def __init__(self, record: CrashRecord, now: Callable[[], float] = time.monotonic) -> None:
        self._record = record
        self._now = now
        self._models: dict[int, _Deaths] = {}
        self._free = list(range(len(record)))

    @classmethod
    def create(cls, slots: int) -> tuple[Suspects, int]:
        """A record in new shared memory, with a slot for each of so many processes; and its file descriptor.

        Raises:
            OSError: as of :func:`fastinfer.base.machine.shared_memory`.
        """
        size = crash_record.nbytes(slots)
        fd = machine.shared_memory("fastinfer-crash-record", size)
        return cls(CrashRecord(mmap.mmap(fd, size))), fd

    def free_slot(self) -> int | None:
        """A slot that no process has; None: all are taken, and a process does without."""
        return self._free.pop() if self._free else None

    def after_death(self, slot: int | None, signal: int) -> None:
        """Finds who is to blame for the death of a slot's process, and makes the slot free for another one.

        Args:
            slot: the dead process's; None: it did without.
            signal: that ended it; 0 or less where none did.
        """
        if slot is None:
            return
        if signal in _CRASHES:
            self._blame(self._record.death(slot), signal)
        self._record.reset(slot)
        self._free.append(slot)

    def _blame(self, death: Death, signal: int) -> None:
        name = signals.Signals(signal).name
        runs, loads, at_fault = death.runs, death.loads, False
        if any(noted.at_fault for noted in (*runs, *loads)):
            at_fault = True
            runs = [run for run in runs if run.at_fault]
            loads = [load for load in loads if load.at_fault]
        candidates = len(runs) + len(loads) + death.unnoted
        # A crash on the loop's thread outside of a run is most likely none of the runs' making.
        certain = at_fault or (candidates == 1 and signal != signals.SIGKILL and not death.on_loop)
        for run in runs:
            self._blame_run(run, name, certain)
            if certain:
                self._blame_model(run, signal)
        for load in loads:
            self._blame_load(load, signal, name, certain)

    def is_quarantined(self, model: str) -> bool:
        """Whether some load of a model of the repository is refused."""
        return self._record.holds(crash_record.hashed(model), QUARANTINED)

    def forget_old(self) -> None:
        """Takes out of the table what is over."""
        self._record.entries()
        for model, deaths in list(self._models.items()):
            deaths.forget(self._now())
            if not deaths.recent and not deaths.withdrawn_s:
                del self._models[model]

    def _blame_run(self, run: Running, name: str, certain: bool) -> None:
        requests = set(run.fingerprints)
        alone = len(requests) == 1 and run.requests == len(run.fingerprints)
        crowd = run.requests > len(run.fingerprints)
        if crowd and self._record.kind(run.key) != WITHDRAWN:  # it may have been one of those that were not noted
            self._record.put(run.key, SUSPECT, limits.CROWD_S, group=run.group)
        convicted = sum(self._blame_request(request, run, alone, alone and certain) for request in requests)
        if convicted:
            log.error("a request to %s has ended its process by %s; it is not run again", run.label, name)
        else:
            log.warning("%d requests to %s were running when their process died by %s", run.requests, run.label, name)

    def _blame_model(self, run: Running, signal: int) -> None:
        if self._record.kind(run.key) == WITHDRAWN:  # a process had begun the run before
            return
        now = self._now()
        deaths = self._models.setdefault(run.key, _Deaths())
        deaths.forget(now)
        requests = deaths.count(now, frozenset(run.fingerprints))
        if requests < limits.MODEL_DEATHS and not deaths.withdrawn_s:
            return
        seconds = deaths.withdraw(now)
        self._record.put(run.key, WITHDRAWN, seconds, group=run.group, signal=signal)
        log.error("%s ends processes with different requests; it is withdrawn for %g s", run.label, seconds)

    def _blame_request(self, request: int, run: Running, alone: bool, certain: bool) -> bool:
        """Whether it is a culprit now."""
        known = self._record.find(request)
        strikes = (known.strikes if known else 0) + alone
        convicted = certain or strikes >= limits.STRIKES or (known is not None and known.kind == CULPRIT)
        kind, seconds = (CULPRIT, limits.CULPRIT_S) if convicted else (SUSPECT, limits.SUSPECT_S)
        self._record.put(request, kind, seconds, group=run.group, strikes=strikes)
        return convicted

    def _blame_load(self, load: Running, signal: int, name: str, certain: bool) -> None:
        known = self._record.find(load.key)
        strikes = (known.strikes if known else 0) + 1
        if certain or strikes >= limits.STRIKES:
            self._record.put(load.key, QUARANTINED, limits.CULPRIT_S, group=load.group, strikes=strikes, signal=signal)
            log.error("the process died by %s while it loaded %s, which is quarantined", name, load.label)
        else:
            self._record.put(load.key, LOAD_SUSPECT, limits.SUSPECT_S, group=load.group, strikes=strikes)
            log.warning("%s was being loaded when the process died by %s", load.label, name)
