"""The graph of an ensemble and its run, without a server: models are stand-ins that the test answers."""

from __future__ import annotations

import asyncio
import weakref
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.repository.steps import MissingStepsError, read_error, with_steps
from fastinfer.schedule.ensemble import Ensemble
from fastinfer.schedule.lifetime import Parent
from fastinfer.schedule.wiring import Step, Wiring
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

X, Y = TensorSpec("x", "FP32", [-1]), TensorSpec("y", "FP32", [-1])
ONE_TO_ONE = Signature([X], [Y])


def spec(name: str) -> TensorSpec:
    return TensorSpec(name, "FP32", [-1])


def wiring(inputs: str, outputs: str, *steps: tuple[str, str]) -> Wiring:
    """Steps of models with as many inputs ``a``, ``b`` ... and outputs as letters in each pair."""
    made = [
        Step(number, f"m{number}", None, dict(zip("abc", taken, strict=False)), dict(zip("pqr", given, strict=False)))
        for number, (taken, given) in enumerate(steps, 1)
    ]
    return Wiring(Signature(map(spec, inputs), map(spec, outputs)), made)


def signature_of(step: Step) -> Signature:
    return Signature(map(spec, step.inputs), map(spec, step.outputs))


# --- Wiring -----------------------------------------------------------------------------------------------------------


def test_a_cycle_is_named_without_the_steps_before_and_after_it():
    with pytest.raises(ApiError) as error:
        wiring("x", "z", ("x", "a"), ("ad", "b"), ("b", "c"), ("c", "d"), ("d", "z"))
    assert error.value.message == (
        "the steps form a cycle: step 2 ('m2') -> step 3 ('m3') -> step 4 ('m4') -> step 2 ('m2')"
    )


def test_a_long_line_of_steps_in_the_wrong_order_is_planned():
    names = [chr(0x4E00 + place) for place in range(limits.MAX_STEPS + 1)]
    steps = list(pairwise(names))
    made = wiring(names[0], names[-1], *reversed(steps))
    plans = made.plan([signature_of(step) for step in made.steps])
    assert [plan.inputs for plan in plans] == [(("a", taken),) for taken, _ in reversed(steps)]


def test_a_tensor_for_two_inputs_of_one_step():
    made = wiring("x", "y", ("xx", "y"))
    assert (made.uses["x"], made.takers["x"]) == (2, [0, 0])


def test_a_step_that_takes_anything_gives_its_inputs_back():
    steps = [Step(1, "any", None, {"n": "x"}, {"n": "y"})]
    made = Wiring(Signature([TensorSpec("x", "INT64", [2, 3])], [TensorSpec("y", "FP32", [2, 3])]), steps)
    with pytest.raises(ApiError, match=r"tensor 'y', made by step 1 \('any'\), is INT64"):
        made.plan([Signature([], [], accepts_anything=True)])


# --- Runs -------------------------------------------------------------------------------------------------------------


class World:
    """The models of an ensemble; each request to one waits until the test answers it."""

    def __init__(self, made: Wiring) -> None:
        self.waiting: dict[str, InferRequest] = {}
        self.held = dict.fromkeys((step.model for step in made.steps), 0)
        self.models = {step.model: self.model(step.model, signature_of(step)) for step in made.steps}
        self.soon: list[Any] = []
        self.ensemble = Ensemble("e", made, self, self)  # type: ignore[arg-type]
        self.results: list[Any] = []

    def model(self, name: str, signature: Signature) -> Any:
        def change(by: int) -> None:
            self.held[name] += by

        scheduler = SimpleNamespace(admit=lambda: change(1), leave=lambda: change(-1))
        return SimpleNamespace(
            name=name,
            signature=signature,
            scheduler=scheduler,
            stats=None,
            begin=lambda request: self.waiting.__setitem__(name, request),
            next_models=list,
        )

    def find(self, name: str, version: str | None = None) -> Any:  # noqa: ARG002
        if name not in self.models:
            raise ApiError(404, "unknown")
        return self.models[name]

    def watch(self, ensemble: Ensemble) -> None:
        pass

    def call_soon(self, callback: Any, *arguments: Any) -> None:
        self.soon.append((callback, arguments))

    def start(self, *arrays: Any) -> Parent:
        names = [each.name for each in self.ensemble.signature.inputs]
        inputs = [Tensor.from_numpy(name, array) for name, array in zip(names, arrays, strict=True)]
        request = InferRequest(inputs, priority=3)
        request.deadline_ns = 2**62
        return self.ensemble.start([request], self.results.append)  # type: ignore[return-value]

    def answer(self, name: str, *arrays: Any) -> None:
        request = self.waiting.pop(name)
        names = [each.name for each in self.models[name].signature.outputs]
        outputs = [Tensor.from_numpy(each, array) for each, array in zip(names, arrays, strict=True)]
        complete, request.complete = request.complete, None
        complete(request, outputs)  # type: ignore[operator,misc]

    @property
    def outcome(self) -> Any:
        (result,) = self.results
        return result.outputs[0]


def array(*values: float) -> Any:
    return np.array(values, np.float32)


def test_steps_begin_when_their_tensors_exist_and_tensors_go_when_the_last_step_has_them():
    world = World(wiring("x", "z", ("x", "a"), ("x", "b"), ("ab", "z")))
    x, a = array(1), array(2)
    x_left, a_left = weakref.ref(x), weakref.ref(a)
    run = world.start(x)
    assert run is not None
    assert sorted(world.waiting) == ["m1", "m2"]
    assert world.held == {"m1": 1, "m2": 1, "m3": 1}
    world.answer("m1", a)
    del a
    assert list(world.waiting) == ["m2"]
    assert (world.waiting["m2"].priority, world.waiting["m2"].deadline_ns) == (3, 2**62)
    del x
    assert x_left() is not None
    world.answer("m2", array(3))
    assert x_left() is None
    assert [each.numpy().tolist() for each in world.waiting["m3"].inputs] == [[2], [3]]
    world.answer("m3", array(4))
    assert a_left() is None
    assert [(each.name, each.numpy().tolist()) for each in world.outcome] == [("z", [4])]
    assert set(world.held.values()) == {0}


def test_a_tensor_that_nobody_takes_is_dropped():
    world = World(wiring("x", "b", ("x", "ab")))
    world.start(array(1))
    world.answer("m1", array(1), array(2))
    assert [each.numpy().tolist() for each in world.outcome] == [[2]]


def test_a_step_whose_outputs_nobody_takes_is_waited_for():
    world = World(wiring("x", "a", ("x", "a"), ("x", "b")))
    world.start(array(1))
    world.answer("m1", array(1))
    assert world.results == []
    world.answer("m2", array(2))
    assert [each.name for each in world.outcome] == ["a"]


def test_a_step_that_fails_ends_the_others():
    world = World(wiring("x", "ab", ("x", "a"), ("x", "b")))
    world.start(array(1))
    failed, other = world.waiting["m2"], world.waiting["m1"]
    complete, failed.complete = failed.complete, None
    complete(failed, ApiError(400, "no"))  # type: ignore[operator,misc]
    assert (world.outcome.status, world.outcome.message) == (400, "step 2 ('m2') of ensemble 'e': no")
    assert other.complete is None
    assert set(world.held.values()) == {0}


def test_a_step_is_the_clients_fault_only_if_it_takes_an_input():
    world = World(wiring("x", "b", ("x", "a"), ("a", "b")))
    world.start(array(1))
    world.answer("m1", array(1))
    request = world.waiting["m2"]
    complete, request.complete = request.complete, None
    complete(request, ApiError(400, "no"))  # type: ignore[operator,misc]
    assert world.outcome.status == 500


def test_a_run_that_is_terminated_drops_its_steps_and_ends_once():
    world = World(wiring("x", "b", ("x", "a"), ("a", "b")))
    run = world.start(array(1))
    run.terminate()  # type: ignore[attr-defined]
    run.terminate()  # type: ignore[attr-defined]
    assert world.waiting["m1"].complete is None
    assert set(world.held.values()) == {0}
    assert world.results == []
    ((callback, arguments),) = world.soon
    callback(*arguments)
    assert len(world.results) == 1


def test_an_output_that_is_not_as_declared():
    world = World(
        Wiring(Signature([spec("x")], [TensorSpec("y", "FP32", [2])]), [Step(1, "m", None, {"a": "x"}, {"p": "y"})])
    )
    world.start(array(1))
    world.answer("m", array(1, 2, 3))
    assert world.outcome.message == "ensemble 'e' made FP32 [3] for output 'y', not FP32 [2]"


def test_models_are_looked_up_again_when_endpoints_have_changed():
    world = World(wiring("x", "a", ("x", "a")))
    model = world.models.pop("m1")
    assert world.start(array(1)) is None
    assert world.outcome.message == "ensemble 'e' is not ready: the model of step 1 ('m1') is not loaded"
    world.models["m1"] = model
    assert world.ensemble.why_unfit() is not None
    world.ensemble.forget()
    assert world.ensemble.why_unfit() is None


def test_ensembles_within_ensembles_are_limited():
    world = World(wiring("x", "a", ("x", "a")))
    inner = SimpleNamespace(name="0", next_models=list)
    for depth in range(1, limits.MAX_STEP_DEPTH + 1):
        inner = SimpleNamespace(name=str(depth), next_models=lambda inner=inner: [inner])
    world.models["m1"].next_models = lambda: [inner]
    assert world.ensemble.why_unfit() == "it has more than 16 ensembles and chains within each other"
    leaf = SimpleNamespace(name="leaf", next_models=list)
    world.models["m1"].next_models = lambda: [leaf] * limits.MAX_STEPS_IN_ALL
    world.ensemble.forget()
    assert (
        world.ensemble.why_unfit() == f"it has more than {limits.MAX_STEPS_IN_ALL} steps, those of its steps included"
    )


# --- Loading steps first ----------------------------------------------------------------------------------------------


class Disk:
    """Models by name, each with the names of its steps."""

    def __init__(self, **steps: str) -> None:
        self.steps = steps
        self.loaded: list[str] = []

    async def load(self, name: str, version: int | None = None) -> str:  # noqa: ARG002
        if name not in self.steps:
            raise ApiError(400, f"no model '{name}' in the repository")
        missing = [step for step in self.steps[name].split() if step not in self.loaded]
        if missing:
            error = read_error(MissingStepsError(name, [(step, None) for step in missing]).to_json())
            raise error
        if name not in self.loaded:
            self.loaded.append(name)
        return name

    async def load_with_steps(self, name: str) -> str:
        return await with_steps(lambda: self.load(name), self.load)


def test_steps_are_loaded_first_each_once():
    disk = Disk(top="left right", left="leaf", right="leaf", leaf="")
    assert asyncio.run(disk.load_with_steps("top")) == "top"
    assert disk.loaded == ["leaf", "left", "right", "top"]


def test_a_cycle_or_a_missing_step_is_an_error_with_the_names():
    with pytest.raises(ApiError, match="'b' is a step of itself: b -> c -> b"):
        asyncio.run(Disk(a="b", b="c", c="b").load_with_steps("a"))
    with pytest.raises(ApiError, match="step 'b' of ensemble 'a' is not served: no model 'b' in the repository"):
        asyncio.run(Disk(a="b").load_with_steps("a"))


def test_a_deep_line_of_ensembles_ends():
    steps = {f"n{depth}": f"n{depth + 1}" for depth in range(1000)}
    with pytest.raises(ApiError, match="has more than 16 ensembles within each other"):
        asyncio.run(Disk(**steps).load_with_steps("n0"))
