"""The interface between the scheduler and what runs batches, and the outcome of a request in a batch.

An ONNX model runs batches in ONNX Runtime; the built-in workers compute one item at a time in Python
(:class:`fastinfer.backends.builtin.item.ItemWorker`). The scheduler knows neither: it only gets ``start``.
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
"""All outputs in the model's order, or the error for the client."""


class Run(Protocol):
    """A running batch."""

    def terminate(self) -> None:
        """Ends the run early if possible, because nobody waits. ``done`` is still called."""


class Implementation(Protocol):
    """A loaded model, able to run batches."""

    signature: Signature
    platform: str

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        """Starts a batch; the inputs of its requests are in the signature's order.

        Calls ``done`` once, on the loop's thread: either before it returns None, or later.
        """

    def close(self) -> None:
        """Releases everything. Called when no batch is running."""
