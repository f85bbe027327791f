"""The life of a request: its deadline, its one end, and requests that are done by others. Loop's thread only."""

import asyncio
from collections.abc import Callable

from fastinfer._ext.job import Clock
from fastinfer._ext.message import InferRequest, Waiter
from fastinfer._ext.tensor import Tensor

class Deadlines:
    """The deadlines of the requests to one model, and the timers that remind of them.

    Args:
        loop: whose timers they are.
        timeout_s: of a request without a timeout of its own, in seconds from its first byte.
    """

    clock: Clock
    timeout_ns: int
    watched: int
    """Requests without a timer of their own, all of which one timer reminds of."""
    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float, clock: Clock | None = None) -> None: ...

class Life(Waiter):
    """A client's wait, from the first byte of its request to the encoded answer."""

class Parent:
    """Has a request that is done by others, its children.

    A subclass says how they are made and what is joined: it calls :meth:`run` in :meth:`begin` and :meth:`took`, and
    :meth:`finish` in the end. Whatever it raises is the request's end. When the request ends, for whatever reason, the
    children that have not are dropped, and no further one can be run.
    """

    clock: Clock
    request: InferRequest
    """None when it has ended."""
    def __init__(self, clock: Clock, request: InferRequest) -> None: ...
    def start(self) -> None:
        """Takes the request. What :meth:`begin` raises is raised, and nothing runs then."""
    def run(self, place: Callable[[InferRequest], None], child: InferRequest) -> None:
        """Has a child done by ``place``, which takes it or raises. It shares the request's deadline: ApiError 504 where
        that has passed."""
    def finish(self, outputs: list[Tensor]) -> None:
        """Settles the request; nothing if it has ended."""

    def begin(self) -> None:
        """Runs the first children."""
    def took(self, child: InferRequest, outputs: list[Tensor]) -> None:
        """A child has ended well."""
    def ended(self) -> None:
        """The request has ended."""
