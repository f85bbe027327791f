"""Rows of several requests as one block of memory, and back."""

from collections.abc import Sequence

from fastinfer.tensor.tensor import Tensor, TensorSpec

class BatchAxes:
    """Where the rows are in a session's inputs and outputs."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None: ...
    @staticmethod
    def of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> BatchAxes | None:
        """The axes; None if the rows are along the first dimension of each."""

def cut(tensor: Tensor, axis: int, start: int, count: int) -> Tensor:
    """Rows ``start`` to ``start + count`` along a dimension; with ``axis`` -1 the tensor itself.

    They share the memory if the dimension is the first one. IndexError outside; ValueError for BYTES along another one.
    """

def concatenate(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """One tensor with the rows of all along a dimension, in new memory; named as the first.

    ValueError if they do not fit together.
    """

def split(tensor: Tensor, rows: list[int]) -> list[Tensor]:
    """Tensors of ``rows[0]``, ``rows[1]``, ... rows, sharing the memory. ValueError unless the sum is that of all
    rows."""
