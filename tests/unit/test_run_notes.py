"""Runs are noted wherever they run, and a suspect that has run well is one no more."""

import asyncio
import mmap

import numpy as np
import onnx_models
import pytest

from fastinfer.backends.onnx.ort import Session
from fastinfer.backends.runner import Runner
from fastinfer.base.errors import ApiError
from fastinfer.native.executor import Executor
from fastinfer.repository.crashes import Crashes
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.shared import crash_record
from fastinfer.shared.crash_record import CULPRIT, LOAD_SUSPECT, QUARANTINED, SUSPECT, CrashRecord, CrashSlot
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor


@pytest.fixture
def record():
    return CrashRecord(mmap.mmap(-1, crash_record.nbytes(1)))


@pytest.fixture
def notes(record):
    return RunNotes(CrashSlot(record, 0), 1, 2, b"m")


def row(*values):
    request = InferRequest([Tensor.from_numpy("x", np.array([values], "f4"))])
    request.rows = 1
    return request


def test_the_name_of_an_optional_input_distinguishes_requests(notes):
    def given(name):
        request = row(1, 2)
        request.inputs.append(Tensor.from_numpy(name, np.ones(2, "f4")))
        request.whole = True
        return notes.fingerprint(request)

    assert given("a") == given("a")
    assert given("a") != given("b")


def run(model, notes, *batches, inline_run_us=0):
    """The outcomes of batches that run one after the other."""

    async def main():
        executor = Executor(1)
        loop = asyncio.get_running_loop()
        loop.add_reader(executor.fileno(), executor.drain)
        runner = Runner(Session(model=model), True, executor, inline_run_us, notes)
        outcomes = []
        for batch in batches:
            ended = loop.create_future()
            runner(batch, ended.set_result)
            outcomes.append((await asyncio.wait_for(ended, 30)).outputs)
        loop.remove_reader(executor.fileno())
        executor.close()
        return outcomes

    return asyncio.run(main())


@pytest.mark.parametrize("inline_run_us", [0, 1_000_000])
def test_a_suspect_that_ran_alone_is_cleared(record, notes, inline_run_us):
    suspects = [row(1, 2), row(3, 4)]
    for request in suspects:
        record.put(notes.fingerprint(request), SUSPECT, 60)
    run(onnx_models.identity("FP32"), notes, [row(5, 6)], *[[each] for each in suspects], inline_run_us=inline_run_us)
    assert not record.armed
    assert record.death(0) == ([], [], 0, False)


def test_only_who_ran_alone_is_cleared_and_culprits_stay(record, notes):
    suspect, culprit = row(1, 2), row(3, 4)
    record.put(notes.fingerprint(suspect), SUSPECT, 60)
    record.put(notes.fingerprint(culprit), CULPRIT, 60)
    run(onnx_models.identity("FP32"), notes, [suspect, culprit], [culprit])
    assert record.find(notes.fingerprint(suspect)).kind == SUSPECT
    assert record.find(notes.fingerprint(culprit)).kind == CULPRIT


def test_one_that_fails_alone_has_not_killed(record, notes):
    """Of a batch that fails, the halves are run again: each is noted by itself."""
    requests = [InferRequest([Tensor.from_numpy("x", np.array([n], "i8"))]) for n in (0, 1, 999, 2)]
    for request in requests:
        record.put(notes.fingerprint(request), SUSPECT, 60)
    [outcomes] = run(onnx_models.gather_rows(), notes, requests)
    assert [isinstance(outcome, ApiError) for outcome in outcomes] == [False, False, True, False]
    assert len(record.entries()) == 2  # the first half ran well together, and so nobody of it was alone
    assert record.find(notes.fingerprint(requests[2])) is None
    assert record.find(notes.fingerprint(requests[3])) is None
    assert record.death(0) == ([], [], 0, False)


def test_places_are_given_back(record, notes):
    run(onnx_models.identity("FP32"), notes, *[[row(n, n)] for n in range(200)])
    assert record.death(0) == ([], [], 0, False)


# --- Loads ------------------------------------------------------------------------------------------------------------


def test_suspect_loads_wait_for_each_other_and_are_cleared(record):
    crashes = Crashes(CrashSlot(record, 0))
    keys, under_way = set(), []

    async def load(name):
        recorded = crashes.load(name, 1, ())
        async with recorded.turn():
            with recorded.noted():
                loads = record.death(0).loads
                keys.add(loads[-1].key)
                under_way.append(len(loads))
                await asyncio.sleep(0.001)

    async def load_all():
        await asyncio.gather(*(load(name) for name in "abc"))

    asyncio.run(load_all())
    assert under_way == [1, 2, 3]
    for key in keys:
        record.put(key, LOAD_SUSPECT, 60)
    asyncio.run(load_all())
    assert under_way == [1, 2, 3, 1, 1, 1]
    assert len(keys) == 3
    assert not record.armed


def test_a_load_that_is_quarantined_while_it_waits_is_refused(record):
    crashes = Crashes(CrashSlot(record, 0))
    with crashes.load("b", 1, ()).noted():
        (noted,) = record.death(0).loads
    record.put(noted.key, LOAD_SUSPECT, 60)

    async def load_both():
        async with crashes.load("b", 1, ()).turn():
            waiting = asyncio.ensure_future(crashes.load("b", 1, ()).turn().__aenter__())
            await asyncio.sleep(0)
            record.put(noted.key, QUARANTINED, 60, signal=8)  # another process has died of it
        await waiting

    with pytest.raises(ApiError, match="quarantined"):
        asyncio.run(load_both())


def test_a_quarantined_load_is_refused_until_it_is_another(record):
    crashes = Crashes(CrashSlot(record, 0))

    async def load(name, made_of):
        async with crashes.load(name, 1, made_of).turn():
            pass

    with crashes.load("m", 1, "old files").noted():
        (noted,) = record.death(0).loads
    record.put(noted.key, QUARANTINED, 60, group=noted.group, signal=8)
    with pytest.raises(
        ApiError, match="'m' is quarantined: the process died by SIGFPE while it loaded this model"
    ) as e:
        asyncio.run(load("m", "old files"))
    assert e.value.status == 400
    asyncio.run(load("m", "new files"))
    asyncio.run(load("n", "old files"))
    with pytest.raises(ApiError, match="quarantined"):
        asyncio.run(load("m", "old files"))


def test_without_a_record_nothing_is_done():
    crashes = Crashes()
    recorded = crashes.load("m", 1, ())

    async def load():
        async with recorded.turn():
            with recorded.noted():
                pass

    asyncio.run(load())
    assert recorded.run_notes is None
    assert crashes.refused is None
