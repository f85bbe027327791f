"""The ``onnx`` worker: runs batches in ONNX Runtime, on native threads or, when they are tiny, on the loop's thread.

A hop to a sleeping thread and back costs 65 to 90 µs, more than many small models run. So a batch whose predicted time
is below a limit runs at once on the loop's thread. Predictions come from measured runs of the same model with
about as many bytes of input; a graph with Loop, If or Scan, whose time depends on values, never runs inline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from fastinfer._ext.batchrun import BatchRun
from fastinfer._ext.executor import Executor
from fastinfer._ext.message import InferRequest
from fastinfer._ext.ort import OrtError, Session
from fastinfer._ext.signature import Signature
from fastinfer.errors import ApiError, without_paths
from fastinfer.models.scheduler import BatchResult, Outcome, Run
from fastinfer.workers.parameters import Integer, Name, Parameters

log = logging.getLogger(__name__)


class OnnxParameters(Parameters):
    """Of a model's load.

    Attributes:
        model: of a load of the worker ``onnx``: the model of the repository.
        intra_op_threads: threads of a pool of its own; by default all models share the process's.
        inter_op_threads: more than 1 also runs independent operators side by side.
        execution_providers: names separated by commas, the most wanted first.
        graph_optimization_level: ``none``, ``basic``, ``extended``, ``layout`` or ``all``.
        allow_spinning: idle threads of the own pool burn their cores for a while, for a lower latency.
    """

    model: Name | None = None
    intra_op_threads: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    inter_op_threads: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    execution_providers: str | None = None
    graph_optimization_level: Literal["none", "basic", "extended", "layout", "all"] | None = None
    allow_spinning: bool | None = None

    def session_options(self) -> dict[str, Any]:
        """The keyword arguments of :class:`Session`."""
        options: dict[str, Any] = {
            "intra_op_threads": self.intra_op_threads,
            "inter_op_threads": self.inter_op_threads,
            "graph_optimization_level": self.graph_optimization_level,
            "allow_spinning": self.allow_spinning,
        }
        if self.execution_providers is not None:
            options["execution_providers"] = [name.strip() for name in self.execution_providers.split(",")]
        return options


_SMOOTHING = 1 / 8  # weight of the newest run in the prediction; TCP's choice for round-trip times


class OnnxWorker:
    """A session that runs batches.

    Args:
        session: the loaded model.
        signature: what it takes and gives.
        executor: the native threads, shared by all models.
        inline_run_us: a batch predicted to run for longer goes to a native thread.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, session: Session, signature: Signature, executor: Executor, inline_run_us: int) -> None:
        self.session = session
        self.signature = signature
        self.executor = executor
        self._inline_run_ns = inline_run_us * 1000
        self._times = RunTimes()

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        batch = _Batch(self, requests, done)
        return None if batch.finished else batch

    def runs_inline(self, input_bytes: int) -> bool:
        """Whether a batch with so much input is worth running on the loop's thread."""
        return not self.session.may_loop and self._times.predict_ns(input_bytes) < self._inline_run_ns

    def observe(self, input_bytes: int, ns: int) -> None:
        """Learns how long a run took."""
        self._times.observe(input_bytes, ns)

    def close(self) -> None:
        # Freed with its last reference: an answer may still be written from its memory.
        del self.session


class RunTimes:
    """Predicts how long a run takes from the runs measured so far, by the size of the input in powers of two."""

    def __init__(self) -> None:
        self._ns: dict[int, float] = {}

    def observe(self, nbytes: int, ns: int) -> None:
        """Learns of a run."""
        size = nbytes.bit_length()
        known = self._ns.get(size)
        self._ns[size] = ns if known is None else known + (ns - known) * _SMOOTHING

    def predict_ns(self, nbytes: int) -> float:
        """The time of a run on so many bytes, rather too long than too short; infinite where nothing was measured."""
        size = nbytes.bit_length()
        known = self._ns.get(size)
        if known is not None:
            return known
        smaller = [other for other in self._ns if other < size]
        if not smaller:
            return min(self._ns.values(), default=float("inf"))
        nearest = max(smaller)
        return self._ns[nearest] * 2.0 ** (size - nearest)


class _Batch:
    """A batch under way. Where it fails and holds several requests, its halves are run again by themselves, so that one
    bad request does not fail its mates."""

    __slots__ = (
        "_attempt",
        "_done",
        "_given_up",
        "_outcomes",
        "_requests",
        "_spent_ns",
        "_todo",
        "_worker",
        "finished",
    )

    def __init__(self, worker: OnnxWorker, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> None:
        self._worker = worker
        self._requests = requests
        self._done = done
        self._outcomes: list[Outcome] = [_NEVER_RUN] * len(requests)
        self._todo = [slice(0, len(requests))]
        self._attempt: BatchRun | None = None
        self._given_up = False
        self._spent_ns = [0, 0, 0]
        self.finished = False
        self._go_on()

    def terminate(self) -> None:
        """Nobody waits any more."""
        self._given_up = True
        if self._attempt is not None:
            self._attempt.terminate()

    def _go_on(self) -> None:
        """Runs what is left: inline as long as that is short, else the next attempt on a native thread."""
        worker = self._worker
        while self._todo and not self._given_up:
            attempt = self._attempt = BatchRun(worker.session, self._requests[self._todo[-1]], worker.signature.batched)
            if not worker.runs_inline(attempt.input_bytes):
                worker.executor.submit(attempt, self._ended)
                return
            attempt.run()
            self._take(attempt)
        self._end()

    def _ended(self, attempt: BatchRun) -> None:
        try:
            self._take(attempt)
            self._go_on()
        except Exception:  # out of memory, say; whoever waits must be told, and the instance set free
            log.exception("a batch could not be finished")
            if not self.finished:
                self._end()

    def _end(self) -> None:
        # What the batch holds is let go of here: its end is told to somebody who may know the batch.
        done, outcomes = self._done, self._outcomes
        self._done, self._outcomes, self._requests = _told, [], []
        self.finished = True
        done(BatchResult(outcomes, *self._spent_ns))

    def _take(self, attempt: BatchRun) -> None:
        self._attempt = None
        spent = self._spent_ns
        spent[0] += attempt.compute_input_ns
        spent[1] += attempt.compute_infer_ns
        spent[2] += attempt.compute_output_ns
        members = self._todo.pop()
        count = members.stop - members.start
        if attempt.error is None:
            self._outcomes[members] = attempt.split()
            self._worker.observe(attempt.input_bytes, attempt.ended_ns - attempt.started_ns)
        elif count == 1 or self._given_up:
            self._outcomes[members] = [failure(attempt.error)] * count
        else:
            middle = members.start + count // 2
            self._todo += [slice(middle, members.stop), slice(members.start, middle)]


def _told(_result: BatchResult) -> None:
    raise RuntimeError("the end of a batch was told already")


_NEVER_RUN = ApiError(500, "the model was not run")


def failure(error: OrtError) -> ApiError:
    """What a client is told of a run that failed."""
    return ApiError(500, f"the model failed: {without_paths(str(error))}")
