"""Runs the batches of one session: on the loop's thread if that is short, else on a native thread."""

from collections.abc import Callable

from fastinfer.backends.onnx.ort import Session
from fastinfer.backends.watchdog import Watchdog
from fastinfer.native.executor import Executor
from fastinfer.schedule.backend import Run
from fastinfer.schedule.cost import ShapeCosts
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.tensor.message import BatchResult, BatchRunner, InferRequest

class Runner(BatchRunner):
    """Picks the thread for a batch by its predicted run time, and runs it. Loop's thread only.

    Args:
        session: the loaded model.
        batched: the first dimension of all its inputs and outputs is the batch.
        executor: the native threads, shared by all models.
        inline_run_us: a batch predicted to run for longer goes to a native thread; 0: every one does.
        notes: notes every run in the crash record; None: runs are not noted.
        watchdog: terminates runs on the loop's thread that take too long; None: the runner makes one.

    Attributes:
        bound_nbytes: the preallocated memory for small batches of fixed shapes.
        costs: the measured run times.
    """

    session: Session
    bound_nbytes: int
    costs: ShapeCosts
    def __init__(
        self,
        session: Session,
        batched: bool,
        executor: Executor,
        inline_run_us: int,
        notes: RunNotes | None = None,
        watchdog: Watchdog | None = None,
    ) -> None: ...
    def __call__(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        """Runs requests that share a batch. If it fails, its halves are retried separately.

        Calls ``done`` once, on the loop's thread: before it returns (then it returns None), or later.
        """
    def close(self) -> None:
        """Releases the session; no run may be under way."""

class RunningBatch:
    """A batch under way; a :class:`fastinfer.schedule.backend.Run`."""

    def terminate(self) -> None: ...
