"""An InferResponse as text, straight from the outputs' memory."""

from typing import Final

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.native.job import Job
from fastinfer.tensor.message import InferResponse

LITERAL: Final[int]
"""Values that are not finite are written as NaN, Infinity, -Infinity ..."""
NULL: Final[int]
"""... or as null ..."""
ERROR: Final[int]
"""... or are an error."""

class Encoded(Buffer):
    """An answer's body. The buffer protocol gives its JSON text, read-only."""

    json_size: int
    size: int
    """Bytes of the whole body: the text and the raw tensors."""
    binary: bool
    """Some output is sent as bytes: the body is not JSON alone."""
    def parts(self) -> list[Buffer]:
        """The body in order: the JSON text, then each raw tensor (the Tensor itself, not a copy)."""

def encode(response: InferResponse, nonfinite: int = ..., budget: Budget | None = None) -> Encoded:
    """Writes an answer: ``{"model_name":…,"model_version":…,"id":…,"outputs":[…]}``, compact, ``data`` flat.

    Floating point has the fewest digits that read back to the same value of its own type, in the form of Python's repr.
    Elements of BYTES are strings; if they are not UTF-8, U+FFFD stands for each maximal ill-formed part.

    Args:
        nonfinite: LITERAL (the default), NULL or ERROR.
        budget: where the text counts.

    Raises:
        ApiError: 400 for classes of more than 4 MiB of text, 500 for a value that may not be written, 503 if there
        is no memory.
    """

class EncodeJob(Job):
    """:func:`encode`, on any thread. Holds the response, whose outputs must not change meanwhile."""

    def __init__(self, response: InferResponse, nonfinite: int = ..., budget: Budget | None = None) -> None: ...
    def result(self) -> Encoded:
        """The text, once after the job has run; ApiError as :func:`encode`. Loop's thread."""
