"""The life of a request: its deadline, its single end, and parents, which split a request into child requests.

Loop's thread only.
"""

import asyncio
from collections.abc import Callable

from fastinfer.base.errors import ApiError
from fastinfer.native.job import Clock
from fastinfer.tensor.message import InferRequest, Waiter
from fastinfer.tensor.tensor import Tensor

class Deadlines:
    """The deadlines of the requests to one model, and their timers.

    Args:
        loop: runs the timers.
        timeout_s: the default timeout, in seconds from a request's first byte.
        clock: CLOCK_MONOTONIC.
    """

    clock: Clock
    timeout_ns: int
    watched: int
    """Requests that share the timer of the default timeout."""
    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, clock: Clock | None = None) -> None: ...

class Life(Waiter):
    """The wait of one client, from the first byte of its request to the encoded answer."""

    stage: str
    """For logs: ``decoding``, ``queued``, ``running`` or ``encoding``."""

class Parent:
    """Splits a request into child requests: slices, or the stages of a chain.

    A subclass calls :meth:`run` in :meth:`begin` and :meth:`took` to run children, and :meth:`finish` with the joined
    outputs. An exception in either settles the request with an error. When the request ends, for any reason, children
    that have not ended are dropped.
    """

    clock: Clock
    request: InferRequest
    """None after its end."""
    def __init__(self, clock: Clock, request: InferRequest) -> None: ...
    def start(self) -> None:
        """Takes the request. If :meth:`begin` raises, drops the children and raises the same."""
    def run(self, place: Callable[[InferRequest], None], child: InferRequest) -> None:
        """Hands a child to ``place``, with the deadline of the request. Raises what ``place`` raises, or ApiError 504
        if the deadline has passed."""
    def finish(self, outputs: list[Tensor]) -> None:
        """Settles the request with outputs; does nothing after its end."""
    def abandon(self) -> None:
        """Drops the request and its children, because nobody waits for them; does nothing after its end."""

    def begin(self) -> None:
        """Runs the first children."""
    def took(self, child: InferRequest, outputs: list[Tensor]) -> None:
        """Takes the outputs of a child."""
    def failure(self, child: InferRequest, error: ApiError) -> ApiError:
        """The error of the request for a child's."""
    def ended(self) -> None:
        """Releases what the parent holds. Called once, after the request's end."""
