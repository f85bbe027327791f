"""A loaded Python model: gives batches to its hosts, and answers for them.

A batch that fails is run again in halves, so that a request fails alone. Loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic_ns

from fastinfer.backends.python.arena import ArenaError
from fastinfer.backends.python.host import Code, Host
from fastinfer.backends.python.hosted import HostedError
from fastinfer.backends.python.process import EndedError
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.schedule.backend import Outcome, Run
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.rows import split
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor

log = logging.getLogger(__name__)

PLATFORM = "python"
_GIVEN_UP = ApiError(503, "the request was given up", retry_after_s=1)


class PythonModel:
    """A class of the repository that runs batches; a :class:`fastinfer.schedule.backend.Implementation`.

    Args:
        code: the model.
        signature: what it takes and gives.
        hosts: where it runs, loaded; as many as batches may run at once.
        loop: the event loop.
        run_timeout_s: what one run may take.
    """

    platform = PLATFORM

    def __init__(
        self,
        code: Code,
        signature: Signature,
        hosts: Sequence[Host],
        loop: asyncio.AbstractEventLoop,
        run_timeout_s: float,
    ) -> None:
        self.signature = signature
        self._code = code
        self._hosts = list(hosts)
        self._free = list(hosts)
        self._loop = loop
        self._run_timeout_s = run_timeout_s
        self._tasks: set[asyncio.Task[BatchResult]] = set()  # the loop itself does not keep them

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        batch = _Batch(self, requests)
        host = self._free.pop()  # the scheduler has as many batches under way as there are hosts

        def ended(task: asyncio.Task[BatchResult]) -> None:
            self._tasks.discard(task)
            self._free.append(host)
            if task.cancelled():  # with the loop
                done(BatchResult([_GIVEN_UP] * len(requests)))
            else:
                done(task.result())

        task = self._loop.create_task(batch.run(host))
        self._tasks.add(task)
        task.add_done_callback(ended)
        return batch

    async def attempt(self, host: Host, inputs: list[list[Tensor]], rows: list[int]) -> tuple[list[list[Tensor]], int]:
        """Runs requests together, once; ``inputs`` are theirs, each in the signature's order.

        Returns:
            The outputs of each request, and the model's own nanoseconds.

        Raises:
            ApiError: the answer to all of them.
            _FailedError: the same, but some might do without the others.
        """
        columns = [list(column) for column in zip(*inputs, strict=True)]
        try:
            async with asyncio.timeout(self._run_timeout_s):
                outputs, took_ns = await host.run(columns, sum(rows))
            if not self.signature.batched:
                return [outputs], took_ns
            parts = [split(tensor, rows) for tensor in outputs]
            return [list(outcome) for outcome in zip(*parts, strict=True)], took_ns
        except TimeoutError:
            ended = "its process is replaced" if host.give_up() else "its thread keeps running"
            log.error("%s: a run has taken longer than %g s: %s", self._code.name, self._run_timeout_s, ended)
            raise ApiError(504, f"the model has not ended in {self._run_timeout_s:g} s") from None
        except HostedError as error:
            if error.trace:
                log.error("%s has failed:\n%s", self._code.name, error.trace)
            if error.status == 400:
                raise _FailedError(400, f"the model refuses these inputs: {without_paths(error.reason)}") from None
            raise _FailedError(500, f"the model failed: {without_paths(error.reason)}") from None
        except EndedError as error:
            raise _FailedError(500, f"the model's process {error}") from None
        except (ArenaError, KeyError, TypeError, ValueError) as error:  # of what a broken process says
            log.error("%s: its process does not keep to the protocol: %s", self._code.name, error)
            host.give_up()
            raise _FailedError(500, "the model's process gave an answer that cannot be read") from None

    def close(self) -> None:
        for host in self._hosts:
            host.close()


class _FailedError(ApiError):
    """A batch has failed; perhaps because of one of its requests."""


class _Batch:
    """Requests that share a run; a :class:`fastinfer.schedule.backend.Run`."""

    def __init__(self, model: PythonModel, requests: list[InferRequest]) -> None:
        self._model = model
        self._requests = requests
        self._given_up = False

    def terminate(self) -> None:
        """What runs is left to its end or its time limit, because a restart would cost the others more; halves that
        have not begun are left out."""
        self._given_up = True

    async def run(self, host: Host) -> BatchResult:
        """Never raises, unless it is cancelled."""
        requests = self._requests
        outcomes: list[Outcome] = [_GIVEN_UP] * len(requests)
        began_ns, model_ns = monotonic_ns(), 0
        ahead = [(0, len(requests))]
        while ahead:
            start, stop = ahead.pop()
            part = requests[start:stop]
            try:
                await host.ready()
                if self._given_up:
                    break
                inputs = [request.inputs for request in part]
                results, took_ns = await self._model.attempt(host, inputs, [request.rows for request in part])
                outcomes[start:stop] = results
                model_ns += took_ns
            except _FailedError as error:
                if len(part) == 1:
                    outcomes[start] = error
                else:
                    middle = (start + stop) // 2
                    ahead += [(middle, stop), (start, middle)]
            except ApiError as error:
                outcomes[start:stop] = [error] * len(part)
            except Exception:
                log.exception("a batch of a Python model could not be run")
                outcomes[start:stop] = [ApiError(500, "internal error")] * len(part)
        around_ns = max(0, monotonic_ns() - began_ns - model_ns)
        return BatchResult(outcomes, around_ns // 2, model_ns, around_ns - around_ns // 2)
