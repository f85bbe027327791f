"""A piece of native work: runs once, without the GIL, on any thread; its end is told on the loop's thread."""

from collections.abc import Callable
from typing import Any

class Clock:
    """CLOCK_MONOTONIC, in nanoseconds."""

    fixed_ns: int
    """The time that it returns, for tests; 0: the system's."""

class Job:
    started_ns: int
    """CLOCK_MONOTONIC when the work began; 0 before."""
    ended_ns: int
    done: Callable[[Any], None] | None
    """Called with the job on the loop's thread once an executor has run it."""
    def terminate(self) -> None:
        """Nobody waits any more: the work ends soon, or does not begin. There is no result."""
    def run(self) -> None:
        """Does the work now, on this thread, with the GIL released. Does not call ``done``. ValueError the second time."""
