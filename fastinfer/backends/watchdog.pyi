"""Ends a run on the event loop's thread that takes too long."""

class Watchdog:
    """Watches the thread that starts it. One for all models of a process.

    Args:
        inline_run_us: what runs on that thread are expected to take at most.

    Attributes:
        bound_ns: a run that takes longer is ended at the end of the operator that it is in, at most half as much later.
    """

    bound_ns: int

    def __init__(self, inline_run_us: int) -> None: ...
    def start(self) -> None:
        """Starts its thread, unless it runs already; the first run that is watched does that, too. OSError."""
    def close(self) -> None:
        """Ends its thread; no run is watched any more."""
