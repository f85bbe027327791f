"""Attributes a crash of a serving process to a request or load, so that a query of death kills only once or twice.

Every serving process notes in a :class:`~fastinfer.shared.crash_record.CrashRecord` what it is about to run: for each
run the model and the fingerprints of the requests, for each load its key. The notes outlive the process. If it crashes,
the work under way becomes *suspect*, in all processes at once:

- A suspect request runs alone, never in a batch. If the run succeeds, the request is cleared: other requests of the
  crashed batch are answered on their second try. If the process dies again, the request is a *culprit*: answer 500.
- If only one request can be the cause (it was alone in its run, and the crash was on that run's thread, or no other
  work was under way), it is a culprit at once.
- The same holds for loads, with their trial and warm-up runs: suspect loads run one at a time, and a culprit is
  *quarantined*: refused with 400 as long as its files, configuration and parameters stay the same.

A *model* that ends :data:`~fastinfer.base.limits.MODEL_DEATHS` processes within a minute, each with another request, is
*withdrawn*, because new values or a new shape each time would interrupt all other clients each time. For a minute no
process runs it, and its requests are answered with 503. Then it is on trial: one more death withdraws it for twice as
long. Other files or another configuration make it another model; a client that loads it again ends the withdrawal.

A death with an unknown cause (SIGKILL by a person or for lack of memory; a crash on another thread while several runs
were under way) only counts: :data:`~fastinfer.base.limits.STRIKES` such deaths with the request alone in its run, and
no successful run between them, make the request a culprit.

The supervisor's calls::

    blame, fd = Blame.create(slots)    # a slot for each process that may live at the same time
    slot = blame.free_slot()           # for a process that is about to start, and inherits fd
    blame.after_death(slot, signal)    # when the process has ended, for whatever reason: frees the slot
    blame.forget_old()                 # about every minute

A new process loads what the others have loaded. A quarantined load is refused with 400 at once, for a new process and
for a client; otherwise a client could end a process with each request. Changed files (``touch`` is enough),
configuration or parameters make it another load.
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


_FORGIVEN: Final = 10  # after this many times the withdrawal without a death, the next one is as short as the first


@dataclass(slots=True)
class _Deaths:
    """The processes that a model has ended.

    Attributes:
        recent: the deaths of the last minute: the time, and the requests that may be the cause.
        withdrawn_s: the length of the last withdrawal; 0: there was none.
        until: the end of the last withdrawal.
    """

    recent: list[tuple[float, frozenset[int]]] = field(default_factory=list)
    withdrawn_s: float = 0.0
    until: float = 0.0

    def forget(self, now: float) -> None:
        """Removes expired deaths and withdrawals."""
        self.recent = [(when, requests) for when, requests in self.recent if now - when < limits.MODEL_DEATHS_S]
        if now > self.until + _FORGIVEN * self.withdrawn_s:
            self.withdrawn_s = 0.0

    def count(self, now: float, requests: frozenset[int]) -> int:
        """Counts a death; returns the least number of different requests that explains all deaths.

        One request explains two deaths that both have it: a batch, and then this request alone.
        """
        for place, (_, others) in enumerate(self.recent):
            if requests & others:
                self.recent[place] = now, requests & others
                return len(self.recent)
        self.recent.append((now, requests))
        return len(self.recent)

    def withdraw(self, now: float) -> float:
        """Starts a withdrawal, and returns its length in seconds."""
        self.withdrawn_s = min(2 * self.withdrawn_s, limits.MAX_WITHDRAWN_S) or limits.WITHDRAWN_S
        self.until = now + self.withdrawn_s
        self.recent.clear()
        return self.withdrawn_s


class Blame:
    """The supervisor's side of a crash record.

    Args:
        record: the record.
        now: returns the time in seconds; a test may replace it.
    """

    def __init__(self, record: CrashRecord, now: Callable[[], float] = time.monotonic) -> None:
        self._record = record
        self._now = now
        self._models: dict[int, _Deaths] = {}
        self._free = list(range(len(record)))

    @classmethod
    def create(cls, slots: int) -> tuple[Blame, int]:
        """Creates a record in new shared memory with this many slots; also returns the memory's file descriptor.

        Raises:
            OSError: as in :func:`fastinfer.base.machine.shared_memory`.
        """
        size = crash_record.nbytes(slots)
        fd = machine.shared_memory("fastinfer-crash-record", size)
        return cls(CrashRecord(mmap.mmap(fd, size))), fd

    def free_slot(self) -> int | None:
        """Takes a free slot; None: all are taken, and the process has none."""
        return self._free.pop() if self._free else None

    def after_death(self, slot: int | None, signal: int) -> None:
        """Blames requests and loads for the death of a slot's process, and frees the slot.

        Args:
            slot: the dead process's slot; None: it had none.
            signal: the signal that ended it; 0 or less if none did.
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
        # A crash on the loop's thread outside a run is probably not caused by the noted runs.
        certain = at_fault or (candidates == 1 and signal != signals.SIGKILL and not death.on_loop)
        for run in runs:
            self._blame_run(run, name, certain)
            if certain:
                self._blame_model(run, signal)
        for load in loads:
            self._blame_load(load, signal, name, certain)

    def is_quarantined(self, model: str) -> bool:
        """Whether a load of this model is quarantined."""
        return self._record.holds(crash_record.hashed(model), QUARANTINED)

    def forget_old(self) -> None:
        """Removes expired entries."""
        self._record.entries()
        for model, deaths in list(self._models.items()):
            deaths.forget(self._now())
            if not deaths.recent and not deaths.withdrawn_s:
                del self._models[model]

    def _blame_run(self, run: Running, name: str, certain: bool) -> None:
        requests = set(run.fingerprints)
        alone = len(requests) == 1 and run.requests == len(run.fingerprints)
        unnoted = run.requests > len(run.fingerprints)
        if unnoted and self._record.kind(run.key) != WITHDRAWN:  # the cause may be a request that is not noted
            self._record.put(run.key, SUSPECT, limits.CROWD_S, group=run.group)
        convicted = sum(self._blame_request(request, run, alone, alone and certain) for request in requests)
        if convicted:
            log.error("a request to %s has ended its process by %s; it is not run again", run.label, name)
        else:
            log.warning("%d requests to %s were running when their process died by %s", run.requests, run.label, name)

    def _blame_model(self, run: Running, signal: int) -> None:
        if self._record.kind(run.key) == WITHDRAWN:  # the run began before the withdrawal
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
        """Makes the request a suspect or a culprit; returns whether it is a culprit."""
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
