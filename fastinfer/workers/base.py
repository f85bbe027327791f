"""What a worker is: an implementation that serves an endpoint.

``onnx`` runs batches in ONNX Runtime on native threads; the built-in ones compute one item at a time in Python
(:class:`fastinfer.workers.item.ItemWorker`). The scheduler knows neither: it is handed an :class:`Implementation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastinfer._ext.message import InferRequest
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor
from fastinfer.errors import ApiError


@dataclass(slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        outputs: for each request of the batch, in order, all outputs of the model in the model's order (each with the
            request's own rows), or the error that this request is answered with.
        compute_input_ns: gathering.
        compute_infer_ns: running.
        compute_output_ns: scattering.
    """

    outputs: Sequence[list[Tensor] | ApiError]
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


class Run(Protocol):
    """A batch under way."""

    def terminate(self) -> None:
        """Nobody waits any more: end it early if that is possible. ``done`` is called all the same."""


class Implementation(Protocol):
    """A loaded model, able to run batches."""

    signature: Signature
    platform: str

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        """Runs requests that share a batch; their inputs are in the signature's order.

        Calls ``done`` once, on the loop's thread: before it returns (then it returns None), or later.
        """

    def close(self) -> None:
        """Releases everything. Called when nothing is under way any more."""
