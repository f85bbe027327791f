"""A serving process's access to the crash record: notes its loads, and refuses loads that ended processes before.

:mod:`fastinfer.supervisor.blame` decides which request or load is to blame, and describes the rules. Without a crash
record, in a process without a supervisor, the methods here do nothing.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from signal import Signals

from fastinfer.base.errors import ApiError
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.shared.crash_record import QUARANTINED, WITHDRAWN, CrashRecord, CrashSlot, hashed


class Crashes:
    """A serving process's side of a crash record.

    Args:
        slot: the process's slot; None: nothing is recorded.
    """

    def __init__(self, slot: CrashSlot | None = None) -> None:
        self._slot = slot
        self._suspects_turn = asyncio.Lock()

    @classmethod
    def attach(cls, fd: int, slot: int | None) -> Crashes:
        """Takes a slot of the record in shared memory, and begins to note the threads on which crashes occur.

        Args:
            fd: the memory's file descriptor; it is closed.
            slot: the slot; None: none was free.
        """
        with os.fdopen(fd) as file:
            if slot is None:
                return cls()
            crash_slot = CrashSlot(CrashRecord(mmap.mmap(file.fileno(), 0)), slot)
        crash_slot.watch_faults()
        return cls(crash_slot)

    @property
    def refused(self) -> int | None:
        """The number of requests refused because they had ended a process; None if nothing is recorded."""
        return None if self._slot is None else self._slot.record.refused

    @property
    def withdrawn(self) -> int:
        """The number of models that no process runs because they have ended several."""
        entries = () if self._slot is None else self._slot.record.entries()
        return sum(kind == WITHDRAWN for _, _, kind in entries)

    def load(self, model: str, version: int, source: object) -> RecordedLoad:
        """The load of one version.

        Args:
            model: the model's directory.
            version: the version's number.
            source: everything that a crash may depend on, compared by its ``repr``. Other files make it another load.
        """
        return RecordedLoad(self._slot, self._suspects_turn, model, version, source)


class RecordedLoad:
    """One version's load in the crash record."""

    def __init__(
        self, slot: CrashSlot | None, suspects_turn: asyncio.Lock, model: str, version: int, source: object
    ) -> None:
        self._slot = slot
        self._suspects_turn = suspects_turn
        self._model = model
        self._group = hashed(model)
        self._key = hashed(repr((model, version, source)))
        self._label = f"model '{model}' version {version}".encode()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Orders suspect loads one after another, so that a death has one culprit. ApiError 400 if quarantined."""
        if not self._is_suspect():
            yield
            return
        async with self._suspects_turn:
            self._is_suspect()  # the load may be quarantined by now
            yield

    def _is_suspect(self) -> bool:
        known = None if self._slot is None else self._slot.record.find(self._key)
        if known is not None and known.kind == QUARANTINED:
            raise ApiError(
                400,
                f"model '{self._model}' is quarantined: the process died by {Signals(known.signal).name} while it "
                "loaded this model; with other files (touch is enough), configuration or parameters it is tried again",
            )
        return known is not None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Notes the load while it lasts. Runs on the load thread."""
        if self._slot is None:
            yield
            return
        place = self._slot.begin_load(self._key, self._group, self._label)
        try:
            yield
        finally:
            self._slot.end_load(place)

    @property
    def run_notes(self) -> RunNotes | None:
        """Notes the runs of the loaded version; None: nothing is recorded."""
        return None if self._slot is None else RunNotes(self._slot, self._key, self._group, self._label)
