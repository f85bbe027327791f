"""Text made of counters: a template, and the native job that fills it in."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from typing_extensions import Buffer

from fastinfer.native.job import Job
from fastinfer.shared.counters import Counters

USAGE_CELLS: Final[int]
"""How many cells tell what processes use: bytes of virtual and of resident memory, the start and CPU time in clock
ticks (the start since the machine's), open files, and the most that may be open."""

class Step(NamedTuple):
    """A piece of text with a number after it: ``before``, the entry's text, ``after``, the number.

    A cell's number counts the group's given cells first; in the first group those of the model's counters follow.

    Attributes:
        before: text.
        text: which of the entry's texts follows.
        after: text.
        cells: their sum is the number.
        goes_on: the number of the step before is part of the sum.
        form: ``whole`` (12), ``decimal`` (12.0, as Python's repr) or empty: no number is written.
        unit: what a decimal number is divided by.
        condition: a cell: where it is 0, this step and ``skipped`` more are left out.
        skipped: see there.
        listed: a comma goes before it, unless it follows a ``[``.
    """

    before: bytes
    text: int | None = None
    after: bytes = b""
    cells: Sequence[int] = ()
    goes_on: bool = False
    form: str = ""
    unit: float = 1.0
    condition: int | None = None
    skipped: int = 0
    listed: bool = False

class Section(NamedTuple):
    """Steps for each entry of a group, with ``head`` before, ``between`` between entries, and ``tail`` after them."""

    group: int
    head: bytes = b""
    between: bytes = b""
    tail: bytes = b""
    steps: Sequence[Step] = ()

class Group(NamedTuple):
    """Entries, and the cells that are given of each (int64, entry after entry; None: they are 0)."""

    entries: Sequence[Entry]
    extra: Buffer | None = None

class Shared(NamedTuple):
    """Counters of several processes: banks of blocks. A block begins with a key of 16 bytes; its counters begin at
    ``cells_at``. The first block of a bank is no model's; the others are first used in order."""

    memory: Buffer
    bank_bytes: int
    block_bytes: int
    cells_at: int

class Template:
    """Sections, one after the other.

    Args:
        sections: the table.
        extra: how many cells are given of each entry, for each group; the first group is that of the models.

    Raises:
        ValueError: a cell, or a text, that entries do not have.
    """

    cells: int
    extra: tuple[int, ...]
    def __init__(self, sections: Sequence[Section], extra: Sequence[int] = (0,)) -> None: ...

class Entry:
    """What differs between the models of a template.

    Args:
        texts: at most two.
        key: of its blocks in shared counters; 16 bytes, or empty.
        counters: this process's.
    """

    texts: tuple[bytes, ...]
    key: bytes
    counters: Counters | None
    def __init__(self, texts: Sequence[bytes], key: bytes = b"", counters: Counters | None = None) -> None: ...

class Report(Job):
    """Fills a template in, on any thread.

    Args:
        template: what to write.
        groups: the entries.
        shared: counters of all processes. An entry's number is the sum over the blocks with its key, and over its own
            counters where they do not lie there.
        pids: processes; what they use is the beginning of the last group's only entry (:data:`USAGE_CELLS`).
        latest: the place in a model's counters of a cell of which the largest counts, not the sum.
    """

    def __init__(
        self,
        template: Template,
        groups: Sequence[Group],
        shared: Shared | None = None,
        pids: Sequence[int] = (),
        latest: int | None = None,
    ) -> None: ...
    def step(self) -> bool:
        """Does a few hundred microseconds of it on this thread; returns whether it has ended."""
    def result(self) -> Text:
        """The text, once, after the end."""

class Text(Buffer):
    """What was written; the buffer protocol gives it, read-only."""

    def __len__(self) -> int: ...
