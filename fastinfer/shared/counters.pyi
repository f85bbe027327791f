"""Counters in memory that other processes can read: one writer, any number of readers."""

from collections.abc import Sequence
from typing import Literal

from typing_extensions import Buffer

DURATION_BOUNDS_NS: tuple[int, ...]
"""1, 2.5 and 5 of each decade from 10 µs to 50 s, and 60 s; in nanoseconds."""
SIZE_BOUNDS: tuple[int, ...]
"""Powers of two from 1 to 4096, for batch sizes."""

def nbytes(bounds: Sequence[int]) -> int:
    """The size of a histogram with these bounds: a sum, a count for each bound, and a count for larger values."""

class Histogram:
    """Counts integers by buckets.

    Args:
        bounds: in rising order; a bucket counts values up to and including its bound. Without bounds, the histogram
            is a count and a sum.
        memory: a writable buffer, zeroed before its first use; by default the histogram allocates its own.
        offset: the histogram's offset in the buffer, in bytes; the address must be a multiple of 8.

    Raises:
        ValueError: the bounds do not rise or are more than 64, or the memory is too small or not aligned.
        BufferError: the memory is read-only.
    """

    bounds: tuple[int, ...]
    def __init__(self, bounds: Sequence[int], memory: Buffer | None = None, offset: int = 0) -> None: ...
    def add(self, value: int, times: int = 1) -> None:
        """Counts ``value`` (a negative one as 0) ``times`` times. Only the single writer thread may call it."""
    @property
    def sum(self) -> int:
        """The sum of all values."""
    @property
    def count(self) -> int:
        """The number of values."""
    def counts(self) -> list[int]:
        """The count of each bucket (not cumulative); the bucket without a bound is last."""

Cause = Literal["client", "model", "timeout", "rejected", "cancelled"]

CAUSES: tuple[Cause, ...]
"""Why a request failed: it was invalid (4xx), the model failed (500), its deadline passed, the queue or the memory
budget was full, its client disconnected."""
DURATIONS: tuple[str, ...]
"""The histograms of durations: success, queue, compute_input, compute_infer, compute_output."""
NBYTES: int
"""The size of the block of counters."""
HISTOGRAMS: dict[str, tuple[int, tuple[int, ...]]]
"""Each histogram's place in the block: its first cell (the sum; the counts of its buckets follow), and its bounds.
By name: :data:`DURATIONS`, ``batch_size`` and :data:`CAUSES`."""
LINE_CELL: int
"""The first cell of the table by batch size."""
LINES: int
"""The number of lines of that table."""
CELLS_OF_LINE: int
"""The cells of a line: runs, and the nanoseconds of input, infer and output."""
ANSWERED_ROWS_CELL: int
LAST_INFERENCE_CELL: int
"""A time, so a sum over blocks takes the latest value instead."""
OVERRUNS_CELL: int
WITHDRAWN_CELL: int
VERSION_CELL: int
"""Odd while counters change that belong together."""

class Counters:
    """A model's counters: 64-bit integers in one block of memory. Written on the loop's thread, read on any thread.

    Args:
        memory: at least :data:`NBYTES` writable bytes, zeroed before their first use; by default own memory.

    Raises:
        ValueError: the memory is too small or not aligned.
    """

    success: Histogram
    """The total time of requests that were answered with outputs."""
    queue: Histogram
    compute_input: Histogram
    compute_infer: Histogram
    compute_output: Histogram
    batch_size: Histogram
    failures: dict[Cause, Histogram]
    block: memoryview
    def __init__(self, memory: Buffer | None = None) -> None: ...
    def record_success(self, total_ns: int, queue_ns: int, rows: int = 1) -> None:
        """Counts a request that was answered with outputs of ``rows`` rows, ``total_ns`` after it was queued."""
    def record_failure(self, cause: Cause, total_ns: int) -> None:
        """Counts a request that ended without outputs, ``total_ns`` after it was queued (0: it never was queued)."""
    def record_batch(
        self, rows: int, answered: int, compute_input_ns: int, compute_infer_ns: int, compute_output_ns: int
    ) -> None:
        """Counts a batch that ended.

        Args:
            rows: the batch's rows, including those of dropped requests.
            answered: how many of its requests were answered with outputs. The times count once for each of them,
                because each took that long; then, as clients assume, a request's average time in the server is the
                sum of the averages of its parts.
            compute_input_ns: the time of gathering the inputs.
            compute_infer_ns: the time of the run.
            compute_output_ns: the time of scattering the outputs.
        """
    @property
    def answered_rows(self) -> int:
        """The rows that were answered with outputs."""
    @property
    def last_inference_ms(self) -> int:
        """The time of the last answered batch, in milliseconds since 1970; 0: there was none."""
    @property
    def overruns(self) -> int:
        """Runs on the event loop's thread that took more than ten times the predicted time."""
    @property
    def withdrawn(self) -> int:
        """Requests refused because the model is withdrawn."""

def batch_size_of(line: int) -> int:
    """The batch size that a line counts; if several sizes share a line, the largest."""
