"""Tensors: a name, a datatype, a shape, and memory with its owner.

Elements are little-endian and row-major. BYTES elements lie one after the other, each a uint32 length and its bytes.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from fastinfer.base.budget import Budget

class Memory(Buffer):
    """One block of native memory, 64-byte aligned; freed with its last reference."""

    nbytes: int

class TensorSpec:
    """A model's declaration of one input or output.

    Args:
        name: the tensor's name.
        datatype: a v2 name such as ``"FP32"``; ValueError for an unknown one.
        shape: dimensions, -1 for a variable one; ValueError past 16 dimensions. None: the rank is open, any shape fits;
            ``shape`` is then ``(-1,)``.
        symbols: the symbolic name of each dimension, ``""`` if it has none.
        batch_axis: the dimension of the rows if the model is batched; -1: it has none, because requests share a batch
            only if they give the same value.
    """

    name: str
    shape: tuple[int, ...]
    open_rank: bool
    symbols: tuple[str, ...]
    batch_axis: int
    def __init__(
        self,
        name: str,
        datatype: str,
        shape: Sequence[int] | None,
        symbols: Sequence[str] = (),
        batch_axis: int = 0,
    ) -> None: ...
    @property
    def datatype(self) -> str: ...
    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape without the dimension of the rows; of an open rank, ``shape``."""
    def along(self, axis: int) -> TensorSpec:
        """The same with another ``batch_axis``."""
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class Tensor(Buffer):
    """A named tensor. The buffer protocol gives its bytes, read-only."""

    name: str
    nbytes: int
    owner: object
    @staticmethod
    def from_numpy(name: str, array: Any, datatype: str | None = None) -> Tensor:
        """A tensor over ``array``'s memory (copied only if it is not contiguous; BYTES are always copied).

        ``datatype`` is needed for BF16, which numpy has no dtype for (give uint16). ValueError or TypeError if the
        array's dtype does not fit.
        """
    @staticmethod
    def empty(name: str, datatype: str, shape: Sequence[int], budget: Budget | None = None) -> Tensor:
        """A tensor over new memory that is not initialised, and counts in ``budget``; BYTES only without elements.

        Raises:
            MemoryError: there is none, or the budget is spent.
            ValueError: there are no such tensors.
        """
    @staticmethod
    def copied(name: str, datatype: str, shape: Sequence[int], block: Buffer, budget: Budget | None = None) -> Tensor:
        """A tensor over a copy of ``block``, which need not be trusted: it may be another process's memory.

        The GIL is released. The copy counts in ``budget``.

        Raises:
            MemoryError: there is none, or the budget is spent.
            ValueError: the block is not exactly such a tensor.
        """
    def fill(self) -> NDArray[Any]:
        """A writable array over the memory of :meth:`empty`, for its maker only. ValueError for other memory."""
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def numpy(self) -> NDArray[Any]:
        """A read-only array over the tensor's memory; BF16 as uint16; BYTES as a new object array of ``bytes``."""
    def slice_rows(self, start: int, count: int) -> Tensor:
        """Rows ``start`` to ``start + count`` of the first dimension, sharing the memory. IndexError outside."""
    def reshaped(self, shape: Sequence[int]) -> Tensor:
        """The same memory under another shape. ValueError if the number of elements differs."""
    def renamed(self, name: str) -> Tensor:
        """The same memory under another name."""
