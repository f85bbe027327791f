"""Counters in memory that other processes can read: one writer, any number of readers."""

from collections.abc import Sequence
from typing import Literal

from typing_extensions import Buffer

DURATION_BOUNDS_NS: tuple[int, ...]
"""1, 2.5 and 5 of each decade from 10 µs to 50 s, and 60 s; in nanoseconds."""
SIZE_BOUNDS: tuple[int, ...]
"""Powers of two from 1 to 4096, for sizes of batches."""

def nbytes(bounds: Sequence[int]) -> int:
    """The memory of a histogram with these bounds: a sum, a count for each bound, and one for all above."""

class Histogram:
    """Counts integers by buckets.

    Args:
        bounds: rising; a bucket counts values up to and including its bound. Without any, the histogram is just a
            count and a sum.
        memory: a writable buffer that is zero where nothing was counted yet; memory of its own by default.
        offset: where in the buffer it begins, in bytes; the address must be a multiple of 8.

    Raises:
        ValueError: bounds that do not rise or are more than 64, memory that is too small or not aligned.
        BufferError: memory that cannot be written.
    """

    bounds: tuple[int, ...]
    def __init__(self, bounds: Sequence[int], memory: Buffer | None = None, offset: int = 0) -> None: ...
    def add(self, value: int, times: int = 1) -> None:
        """Counts ``value`` (a negative one as 0) ``times`` times. Only the one writing thread may call it."""
    @property
    def sum(self) -> int:
        """The sum of all values."""
    @property
    def count(self) -> int:
        """How many values there were."""
    def counts(self) -> list[int]:
        """The values of each bucket (not cumulated), the one without a bound last."""

Cause = Literal["client", "model", "timeout", "rejected", "cancelled"]

CAUSES: tuple[Cause, ...]
"""Why a request failed: it was wrong (4xx), the model failed (500), its deadline passed, the queue was full or there
was no memory for it, its client went away."""
DURATIONS: tuple[str, ...]
"""The histograms of durations: success, queue, compute_input, compute_infer, compute_output."""
NBYTES: int
"""The size of the block of counters."""
HISTOGRAMS: dict[str, tuple[int, tuple[int, ...]]]
"""Where each histogram lies in the block: its first cell (the sum; the counts of its buckets follow), and its bounds.
By name: :data:`DURATIONS`, ``batch_size`` and :data:`CAUSES`."""
LINE_CELL: int
"""The first cell of the table by size of the batch."""
LINES: int
"""How many lines that table has."""
CELLS_OF_LINE: int
"""The cells of a line: runs, and the nanoseconds of input, infer and output."""
ANSWERED_ROWS_CELL: int
LAST_INFERENCE_CELL: int
"""A date, so of several blocks the latest counts."""
OVERRUNS_CELL: int
WITHDRAWN_CELL: int

class Counters:
    """All counters are 64-bit integers in one block of memory. Written on the loop's thread, read anywhere.

    Args:
        memory: at least :data:`NBYTES` writable bytes, zero at first; memory of its own by default.

    Raises:
        ValueError: the memory is too small or not aligned.
    """

    success: Histogram
    """The whole stay of a request that was answered with outputs."""
    queue: Histogram
    compute_input: Histogram
    compute_infer: Histogram
    compute_output: Histogram
    batch_size: Histogram
    failures: dict[Cause, Histogram]
    block: memoryview
    def __init__(self, memory: Buffer | None = None) -> None: ...
    def record_success(self, total_ns: int, queue_ns: int, rows: int = 1) -> None:
        """A request was answered with its outputs: ``rows`` of them, ``total_ns`` after it was queued."""
    def record_failure(self, cause: Cause, total_ns: int) -> None:
        """A request ended without outputs, ``total_ns`` after it was queued (0: it never was)."""
    def record_batch(
        self, rows: int, answered: int, compute_input_ns: int, compute_infer_ns: int, compute_output_ns: int
    ) -> None:
        """A batch ended.

        Args:
            rows: of the batch, also those that nobody waited for any more.
            answered: its requests that were answered with outputs. Each of them spent the batch's times, so that is
                how often the times count: then, as clients assume, a request's average time in the server is the sum
                of the averages of its parts.
            compute_input_ns: gathering its inputs.
            compute_infer_ns: running.
            compute_output_ns: scattering its outputs.
        """
    @property
    def answered_rows(self) -> int:
        """Rows that were answered with outputs."""
    @property
    def last_inference_ms(self) -> int:
        """The date of the last batch that was answered, in milliseconds since 1970; 0: there was none."""
    @property
    def overruns(self) -> int:
        """Runs on the event loop's thread that took more than ten times what was expected."""
    @property
    def withdrawn(self) -> int:
        """Requests that were refused because the model is withdrawn."""

def batch_size_of(line: int) -> int:
    """The size of the batches that a line counts; of a line that several sizes share, the largest."""
