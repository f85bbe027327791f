"""Busy polling: under load the loop polls for the next request instead of sleeping."""

from asyncio import AbstractEventLoop
from collections.abc import Sized

class Poller:
    """Keeps a loop turning for a short window after each answer, as long as most windows find another one.

    Loop's thread only.

    Args:
        loop: the loop.
        busy: the work of native threads, which could use the core; while there is any, the loop sleeps.
        window_us: how long it polls for the next request, in microseconds; 0: it always sleeps.
    """

    window_ns: int
    polling: bool
    def __init__(self, loop: AbstractEventLoop, busy: Sized, window_us: float) -> None: ...
    def on_bytes(self, now: int) -> None:
        """Bytes have come from a client; ``now`` is CLOCK_MONOTONIC's, in nanoseconds."""
    def on_answer(self) -> None:
        """An answer was written: from now on the loop waits for the next request."""
    def on_turn(self) -> None:
        """The loop has turned once; it calls this."""
