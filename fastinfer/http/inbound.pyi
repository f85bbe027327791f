"""One direction of a connection: bytes from the client to messages. No socket, no timer. Loop's thread only."""

from typing_extensions import Buffer

from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import RequestHead
from fastinfer.http.loop_state import LoopState
from fastinfer.http.upload import Upload

class Inbound:
    """Finds the messages in the bytes that were read: ``room``, ``received``, then ``next`` and ``handled`` until
    there are no more."""

    head: RequestHead
    """Of the message that :meth:`next` found; a stand-in if its own is malformed."""
    body: Buffer
    """Of that message; compressed if its head says so. Valid until :meth:`handled`, unless ``body_is_stable``."""
    body_is_stable: bool
    error: ApiError | None
    """If it is set, it is the answer, and the handler is not called."""
    arrived_ns: int
    """When the message's first byte came, in nanoseconds of CLOCK_MONOTONIC."""
    read_ns: int
    """When its last bytes were read, on the same clock."""
    ended: bool
    """No further message is taken."""
    upload: Upload | None
    """A body that is not wholly in the read buffer."""
    skip: int
    """Bytes of a refused body, still to be discarded."""
    skipped: Upload
    """The progress of those that came."""
    pending: bytes
    """A started head; while reading is paused, all bytes that were read."""
    since: float
    """When the wait for the client began, on the hub's clock; at the end: when it last sent."""
    def __init__(self, hub: LoopState) -> None: ...
    def room(self) -> Buffer | None:
        """Return where the transport puts the next bytes; None if there is no memory for them."""
    def received(self, size: int, now_ns: int) -> None:
        """So many bytes are in the room."""
    def next(self) -> bool:
        """Takes the next message; False: it is not whole yet, or no further one is taken."""
    def handled(self) -> None:
        """The handler of the message has returned: a body in the read buffer is taken back."""
    def is_between_messages(self) -> bool:
        """Whether no byte of a further message was read."""
    def has_started_head(self) -> bool:
        """Whether bytes of a head are kept."""
    def pause(self) -> None:
        """Keeps the bytes that are not taken yet."""
    def resume(self) -> bool:
        """Takes up the bytes that were kept; False: there are none."""
    def refuse(self, error: ApiError) -> None:
        """Makes the message that has begun, or the next one, the last, and ``error`` its answer."""
    def stop(self) -> None:
        """Takes no further message, and discards what was read."""
