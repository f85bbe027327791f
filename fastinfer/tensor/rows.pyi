"""Rows of several requests as one block of memory, and back."""

from fastinfer.tensor.tensor import Tensor

def concatenate(tensors: list[Tensor]) -> Tensor:
    """One tensor with the rows of all, in new memory; named as the first. ValueError if they do not fit together."""

def split(tensor: Tensor, rows: list[int]) -> list[Tensor]:
    """Tensors of ``rows[0]``, ``rows[1]``, ... rows, sharing the memory. ValueError unless the sum is that of all
    rows."""
