"""The body of an inference request, read into an InferRequest: JSON and binary tensors, one pass, no document tree."""

from typing_extensions import Buffer

from fastinfer.base.budget import Budget
from fastinfer.native.job import Job
from fastinfer.tensor.expected import Expectation
from fastinfer.tensor.message import InferRequest

def decode(
    body: Buffer,
    json_size: int = -1,
    stable: bool = False,
    model: str = "",
    nullable: bool = False,
    keeps_base64: bool = False,
    width: int = 512,
    expectation: Expectation | None = None,
    budget: Budget | None = None,
) -> InferRequest:
    """Reads a request's body.

    Checks that need a model are not made here: names, datatypes and shapes are only well-formed.

    - null stands for a missing value, except for ``inputs``, their names, shapes and datatypes, and elements.
    - BYTES with the parameter ``content_type`` ``base64`` are decoded, element by element; text that is not is a 400.
    - JSON is RFC 8259 without exceptions but one: ``NaN``, ``Infinity`` and ``-Infinity`` in the data of FP tensors.
    - The request's ``id`` is kept as it was written between its quotes, still escaped.
    - In a binary BOOL tensor every byte but 0 is true; if one is neither 0 nor 1, the tensor is copied and has 1.
    - With ``json_size`` 0 (a raw request) ``InferRequest.raw`` is set, and the one input has no name, the datatype
      UINT8 and the shape ``[len(body)]``; the model's signature sets the real ones.

    Args:
        body: the whole body.
        json_size: this many bytes at the start are JSON, the rest are the raw tensors of the inputs that have a
            ``binary_data_size``; -1: all of it is JSON.
        stable: the body may be kept. Binary tensors are then views of it (at any alignment), and own a reference to
            it; otherwise they are copied.
        model: the model's name, for the sentences of errors.
        nullable: null among the data of FP tensors is NaN.
        keeps_base64: ``content_type`` ``base64`` has no effect, because the model takes the text.
        expectation: the inputs that the model takes. The data of an input that certainly does not fit is skipped: the
            request is ``undecoded`` then, and ``Signature.check`` refuses it.
        budget: where the memory of tensors counts.
        width: numbers are read with registers of at most this many bits, 512, 256 or (as on any CPU) 0: for tests.

    Raises:
        ApiError: 400 with the place of the fault, 413 for too many short strings, 503 if there is no memory.
    """

class DecodeJob(Job):
    """:func:`decode` of a stable body, on any thread. Holds the body; ApiError 400 for a ``json_size`` past its end."""

    def __init__(
        self,
        body: Buffer,
        json_size: int = -1,
        model: str = "",
        nullable: bool = False,
        keeps_base64: bool = False,
        expectation: Expectation | None = None,
        budget: Budget | None = None,
    ) -> None: ...
    def result(self) -> InferRequest:
        """The request, once after the job has run; ApiError as :func:`decode`, ValueError the
        second time. Loop's thread."""
