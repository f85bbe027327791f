"""Says in the log what lasts: once after some seconds, and again at growing intervals."""

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
    """While its block lasts, logs for how long it has; at the end too, if it was logged before. Loop's thread only.

    Args:
        what: the subject of the sentence, and what is waited for: ``a load waits for the disk``.
        first_s: until the first line; each further one comes after twice the time.
    """
    loop, began = asyncio.get_running_loop(), time.monotonic()
    handle: asyncio.TimerHandle
    logs = 0

    def tell() -> None:
        nonlocal logs, handle
        logs += 1
        log.warning("%s: %.0f s by now", what(), time.monotonic() - began)
        handle = loop.call_later(first_s * 2 ** (logs - 1), tell)

    handle = loop.call_later(first_s, tell)
    try:
        yield
    finally:
        handle.cancel()
        if logs:
            log.info("%s: ended after %.0f s", what(), time.monotonic() - began)
