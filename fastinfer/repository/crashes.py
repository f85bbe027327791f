"""What ended processes before, as far as a serving process must know: what to note, and what to leave alone.

Which request or load is to blame is decided elsewhere (:mod:`fastinfer.supervisor.blame`, which tells the whole).
Without a crash record, in a process that nobody supervises, everything here does nothing.
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
        slot: its slot; None: nothing is recorded.
    """

    def __init__(self, slot: CrashSlot | None = None) -> None:
        self._slot = slot
        self._suspects_turn = asyncio.Lock()

    @classmethod
    def attach(cls, fd: int, slot: int | None) -> Crashes:
        """Takes a slot of the record in shared memory, and begins to note on which threads crashes come.

        Args:
            fd: of the memory; it is closed.
            slot: the slot; None: there was none to be had.
        """
        with os.fdopen(fd) as file:
            if slot is None:
                return cls()
            taken = CrashSlot(CrashRecord(mmap.mmap(file.fileno(), 0)), slot)
        taken.watch_faults()
        return cls(taken)

    @property
    def refused(self) -> int | None:
        """Requests that no process has run because they had ended one; None where nothing is recorded."""
        return None if self._slot is None else self._slot.record.refused

    @property
    def withdrawn(self) -> int:
        """Models that no process runs because they have ended several."""
        entries = () if self._slot is None else self._slot.record.entries()
        return sum(kind == WITHDRAWN for _, _, kind in entries)

    def load(self, model: str, version: int, made_of: object) -> RecordedLoad:
        """The load of one version.

        Args:
            model: its directory.
            version: its number.
            made_of: everything that a crash may depend on; its ``repr`` counts. With other files it is another load.
        """
        return RecordedLoad(self._slot, self._suspects_turn, model, version, made_of)


class RecordedLoad:
    """One version's load in the crash record."""

    def __init__(
        self, slot: CrashSlot | None, suspects_turn: asyncio.Lock, model: str, version: int, made_of: object
    ) -> None:
        self._slot = slot
        self._suspects_turn = suspects_turn
        self._model = model
        self._group = hashed(model)
        self._key = hashed(repr((model, version, made_of)))
        self._label = f"model '{model}' version {version}".encode()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Suspect loads wait for each other, so that the next death tells which it was. ApiError 400: quarantined."""
        if not self._is_suspect():
            yield
            return
        async with self._suspects_turn:
            self._is_suspect()  # it may be worse by now
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
        """Notes the load while it lasts. On the thread that loads."""
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
        """For the runs of what was loaded."""
        return None if self._slot is None else RunNotes(self._slot, self._key, self._group, self._label)
