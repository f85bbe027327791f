"""The batching policy: how many of the waiting requests to take now, or how long to wait. Loop's thread only."""

from collections.abc import Iterable
from typing import NamedTuple

class Decision(NamedTuple):
    """Take the first ``take`` requests now; or, if it is 0, ask again in ``wait_ns``."""

    take: int
    wait_ns: int

class Policy:
    """The scheduler asks it before each batch. A subclass has :meth:`decide`."""

    def decide(self, rows: Iterable[int], waited_ns: int) -> tuple[int, int]:
        """Decides on the compatible requests that wait, oldest first.

        Args:
            rows: the rows of each request, in order; at least one request.
            waited_ns: how long the oldest one has waited.

        Returns:
            A :class:`Decision`. If both are 0, or this raises, one request is taken.
        """

class BatchingPolicy(Policy):
    """Takes the waiting requests, up to a size; waits for more only if the configuration says so.

    Args:
        max_batch_size: rows of one batch; a single request may have more (it then runs alone).
        preferred_batch_size: rows that are worth running at once, ascending; empty: none is special.
        max_queue_delay_ns: how long the oldest request may wait for others; 0: not at all.
    """

    max_batch_size: int
    preferred_batch_size: tuple[int, ...]
    max_queue_delay_ns: int
    def __init__(
        self, max_batch_size: int = 1, preferred_batch_size: tuple[int, ...] = (), max_queue_delay_ns: int = 0
    ) -> None: ...
    def decide(self, rows: Iterable[int], waited_ns: int) -> Decision: ...
