"""Request bodies on their way in: their memory, and how they get on. With the GIL."""

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.http.exchange import Head

class BodyPool:
    """Memory between two bodies, at most ``max_bytes`` of it: its pages exist already."""

    max_bytes: int
    kept_bytes: int
    def __init__(self, max_bytes: int) -> None: ...
    def age(self) -> None:
        """Gives up what was not used since the last call."""

class Body(Buffer):
    """One body in memory of its own: until it is complete the room for its next bytes, then the body, read-only."""

    size: int
    """As announced; the most that there may be, until :meth:`end`."""
    received: int
    def __len__(self) -> int: ...
    def take(self, data: Buffer) -> None:
        """Copies the next bytes.

        Raises:
            MemoryError: the system has none, or the budget is spent.
            ValueError: there are more than there may be.
        """
    def end(self) -> None:
        """That was all of it."""

def new_body(pool: BodyPool, budget: Budget, most: int) -> Body:
    """A body whose size is not known yet; its bytes count in the budget as they come."""

class Upload:
    """What bodies of announced length and chunked ones have: the head they belong to, and how they get on."""

    head: Head
    arrived_ns: int
    """When the first byte of its head came, on CLOCK_MONOTONIC."""
    received: int
    """Bytes of the body so far."""
    complete: bool
    """All of it is here."""
    wants_continue: bool
    """The client waits for ``100 Continue``, which was not sent yet."""
    started: float
    """When it began, and ..."""
    window_started: float
    """... its current window of measured progress, ..."""
    window_received: int
    """... and ``received`` at that time."""
    def __init__(self, head: Head, now: float, arrived_ns: int) -> None: ...

class SizedUpload(Upload):
    """A body of announced length: the socket writes straight into its memory, never past its end."""

    body: Body | None
    """None until its first bytes are here."""
