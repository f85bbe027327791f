"""What processes are about to run, noted in shared memory that outlives them; and what is known to end them.

A record has a slot for each process that may live at the same time, and one table for all of them: 64-bit keys of
requests, of loads and of models, each with what it is (:data:`SUSPECT`, :data:`CULPRIT`, :data:`LOAD_SUSPECT`,
:data:`QUARANTINED`, :data:`WITHDRAWN`) until a time. :mod:`fastinfer.supervisor.blame` uses both.

Imports neither ONNX Runtime nor numpy.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from typing_extensions import Buffer

SUSPECT: Final[int]
"""A request that was running when a process died: it runs alone."""
CULPRIT: Final[int]
"""A request that ended the process that ran it: it is not run."""
LOAD_SUSPECT: Final[int]
QUARANTINED: Final[int]
"""A load that ended the process: it is refused."""
WITHDRAWN: Final[int]
"""A model, by the key of its load, that ended processes with several requests: none of it is run."""

class Verdict(NamedTuple):
    """What the table says of a key."""

    kind: int
    group: int
    strikes: int
    signal: int

class Running(NamedTuple):
    """What was under way in a process: a run (of a model with this key) or a load (with this key).

    Attributes:
        label: of what, for people.
        at_fault: a crash came on the thread that was at it.
        requests: in the run; 0 for a load.
        fingerprints: of the requests; of very many not all.
    """

    label: str
    key: int
    group: int
    at_fault: bool
    requests: int
    fingerprints: tuple[int, ...]

class Death(NamedTuple):
    """What a process has left.

    Attributes:
        unnoted: further runs, of which nothing is known.
        on_loop: a crash came on the loop's thread.
    """

    runs: list[Running]
    loads: list[Running]
    unnoted: int
    on_loop: bool

def nbytes(slots: int) -> int:
    """The memory that a record for so many processes needs; pages that nobody touches cost nothing."""

def hashed(text: str) -> int:
    """A key or a group out of a text; the same in all processes, and not 0."""

class CrashRecord:
    """A record in given memory, which is new (all zeros) or was a record before.

    Args:
        memory: writable and shared by all processes; as many slots as fit are made in new memory.

    Raises:
        ValueError: the memory is too small, not aligned, or the record of another build.
    """

    def __init__(self, memory: Buffer) -> None: ...
    def __len__(self) -> int:
        """The slots."""
    @property
    def armed(self) -> bool:
        """Whether anything is in the table, or about to be."""
    @property
    def refused(self) -> int:
        """Requests that were not run because they are culprits, by the processes of all slots; it never falls."""

    # The table. Only one process may put.
    def put(
        self, key: int, kind: int, seconds: float, *, group: int = 0, strikes: int = 0, signal: int = 0
    ) -> None:
        """Says what a key is, for so long, whatever was said before. Where places are rare, an older entry goes."""
    def find(self, key: int) -> Verdict | None: ...
    def kind(self, key: int) -> int:
        """What a key is, or 0. Known of a request from the moment on in which its run has crashed."""
    def holds(self, group: int, kind: int) -> bool:
        """Whether the table has an entry of a group that is of this kind."""
    def remove(self, key: int) -> None: ...
    def entries(self) -> list[tuple[int, int, int]]:
        """Key, group and kind of everything in the table; takes out what is over."""

    # Slots of dead processes.
    def death(self, index: int) -> Death:
        """What was under way in a slot's process. IndexError."""
    def reset(self, index: int) -> None:
        """Makes a slot ready for another process. IndexError."""

class CrashSlot:
    """This process's slot. Loop's thread, but for loads.

    Args:
        record: it keeps the record alive.
        index: the slot, which no living process has. IndexError.
    """

    record: CrashRecord

    def __init__(self, record: CrashRecord, index: int) -> None: ...
    def watch_faults(self) -> None:
        """From now on notes the thread on which SIGSEGV, SIGBUS, SIGFPE, SIGILL or SIGABRT comes; the process dies of
        it all the same. Once in a process, and the record must never go away then."""
    def begin_run(self, key: int, group: int, label: bytes, fingerprints: Collection[int], requests: int) -> None:
        """Notes a run by this thread that never ends: for tests of what is made of one."""
    def begin_load(self, key: int, group: int, label: bytes) -> int:
        """Notes a load by this thread; returns its place, or -1 where there is none."""
    def end_load(self, place: int) -> None:
        """The load at a place has ended well or with an error: it is not suspect any more."""
