"""The classification extension: the largest elements of an output, each as text."""

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
        """The number of lines."""

class Classification:
    """The answer for an output in place of its elements: BYTES ``value:index`` or ``value:index:label``.

    The largest come first, of equal ones the lower index, NaN last. Values are written with six decimals, integers
    without. The answer has the shape ``[rows, n]``, or ``[n]`` without a batch dimension.

    Args:
        scores: any datatype but BOOL and BYTES; not kept, so it must live until the answer is written.
        wanted: the number of classes of a row, at least 1; all of a row that has fewer.
        batched: the first dimension is the batch; else all elements are one row.
        labels: of the classes, by index.

    Raises:
        ApiError: 400 if elements of the datatype have no order.
    """

    def __init__(self, scores: Tensor, wanted: int, *, batched: bool = False, labels: Labels | None = None) -> None: ...
