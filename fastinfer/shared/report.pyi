"""Renders counters as text: a template, and the native job that fills it in."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from typing_extensions import Buffer

from fastinfer.native.job import Job
from fastinfer.shared.counters import Counters

USAGE_CELLS: Final[int]
"""The number of cells for a process's usage: bytes of virtual and of resident memory, start time (since boot) and CPU
time in clock ticks, open files, and the limit of open files."""

class Step(NamedTuple):
    """A piece of text with a number after it: ``before``, the entry's text, ``after``, the number.

    Cell indices begin with the group's extra cells; in the first group, the cells of the model's counters follow.

    Attributes:
        before: text.
        text: the index of the entry's text that follows.
        after: text.
        cells: the cells whose sum is the number.
        goes_on: the previous step's number is added to the sum.
        form: ``whole`` (12), ``decimal`` (12.0, as Python's repr) or empty: no number is written.
        unit: the divisor of a decimal number.
        condition: a cell; if it is 0, this step and the next ``skipped`` steps are left out.
        skipped: see ``condition``.
        listed: a comma precedes the step, unless it follows a ``[``.
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
    """Steps that run for each entry of a group; ``head`` is before, ``between`` between, and ``tail`` after entries."""

    group: int
    head: bytes = b""
    between: bytes = b""
    tail: bytes = b""
    steps: Sequence[Step] = ()

class Group(NamedTuple):
    """Entries, and extra cells for each (int64, entry after entry; None: they are 0)."""

    entries: Sequence[Entry]
    extra: Buffer | None = None

class Shared(NamedTuple):
    """Counters of several processes: banks of blocks. A block begins with a key of 16 bytes; its counters begin at
    ``cells_at``. The first block of a bank belongs to no model; the others are first used in order."""

    memory: Buffer
    bank_bytes: int
    block_bytes: int
    cells_at: int

class Template:
    """Sections, one after the other.

    Args:
        sections: the sections, in order.
        extra: the number of extra cells of an entry, for each group; the first group is the models.

    Raises:
        ValueError: a step uses a cell or a text that entries do not have.
    """

    cells: int
    extra: tuple[int, ...]
    def __init__(self, sections: Sequence[Section], extra: Sequence[int] = (0,)) -> None: ...

class Entry:
    """The part of a template that differs between models.

    Args:
        texts: at most two texts.
        key: the key of its blocks in shared counters; 16 bytes, or empty.
        counters: this process's counters.
    """

    texts: tuple[bytes, ...]
    key: bytes
    counters: Counters | None
    def __init__(self, texts: Sequence[bytes], key: bytes = b"", counters: Counters | None = None) -> None: ...

class Report(Job):
    """Fills a template in, on any thread.

    Args:
        template: the text to write.
        groups: the entries.
        shared: the counters of all processes. An entry's number is the sum over the blocks with its key, plus its own
            counters if they are not in this memory.
        pids: processes whose usage fills the first cells of the last group's only entry (:data:`USAGE_CELLS`).
        latest: the index of a cell of a model's counters whose largest value is written instead of the sum.
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
        """Works for a few hundred microseconds on this thread; returns whether the report is finished."""
    def result(self) -> Text:
        """The text; to be called once, after the end."""

class Text(Buffer):
    """The written text, as a read-only buffer."""

    def __len__(self) -> int: ...
