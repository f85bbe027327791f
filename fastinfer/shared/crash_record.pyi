"""Shared memory in which processes note what they are about to run, and a table of what ended processes.

A record has a slot for each process that may live at the same time, and one table for all of them. The table has 64-bit
keys of requests, loads and models, each with a kind (:data:`SUSPECT`, :data:`CULPRIT`, :data:`LOAD_SUSPECT`,
:data:`QUARANTINED`, :data:`WITHDRAWN`) and an expiry time. The memory outlives the processes.
:mod:`fastinfer.supervisor.blame` reads the slots and writes the table.

Imports neither ONNX Runtime nor numpy.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from typing_extensions import Buffer

SUSPECT: Final[int]
"""A request that was running when a process died. It runs alone."""
CULPRIT: Final[int]
"""A request that ended the process that ran it. It is not run."""
LOAD_SUSPECT: Final[int]
"""A load that was under way when a process died. Suspect loads run one at a time."""
QUARANTINED: Final[int]
"""A load that ended the process. It is refused."""
WITHDRAWN: Final[int]
"""A model, by the key of its load, that ended processes with several requests. None of its requests is run."""

class Verdict(NamedTuple):
    """The table's entry for a key."""

    kind: int
    group: int
    strikes: int
    signal: int

class Running(NamedTuple):
    """A run (of the model with this key) or a load (with this key) that was under way in a process.

    Attributes:
        label: the name of the model and version, for people.
        at_fault: the crash signal arrived on the thread that was running or loading it.
        requests: the number of requests in the run; 0 for a load.
        fingerprints: of the requests; not all if there are very many.
    """

    label: str
    key: int
    group: int
    at_fault: bool
    requests: int
    fingerprints: tuple[int, ...]

class Death(NamedTuple):
    """The work that was under way when a process ended.

    Attributes:
        unnoted: the number of further runs, of which nothing is known.
        on_loop: the crash signal arrived on the loop's thread.
    """

    runs: list[Running]
    loads: list[Running]
    unnoted: int
    on_loop: bool

def nbytes(slots: int) -> int:
    """The size of a record for this many processes; pages that are never touched take no memory."""

def hashed(text: str) -> int:
    """A key or group computed from a text; the same in all processes, and never 0."""

class CrashRecord:
    """A record in memory that the caller provides: new (all zeros), or already a record.

    Args:
        memory: writable and shared by all processes; new memory gets as many slots as fit.

    Raises:
        ValueError: the memory is too small, not aligned, or the record of another build.
    """

    def __init__(self, memory: Buffer) -> None: ...
    def __len__(self) -> int:
        """The number of slots."""
    @property
    def armed(self) -> bool:
        """Whether the table has entries, or is about to have some."""
    @property
    def refused(self) -> int:
        """The number of culprit requests that processes of all slots have refused; never decreases."""

    # The table. Only one process may write.
    def put(
        self, key: int, kind: int, seconds: float, *, group: int = 0, strikes: int = 0, signal: int = 0
    ) -> None:
        """Sets the kind of a key for this long, replacing its entry. If no place is free, an older entry is dropped."""
    def find(self, key: int) -> Verdict | None: ...
    def kind(self, key: int) -> int:
        """The kind of a key, or 0. A request has one from the moment of its run's crash on."""
    def holds(self, group: int, kind: int) -> bool:
        """Whether the table has an entry of this group and kind."""
    def remove(self, key: int) -> None: ...
    def entries(self) -> list[tuple[int, int, int]]:
        """Key, group and kind of all entries; removes expired ones."""

    # The slots of dead processes.
    def death(self, index: int) -> Death:
        """The work that was under way in a slot's process. IndexError."""
    def reset(self, index: int) -> None:
        """Makes a slot ready for another process. IndexError."""

class CrashSlot:
    """This process's slot. Loop's thread only, except for loads.

    Args:
        record: the slot keeps it alive.
        index: a slot that no living process has. IndexError.
    """

    record: CrashRecord

    def __init__(self, record: CrashRecord, index: int) -> None: ...
    def watch_faults(self) -> None:
        """From now on, notes the thread on which SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT arrives; the signal still
        ends the process. Call it once in a process; the record must never be freed afterwards."""
    def begin_run(self, key: int, group: int, label: bytes, fingerprints: Collection[int], requests: int) -> None:
        """Notes a run on this thread that never ends, for tests."""
    def begin_load(self, key: int, group: int, label: bytes) -> int:
        """Notes a load on this thread; returns its place, or -1 if no place is free."""
    def end_load(self, place: int) -> None:
        """Removes a load that has succeeded or failed without a crash; it is no longer suspect."""
