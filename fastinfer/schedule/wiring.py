"""The graph of an ensemble: which step makes and takes which tensor. Pure data: no requests, no loop.

The names are checked once, when the ensemble is loaded (:class:`Wiring`), and the signatures of its steps' models when
they are known or have changed (:meth:`Wiring.plan`). Each error names the steps and the tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from fastinfer.base.errors import ApiError
from fastinfer.base.near import suggestion
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec

_SHOWN = 8  # names in an error
_COMPARED = 100  # names, and characters of one, that are searched for a similar name


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an ensemble.

    Attributes:
        number: its place in the configuration, from 1.
        model: the endpoint that runs it.
        version: of the model, as on the wire; None: the highest one that is loaded.
        inputs: by the model's input, the ensemble's tensor that it takes.
        outputs: by the model's output, the ensemble's tensor that it makes.
    """

    number: int
    model: str
    version: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def __str__(self) -> str:
        return f"step {self.number} ('{self.model}')"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How a step's tensors go into and come out of its model.

    Attributes:
        inputs: the name of each input, in the model's order, and the tensor that it takes.
        outputs: the place of an output in the model's order, and the tensor that it makes.
        axes: the batch dimension of each output that the model makes; empty: its outputs are not batched.
    """

    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[int, str], ...]
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Origin:
    """A tensor's declaration, and what makes the tensor."""

    spec: TensorSpec
    maker: str


class Wiring:
    """The steps of an ensemble, checked by their names.

    Args:
        signature: the ensemble's inputs and outputs.
        steps: in any order, numbered from 1 as they come.

    Attributes:
        signature, steps: as given.
        takers: by tensor, the places in ``steps`` of those that take it; a step is there once for each of its inputs.
        uses: by tensor, how many inputs of steps and outputs of the ensemble take it.
        first: the numbers of the steps that take inputs of the ensemble.

    Raises:
        ApiError: 400, the steps are no graph from the inputs to the outputs.
    """

    def __init__(self, signature: Signature, steps: Sequence[Step]) -> None:
        self.signature = signature
        self.steps = tuple(steps)
        inputs = [spec.name for spec in signature.inputs]
        outputs = [spec.name for spec in signature.outputs]
        makers = self._makers(inputs)
        self.takers: dict[str, list[int]] = {tensor: [] for tensor in makers}
        for place, step in enumerate(self.steps):
            for tensor in step.inputs.values():
                if tensor not in makers:
                    raise ApiError(400, f"{step} takes '{tensor}', which nothing makes{_suggestion(tensor, makers)}")
                self.takers[tensor].append(place)
        made = makers.keys() - set(inputs)
        for tensor in outputs:
            if tensor not in made:
                raise ApiError(400, f"output '{tensor}' is made by no step{_suggestion(tensor, made)}")
        unused = next((tensor for tensor in inputs if not self.takers[tensor]), None)
        if unused is not None:
            raise ApiError(400, f"input '{unused}' is taken by no step")
        answered = Counter(outputs)
        self.uses = {tensor: len(takers) + answered[tensor] for tensor, takers in self.takers.items()}
        self.first = {step.number for step in self.steps if not made.issuperset(step.inputs.values())}
        self._order = self._in_order(inputs)

    def _makers(self, inputs: Iterable[str]) -> dict[str, str]:
        makers = dict.fromkeys(inputs, "as an input")
        for step in self.steps:
            for tensor in step.outputs.values():
                if tensor in makers:
                    raise ApiError(400, f"tensor '{tensor}' is made twice, {makers[tensor]} and by {step}")
                makers[tensor] = f"by {step}"
        return makers

    def _in_order(self, inputs: Iterable[str]) -> list[Step]:
        """The steps, each after those whose tensors it takes."""
        missing = [len(step.inputs) for step in self.steps]
        found: list[Step] = []
        left = list(inputs)
        while left:
            for place in self.takers[left.pop()]:
                missing[place] -= 1
                if not missing[place]:
                    found.append(self.steps[place])
                    left += self.steps[place].outputs.values()
        if len(found) < len(self.steps):
            cycle = self._cycle([step for step, count in zip(self.steps, missing, strict=True) if count])
            raise ApiError(400, f"the steps form a cycle: {' -> '.join(map(str, cycle))}")
        return found

    def _cycle(self, stuck: Sequence[Step]) -> list[Step]:
        """A cycle among steps that all wait for others of them; its first step is also its last."""
        makers = {tensor: step for step in stuck for tensor in step.outputs.values()}
        path = [stuck[0]]
        while path[-1] not in path[:-1]:  # backwards, from each step to one that it waits for
            path.append(next(makers[tensor] for tensor in path[-1].inputs.values() if tensor in makers))
        return path[path.index(path[-1]) :][::-1]

    def plan(self, signatures: Sequence[Signature]) -> tuple[StepPlan, ...]:
        """Returns the plan of each step, in the order of ``steps``.

        Args:
            signatures: of the steps' models, in the same order.

        Raises:
            ApiError: 400, a model does not fit its step, or a tensor is taken for something else than it is.
        """
        tensors = {spec.name: _Origin(spec, "an input") for spec in self.signature.inputs}
        plans: dict[int, StepPlan] = {}
        for step in self._order:
            signature = signatures[step.number - 1]
            given = [spec for spec in signature.optional_inputs if spec.name in step.inputs]
            inputs: Sequence[TensorSpec] = (*signature.inputs, *given)
            if signature.accepts_anything:
                inputs = [_renamed(tensors[tensor].spec, name) for name, tensor in step.inputs.items()]
            outputs = signature.outputs or (inputs if signature.accepts_anything else ())  # it gives its inputs back
            _check_names(step, "input", step.inputs, inputs)
            _check_names(step, "output", step.outputs, outputs)
            for spec in inputs:
                if spec.name not in step.inputs:
                    raise ApiError(400, f"input '{spec.name}' of {step} is not in its input_map")
                tensor = step.inputs[spec.name]
                self._check_fit(tensor, tensors[tensor], spec, f"input '{spec.name}' of {step}")
            self._check_rows(step, signature)
            made = [(place, step.outputs[spec.name]) for place, spec in enumerate(outputs) if spec.name in step.outputs]
            tensors |= {tensor: _Origin(outputs[place], f"made by {step}") for place, tensor in made}
            taken = tuple((spec.name, step.inputs[spec.name]) for spec in inputs)
            axes = tuple(spec.batch_axis for spec in outputs) if signature.outputs_batched else ()
            plans[step.number] = StepPlan(taken, tuple(made), axes)
        for spec in self.signature.outputs:
            self._check_fit(spec.name, tensors[spec.name], spec, f"the ensemble's output '{spec.name}'")
        return tuple(plans[step.number] for step in self.steps)

    def _check_fit(self, tensor: str, origin: _Origin, taken: TensorSpec, by: str) -> None:
        given = origin.spec
        if given.datatype != taken.datatype:
            problem = f"is {given.datatype}, but {by} is {taken.datatype}"
        # The first dimension of all tensors of a batched ensemble is the batch; a step must not take it for another.
        elif not shapes_fit(given, taken, same_rank=self.signature.batched):
            problem = f"has the shape {list(given.shape)}, but {by} has {list(taken.shape)}"
        else:
            return
        raise ApiError(400, f"tensor '{tensor}', {origin.maker}, {problem}")

    def _check_rows(self, step: Step, signature: Signature) -> None:
        """ApiError 400 if the rows of a batched ensemble are not where the step has them."""
        if not (self.signature.batched and signature.batched):
            return
        for spec in (*signature.inputs, *signature.outputs):
            if spec.batch_axis != 0:
                raise ApiError(
                    400,
                    f"'{spec.name}' of {step} has no rows along its first dimension, as an ensemble with batches needs",
                )


def _suggestion(wrong: str, known: Collection[str]) -> str:
    return suggestion(wrong, known) if len(known) <= _COMPARED and len(wrong) <= _COMPARED else ""


def _renamed(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, spec.datatype, None if spec.open_rank else spec.shape)


def _check_names(step: Step, what: str, mapped: Iterable[str], known: Sequence[TensorSpec]) -> None:
    names = dict.fromkeys(spec.name for spec in known)
    unknown = next((name for name in mapped if name not in names), None)
    if unknown is not None:
        listed = ", ".join(f"'{name}'" for name in islice(names, _SHOWN)) + (", ..." if len(names) > _SHOWN else "")
        raise ApiError(400, f"{step} has no {what} '{unknown}'; the model has {listed or 'none'}")


def shapes_fit(given: TensorSpec, taken: TensorSpec, *, same_rank: bool = False) -> bool:
    """Whether a tensor declared as ``given`` may be taken for ``taken``.

    Dimensions are compared from the last one, because one side may have a batch dimension in front, unless both must
    have the ``same_rank``.
    """
    if given.open_rank or taken.open_rank:
        return True
    ends = zip(reversed(given.shape), reversed(taken.shape), strict=False)
    ranks = abs(len(given.shape) - len(taken.shape))
    return ranks <= (0 if same_rank else 1) and all(a == b or -1 in (a, b) for a, b in ends)
