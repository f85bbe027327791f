"""The request, response and batch records that are passed between the layers."""

from collections.abc import Callable
from typing import Any

from fastinfer.base.errors import ApiError
from fastinfer.shared.counters import Counters
from fastinfer.tensor.tensor import Tensor
from fastinfer.tensor.top_k import Classification

class RequestedOutput:
    """One entry of a request's ``outputs``.

    ``binary`` is 1, 0, or -1 if the client did not say; ``classification`` is the number of classes that it wants, or 0
    if it wants the elements.
    """

    name: str
    binary: int
    classification: int
    def __init__(self, name: str, binary: int = -1, classification: int = 0) -> None: ...

class InferRequest:
    """An inference request: decoded, then checked against a signature, then queued."""

    id: bytes
    inputs: list[Tensor]
    outputs: list[RequestedOutput]
    binary_output: bool
    raw: bool
    timeout_us: int
    priority: int

    rows: int
    implicit_batch: bool
    shape_key: Any
    whole: bool

    state: int
    part: bool
    step: Any
    arrived_ns: int
    deadline_ns: int
    enqueued_ns: int
    started_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    complete: Callable[[InferRequest, Any], None] | Waiter | None
    stats: Counters | None
    def __init__(
        self,
        inputs: list[Tensor],
        outputs: list[RequestedOutput] | None = None,
        id: bytes = b"",
        binary_output: bool = False,
        raw: bool = False,
        timeout_us: int = 0,
        priority: int = 0,
    ) -> None: ...

class Waiter:
    """Receives a request's outcome, by a C call."""

class InferResponse:
    """An answer: its outputs in order, and for each whether it is sent as bytes after the JSON, and its classes.

    ``classes`` has for each output the Classification that is sent in its place, or None; None if no output has one.
    """

    model_name: str
    model_version: str
    id: bytes
    outputs: list[Tensor]
    binary: tuple[bool, ...]
    classes: tuple[Classification | None, ...] | None
    def __init__(
        self,
        model_name: str,
        model_version: str,
        outputs: list[Tensor],
        id: bytes = b"",
        binary: tuple[bool, ...] = (),
        classes: tuple[Classification | None, ...] | None = None,
    ) -> None: ...

class BatchResult:
    """The outcome of a batch.

    Attributes:
        outputs: for each request of the batch, in order, all outputs of the model in the model's order (each with the
            request's own rows), or the error that this request is answered with.
        compute_input_ns: gathering.
        compute_infer_ns: running.
        compute_output_ns: scattering.
    """

    outputs: list[list[Tensor] | ApiError]
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    def __init__(
        self,
        outputs: list[list[Tensor] | ApiError],
        compute_input_ns: int = 0,
        compute_infer_ns: int = 0,
        compute_output_ns: int = 0,
    ) -> None: ...

class BatchRunner:
    """Runs batches; those that it can run at once, by a C call of the scheduler."""
