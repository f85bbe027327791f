"""Workers that compute one item at a time in Python.

A request is one item, without a batch dimension. What is cheap runs at once on the loop's thread; anything else on the
loop's own threads (its default executor: image codecs release the GIL). An item that fails fails alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Protocol

from fastinfer._ext.message import InferRequest
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor
from fastinfer.errors import ApiError, without_paths
from fastinfer.models.scheduler import BatchResult, Outcome, Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What all workers share: the loop, on which results are told, and whose default executor has the threads."""

    loop: asyncio.AbstractEventLoop


class Computation(Protocol):
    """What a worker does with an item."""

    platform: str
    signature: Signature
    inline: bool
    """So cheap that it runs on the loop's thread."""

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        """All outputs, in the signature's order. An ApiError is told to the client as it is, anything else is a 500."""


class ItemWorker:
    """Serves a :class:`Computation`; a :class:`fastinfer.workers.base.Implementation`."""

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
        outcomes = [self._outcome(inputs) for inputs in items]
        done(BatchResult(outcomes, compute_infer_ns=monotonic_ns() - began_ns))
        return None

    def close(self) -> None:
        pass  # the threads are the loop's

    def _outcome(self, inputs: list[Tensor]) -> Outcome:
        """On any thread; never raises."""
        try:
            return self._computation.compute(inputs)
        except ApiError as error:
            return error
        except MemoryError:
            return ApiError(500, "the worker failed: out of memory")
        except Exception as error:
            log.exception("a worker failed")
            return ApiError(500, f"the worker failed: {without_paths(str(error)) or 'no reason was given'}")


class _Batch:
    """Items on the loop's threads; finished when the last one is."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: list[list[Tensor]],
        compute: Callable[[list[Tensor]], Outcome],
        done: Callable[[BatchResult], None],
    ) -> None:
        self._done = done
        self._outcomes: list[Outcome] = [ApiError(500, "the worker was stopped")] * len(items)
        self._left = len(items)
        self._began_ns = monotonic_ns()
        self._futures = [loop.run_in_executor(None, compute, inputs) for inputs in items]
        for position, future in enumerate(self._futures):
            future.add_done_callback(partial(self._take, position))

    def terminate(self) -> None:
        """An item that has not begun is left out; the result of one that has is not waited for."""
        for future in self._futures:
            future.cancel()

    def _take(self, position: int, future: asyncio.Future[Outcome]) -> None:
        if not future.cancelled():
            self._outcomes[position] = future.result()
        self._left -= 1
        if not self._left:
            self._futures.clear()  # they know this batch
            self._done(BatchResult(self._outcomes, compute_infer_ns=monotonic_ns() - self._began_ns))
