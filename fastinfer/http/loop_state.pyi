"""What all connections of a loop share and every request needs; :mod:`fastinfer.http.hub` has the rest."""

import asyncio

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.base.limits import HttpLimits
from fastinfer.http.head import Router
from fastinfer.http.head_cache import HeadCache
from fastinfer.http.pieces import Pieces
from fastinfer.http.poller import Poller
from fastinfer.http.upload import BodyPool

COUNTER_BYTES: int
"""The size of the block of counters of a hub: 64-bit integers, written on the loop's thread, read anywhere."""

class LoopState:
    """The state that all connections of a loop share and every request needs."""

    router: Router
    limits: HttpLimits
    loop: asyncio.AbstractEventLoop
    pieces: Pieces
    """Threads that inflate bodies and compress answers."""
    buffer: bytearray
    """Every connection reads into it; valid until the callback returns."""
    view: memoryview
    """Of the whole buffer."""
    poller: Poller
    """Busy polling for requests."""
    bodies: BodyPool
    """The memory of bodies that are not in the read buffer."""
    heads: HeadCache
    """The parsed heads of recent requests."""
    draining: bool
    """Answers end their connections."""
    now: float
    """The loop's clock, read a few times a second: good enough for limits of seconds."""
    budget: Budget
    """Of the memory that requests hold."""
    in_flight_bytes: int
    """The bytes of it that are used."""
    answers: list[int]
    """Answers so far by the status's first digit; a copy."""
    connections_total: int
    """Connections so far."""
    def __init__(
        self,
        router: Router,
        limits: HttpLimits,
        loop: asyncio.AbstractEventLoop,
        poller: Poller | None = None,
        counters: Buffer | None = None,
        budget: Budget | None = None,
    ) -> None:
        """``budget`` is by default one of ``limits.in_flight_bytes``. ``counters`` are :data:`COUNTER_BYTES` writable
        bytes, maybe with counts of an earlier process; memory of its own by default. ValueError if they are too few
        or not aligned."""
    def renew_buffer(self) -> None:
        """Replaces the read buffer, because a view of the old one is still in use."""
