"""What a model version has done: the counters behind the statistics extension and ``/metrics``.

All counters are 64-bit integers in one block of memory, which may be given from outside (a shared mapping): another
process that knows the layout reads them while they run, and the sum of several is the sum of their blocks. They are
written on the loop's thread only: one call per request, one call per batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from fastinfer._ext import histogram
from fastinfer._ext.histogram import DURATION_BOUNDS_NS, SIZE_BOUNDS, Histogram

Cause = Literal["client", "model", "timeout", "rejected", "cancelled"]

CAUSES: tuple[Cause, ...] = ("client", "model", "timeout", "rejected", "cancelled")
"""Why a request failed: it was wrong (4xx), the model failed (500), its deadline passed, the queue was full, its client
went away."""

DURATIONS = ("success", "queue", "compute_input", "compute_infer", "compute_output")
"""The durations with a histogram each. ``success`` is the whole stay of a request that was answered with outputs."""

_EXACT_SIZES = 128  # batches of up to so many rows have a line of their own in batch_stats, larger ones share one ...
_LARGER_SIZES = 24  # ... with all up to the next power of two
_CELL = 8


class ModelStats:
    """The counters of one version of a model.

    Args:
        memory: at least :data:`NBYTES` writable bytes, zero at first; memory of its own by default.
    """

    def __init__(self, memory: Buffer | None = None) -> None:
        block = memoryview(bytearray(NBYTES) if memory is None else memory).cast("B")[:NBYTES]
        self._block = block
        offset = 0

        def place(bounds: tuple[int, ...]) -> Histogram:
            nonlocal offset
            placed = Histogram(bounds, block, offset)
            offset += histogram.nbytes(bounds)
            return placed

        self.success, self.queue, self.compute_input, self.compute_infer, self.compute_output = (
            place(DURATION_BOUNDS_NS) for _ in DURATIONS
        )
        self.batch_size = place(SIZE_BOUNDS)
        self.failures: dict[Cause, Histogram] = {cause: place(()) for cause in CAUSES}
        # By size of the batch: runs, and the nanoseconds of their three parts.
        table = offset + (_EXACT_SIZES + _LARGER_SIZES) * 4 * _CELL
        self._by_size = block[offset:table].cast("q")
        self._answered_rows = block[table : table + _CELL].cast("q")
        self._last_inference_ms = block[table + _CELL : NBYTES].cast("q")

    # --- Written by the scheduler -------------------------------------------------------------------------------------

    def record_success(self, total_ns: int, queue_ns: int, rows: int = 1) -> None:
        """A request was answered with its outputs: ``rows`` of them, ``total_ns`` after it was queued."""
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self._answered_rows[0] += rows

    def record_failure(self, cause: Cause, total_ns: int) -> None:
        """A request ended without outputs, ``total_ns`` after it was queued (0: it never was)."""
        self.failures[cause].add(total_ns)

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
        self.batch_size.add(rows)
        if not answered:
            return
        self.compute_input.add(compute_input_ns, answered)
        self.compute_infer.add(compute_infer_ns, answered)
        self.compute_output.add(compute_output_ns, answered)
        by_size, at = self._by_size, _line(rows) * 4
        by_size[at] += 1
        by_size[at + 1] += compute_input_ns
        by_size[at + 2] += compute_infer_ns
        by_size[at + 3] += compute_output_ns
        self._last_inference_ms[0] = time.time_ns() // 1_000_000  # a date for people; nothing is decided by it

    # --- Read by anybody ----------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows of all batches that ran."""
        return self.batch_size.sum

    @property
    def runs(self) -> int:
        """Batches that ran."""
        return self.batch_size.count

    @property
    def answered_rows(self) -> int:
        """Rows that were answered with outputs."""
        return self._answered_rows[0]

    @classmethod
    def merged(cls, several: Iterable[ModelStats]) -> ModelStats:
        """The sum of several: of the same model in several processes, or of all versions of a model."""
        total = cls()
        sums = total._cells()
        for stats in several:
            cells = stats._cells()
            last = max(sums[-1], cells[-1])
            sums += cells
            sums[-1] = last
        return total

    def to_triton(self, name: str, version: str) -> dict[str, Any]:
        """The entry of ``model_stats``, as the statistics extension defines it."""
        failures = self.failures.values()
        none = {"count": 0, "ns": 0}
        by_size = self._by_size.tolist()
        lines = [(line, *by_size[line * 4 : line * 4 + 4]) for line in range(_EXACT_SIZES + _LARGER_SIZES)]
        used = [line for line in lines if line[1]]
        return {
            "name": name,
            "version": version,
            "last_inference": self._last_inference_ms[0],
            "inference_count": self.answered_rows,
            "execution_count": sum(runs for _, runs, *_ in used),
            "inference_stats": {
                "success": _duration(self.success),
                "fail": {"count": sum(each.count for each in failures), "ns": sum(each.sum for each in failures)},
                "queue": _duration(self.queue),
                "compute_input": _duration(self.compute_input),
                "compute_infer": _duration(self.compute_infer),
                "compute_output": _duration(self.compute_output),
                "cache_hit": none,
                "cache_miss": none,
            },
            "batch_stats": [
                {
                    "batch_size": _batch_size(line),
                    "compute_input": {"count": runs, "ns": input_ns},
                    "compute_infer": {"count": runs, "ns": infer_ns},
                    "compute_output": {"count": runs, "ns": output_ns},
                }
                for line, runs, input_ns, infer_ns, output_ns in used
            ],
            "memory_usage": [],
        }

    def _cells(self) -> NDArray[np.int64]:
        return np.frombuffer(self._block, np.int64)


NBYTES = (
    len(DURATIONS) * histogram.nbytes(DURATION_BOUNDS_NS)
    + histogram.nbytes(SIZE_BOUNDS)
    + len(CAUSES) * histogram.nbytes(())
    + (_EXACT_SIZES + _LARGER_SIZES) * 4 * _CELL
    + 2 * _CELL
)
"""The size of the block of counters."""


def _line(rows: int) -> int:
    """The line of the table that counts batches of so many rows; the first one is never used."""
    if rows < _EXACT_SIZES:
        return rows
    return min(_EXACT_SIZES + (rows - 1).bit_length() - 7, _EXACT_SIZES + _LARGER_SIZES - 1)


def _batch_size(line: int) -> int:
    return line if line < _EXACT_SIZES else 1 << (line - _EXACT_SIZES + 7)


def _duration(of: Histogram) -> dict[str, int]:
    return {"count": of.count, "ns": of.sum}
