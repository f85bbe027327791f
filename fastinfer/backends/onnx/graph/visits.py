"""Bounds a walk over a graph's nodes, and lets other threads have the interpreter during it.

A load thread walks large graphs in Python. The event loop's thread, which serves requests meanwhile, would wait for the
interpreter's switch interval each time it wakes up.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MAX_NODES = 200_000  # visited in all; the largest exported models have some 20,000
_NODES_A_TURN = 8


class TooLargeError(Exception):
    """The graph is larger than what is followed."""


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
    """Python's collector of cycles, which stops all threads while it looks at every object there is.

    A walk makes hundreds of thousands of them, none in cycles.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It does not run until the last of several pauses has ended."""
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
