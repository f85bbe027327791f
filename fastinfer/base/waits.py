"""Logs operations that take long: first after some seconds, then at growing intervals."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

log = logging.getLogger(__name__)

FIRST_S: Final = 5.0


@contextmanager
def logged(what: Callable[[], str], first_s: float = FIRST_S) -> Iterator[None]:
    """Logs how long its block has lasted so far; also at the end, if it was logged before. Loop's thread only.

    Args:
        what: returns the start of the sentence: ``a load waits for the disk``.
        first_s: time until the first line; each further line comes after twice the time.
    """
    loop, began = asyncio.get_running_loop(), time.monotonic()
    handle: asyncio.TimerHandle
    logs = 0

    def log_again() -> None:
        nonlocal logs, handle
        logs += 1
        log.warning("%s: %.0f s by now", what(), time.monotonic() - began)
        handle = loop.call_later(first_s * 2 ** (logs - 1), log_again)

    handle = loop.call_later(first_s, log_again)
    try:
        yield
    finally:
        handle.cancel()
        if logs:
            log.info("%s: ended after %.0f s", what(), time.monotonic() - began)
