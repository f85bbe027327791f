"""Runs the batches of one session: on the loop's thread where that is short, else on a native thread."""

from collections.abc import Callable

from fastinfer._ext.executor import Executor
from fastinfer._ext.message import BatchResult, BatchRunner, InferRequest
from fastinfer._ext.ort import Session
from fastinfer._ext.runnotes import RunNotes
from fastinfer.models.run import Run

class RunTimes:
    """Predicts how long a run takes from the runs measured so far, by the size of the input in powers of two."""

    def observe(self, nbytes: int, ns: int) -> None:
        """Learns of a run."""
    def predict_ns(self, nbytes: int) -> float:
        """The time of a run on so many bytes, rather too long than too short; infinite where nothing was measured."""

class Runner(BatchRunner):
    """Predicts how long a batch runs, and runs it where that is best. Loop's thread only.

    Args:
        session: the loaded model.
        batched: the first dimension of all its inputs and outputs is the batch.
        executor: the native threads, shared by all models.
        inline_run_us: a batch predicted to run for longer goes to a native thread.
        notes: where every run is noted, so that a crash finds what ran; None: nowhere.

    Attributes:
        bound_nbytes: of the memory that stands ready for small batches of fixed shapes.
        times: of runs over all rows of a batch together.
        apart: of batches of large requests that ran one after the other, each where it lies.
    """

    session: Session
    bound_nbytes: int
    times: RunTimes
    apart: RunTimes
    def __init__(
        self, session: Session, batched: bool, executor: Executor, inline_run_us: int, notes: RunNotes | None = None
    ) -> None: ...
    def __call__(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        """Runs requests that share a batch. Where it fails, its halves are run again by themselves.

        Calls ``done`` once, on the loop's thread: before it returns (then it returns None), or later.
        """
    def close(self) -> None:
        """Lets go of the session; nothing is under way any more."""

class RunningBatch:
    """A batch under way; a :class:`fastinfer.models.run.Run`."""

    def terminate(self) -> None: ...
