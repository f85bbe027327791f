"""What the scheduler, a model and its implementation agree on: a run, and what becomes of a request in it."""

from __future__ import annotations

from typing import Protocol

from fastinfer._ext.tensor import Tensor
from fastinfer.errors import ApiError

Outcome = list[Tensor] | ApiError
"""All outputs in the model's order, or the error that the request is answered with."""


class Run(Protocol):
    """A batch under way."""

    def terminate(self) -> None:
        """Nobody waits any more: end it early if that is possible. It is reported as finished all the same."""
