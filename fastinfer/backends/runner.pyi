"""Runs the batches of one session: on the loop's thread where that is short, else on a native thread."""

from collections.abc import Callable

from fastinfer.backends.onnx.ort import Session
from fastinfer.backends.watchdog import Watchdog
from fastinfer.native.executor import Executor
from fastinfer.schedule.backend import Run
from fastinfer.schedule.cost import ShapeCosts
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.tensor.message import BatchResult, BatchRunner, InferRequest

class Runner(BatchRunner):
    """Predicts how long a batch runs, and runs it where that is best. Loop's thread only.

    Args:
        session: the loaded model.
        batched: the first dimension of all its inputs and outputs is the batch.
        executor: the native threads, shared by all models.
        inline_run_us: a batch predicted to run for longer goes to a native thread; 0: every one does.
        notes: where every run is noted, so that a crash finds what ran; None: nowhere.
        watchdog: ends runs on the loop's thread that take too long; None: one of its own does.

    Attributes:
        bound_nbytes: of the memory that stands ready for small batches of fixed shapes.
        costs: what is known of runs.
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
        """Runs requests that share a batch. Where it fails, its halves are run again by themselves.

        Calls ``done`` once, on the loop's thread: before it returns (then it returns None), or later.
        """
    def close(self) -> None:
        """Lets go of the session; nothing is under way any more."""

class RunningBatch:
    """A batch under way; a :class:`fastinfer.schedule.backend.Run`."""

    def terminate(self) -> None: ...
