"""Workers that compute one item at a time in Python.

A request is one item, without a batch dimension. Cheap computations run on the loop's thread; the others run on the
loop's default executor (image codecs release the GIL). If an item fails, the others are not affected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Protocol

from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.schedule.backend import Outcome, Run
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """State that all workers share: the loop, which gets the results and whose default executor has the threads, and
    the budget of their memory."""

    loop: asyncio.AbstractEventLoop
    budget: Budget


class GivenUpError(Exception):
    """The item was cancelled because nobody waits for it any more."""


class Item:
    """The work on one item. Long computations call :meth:`check` regularly."""

    __slots__ = ("terminated",)

    def __init__(self) -> None:
        self.terminated = False

    def check(self) -> None:
        """Raise GivenUpError if nobody waits any more. Any thread."""
        if self.terminated:
            raise GivenUpError


class Computation(Protocol):
    """The computation of a worker."""

    platform: str
    signature: Signature
    inline: bool
    """Whether it is cheap enough to run on the loop's thread."""

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:
        """Compute all outputs, in the signature's order. An ApiError is the answer; other exceptions are 500."""


class ItemWorker:
    """Serves a :class:`Computation`; a :class:`fastinfer.schedule.backend.Implementation`."""

    def __init__(self, computation: Computation, context: WorkerContext) -> None:
        self.platform = computation.platform
        self.signature = computation.signature
        self._computation = computation
        self._loop = context.loop

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        items = [request.inputs for request in requests]
        if not self._computation.inline:
            return _Batch(self._loop, items, self._outcome, done)
        began_ns = monotonic_ns()
        outcomes = [self._outcome(inputs, Item()) for inputs in items]
        done(BatchResult(outcomes, compute_infer_ns=monotonic_ns() - began_ns))
        return None

    def close(self) -> None:
        pass  # the threads belong to the loop

    def _outcome(self, inputs: list[Tensor], item: Item) -> Outcome:
        """Computes one item, on any thread. Never raises."""
        try:
            item.check()
            return self._computation.compute(inputs, item)
        except ApiError as error:
            return error.with_traceback(None)
        except GivenUpError:
            return ApiError(503, "the request was given up", retry_after_s=1)
        except MemoryError:
            return ApiError(503, "out of memory for the request's tensors", retry_after_s=1)
        except Exception as error:
            log.exception("a worker failed")
            return ApiError(500, f"the worker failed: {without_paths(str(error)) or 'no reason was given'}")


class _Batch:
    """Items on the loop's default executor; done when the last one is."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: list[list[Tensor]],
        compute: Callable[[list[Tensor], Item], Outcome],
        done: Callable[[BatchResult], None],
    ) -> None:
        self._done = done
        self._outcomes: list[Outcome] = [ApiError(500, "the worker was stopped")] * len(items)
        self._left = len(items)
        self._began_ns = monotonic_ns()
        self._items = [Item() for _ in items]
        pairs = zip(items, self._items, strict=True)
        self._futures = [loop.run_in_executor(None, compute, inputs, item) for inputs, item in pairs]
        for position, future in enumerate(self._futures):
            future.add_done_callback(partial(self._take, position))

    def terminate(self) -> None:
        """Skips items that have not begun; running ones end at their next check."""
        for item in self._items:
            item.terminated = True

    def _take(self, position: int, future: asyncio.Future[Outcome]) -> None:
        self._outcomes[position] = future.result()
        self._left -= 1
        if not self._left:
            self._futures.clear()  # breaks the cycle: their callbacks refer to this batch
            self._done(BatchResult(self._outcomes, compute_infer_ns=monotonic_ns() - self._began_ns))
