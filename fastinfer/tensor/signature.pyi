"""A model's inputs and outputs, and the check of a request against them."""

from collections.abc import Collection, Mapping, Sequence

from fastinfer.tensor.expected import Expectation
from fastinfer.tensor.message import InferRequest, InferResponse
from fastinfer.tensor.tensor import Tensor, TensorSpec
from fastinfer.tensor.top_k import Labels

def names_a_batch(symbol: str) -> bool:
    """Whether exporters call a batch dimension so: ``batch`` in any name, ``N``, ``B``, ``bs``, ``None``,
    ``unk__3``."""

class Signature:
    """A model's inputs and outputs.

    Args:
        inputs: in the order in which the model takes them.
        outputs: in the order in which it gives them.
        batched: the first dimension of every input and output is the batch.
        max_batch_size: rows of one batch; 0 if the model is not batched.
        max_batch_size_configured: a request of more rows is refused (else the caller runs it in slices).
        positional: inputs are taken by position, their names are free.
        accepts_anything: any inputs at all are accepted.
        outputs_batched: the first dimension of every output is the batch; by default as ``batched``.
        item_form: a request to a batched model whose inputs all lack the batch dimension is one item; by default if
            ``max_batch_size`` was configured, or each input's first dimension is named like a batch
            (:func:`names_a_batch`).
        takes_base64: BYTES inputs are base64 text, which the model decodes itself.
        never_empty: the model's operators that must not get inputs without elements; ``""``: there is none.
        labels: of the classes of outputs, by the output's name.
        score_matrices: names of the outputs whose rows are classified apart, even if the model is not batched.
        optional_inputs: those that a request may leave out. They have no batch dimension; a request that gives one
            runs alone.
        max_request_rows: if ``max_batch_size_configured``: rows that a request may have; 0: ``max_batch_size``.
    """

    inputs: tuple[TensorSpec, ...]
    optional_inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    max_batch_size: int
    max_batch_size_configured: bool
    max_request_rows: int
    positional: bool
    accepts_anything: bool
    outputs_batched: bool
    item_form: bool
    takes_base64: bool
    never_empty: str
    labels: dict[str, Labels]
    score_matrices: frozenset[str]
    expectation: Expectation | None
    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        batched: bool = False,
        max_batch_size: int = 0,
        max_batch_size_configured: bool = False,
        positional: bool = False,
        accepts_anything: bool = False,
        outputs_batched: bool | None = None,
        item_form: bool | None = None,
        takes_base64: bool = False,
        never_empty: str = "",
        labels: Mapping[str, Labels] | None = None,
        score_matrices: Collection[str] = (),
        optional_inputs: Sequence[TensorSpec] = (),
        max_request_rows: int = 0,
    ) -> None: ...
    def __str__(self) -> str:
        """In words: ``INPUT0 INT32[-1,16] -> OUTPUT0 INT32[-1,16], batches of up to 64``."""
    def check(self, request: InferRequest, model: str) -> int:
        """Makes ``request`` ready to run.

        Puts its inputs in the model's order, the given optional ones last, adds the batch dimension if all others lack
        it, and sets ``rows``, ``implicit_batch``, ``whole`` and ``shape_key``. ApiError 400, with Triton's sentence, if it does not fit.
        """
    def respond(self, request: InferRequest, outputs: list[Tensor], model: str, version: str) -> InferResponse:
        """The answer: the requested ones of all ``outputs`` (given in the model's order), in the requested order."""
