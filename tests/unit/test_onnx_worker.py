"""The onnx worker: halves of failed batches, batches that nobody waits for, predictions."""

import asyncio
import gc
import math

import numpy as np
import onnx_models
import pytest

from fastinfer._ext.executor import Executor
from fastinfer._ext.message import InferRequest
from fastinfer._ext.ort import Session
from fastinfer._ext.signature import Signature
from fastinfer._ext.tensor import Tensor
from fastinfer.errors import ApiError
from fastinfer.workers import onnx
from fastinfer.workers.onnx import OnnxWorker, RunTimes


def gather_request(index):
    request = InferRequest([Tensor.from_numpy("index", np.array([[index]], dtype="i8"))])
    request.rows = 1
    return request


def run_batch(model, requests, inline_run_us=0, terminate=False):
    """Runs a batch on a loop of its own; returns its outcomes."""

    async def main():
        loop = asyncio.get_running_loop()
        executor = Executor(1)
        loop.add_reader(executor.fileno(), executor.drain)
        session = Session(model=model)
        signature = Signature(session.inputs, session.outputs, batched=True, max_batch_size=64)
        worker = OnnxWorker(session, signature, executor, inline_run_us)
        ended = loop.create_future()
        run = worker.start(requests, lambda result: ended.set_result(result.outputs))
        if terminate:
            await asyncio.sleep(0.05)
            run.terminate()
        outputs = await asyncio.wait_for(ended, 30)
        loop.remove_reader(executor.fileno())
        executor.close()
        return outputs

    return asyncio.run(main())


def index_name():
    return Session(model=onnx_models.gather_rows()).inputs[0]


@pytest.mark.parametrize("inline_run_us", [0, 1_000_000])
def test_one_bad_request_fails_alone(inline_run_us):
    spec = index_name()
    requests = []
    for number in range(32):
        value = 99 if number == 11 else number % 4
        shape = [1] * len(spec.shape)
        requests.append(InferRequest([Tensor.from_numpy(spec.name, np.full(shape, value), spec.datatype)]))
    outcomes = run_batch(onnx_models.gather_rows(), requests, inline_run_us)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, ApiError)] == [11]
    assert outcomes[11].status == 500
    for number, outcome in enumerate(outcomes):
        if number != 11:
            assert outcome[0].numpy().reshape(-1)[0] == 2 * (number % 4)


def test_a_batch_that_nobody_waits_for_does_not_start_its_halves():
    requests = [InferRequest([Tensor.from_numpy("x", np.ones((1, 1), "f4"))]) for _ in range(2)]
    outcomes = run_batch(onnx_models.endless(), requests, terminate=True)
    assert all(isinstance(outcome, ApiError) for outcome in outcomes)


def test_a_batch_is_freed_without_the_collector():
    gc.collect()
    gc.disable()
    try:
        requests = [InferRequest([Tensor.from_numpy("x", np.ones((1, 64), "f4"))]) for _ in range(4)]
        run_batch(onnx_models.mlp(), requests)
        alive = [found for found in gc.get_objects() if type(found) is onnx._Batch]
        assert alive == []
    finally:
        gc.enable()


def test_predictions_are_rather_too_long_than_too_short():
    times = RunTimes()
    assert times.predict_ns(100) == math.inf
    times.observe(100, 1000)
    assert times.predict_ns(120) == 1000
    assert times.predict_ns(1000) == 8000
    assert times.predict_ns(1) == 1000
    for _ in range(100):
        times.observe(100, 2000)
    assert times.predict_ns(100) == pytest.approx(2000, rel=0.01)
