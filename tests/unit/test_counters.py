"""Histograms: buckets, borrowed memory, merging."""

from __future__ import annotations

import gc
import mmap
import os
import sys

import pytest

from fastinfer.shared import counters as histogram
from fastinfer.shared.counters import DURATION_BOUNDS_NS, SIZE_BOUNDS, Histogram


def test_a_bucket_includes_its_bound() -> None:
    counted = Histogram((10, 20))
    for value in (0, 10, 11, 20, 21, 10**15):
        counted.add(value)
    assert counted.counts() == [2, 2, 2]
    assert counted.count == 6
    assert counted.sum == 62 + 10**15


def test_the_bounds_are_those_of_the_documentation() -> None:
    assert DURATION_BOUNDS_NS[:4] == (10_000, 25_000, 50_000, 100_000)
    assert DURATION_BOUNDS_NS[-1] == 60_000_000_000
    assert SIZE_BOUNDS[:4] == (1, 2, 4, 8)
    assert list(DURATION_BOUNDS_NS) == sorted(set(DURATION_BOUNDS_NS))


def test_a_value_counts_several_times() -> None:
    counted = Histogram((5,))
    counted.add(7, 3)
    assert (counted.counts(), counted.sum) == ([0, 3], 21)


def test_a_clock_that_went_back_counts_as_zero() -> None:
    counted = Histogram((5,))
    counted.add(-3)
    assert (counted.counts(), counted.sum) == ([1, 0], 0)


def test_without_bounds_it_is_a_count_and_a_sum() -> None:
    counted = Histogram(())
    counted.add(4)
    counted.add(6)
    assert (counted.count, counted.sum, histogram.nbytes(())) == (2, 10, 16)


def test_another_process_sees_what_is_counted() -> None:
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    counted = Histogram(SIZE_BOUNDS, shared, 64)
    child = os.fork()
    if child == 0:  # not an assertion in sight: the child must not come back to pytest
        Histogram(SIZE_BOUNDS, shared, 64).add(3)
        os._exit(0)
    os.waitpid(child, 0)
    assert counted.counts()[:4] == [0, 0, 1, 0]
    del counted
    shared.close()  # nothing holds the mapping any more


def test_memory_is_held_while_it_is_used() -> None:
    block = bytearray(histogram.nbytes((1,)))
    counted = Histogram((1,), block)
    with pytest.raises(BufferError):
        block.extend(b"more")
    del counted
    block.extend(b"more")


@pytest.mark.parametrize(
    ("bounds", "memory", "offset", "message"),
    [
        ((1,), bytearray(16), 0, "does not fit"),
        ((1,), bytearray(24), 8, "does not fit"),
        ((1,), bytearray(24), -8, "does not fit"),
        ((1,), bytearray(64), 4, "aligned"),
        ((2, 2), None, 0, "must rise"),
        (tuple(range(65)), None, 0, "at most 64"),
    ],
)
def test_what_does_not_fit_is_refused(
    bounds: tuple[int, ...], memory: bytearray | None, offset: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Histogram(bounds, memory, offset)


def test_read_only_memory_is_refused() -> None:
    with pytest.raises(BufferError):
        Histogram((1,), bytes(24))


def test_the_collector_releases_the_memory() -> None:
    class Memory(bytearray):
        histogram: Histogram

    memory = Memory(histogram.nbytes((1,)))
    memory.histogram = Histogram((1,), memory)
    complaints: list[object] = []
    sys.unraisablehook, before = complaints.append, sys.unraisablehook
    try:
        del memory
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert not complaints
    assert not [each for each in gc.get_objects() if type(each) is Memory]
