"""The onnx worker: halves of failed batches, batches that nobody waits for, predictions."""

import asyncio
import gc

import numpy as np
import onnx_models
import pytest

from fastinfer.backends.onnx.backend import OnnxModel
from fastinfer.backends.onnx.ort import Session
from fastinfer.backends.runner import RunningBatch
from fastinfer.base.errors import ApiError
from fastinfer.native.executor import Executor
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor


def gather_request(index):
    request = InferRequest([Tensor.from_numpy("index", np.array([[index]], dtype="i8"))])
    request.rows = 1
    return request


def run_batches(model, batches, inline_run_us=0, terminate=False):
    """Runs batches on a loop of its own, one after the other; returns the worker and their outcomes."""

    async def main():
        loop = asyncio.get_running_loop()
        executor = Executor(1)
        loop.add_reader(executor.fileno(), executor.drain)
        session = Session(model=model)
        signature = Signature(session.inputs, session.outputs, batched=True, max_batch_size=64)
        worker = OnnxModel(session, signature, executor, inline_run_us)
        outcomes = []
        for requests in batches:
            ended = loop.create_future()
            run = worker.start(requests, lambda result, ended=ended: ended.set_result(result.outputs))
            if terminate:
                await asyncio.sleep(0.05)
                run.terminate()
            outcomes.append(await asyncio.wait_for(ended, 30))
        loop.remove_reader(executor.fileno())
        executor.close()
        return worker, outcomes

    return asyncio.run(main())


def run_batch(model, requests, inline_run_us=0, terminate=False):
    return run_batches(model, [requests], inline_run_us, terminate)[1][0]


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
    assert outcomes[11].status == 400
    assert outcomes[11].message.endswith("idx=99 must be within the inclusive range [-4,3]")
    for number, outcome in enumerate(outcomes):
        if number != 11:
            assert outcome[0].numpy().reshape(-1)[0] == 2 * (number % 4)


def pair_request(a, b, whole=False):
    request = InferRequest([Tensor.from_numpy("a", np.array(a, "i4")), Tensor.from_numpy("b", np.array(b, "i4"))])
    request.whole = whole
    return request


@pytest.mark.parametrize("inline_run_us", [0, 1_000_000])
def test_a_request_without_a_common_number_of_rows_runs_as_it_is(inline_run_us):
    plain = [pair_request([[6]], [[3]])]
    batches = [plain, plain, [pair_request([[12], [20], [8]], [[4]], whole=True)], plain]
    _, outcomes = run_batches(onnx_models.divide(), batches, inline_run_us)
    answers = [outcome[0][0].numpy().tolist() for outcome in outcomes]
    assert answers == [[[2]], [[2]], [[3], [5], [2]], [[2]]]
    (refused,) = run_batch(onnx_models.divide(), [pair_request([[1], [2], [3]], [[1], [2]], whole=True)], inline_run_us)
    assert refused.status == 400
    assert refused.message.endswith("Attempting to broadcast an axis by a dimension other than 1. 2 by 3")


@pytest.mark.parametrize("inline_run_us", [0, 1_000_000])
def test_a_failure_that_is_no_invalid_argument_is_the_models(inline_run_us):
    outcomes = run_batch(onnx_models.divide(), [pair_request([[1]], [[0]]), pair_request([[8]], [[2]])], inline_run_us)
    assert outcomes[0].status == 500
    assert outcomes[0].message.endswith("Integer division by zero")
    assert outcomes[1][0].numpy().tolist() == [[4]]


def test_a_request_with_an_optional_input_never_runs_on_the_loops_thread():
    """Its work may depend on the value, which was not known when the graph was read; and its time says nothing."""

    def request(**given):
        arrays = {"x": np.ones((1, 4)), **given}
        made = InferRequest([Tensor.from_numpy(name, np.asarray(array, "f4")) for name, array in arrays.items()])
        made.rows, made.whole = 1, bool(given)
        return made

    async def main():
        loop = asyncio.get_running_loop()
        executor = Executor(1)
        loop.add_reader(executor.fileno(), executor.drain)
        session = Session(model=onnx_models.with_defaults())
        signature = Signature(session.inputs, session.outputs, batched=True, max_batch_size=64)
        worker = OnnxModel(session, signature, executor, 1_000_000)
        inline, answers = [], []
        for made in [request(), request(), request(bias=[9] * 4), request(scale=[2] * 4, bias=[1] * 4)] * 3:
            ended = loop.create_future()
            inline.append(worker.start([made], ended.set_result) is None)
            (outcome,) = (await asyncio.wait_for(ended, 30)).outputs
            answers.append(outcome[0].numpy().tolist())
        loop.remove_reader(executor.fileno())
        executor.close()
        return inline, answers

    inline, answers = asyncio.run(main())
    assert answers == [[[1, 2, 3, 4]], [[1, 2, 3, 4]], [[10] * 4], [[3] * 4]] * 3
    assert inline[4:] == [True, True, False, False] * 2


def test_a_batch_that_nobody_waits_for_does_not_start_its_halves():
    requests = [InferRequest([Tensor.from_numpy("x", np.ones((1, 1), "f4"))]) for _ in range(2)]
    outcomes = run_batch(onnx_models.endless(), requests, terminate=True)
    assert all(isinstance(outcome, ApiError) for outcome in outcomes)


ENDED = 3


@pytest.mark.parametrize("inline_run_us", [0, 1_000_000])
def test_a_half_in_which_nobody_waits_is_not_run_again(inline_run_us):
    spec = index_name()
    requests = [large_request(spec.name, np.array([value])) for value in (0, 99, 2, 3, 1, 1, 1, 1)]
    for request in (*requests[2:4], requests[7]):
        request.state = ENDED
    outcomes = run_batch(onnx_models.gather_rows(), requests, inline_run_us)
    messages = [outcome.message if isinstance(outcome, ApiError) else "" for outcome in outcomes]
    assert [message == "the model was not run" for message in messages] == [False, False, True, True] + [False] * 4
    assert messages[1].startswith("the model cannot run on these inputs")
    assert [outcomes[place][0].numpy()[0, 0] for place in (0, 4, 5, 6)] == [0, 2, 2, 2]


def test_large_requests_that_end_leave_their_mates_alone():
    """Of those that run one after the other, too: which that are, the runner finds out in the course of these."""

    async def main():
        loop = asyncio.get_running_loop()
        executor = Executor(1)
        loop.add_reader(executor.fileno(), executor.drain)
        session = Session(model=onnx_models.gather_rows())
        signature = Signature(session.inputs, session.outputs, batched=True, max_batch_size=1 << 20)
        worker = OnnxModel(session, signature, executor, 0)
        scheduler = Scheduler(worker.start, BatchingPolicy(1 << 20), instances=1, max_queue_size=9, timeout_s=30,
                              stats=ModelStats(), loop=loop)  # fmt: skip
        for turn in range(70):
            outcomes = [loop.create_future() for _ in range(3)]
            requests = [large_request(session.inputs[0].name, index(number)) for number in range(3)]
            for request, outcome in zip(requests, outcomes, strict=True):
                request.complete = lambda _, given, outcome=outcome: outcome.set_result(given)
                scheduler.submit(request)
            await asyncio.sleep(0)
            assert scheduler.running == 1
            gone = turn % 3
            scheduler.cancel(requests[gone])
            for number in {0, 1, 2} - {gone}:
                outputs = await asyncio.wait_for(outcomes[number], 30)
                np.testing.assert_array_equal(outputs[0].numpy()[:, 0], 2 * index(number))
            assert not outcomes[gone].done()
        loop.remove_reader(executor.fileno())
        executor.close()

    asyncio.run(main())


def large_request(name, array):
    # Of 64 KiB or more: enough for the runner to think about the copy.
    request = InferRequest([Tensor.from_numpy(name, array)])
    request.rows = len(array)
    return request


def index(first):
    return np.resize([first, 0, 1, 2, 3], 8192)


def test_large_requests_are_answered_alike_together_and_apart():
    spec = index_name()
    batches = [[large_request(spec.name, index((turn + number) % 4)) for number in range(3)] for turn in range(70)]
    worker, outcomes = run_batches(onnx_models.gather_rows(), batches)
    nbytes = 3 * 65_536
    assert None not in worker.start.costs.times_of(nbytes)
    for turn, outcome in enumerate(outcomes):
        for number, outputs in enumerate(outcome):
            np.testing.assert_array_equal(outputs[0].numpy()[:, 0], 2 * index((turn + number) % 4))


def test_of_large_requests_a_bad_one_fails_alone():
    spec = index_name()
    batches = [[large_request(spec.name, index(99 if number == 1 else 0)) for number in range(4)] for _ in range(8)]
    _, outcomes = run_batches(onnx_models.gather_rows(), batches)
    for outcome in outcomes:
        assert [isinstance(each, ApiError) for each in outcome] == [False, True, False, False]
        assert outcome[1].status == 400
        assert [each[0].numpy()[0, 0] for each in outcome if each is not outcome[1]] == [0, 0, 0]


def test_a_batch_of_large_requests_that_nobody_waits_for_ends():
    requests = [large_request("x", np.ones((20_000, 1), "f4")) for _ in range(3)]
    worker, outcomes = run_batches(onnx_models.endless(), [requests] * 3, terminate=True)
    assert worker.start.costs.times_of(60_000 * 4) == (None, None)  # none ended well
    assert all(isinstance(each, ApiError) for outcome in outcomes for each in outcome)


def test_a_batch_is_freed_without_the_collector():
    gc.collect()
    gc.disable()
    try:
        requests = [InferRequest([Tensor.from_numpy("x", np.ones((1, 64), "f4"))]) for _ in range(4)]
        run_batch(onnx_models.mlp(), requests)
        alive = [found for found in gc.get_objects() if type(found) is RunningBatch]
        assert alive == []
    finally:
        gc.enable()
