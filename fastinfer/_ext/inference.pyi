"""One inference on its way: from a request's body to tensors to its answer. Loop's thread only."""

from collections.abc import Callable
from typing import Any

from fastinfer._ext.executor import Executor
from fastinfer._ext.scheduler import Scheduler
from fastinfer._ext.signature import Signature

class Target:
    """What an inference needs of a model; :class:`fastinfer.models.model.Model` is one.

    Attributes:
        name: the endpoint's name, under which it answers.
        version: its version, as on the wire.
        own: the signature of its own implementation.
        scheduler: queue and instances.
        successor: gives the model that gets the outputs, or None.
    """

    name: str
    version: str
    own: Signature
    scheduler: Scheduler
    successor: Callable[[], Any] | None
    def __init__(
        self,
        name: str,
        version: str,
        own: Signature,
        scheduler: Scheduler,
        successor: Callable[[], Any] | None = None,
    ) -> None: ...

class InferHandler:
    """Answers the exchanges of the route; their arguments are a name, and a version or not.

    Args:
        find: the model for the arguments; ApiError 404 or 503 where there is none.
        ready: by arguments, what ``find`` would give; looked at first, and kept by its owner.
        executor: the native threads.
        off_loop_bytes: larger bodies are decoded, and larger answers encoded, on a native thread.
        nonfinite: how values that are not finite are written; see :mod:`fastinfer._ext.encode`. What is written as
            null is read as NaN, too.
    """

    def __init__(
        self, find: Callable[..., Any], ready: dict[Any, Any], executor: Executor, off_loop_bytes: int, nonfinite: int
    ) -> None: ...
    def __call__(self, exchange: Any) -> None:
        """Begins an inference, which answers the exchange later. ApiError where it cannot begin."""
