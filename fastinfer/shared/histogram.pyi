"""Counters in memory that other processes can read: fixed buckets, one writer, any number of readers."""

from collections.abc import Sequence

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
    def merge(self, other: Histogram) -> None:
        """Adds what the other one has counted. ValueError where the bounds differ."""
