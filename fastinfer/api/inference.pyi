"""Handles an inference request from its body to its answer. Loop's thread only."""

from collections.abc import Callable
from typing import Any

from fastinfer.base.budget import Budget
from fastinfer.native.executor import Executor

class Inference:
    """One request of the route, until it is answered or its client is gone."""

    def work_on(self, job: Any) -> None:
        """Sets the job that works for it now; ``job.terminate()`` is called when the client no longer waits."""
    def refuse(self, error: BaseException) -> None:
        """Answers with the job's error, and counts the failure."""

class InferHandler:
    """Answers the exchanges of the route; their arguments are a name, and a version or not.

    Args:
        find: the model for the arguments; ApiError 404 or 503 if there is none.
        ready: a cache of ``find`` by arguments, which its owner maintains.
        executor: the native threads.
        off_loop_bytes: larger bodies are decoded, and larger answers encoded, on a native thread.
        nonfinite: how values that are not finite are written; see :mod:`fastinfer.codec.encode`. If they are
            written as null, null is read as NaN, too.
        budget: where the memory of requests counts.
    """

    def __init__(
        self,
        find: Callable[..., Any],
        ready: dict[Any, Any],
        executor: Executor,
        off_loop_bytes: int,
        nonfinite: int,
        budget: Budget | None = None,
    ) -> None: ...
    def await_body(self, exchange: Any) -> Inference:
        """Begins an inference whose body is being inflated: its deadline runs. ApiError 404 or 503 without a model."""
    def __call__(self, exchange: Any) -> None:
        """Begins an inference, which answers the exchange later. ApiError if it cannot begin."""
