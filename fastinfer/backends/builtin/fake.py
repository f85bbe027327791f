"""``fake``: returns its inputs after a delay, and sometimes fails; for calibrating load generators.

The delay is a timer of the loop, so it costs no thread, and any number of requests may wait concurrently.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from fastinfer.base.errors import ApiError
from fastinfer.schedule.backend import Outcome, Run
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.signature import Signature

MAX_DELAY_MS = 60_000.0
_LOGNORMAL = re.compile(r"lognormal\(\s*([0-9.]{1,20})\s*,\s*([0-9.]{1,20})\s*\)")
_Z_P99 = 2.3263478740408408  # 99 % of a normal distribution are below this many standard deviations


@dataclass(frozen=True, slots=True)
class Delay:
    """The delay of requests in milliseconds: half of them take at most the median, 99 % at most p99."""

    median_ms: float = 0.0
    p99_ms: float = 0.0

    @classmethod
    def parse(cls, given: object) -> Delay:
        """Parse a number (a fixed delay) or ``lognormal(median,p99)``. ValueError for anything else."""
        found = _LOGNORMAL.fullmatch(given.strip()) if isinstance(given, str) else None
        try:
            if found is not None:
                median, p99 = float(found[1]), float(found[2])
                if 0 < median <= p99 <= MAX_DELAY_MS:
                    return cls(median, p99)
            elif isinstance(given, str | int | float) and not isinstance(given, bool):
                fixed = float(given)
                if 0 <= fixed <= MAX_DELAY_MS:
                    return cls(fixed, fixed)
        except ValueError:
            pass  # not a number: the error below covers it
        most = f"{MAX_DELAY_MS:.0f}"
        raise ValueError(
            f"should be a number from 0 to {most}, or lognormal(median,p99) with 0 < median <= p99 <= {most}"
        )

    def draw(self, source: random.Random) -> float:
        """Draw the delay of one request."""
        if self.median_ms == self.p99_ms:
            return self.median_ms
        sigma = math.log(self.p99_ms / self.median_ms) / _Z_P99
        return min(source.lognormvariate(math.log(self.median_ms), sigma), MAX_DELAY_MS)


class FakeWorker:
    """Takes any inputs.

    Args:
        delay: the delay of a request.
        error_rate: the fraction of requests that fail with 500, from 0 to 1.
        seed: makes the sequence of delays and failures repeatable.
    """

    platform = "fake"

    def __init__(self, delay: Delay, error_rate: float, seed: int | None, loop: asyncio.AbstractEventLoop) -> None:
        self.signature = Signature([], [], accepts_anything=True)
        self._delay = delay
        self._error_rate = error_rate
        self._random = random.Random(seed)
        self._loop = loop

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        delay_ms = max(self._delay.draw(self._random) for _ in requests)
        result = BatchResult([self._outcome(request) for request in requests], compute_infer_ns=int(delay_ms * 1e6))
        if delay_ms == 0:
            done(result)
            return None
        return _Waiting(self._loop, delay_ms, lambda: done(result))

    def close(self) -> None:
        pass

    def _outcome(self, request: InferRequest) -> Outcome:
        if self._random.random() < self._error_rate:
            return ApiError(500, "the worker failed, as its error_rate asks")
        return request.inputs


class _Waiting:
    """A batch whose delay is running."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_ms: float, end: Callable[[], None]) -> None:
        self._loop = loop
        self._end = end
        self._timer = loop.call_later(delay_ms / 1000, end)

    def terminate(self) -> None:
        if not self._timer.cancelled() and self._loop.time() < self._timer.when():
            self._timer.cancel()
            self._loop.call_soon(self._end)
