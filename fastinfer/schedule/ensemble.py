"""An ensemble: a model whose run is a graph of requests to other models.

To its scheduler an ensemble is an implementation like any other, which runs each request alone: queue, deadline,
cancellation and statistics are those of every model. A run is a parent (``schedule/lifetime``): its children are
requests to the steps' models, each of which goes through its own model's queue and shares batches there with whatever
else waits. A child begins when its tensors exist. Tensors go from step to step without a copy; the run drops each when
the last step that takes it has begun.

The models of the steps are looked up when a run begins, and the run holds the versions that it has found, also those of
ensembles among them: they serve it even if they are replaced or unloaded meanwhile. Loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.native.job import Clock
from fastinfer.schedule.lifetime import Parent
from fastinfer.schedule.model import Model, without_batch
from fastinfer.schedule.wiring import Step, StepPlan, Wiring
from fastinfer.tensor.message import BatchResult, InferRequest, RequestedOutput
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

CONCURRENT_RUNS = 65_536  # practically unlimited, because the queues of the steps' models are limited


class Endpoints(Protocol):
    """The loaded endpoints; see :class:`fastinfer.repository.repository.Repository`."""

    def find(self, name: str, version: str | None = None) -> Model:
        """The model of an endpoint. ApiError if it is not ready."""

    def watch(self, ensemble: Ensemble) -> None:
        """Calls :meth:`Ensemble.forget` when endpoints have changed."""


class _Stage(NamedTuple):
    """A step with the model that runs it now."""

    step: Step
    model: Model
    signature: Signature
    plan: StepPlan


class _Held(NamedTuple):
    """A step whose model serves a run until that ends.

    Attributes:
        stage: the step.
        inner: if the model is an ensemble, its steps.
    """

    stage: _Stage
    inner: Sequence[_Held]

    def release(self) -> None:
        for each in self.inner:
            each.release()
        self.stage.model.scheduler.leave()


class Ensemble:
    """The implementation of an ensemble.

    Args:
        name: the endpoint's name.
        wiring: the steps. The labels of its signature are completed with those of the steps' models.
        endpoints: the models of the steps are among them.
        loop: the event loop.
    """

    platform = "ensemble"

    def __init__(self, name: str, wiring: Wiring, endpoints: Endpoints, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.wiring = wiring
        self.signature = wiring.signature
        self.loop = loop
        self.clock = Clock()
        self._own_labels = dict(self.signature.labels)
        self._endpoints = endpoints
        self._stages: list[_Stage] | str | None = None  # or why the steps cannot run; None: look for their models
        self._plans: tuple[tuple[Signature, ...], tuple[StepPlan, ...]] | None = None  # and what they are made for
        endpoints.watch(self)

    def start(self, requests: list[InferRequest], done: Callable[[BatchResult], None]) -> _Run | None:
        (request,) = requests  # they do not share runs
        run = _Run(self, request, done)
        try:
            run.start()
        except ApiError as error:
            done(BatchResult([error]))
            return None
        return run

    def close(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forgets the models of the steps, because endpoints have changed; one that is gone must be freed."""
        self._stages = None

    # --- The models of the steps --------------------------------------------------------------------------------------

    def stages(self) -> list[_Stage]:
        """The steps with their models as they are loaded now. ApiError 503 if they cannot run."""
        stages = self._stages_now()
        if isinstance(stages, str):
            raise ApiError(503, f"ensemble '{self.name}' is not ready: {stages}", retry_after_s=1)
        return stages

    def hold(self) -> list[_Held]:
        """Holds the models of the steps for a run, which releases them. ApiError 503 if they cannot run."""
        held: list[_Held] = []
        try:
            for stage in self.stages():
                inner = stage.model.ensemble.hold() if isinstance(stage.model, EnsembleModel) else []
                stage.model.scheduler.admit()
                held.append(_Held(stage, inner))
        except ApiError:
            _release(held)
            raise
        return held

    def why_unfit(self) -> str | None:
        """Why the steps cannot run with the models that are loaded now; None if they can."""
        stages = self._stages_now()
        return stages if isinstance(stages, str) else None

    def missing(self) -> list[Step]:
        """The steps whose models are not ready, those of ensembles among the steps included."""
        found: list[Step] = []
        seen, left = {self}, [self]
        while left:
            for step in left.pop().wiring.steps:
                model = self._model(step)
                if model is None:
                    found.append(step)
                elif isinstance(model, EnsembleModel) and model.ensemble not in seen:
                    seen.add(model.ensemble)
                    left.append(model.ensemble)
        return found

    def models(self) -> list[Model]:
        """The models of the steps that are ready."""
        found = map(self._model, self.wiring.steps)
        return [model for model in found if model is not None]

    def _stages_now(self) -> list[_Stage] | str:
        if self._stages is None:
            try:
                self._stages = self._find_stages()
            except ApiError as error:
                self._stages = error.message
        return self._stages

    def _find_stages(self) -> list[_Stage]:
        """Finds the models and checks them. ApiError if they do not fit."""
        steps = self.wiring.steps
        models: list[Model] = []
        for step in steps:
            model = self._model(step)
            if model is None:
                raise ApiError(400, f"the model of {step} is not loaded")
            models.append(model)
        _check_reach(models, self.name)
        signatures = tuple(model.signature for model in models)
        if self._plans is None or any(a is not b for a, b in zip(signatures, self._plans[0], strict=True)):
            self._plans = signatures, self.wiring.plan(signatures)
        stages = list(map(_Stage, steps, models, *self._plans))
        self._take_labels(stages)
        return stages

    def _model(self, step: Step) -> Model | None:
        try:
            model = self._endpoints.find(step.model, step.version)
            _ = model.signature  # raises if it is a chain and its next stage is not loaded
        except ApiError:
            return None
        return model

    def _take_labels(self, stages: Sequence[_Stage]) -> None:
        """Labels the outputs without labels of their own as the steps' models do; so for matrices of scores."""
        labels = self.signature.labels
        labels.clear()
        scores: set[str] = set()
        for stage in stages:
            outputs = stage.signature.outputs  # none if it gives its inputs back
            for place, tensor in stage.plan.outputs if outputs else ():
                if (known := stage.signature.labels.get(outputs[place].name)) is not None:
                    labels[tensor] = known
                if outputs[place].name in stage.signature.score_matrices:
                    scores.add(tensor)
        labels.update(self._own_labels)
        self.signature.score_matrices = frozenset(scores)


class EnsembleModel(Model):
    """A loaded version of an ensemble."""

    def __init__(self, name: str, version: str, implementation: Ensemble, *args: Any) -> None:
        super().__init__(name, version, implementation, *args)
        self.ensemble = implementation

    def why_withdrawn(self) -> ApiError | None:
        if (own := super().why_withdrawn()) is not None:
            return own
        try:
            stages = self.ensemble.stages()
        except ApiError as error:
            return error
        reasons = (stage.model.why_withdrawn() for stage in stages)
        return next((reason for reason in reasons if reason is not None), None)

    def next_models(self) -> list[Model]:
        return super().next_models() + self.ensemble.models()


def _release(held: Iterable[_Held]) -> None:
    for each in held:
        each.release()


def _check_reach(models: Sequence[Model], name: str) -> None:
    """ApiError 400 if an ensemble with these models comes to itself again, or to too many models.

    The models are followed through ensembles and chains.
    """
    count = 0
    left: list[tuple[Model, tuple[str, ...]]] = [(model, (name,)) for model in models]
    while left:
        model, path = left.pop()
        count += 1
        if model.name in path:
            cycle = (*path[path.index(model.name) :], model.name)
            raise ApiError(400, f"'{model.name}' is a step of itself: {' -> '.join(cycle)}")
        if count > limits.MAX_STEPS_IN_ALL:
            raise ApiError(400, f"it has more than {limits.MAX_STEPS_IN_ALL} steps, those of its steps included")
        if len(path) > limits.MAX_STEP_DEPTH:
            raise ApiError(400, f"it has more than {limits.MAX_STEP_DEPTH} ensembles and chains within each other")
        left += [(following, (*path, model.name)) for following in model.next_models()]


class _Run(Parent):
    """The run of one client's request.

    The parent's request is one of its own, because the scheduler keeps the client's.
    """

    def __init__(self, ensemble: Ensemble, request: InferRequest, done: Callable[[BatchResult], None]) -> None:
        own = InferRequest(request.inputs, priority=request.priority)
        own.deadline_ns = request.deadline_ns
        own.complete = self._completed
        super().__init__(ensemble.clock, own)
        request.inputs = []  # so that each can be freed when the last step has taken it
        self._ensemble = ensemble
        self._wiring = ensemble.wiring
        self._rows = request.rows
        self._done = done
        self._given: Sequence[_Held] | None = request.step  # the outer ensemble holds the models
        self._held: Sequence[_Held] = ()
        self._missing = [len(step.inputs) for step in self._wiring.steps]  # inputs that do not exist yet
        self._uses = dict(self._wiring.uses)  # by tensor, how often it will be taken
        self._tensors: dict[str, Tensor] = {}  # those that will be taken
        self._running: dict[InferRequest, _Stage] = {}
        self._times_ns = [0, 0, 0]  # of input, inference and output, summed over the steps

    def begin(self) -> None:
        inputs, self.request.inputs = self.request.inputs, []
        self._held = self._ensemble.hold() if self._given is None else self._given
        self._add({spec.name: tensor for spec, tensor in zip(self._wiring.signature.inputs, inputs, strict=True)})

    def took(self, child: InferRequest, outputs: list[Tensor]) -> None:
        stage = self._running.pop(child)
        times = (child.input_ns, child.infer_ns, child.output_ns)
        self._times_ns = [sum(each) for each in zip(self._times_ns, times, strict=True)]
        if child.implicit_batch and stage.plan.axes:  # the tensors between steps are as the step before made them
            outputs = [without_batch(tensor, axis) for tensor, axis in zip(outputs, stage.plan.axes, strict=True)]
        self._add({tensor: outputs[place] for place, tensor in stage.plan.outputs})
        if not self._running:
            self.finish([self._output(spec) for spec in self._wiring.signature.outputs])

    def failure(self, child: InferRequest, error: ApiError) -> ApiError:
        return self._of_step(self._running[child].step, error)

    def ended(self) -> None:
        self._tensors.clear()
        self._running.clear()
        held, self._held = self._held, ()
        if self._given is None:
            _release(held)

    def terminate(self) -> None:
        """Ends all steps, because nobody waits for the request."""
        if self.request is not None:
            self.abandon()
            self._ensemble.loop.call_soon(self._done, BatchResult([ApiError(500, "nobody waits for the ensemble")]))

    def _completed(self, _: InferRequest, outcome: list[Tensor] | ApiError) -> None:
        self._done(BatchResult([outcome], *self._times_ns))

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _add(self, tensors: Mapping[str, Tensor]) -> None:
        """Adds tensors, and begins the steps that have waited for them."""
        ready: list[int] = []
        for name, tensor in tensors.items():
            if self._uses[name]:
                self._tensors[name] = tensor
            for place in self._wiring.takers[name]:
                self._missing[place] -= 1
                if not self._missing[place]:
                    ready.append(place)
        for place in ready:
            self._begin_step(self._held[place])

    def _begin_step(self, held: _Held) -> None:
        stage = held.stage
        inputs = [self._take(tensor).renamed(name) for name, tensor in stage.plan.inputs]
        made = stage.signature.outputs
        # The others may be absent, which would fail the step.
        some = len(stage.plan.outputs) < len(made)
        wanted = [RequestedOutput(made[place].name) for place, _ in stage.plan.outputs] if some else None
        child = InferRequest(inputs, wanted, priority=self.request.priority)
        child.stats = stage.model.stats
        child.step = held.inner
        try:
            self.run(stage.model.begin, child)
        except ApiError as error:
            raise self._of_step(stage.step, error) from error
        self._running[child] = stage

    def _take(self, name: str) -> Tensor:
        self._uses[name] -= 1
        return self._tensors[name] if self._uses[name] else self._tensors.pop(name)

    def _output(self, spec: TensorSpec) -> Tensor:
        """An output of the ensemble. ApiError 500 if it is not what the ensemble has declared."""
        tensor = self._take(spec.name)
        shape = list(tensor.shape)
        declared = list(spec.shape)
        if self._wiring.signature.batched:
            declared[0] = self._rows
        fits = len(shape) == len(declared) and all(b in (a, -1) for a, b in zip(shape, declared, strict=True))
        if not fits or tensor.datatype != spec.datatype:
            made, wanted = f"{tensor.datatype} {shape}", f"{spec.datatype} {declared}"
            raise ApiError(500, f"ensemble '{self._ensemble.name}' made {made} for output '{spec.name}', not {wanted}")
        return tensor.renamed(spec.name)

    def _of_step(self, step: Step, error: ApiError) -> ApiError:
        """The error of the request for that of a step, which is the client's fault only if it takes an input."""
        if error.status == 504:  # of the whole request
            return ApiError(504, error.message)
        status = error.status if error.status >= 500 or step.number in self._wiring.first else 500
        return ApiError(status, f"{step} of ensemble '{self._ensemble.name}': {error.message}", headers=error.headers)
