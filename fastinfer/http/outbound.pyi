"""One direction of a connection: answers to bytes in the order of requests. No socket, no timer. Loop's thread only."""

from collections.abc import Sequence
from typing import Final

from typing_extensions import Buffer

from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import Exchange, Fields, RequestHead
from fastinfer.http.loop_state import LoopState

JOINED_BYTES: Final[int]
"""Answers are copied together up to this; larger ones are not copied."""
INTERNAL_ERROR: Final[ApiError]

class HttpExchange(Exchange):
    """An exchange of this protocol."""

    head: RequestHead
    """The request's."""
    inflating: bool
    """Its body is still being inflated."""
    reply: tuple[int, bytes, Buffer | Sequence[Buffer], Fields] | None
    """Its answer, if it came before its turn: status, content type, body, fields."""
    def __init__(self, outbound: Outbound, head: RequestHead, body: Buffer, stable: bool) -> None: ...

class Sink:
    """What an Outbound needs of its owner."""

    def on_answers(self) -> None:
        """There are outgoing bytes; not called while the owner is ``collecting``."""
    def on_pieces(self) -> None:
        """There are pieces of an answer to write."""
    def has_ended(self) -> bool:
        """Whether no further request is read."""
    def ends_now(self) -> bool:
        """Whether to end the connection with the answer that is about to be written."""

class Outbound:
    """Puts answers in order, and collects their bytes."""

    queue: list[HttpExchange]
    """Requests that are not answered yet, in order."""
    size: int
    """Bytes that wait to be taken."""
    collecting: bool
    """Answers are collected: the owner takes them itself, without a call of ``on_answers``."""
    pieces: list[memoryview]
    """The rest of an answer that is sent in pieces, last one first."""
    def __init__(self, hub: LoopState, sink: Sink) -> None: ...
    def expect(self, exchange: HttpExchange) -> None:
        """Gives an exchange its place in the order of answers."""
    def is_full(self) -> bool:
        """Whether no further request may start: too many are unanswered, or their answers may take too much memory."""
    def take(self) -> bytes | memoryview | list[bytes | memoryview] | None:
        """Return the outgoing bytes, and forget them; None: there are none."""
    def next_piece(self) -> memoryview:
        """Take the next piece. IndexError: there is none."""
    def end_pieces(self) -> None:
        """The last piece is written: its exchange leaves the queue, and the answers after it follow."""
    def close(self) -> list[HttpExchange]:
        """The client is gone: drops what it would get. Return the exchanges that are not answered."""
