"""Inputs and outputs whose shape in the configuration is another one than the graph's (``reshape``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.config.model_schema import TensorConfig
from fastinfer.schedule.backend import BatchResult, Implementation, Outcome, Run
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec


@dataclass(frozen=True, slots=True)
class _Change:
    """Two shapes of one tensor, without the batch dimension; the n-th -1 of both is the same dimension."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def of(self, tensor: Tensor, start: int) -> Tensor:
        """The tensor in its other shape; ``start``: the number of batch dimensions. ValueError if it does not fit."""
        shape = tensor.shape
        sizes = iter([size for size, dim in zip(shape[start:], self.before, strict=True) if dim < 0])
        return tensor.reshaped([*shape[:start], *(next(sizes) if dim < 0 else dim for dim in self.after)])


class ReshapedModel:
    """An implementation whose tensors have another shape outside; shares the memory of the inner ones.

    Its batches never run on the loop's thread: only a runner itself can do that.

    Args:
        inner: runs the batches.
        config: says which tensors are reshaped.
    """

    def __init__(self, inner: Implementation, config: ModelConfig) -> None:
        self.platform = inner.platform
        self.close = inner.close
        self._start = inner.start
        own = inner.signature
        self._batch_dims = 1 if own.batched else 0
        inputs = {each.name: each for each in config.inputs}
        outputs = {each.name: each for each in config.outputs}
        self._inputs = [_change(inputs.get(spec.name), inwards=True) for spec in own.inputs]
        self._inputs += [None for _ in own.optional_inputs]  # a request has those that it gives after the others
        self._outputs = [_change(outputs.get(spec.name), inwards=False) for spec in own.outputs]
        self.signature = Signature(
            [self._outer(spec, inputs) for spec in own.inputs],
            [self._outer(spec, outputs) for spec in own.outputs],
            batched=own.batched,
            max_batch_size=own.max_batch_size,
            max_batch_size_configured=own.max_batch_size_configured,
            max_request_rows=own.max_request_rows,
            item_form=own.item_form,
            never_empty=own.never_empty,
            labels=own.labels,
            score_matrices=own.score_matrices,
            optional_inputs=own.optional_inputs,
        )

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> Run | None:
        for request in requests:
            request.inputs = self._reshaped(request.inputs, self._inputs)

        def reshape(result: BatchResult) -> None:
            outcomes = [self._outcome(each) for each in result.outputs]
            done(BatchResult(outcomes, result.compute_input_ns, result.compute_infer_ns, result.compute_output_ns))

        return self._start(requests, reshape)

    def _outcome(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, ApiError):
            return outcome
        try:
            return self._reshaped(outcome, self._outputs)
        except ValueError:
            return ApiError(500, "an output does not have the shape that the configuration reshapes")

    def _reshaped(self, tensors: Sequence[Tensor], changes: Sequence[_Change | None]) -> list[Tensor]:
        return [
            tensor if change is None else change.of(tensor, self._batch_dims)
            for tensor, change in zip(tensors, changes, strict=False)
        ]

    def _outer(self, spec: TensorSpec, configured: Mapping[str, TensorConfig]) -> TensorSpec:
        """The specification that clients see."""
        given = configured.get(spec.name)
        if given is None or given.reshape is None:
            return spec
        rows = self._batch_dims
        return TensorSpec(
            spec.name,
            spec.datatype,
            [*spec.shape[:rows], *given.dims],
            [*spec.symbols[:rows], *("" for _ in given.dims)],
        )


def _change(given: TensorConfig | None, *, inwards: bool) -> _Change | None:
    if given is None or given.reshape is None:
        return None
    return _Change(given.dims, given.inner_dims) if inwards else _Change(given.inner_dims, given.dims)
