"""One run of a session over the rows of one or more requests."""

from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.native.job import Job
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor

class BatchRun(Job):
    """A run, for :meth:`Job.run` or an executor; once. It keeps the requests' inputs alive, which must not change.

    Several requests' rows are gathered into new memory; a single request's tensors are used in place.

    Args:
        session: what to run.
        requests: their ``inputs`` are in the model's order, and they share a batch.
        batched: the first dimension of all inputs and outputs is the batch; else exactly one request.

    Raises:
        ValueError: the requests do not share a batch, or have another number of inputs than the model.
    """

    input_bytes: int
    """Of all inputs of all requests."""
    rows: int
    """Of all requests together."""
    def __init__(self, session: Session, requests: list[InferRequest], batched: bool) -> None: ...
    @property
    def error(self) -> OrtError | None:
        """Why the run failed; None after success (and before the end)."""
    @property
    def compute_input_ns(self) -> int:
        """Gathering the rows, and making the runtime's values."""
    @property
    def compute_infer_ns(self) -> int:
        """The run itself."""
    @property
    def compute_output_ns(self) -> int:
        """Taking the outputs, converting strings included."""
    def split(self) -> list[list[Tensor]]:
        """For each request all outputs, in the model's order, sharing memory; once, after the end.

        Raises:
            OrtError: the run failed.
            RuntimeError: it was split before, or has not ended.
        """
    def terminate(self) -> None:
        """Ends the run early, with an error; a run that has not started will not run, one that has ended is unchanged.

        For the loop's thread, whatever thread the run is on.
        """
