"""Busy polling: where requests come close together, the loop looks for the next one instead of going to sleep."""

from asyncio import AbstractEventLoop
from collections.abc import Sized

class Poller:
    """Keeps a loop turning for a short window after each answer, as long as most windows find another one.

    Loop's thread only.

    Args:
        loop: the loop.
        busy: work that could use the core; while it holds something, the loop sleeps.
        window_us: how long it looks for the next request, in microseconds; 0: it always sleeps.
    """

    window_ns: int
    polling: bool
    def __init__(self, loop: AbstractEventLoop, busy: Sized, window_us: float) -> None: ...
    def came(self, now: int) -> None:
        """Bytes have come from a client; ``now`` is CLOCK_MONOTONIC's, in nanoseconds."""
    def answered(self) -> None:
        """An answer was written: from now on the loop waits for the next request."""
    def turned(self) -> None:
        """The loop has turned once; it calls this."""
