"""Small batches in bindings: as the scheduler sees them, the answers are those of ordinary runs."""

import numpy as np
import onnx_models
import pytest
from inline import with_model

from fastinfer.base.errors import ApiError


def row(*values):
    return np.array([values], "f4")


def test_every_request_gets_its_own_rows():
    async def scenario(model):
        random = np.random.default_rng(1)
        for _ in range(3):  # the first run is native, the second makes the binding, the third finds it
            for rows in ([1], [2], [1, 1], [3, 1, 2], [5], [1] * 20, [64]):
                requests = [[random.integers(-9, 9, (count, 16), "i4") for _ in range(2)] for count in rows]
                for (a, b), outcome in zip(requests, await model.ask(*requests), strict=True):
                    assert [tensor.name for tensor in outcome] == ["OUTPUT0", "OUTPUT1"]
                    assert np.array_equal(outcome[0].numpy(), a + b)
                    assert np.array_equal(outcome[1].numpy(), a - b)
        assert model.bound_nbytes > 0

    with_model(onnx_models.simple(), scenario)


def test_an_output_that_is_held_stays_as_it_is():
    async def scenario(model):
        zeros, held = np.zeros((1, 16), "i4"), []
        for number in range(20):
            (outputs,) = await model.ask([np.full((1, 16), number, "i4"), zeros])
            held.append(outputs[number % 2])  # its mate goes
        for number, output in enumerate(held):
            assert np.array_equal(output.numpy(), np.full((1, 16), number))
        assert model.bound_nbytes > 0

    with_model(onnx_models.simple(), scenario)


def test_an_input_that_is_an_output_is_copied():
    async def scenario(model):
        for number in range(5):
            (outputs,) = await model.ask([row(number, 1, 2, 3)])
            assert np.array_equal(outputs[0].numpy(), row(number, 1, 2, 3))
            assert np.array_equal(outputs[1].numpy(), -row(number, 1, 2, 3))

    with_model(onnx_models.passed_through(), scenario)


def test_a_weight_that_is_an_output():
    async def scenario(model):
        for number in range(5):
            (outputs,) = await model.ask([np.array([number, 1], "f4")])
            assert np.array_equal(outputs[0].numpy(), np.arange(6).reshape(2, 3))
            assert np.array_equal(outputs[1].numpy(), [-number, -1])

    with_model(onnx_models.constant_output(), scenario, batched=False)


def test_shapes_that_depend_on_values_are_not_bound():
    async def scenario(model):
        for found in (1, 3, 2, 4):
            (outputs,) = await model.ask([row(*[1] * found, *[0] * (4 - found))])
            assert outputs[0].shape == (2, found)
        assert model.bound_nbytes == 0

    with_model(onnx_models.nonzero(), scenario, batched=False)


def test_a_model_whose_outputs_are_not_what_it_declares():
    async def scenario(model):
        x = np.arange(4, dtype="f4")
        for kept in ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [1, 3], [2], [0, 1, 2, 3], []):
            (outputs,) = await model.ask([x, np.isin(np.arange(4), kept)])
            assert outputs[0].numpy().tolist() == [float(k) for k in kept]
            assert len(kept) == 4 or model.bound_nbytes == 0

    with_model(onnx_models.compress(), scenario, batched=False)


@pytest.mark.parametrize("mates", [1, 31])
def test_one_bad_request_fails_alone_and_hurts_no_later_one(mates):
    async def scenario(model):
        for _ in range(3):
            good = [[np.array([number % 4])] for number in range(mates)]
            outcomes = await model.ask(*good, [np.array([99])])
            assert isinstance(outcomes[-1], ApiError)
            for number, outcome in enumerate(outcomes[:-1]):
                assert outcome[0].numpy().reshape(-1)[0] == 2 * (number % 4)

    with_model(onnx_models.gather_rows(), scenario)


def test_memory_that_stands_ready_is_bounded():
    async def scenario(model):
        zeros = np.zeros((64, 16), "i4")
        for rows in range(64, 0, -1):
            for _ in range(2):
                await model.ask([zeros[:rows], zeros[:rows]])
        assert 0 < model.bound_nbytes <= (256 + 16) * 1024

    with_model(onnx_models.simple(), scenario)
