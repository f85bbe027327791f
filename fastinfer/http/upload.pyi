"""Request bodies that are still arriving: their memory, and their progress. With the GIL."""

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.base.limits import HttpLimits
from fastinfer.http.exchange import RequestHead

class BodyPool:
    """Free memory for bodies, at most ``max_bytes`` of it, kept because its pages exist already."""

    max_bytes: int
    kept_bytes: int
    def __init__(self, max_bytes: int) -> None: ...
    def age(self) -> None:
        """Frees the blocks that were not used since the last call."""

class Body(Buffer):
    """One body in memory of its own: until it is complete the room for its next bytes, then the body, read-only."""

    size: int
    """As announced, or the limit, until :meth:`end`."""
    received: int
    def __len__(self) -> int: ...
    def take(self, data: Buffer) -> None:
        """Copies the next bytes.

        Raises:
            MemoryError: the system has none, or the budget is spent.
            ValueError: there are more than the limit.
        """
    def end(self) -> None:
        """The body is complete."""

def new_body(pool: BodyPool, budget: Budget, most: int) -> Body:
    """A body whose size is not known yet; its bytes count in the budget as they come."""

class Upload:
    """A body of announced length or a chunked one: the head that it belongs to, and its progress."""

    head: RequestHead
    arrived_ns: int
    """When the first byte of its head came, on CLOCK_MONOTONIC."""
    received: int
    """Bytes of the body so far."""
    complete: bool
    """All of it has come."""
    wants_continue: bool
    """The client waits for ``100 Continue``, which was not sent yet."""
    started: float
    """When it began, and ..."""
    window_started: float
    """... its current window of measured progress, ..."""
    window_received: int
    """... and ``received`` at that time."""
    def __init__(self, head: RequestHead, now: float, arrived_ns: int) -> None: ...
    def overdue(self, now: float, limits: HttpLimits, short_of_memory: bool) -> str | None:
        """Return what took too long, or None; begins the next window of progress when one has passed."""

class SizedUpload(Upload):
    """A body of announced length: the socket writes straight into its memory, never past its end."""

    body: Body | None
    """None until its first bytes have come."""
