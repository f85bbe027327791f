"""ONNX Runtime through its C API; the ``onnxruntime`` package itself is never imported.

Telemetry of the runtime is off, unless the environment has ``FASTINFER_ORT_TELEMETRY=1``.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

from typing_extensions import Buffer

from fastinfer.backends.onnx.settings import SessionSettings
from fastinfer.base.budget import Budget
from fastinfer.tensor.rows import BatchAxes
from fastinfer.tensor.tensor import Tensor, TensorSpec

class OrtError(Exception):
    """A refusal of the runtime, or of this module on its behalf. The message may name paths of files.

    Args:
        message: what went wrong.
        code: the runtime's error code (``OrtErrorCode``): 1 failure, 2 invalid argument, 3 no such file, 6 exception,
            7 invalid protobuf, 9 not implemented, 10 invalid graph, 11 execution provider.
    """

    code: int
    def __init__(self, message: str, code: int = 1) -> None: ...

def configure(intra_op_threads: int, inter_op_threads: int = 1, spinning: bool = False) -> None:
    """Makes the process's environment with its thread pools, which all sessions without pools of their own share.

    To be called at most once and before the first session; the first session calls it with one thread a usable core.

    Args:
        intra_op_threads: threads that work on one operator, the calling one included.
        inter_op_threads: threads that work on the operators of one graph.
        spinning: idle threads burn their cores for a while, for a lower latency.

    Raises:
        RuntimeError: the environment exists.
        ValueError: a count is not positive.
        OrtError: the runtime is not installed, or is too old.
    """

def version() -> str:
    """The runtime's version. OrtError if it is not installed."""

def available_providers() -> tuple[str, ...]:
    """The execution providers that this build of the runtime has, such as ``"CPUExecutionProvider"``."""

class Session:
    """A loaded model. Runs may overlap, on any threads.

    The GIL is released while the model is loaded, run and freed.

    Args:
        path: the model's file. Its external data must be in the same directory, not linked from elsewhere.
        model: the model's bytes; ``path`` then only gives the place of its external data (None: it must have none).
        settings: everything else, as an object ...
        weights_folder: where external data is, whose files the caller has checked; None: beside the model, where links
            are refused.
        **options: ... or as keyword arguments: the attributes of :class:`SessionSettings`.

    Raises:
        OrtError: the model is refused, by the runtime or because it has inputs or outputs that cannot be served.
        ValueError: neither path nor model is given.
    """

    inputs: tuple[TensorSpec, ...]
    """Those that every run needs, in the order in which the model takes them."""
    optional_inputs: tuple[TensorSpec, ...]
    """Inputs of an optional type, then those that override initializers; in this order, after the others."""
    refused_inputs: tuple[str, ...]
    """Why other optional inputs cannot be given, as sentences."""
    outputs: tuple[TensorSpec, ...]
    """A sequence of tensors is described as one tensor, with its elements along a new first dimension."""
    sequence_outputs: tuple[str, ...]
    """The names of the outputs that are sequences."""
    budget: Budget | None
    axes: BatchAxes | None
    """Where the memory of outputs counts; None: nowhere."""
    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        model: Buffer | None = None,
        settings: SessionSettings | None = None,
        weights_folder: str | None = None,
        **options: Any,
    ) -> None: ...
    def run(self, inputs: list[Tensor], outputs: Sequence[str] | None = None) -> list[Tensor]:
        """Runs the model on this thread.

        Args:
            inputs: all that are needed, and optional ones, in any order.
            outputs: names of the wanted ones; None: all, in the model's order.

        Returns:
            Tensors over the runtime's own memory (BYTES are copied).

        Raises:
            OrtError: the model refuses the inputs, or fails.
        """
