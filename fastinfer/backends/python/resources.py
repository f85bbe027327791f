"""What all Python models of a server share."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastinfer.base.budget import Budget


@dataclass(frozen=True, slots=True)
class Resources:
    """Owned by the backend.

    Attributes:
        loop: the event loop.
        threads: for what may block: starting a process, copying large tensors, waiting for an end.
        budget: counts the memory of tensors that are sent and received.
        off_loop_bytes: from this size on, tensors are copied on a thread.
        load_timeout_s: what one load may take.
    """

    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    budget: Budget
    off_loop_bytes: int
    load_timeout_s: float
