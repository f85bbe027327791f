"""The batching policy: how many of the waiting requests to take now, or how long to wait.

Pure: no clock, no queue, no I/O. A batch is whatever is waiting when the model becomes free; nobody waits on purpose
unless the configuration asks for it. Terms are Triton's (``dynamic_batching`` in its model configuration).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Decision(NamedTuple):
    """Take the first ``take`` requests now; or, where it is 0, ask again in ``wait_ns``."""

    take: int
    wait_ns: int


@dataclass(frozen=True, slots=True)
class BatchingPolicy:
    """When a batch is large enough.

    Attributes:
        max_batch_size: rows of one batch; a single request may have more (it then runs alone).
        preferred_batch_size: rows that are worth running at once, ascending; empty: none is special.
        max_queue_delay_ns: how long the oldest request may wait for others; 0: not at all.
    """

    max_batch_size: int = 1
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_ns: int = 0

    def decide(self, rows: Iterable[int], waited_ns: int) -> Decision:
        """Decides on the compatible requests that wait, oldest first.

        Args:
            rows: the rows of each request, in order; at least one request.
            waited_ns: how long the oldest one has waited.
        """
        count = total = 0  # what fits into one batch
        preferred = 0  # how many requests end exactly at the largest preferred size
        full = False
        for more in rows:
            if count and total + more > self.max_batch_size:
                full = True
                break
            count += 1
            total += more
            if total in self.preferred_batch_size:
                preferred = count
            if total >= self.max_batch_size:
                full = True
                break
        if preferred:
            return Decision(preferred, 0)
        if full or waited_ns >= self.max_queue_delay_ns:
            return Decision(count, 0)
        return Decision(0, self.max_queue_delay_ns - waited_ns)
