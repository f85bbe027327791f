"""What a model version has done: the counters behind the statistics extension and ``/metrics``.

All counters are 64-bit integers in one block of memory, which may be given from outside (a shared mapping): another
process that knows the layout reads them while they run, and the sum of several is the sum of their blocks. They are
written on the loop's thread only: one call per request, one call per batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer._ext.histogram import Histogram
from fastinfer._ext.stats import CAUSES, NBYTES, Counters, batch_size_of

__all__ = ["CAUSES", "NBYTES", "ModelStats"]


class ModelStats(Counters):
    """The counters of one version of a model, as people read them."""

    @property
    def rows(self) -> int:
        """Rows of all batches that ran."""
        return self.batch_size.sum

    @property
    def runs(self) -> int:
        """Batches that ran."""
        return self.batch_size.count

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
        used = self.lines()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
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
                    "batch_size": batch_size_of(line),
                    "compute_input": {"count": runs, "ns": input_ns},
                    "compute_infer": {"count": runs, "ns": infer_ns},
                    "compute_output": {"count": runs, "ns": output_ns},
                }
                for line, runs, input_ns, infer_ns, output_ns in used
            ],
            "memory_usage": [],
        }

    def _cells(self) -> NDArray[np.int64]:
        return np.frombuffer(self.block, np.int64)


def _duration(of: Histogram) -> dict[str, int]:
    return {"count": of.count, "ns": of.sum}
