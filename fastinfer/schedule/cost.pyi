"""What one model's runs cost, by the shapes of their inputs: whether a run belongs on the event loop's thread.

Only shapes that were measured are predicted. An estimate falls quickly and rises slowly, and a single run counts for at
most ten times the estimate. A run that takes longer than that, and longer than the limit, is an *overrun*: the first
one puts the model on probation, and one that used the processor, or waited for others, suspends it for a time.
"""

from fastinfer.native.job import Clock

def shape_of(*numbers: int) -> int:
    """A shape that is made of some numbers."""

class ShapeCosts:
    """One model's costs. Loop's thread only.

    Args:
        limit_ns: shorter runs belong on the loop's thread.
        clock: the monotonic one; a test may pass one that stands still.

    Attributes:
        known: shapes whose cost is known.
        probation: runs on the loop's thread whose processor time is still measured.
        suspended_until_ns: no run belongs on the loop's thread until then; 0: the model is not suspended.
    """

    limit_ns: int
    known: int
    probation: int
    suspended_until_ns: int
    clock: Clock

    def __init__(self, limit_ns: int, clock: Clock | None = None) -> None: ...
    def measured(self, shape: int, ns: int) -> None:
        """A run on a native thread took this long."""
    def ran(
        self,
        shape: int,
        ns: int,
        *,
        well: bool = True,
        cut: bool = False,
        at_work: bool = False,
        cpu_ns: int = 0,
        waits: int = 0,
    ) -> bool:
        """A run on the loop's thread took this long; returns whether it was an overrun. KeyError: never measured.

        Args:
            well: it gave outputs.
            cut: the watchdog terminated it, ``at_work``: while it used the processor.
            cpu_ns: the processor time that it took, which counts on probation.
            waits: how often it waited for others; likewise.
        """
    def is_short(self, shape: int) -> bool:
        """Whether a run belongs on the loop's thread."""
    def predict_ns(self, shape: int) -> float:
        """How long a run takes; infinite for a shape that was never measured."""
    def times_of(self, nbytes: int) -> tuple[float | None, float | None]:
        """How long batches of about this many bytes took together, and one request after the other; None: unknown."""
