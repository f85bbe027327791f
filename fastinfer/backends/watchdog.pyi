"""Terminates a run on the event loop's thread that takes too long."""

class Watchdog:
    """Watches the thread that starts it. One for all models of a process.

    Args:
        inline_run_us: the longest expected run on that thread.

    Attributes:
        bound_ns: a longer run is terminated, at most half as much later, at the end of its current operator.
    """

    bound_ns: int

    def __init__(self, inline_run_us: int) -> None: ...
    def start(self) -> None:
        """Starts its thread, unless it runs already; the first watched run does that, too. OSError if that fails."""
    def close(self) -> None:
        """Ends its thread; no run is watched any more."""
