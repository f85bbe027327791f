"""A piece of native work: runs once, without the GIL, on any thread; its completion is reported on the
loop's thread."""

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
        """Cancels the job: it ends at its next check, or does not start. It then has no result."""
    def run(self) -> None:
        """Does the work now, on this thread, without the GIL. Does not call ``done``. ValueError the second time."""
