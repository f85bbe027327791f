"""What a backend is to the scheduler: something that runs batches, and what becomes of a request in one.

``onnx`` runs them in ONNX Runtime on native threads; the built-in workers compute one item at a time in Python
(:class:`fastinfer.backends.builtin.item.ItemWorker`). The scheduler knows neither: it is handed ``start``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastinfer.base.errors import ApiError
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor

__all__ = ["BatchResult", "Implementation", "Outcome", "Run"]

Outcome = list[Tensor] | ApiError
"""All outputs in the model's order, or the error that the request is answered with."""


class Run(Protocol):
    """A batch under way."""

    def terminate(self) -> None:
        """Nobody waits any more: end it early if that is possible. It is reported as finished all the same."""


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
