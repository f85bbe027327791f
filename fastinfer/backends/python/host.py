"""Where a Python model runs: in processes of its own, or on threads of the server's.

A host has room for one batch. The process of a :class:`ProcessHost` is replaced when it has ended, or was ended because
a run took too long; a thread can be neither ended nor replaced. Loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic_ns
from typing import Any, Protocol

import numpy as np

from fastinfer.backends.python.hosted import Described, HostedError, HostedModel
from fastinfer.backends.python.process import EndedError, ModelProcess
from fastinfer.backends.python.resources import Resources
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.tensor.tensor import Tensor

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.5
_MOST_DELAY_S = 30.0
_WORTH_WAITING_S = 1.0  # beyond it, requests are refused at once
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Code:
    """A model as it is given to a host.

    Attributes:
        name: for messages: ``model 'm' version 1``.
        source: the content of ``model.py``.
        path: of that file.
        config: what the class's ``load`` gets, besides ``directory``.
        inputs: what it takes, in order.
        outputs: what it gives, in order.
        batched: the first dimension of both is the batch.
    """

    name: str
    source: bytes
    path: Path
    config: Mapping[str, Any]
    inputs: Sequence[Described]
    outputs: Sequence[Described]
    batched: bool


Ran = tuple[list[Tensor], int]
"""The outputs of all rows in the model's order, and the nanoseconds of the model's own."""


class Host(Protocol):
    """A place for one batch."""

    async def load(self) -> None:
        """Loads the model. HostedError, EndedError, OSError; TimeoutError."""

    async def ready(self) -> None:
        """Returns when a batch can be run. ApiError 503: it would take too long."""

    async def run(self, inputs: Sequence[Sequence[Tensor]], rows: int) -> Ran:
        """Runs a batch: for each input, the tensors whose rows it gets; ``rows`` in all.

        Raises:
            HostedError: the model has failed.
            EndedError: its process has ended.
            ApiError: 503, there is no memory.
        """

    def give_up(self) -> bool:
        """Ends the run that takes too long; False if that is not possible."""

    def close(self) -> None:
        """Releases everything."""


class ProcessHost:
    """A process of the model's own."""

    def __init__(self, code: Code, resources: Resources) -> None:
        self._code = code
        self._resources = resources
        self._loop = resources.loop
        self._process: ModelProcess | None = None
        self._restart: asyncio.Task[None] | None = None
        self._deaths = 0  # since a run went well
        self._delay_s = 0.0  # until it is started again
        self._attempted = self._loop.create_future()  # to start it
        self._closed = False

    async def load(self) -> None:
        async with asyncio.timeout(self._resources.load_timeout_s):
            process = await ModelProcess.start(self._resources)
            code = self._code
            header = {
                "path": os.fsencode(code.path).decode("latin-1"),
                "config": code.config,
                "inputs": [(each.name, each.datatype, each.shape) for each in code.inputs],
                "outputs": [(each.name, each.datatype, each.shape) for each in code.outputs],
            }
            try:
                await process.load(header, code.source)
            except BaseException:
                process.kill()
                raise
        self._process = process
        process.on_end = self._has_ended
        if self._closed:
            self.close()

    async def ready(self) -> None:
        while not self._is_there() and not self._closed and self._delay_s <= _WORTH_WAITING_S:
            await asyncio.shield(self._attempted)
        if not self._is_there():
            reason = f"it has ended {self._deaths} times in a row, and starts again after {self._delay_s:g} s"
            raise ApiError(503, f"the model's process is not there: {reason}", retry_after_s=max(1, int(self._delay_s)))

    async def run(self, inputs: Sequence[Sequence[Tensor]], rows: int) -> Ran:
        process = self._process
        if process is None:
            raise EndedError("has ended")
        batched = self._code.batched
        shapes = [[rows, *parts[0].shape[1:]] if batched else list(parts[0].shape) for parts in inputs]
        try:
            answer, blocks = await process.run({"shapes": shapes, "rows": rows if batched else None}, inputs)
        except MemoryError:
            raise ApiError(503, "out of memory for the request's tensors", retry_after_s=1) from None
        try:
            outputs = await self._outputs(answer["shapes"], blocks)
        finally:
            process.release()
        self._deaths = 0
        return outputs, answer["ns"]

    def give_up(self) -> bool:
        if self._process is not None:
            self._process.kill()
        return True

    def close(self) -> None:
        self._closed = True
        if self._restart is not None:
            self._restart.cancel()
        if self._process is not None:
            self._process.on_end = None
            self._process.close()
            self._process = None

    async def _outputs(self, shapes: list[list[int]], blocks: list[memoryview]) -> list[Tensor]:
        def copy() -> list[Tensor]:
            return [
                Tensor.copied(each.name, each.datatype, shape, block, self._resources.budget)
                for each, shape, block in zip(self._code.outputs, shapes, blocks, strict=True)
            ]

        try:
            if sum(len(block) for block in blocks) <= self._resources.off_loop_bytes:
                return copy()
            return await self._loop.run_in_executor(self._resources.threads, copy)
        except MemoryError:
            raise ApiError(503, "out of memory for the model's outputs", retry_after_s=1) from None

    def _is_there(self) -> bool:
        return self._process is not None and not self._process.ended

    def _has_ended(self, how: str) -> None:
        self._process = None
        self._deaths += 1
        if not self._closed:
            log.error("%s: its process %s; another one takes its place", self._code.name, how)
            self._restart = self._loop.create_task(self._start_again())

    async def _start_again(self) -> None:
        while not self._closed and self._process is None:
            again = max(0, self._deaths - 2)
            self._delay_s = min(_FIRST_DELAY_S * 2**again, _MOST_DELAY_S) if self._deaths > 1 else 0.0
            try:
                await asyncio.sleep(self._delay_s)
                await self.load()
                self._delay_s = 0.0
            except (HostedError, EndedError, OSError) as error:  # TimeoutError is an OSError
                self._deaths += 1
                reason = without_paths(str(error)) or "it does not end in time"
                log.error("%s: its process cannot be replaced: %s", self._code.name, reason)
            finally:
                attempted, self._attempted = self._attempted, self._loop.create_future()
                attempted.set_result(None)


class ThreadHost:
    """A thread of the server's: quicker, and able to harm the server in every way.

    A run that does not end keeps its thread for ever; one that holds the GIL stops the event loop.
    """

    def __init__(self, code: Code, resources: Resources) -> None:
        self._code = code
        self._resources = resources
        self._loop = resources.loop
        self._thread = ThreadPoolExecutor(1, "fastinfer-python")
        self._model: HostedModel | None = None

    async def load(self) -> None:
        def load() -> HostedModel:
            code = self._code
            module = f"fastinfer_model_{next(_numbers)}"
            return HostedModel(code.source, code.path, module, code.config, code.outputs)

        async with asyncio.timeout(self._resources.load_timeout_s):
            self._model = await self._loop.run_in_executor(self._thread, load)

    async def ready(self) -> None:
        pass  # from load to close

    async def run(self, inputs: Sequence[Sequence[Tensor]], rows: int) -> Ran:
        model = self._model
        if model is None:
            raise ApiError(503, "the model is not there", retry_after_s=1)

        def run() -> Ran:
            arrays = {}
            for each, parts in zip(self._code.inputs, inputs, strict=True):
                several = [tensor.numpy() for tensor in parts]
                arrays[each.name] = np.concatenate(several) if len(several) > 1 else several[0]
            began_ns = monotonic_ns()
            outputs = model.infer(arrays, rows if self._code.batched else None)
            took_ns = monotonic_ns() - began_ns
            return [self._counted(tensor) for tensor in outputs], took_ns

        return await self._loop.run_in_executor(self._thread, run)

    def give_up(self) -> bool:
        return False

    def close(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            self._thread.submit(model.close)
        self._thread.shutdown(wait=False)

    def _counted(self, tensor: Tensor) -> Tensor:
        """A copy that the model cannot change afterwards, and that counts."""
        try:
            return Tensor.copied(tensor.name, tensor.datatype, tensor.shape, tensor, self._resources.budget)
        except MemoryError:
            raise ApiError(503, "out of memory for the model's outputs", retry_after_s=1) from None
