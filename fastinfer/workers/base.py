"""What a worker is: an implementation that serves an endpoint.

``onnx`` runs batches in ONNX Runtime on native threads; the built-in ones compute one item at a time in Python
(:class:`fastinfer.workers.item.ItemWorker`). The scheduler knows neither: it is handed an implementation's ``start``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastinfer._ext.message import BatchResult, InferRequest
from fastinfer._ext.signature import Signature
from fastinfer.models.run import Run

__all__ = ["BatchResult", "Implementation", "Run"]


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
