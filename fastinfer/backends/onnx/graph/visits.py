"""Bounds a walk over a graph's nodes, and yields the GIL to other threads during it.

A load thread walks large graphs in Python. Without yielding, the event loop's thread would wait for the interpreter's
switch interval each time it wakes up.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_NODES = 200_000  # visits of a walk; the largest exported models have about 20,000
_NODES_A_TURN = 8


class TooLargeError(Exception):
    """The graph has too many nodes."""


class Visits:
    """Counts the nodes of one walk."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> None:
        """Counts a node. TooLargeError after :data:`MAX_NODES`."""
        self._count += 1
        if self._count % _NODES_A_TURN == 0:
            time.sleep(0)
        if self._count > MAX_NODES:
            raise TooLargeError(f"its graph has more than {MAX_NODES} operators")


class _Collector:
    """Pauses Python's cyclic collector, which holds the GIL while it visits every object.

    A walk makes hundreds of thousands of objects, none of them in cycles.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Disables the collector until the last of several overlapping pauses ends."""
        with self._lock:
            self._pauses += 1
            gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if not self._pauses:
                    gc.enable()


collector = _Collector()
