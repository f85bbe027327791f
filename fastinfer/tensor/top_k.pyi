"""The classification extension: of an output's elements the largest ones, each as text."""

from fastinfer.tensor.tensor import Tensor

class Labels:
    """The names of an output's classes.

    Args:
        text: a label a line; an empty line is a class without a label.

    Raises:
        ValueError: a line is longer than 1 KiB, or there are more than a million; it names the line.
    """

    def __init__(self, text: str) -> None: ...
    def __len__(self) -> int:
        """How many lines there are."""

class Classification:
    """What is answered for an output in place of its elements: BYTES ``value:index`` or ``value:index:label``.

    The largest come first, of equal ones the lower index, NaN last. Values are written with six decimals, integers
    without. The answer has the shape ``[rows, n]``, or ``[n]`` where there is no batch dimension.

    Args:
        scores: any datatype but BOOL and BYTES; not kept, so it must live as long as this is not yet written.
        wanted: how many classes of a row, from 1 on; those of a row where it has less.
        batched: the first dimension is the batch; else all elements are one row.
        labels: of the classes, by index.

    Raises:
        ApiError: 400 where elements of the datatype have no order.
    """

    def __init__(
        self, scores: Tensor, wanted: int, *, batched: bool = False, labels: Labels | None = None
    ) -> None: ...
