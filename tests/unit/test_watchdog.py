"""Runs on the loop's thread that take too long: they are ended, and answered from a native thread."""

import asyncio
import gc
from pathlib import Path

import numpy as np
import onnx_models
import pytest
from inline import with_model
from support import wait_for

from fastinfer.backends.watchdog import Watchdog
from fastinfer.base import limits
from fastinfer.schedule.cost import shape_of

MANY = 100_000  # trips: at least some tens of milliseconds
FIXED = [pytest.param(True, id="in-a-binding"), pytest.param(False, id="without-a-binding")]


def number(n):
    return [np.array([n])]


def shape(fixed):
    return shape_of(1) if fixed else shape_of(1, 1, 1)  # rows; rank and dimensions, where they are open


async def taught(model, fixed=True):
    """Asks for little until that is run on the loop's thread."""
    costs = model.worker.start.costs
    for _ in range(1000):
        ((output,),) = await model.ask(number(1))
        assert output.numpy().tolist() == [1]
        if costs.is_short(shape(fixed)):
            return costs
    raise AssertionError("no run was short")


@pytest.mark.parametrize("fixed", FIXED)
def test_a_run_that_takes_long_is_ended_and_answered(fixed):
    async def scenario(model):
        costs = await taught(model, fixed)
        ((output,),) = await model.ask(number(MANY))
        assert output.numpy().tolist() == [MANY]
        assert model.stats.overruns == 1
        assert not costs.is_short(shape(fixed))
        assert (model.bound_nbytes > 0) == fixed  # it was not the binding's fault
        for n in (1, 2, MANY, 1):  # not on the loop's thread
            ((output,),) = await model.ask(number(n))
            assert output.numpy().tolist() == [n]
        assert model.stats.overruns == 1
        if costs.suspended_until_ns:  # back later, and the next one is ended like the first
            costs.clock.fixed_ns = costs.suspended_until_ns
        await taught(model, fixed)
        ((output,),) = await model.ask(number(MANY))
        assert output.numpy().tolist() == [MANY]
        assert model.stats.overruns == 2

    with_model(onnx_models.counter(fixed=fixed), scenario, batched=False, inline_run_us=100)


@pytest.mark.parametrize("fixed", FIXED)
def test_every_run_is_answered_whenever_it_is_ended(fixed):
    """Runs of about the bound: the wish to end one comes before, in, and after its end, and meets no other."""

    async def scenario(model):
        costs = await taught(model, fixed)
        random = np.random.default_rng(1)
        for _ in range(150):
            n = int(random.integers(1, 12_000))
            if costs.suspended_until_ns:
                costs.clock.fixed_ns = costs.suspended_until_ns
            await taught(model, fixed)
            ((output,),) = await model.ask(number(n))
            assert output.numpy().tolist() == [n]

    with_model(onnx_models.counter(fixed=fixed), scenario, batched=False, inline_run_us=100)


def test_after_a_rest_it_watches_again():
    async def scenario(model):
        costs = await taught(model)
        await asyncio.sleep(1.5)
        ((output,),) = await model.ask(number(MANY))
        assert output.numpy().tolist() == [MANY]
        assert model.stats.overruns == 1
        assert costs.predict_ns(shape(True)) > 0

    with_model(onnx_models.counter(), scenario, batched=False, inline_run_us=100)


def test_the_bound_follows_what_is_expected():
    assert Watchdog(0).bound_ns == Watchdog(100).bound_ns == limits.INLINE_BOUND_MS * 1_000_000
    assert Watchdog(1_000_000).bound_ns == 10_000_000_000


def threads():
    return {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}


def test_its_thread_is_there_from_the_first_run_on_the_loop_to_the_end():
    async def scenario(model):
        gc.collect()
        await model.ask(number(1))  # not measured before: on a native thread
        assert "fastinfer-watch" not in threads()
        await taught(model)
        await model.ask(number(1))
        wait_for(lambda: "fastinfer-watch" in threads())  # it names itself

    with_model(onnx_models.counter(), scenario, batched=False, inline_run_us=100)
    gc.collect()
    assert "fastinfer-watch" not in threads()


def test_it_starts_once_and_ends_once():
    watchdog = Watchdog(100)
    watchdog.close()
    watchdog.start()
    watchdog.start()
    watchdog.close()
    watchdog.close()
    watchdog.start()


def test_nothing_runs_on_the_loop_without_a_limit():
    async def scenario(model):
        for _ in range(20):
            await model.ask(number(1))
        assert model.worker.start.costs.known == 0
        assert model.bound_nbytes == 0

    with_model(onnx_models.counter(), scenario, batched=False, inline_run_us=0)
