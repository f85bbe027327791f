"""Native threads: order, completion, the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_models as models
import pytest

from fastinfer.backends.batch_run import BatchRun
from fastinfer.backends.onnx.ort import Session
from fastinfer.base.machine import usable_cores
from fastinfer.codec.decode import DecodeJob
from fastinfer.codec.encode import EncodeJob
from fastinfer.native.executor import Executor, Share
from fastinfer.native.job import Job
from fastinfer.tensor.message import InferRequest, InferResponse
from fastinfer.tensor.tensor import Tensor

X = Tensor.from_numpy("x", np.ones((1, 1), "f4"))
RESPONSE = InferResponse("m", "1", [X])


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor(2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def endless() -> Session:
    return Session(model=models.endless())


@pytest.fixture(scope="module")
def identity() -> Session:
    return Session(model=models.identity("INT64", [None]))


def endless_run(session: Session) -> BatchRun:
    return BatchRun(session, [InferRequest([X])], False)


def identity_run(session: Session, number: int) -> BatchRun:
    tensor = Tensor.from_numpy("x", np.array([number], "i8"))
    return BatchRun(session, [InferRequest([tensor])], False)


def lower_priorities() -> list[int]:
    """The priorities of this process's threads that are not this thread's own, as nicenesses."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found.append(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    return [each for each in found if each != os.getpriority(os.PRIO_PROCESS, 0)]


def number_of(run: BatchRun) -> int:
    assert run.error is None
    return int(run.split()[0][0].numpy()[0])


def drain_until(executor: Executor, done: list[object], count: int) -> None:
    while len(done) < count:
        assert select.select([executor], [], [], 30)[0]
        executor.drain()


def wait_until_running(executor: Executor, count: int) -> None:
    while executor.running < count:
        time.sleep(0.001)


def test_a_thousand_jobs_keep_apart(executor: Executor, identity: Session) -> None:
    done: list[int] = []
    for number in range(1000):
        executor.submit(identity_run(identity, number), lambda run, number=number: done.append(number_of(run) - number))
    drain_until(executor, done, 1000)
    assert done == [0] * 1000
    assert (executor.queued, executor.running) == (0, 0)


def test_one_thread_keeps_the_order(identity: Session) -> None:
    executor = Executor(1)
    done: list[int] = []
    for number in range(200):
        executor.submit(identity_run(identity, number), lambda run: done.append(number_of(run)))
    drain_until(executor, done, 200)
    assert done == list(range(200))
    executor.close()


def test_on_an_event_loop(executor: Executor, identity: Session) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        loop.add_reader(executor, executor.drain)
        futures = []
        for number in range(100):
            future: asyncio.Future[int] = loop.create_future()
            executor.submit(
                identity_run(identity, number), lambda run, future=future: future.set_result(number_of(run))
            )
            futures.append(future)
        numbers = await asyncio.gather(*futures)
        loop.remove_reader(executor)
        return numbers

    assert asyncio.run(main()) == list(range(100))


def test_the_jobs_own_done_and_its_times(executor: Executor, identity: Session) -> None:
    run, done = identity_run(identity, 5), []
    run.done = done.append
    before = time.monotonic_ns()
    executor.submit(run)
    drain_until(executor, done, 1)
    assert done == [run]
    assert before <= run.started_ns <= run.ended_ns <= time.monotonic_ns()


def test_a_callback_that_raises_does_not_lose_the_others(
    executor: Executor, identity: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    done: list[int] = []

    def callback(run: BatchRun) -> None:
        done.append(number_of(run))
        raise ValueError(f"number {done[-1]}")

    for number in range(10):
        executor.submit(identity_run(identity, number), callback)
    drain_until(executor, done, 10)
    assert sorted(done) == list(range(10))
    assert sorted(str(error) for error in reported) == [f"number {n}" for n in range(10)]


def test_an_interrupt_in_a_callback_comes_out_after_the_others(executor: Executor, identity: Session) -> None:
    done: list[int] = []

    def callback(run: BatchRun) -> None:
        done.append(number_of(run))
        if len(done) == 1:
            raise KeyboardInterrupt

    for number in range(3):
        executor.submit(identity_run(identity, number), callback)
    with pytest.raises(KeyboardInterrupt):
        drain_until(executor, done, 3)
    drain_until(executor, done, 3)
    assert sorted(done) == [0, 1, 2]


def test_a_callback_may_submit(executor: Executor, identity: Session) -> None:
    done: list[int] = []

    def again(run: BatchRun) -> None:
        done.append(number_of(run))
        if len(done) < 50:
            executor.submit(identity_run(identity, len(done)), again)

    executor.submit(identity_run(identity, 0), again)
    drain_until(executor, done, 50)
    assert done == list(range(50))


def test_gauges_and_terminate(executor: Executor, endless: Session) -> None:
    done: list[BatchRun] = []
    runs = [endless_run(endless) for _ in range(3)]
    for run in runs:
        executor.submit(run, done.append, Share())
    wait_until_running(executor, 2)
    assert executor.queued == 1
    runs[2].terminate()  # before its start
    runs[0].terminate()
    drain_until(executor, done, 2)
    assert set(done) == {runs[0], runs[2]}
    assert "before it started" in str(runs[2].error)
    runs[1].terminate()
    drain_until(executor, done, 3)
    assert all(run.error is not None for run in runs)


def test_the_last_thread_is_kept_for_shares_of_which_nothing_runs(endless: Session, identity: Session) -> None:
    executor, greedy, done = Executor(3), Share(), list[object]()
    runs = [endless_run(endless) for _ in range(4)]
    for run in runs:
        executor.submit(run, done.append, greedy)
    wait_until_running(executor, 2)
    for number in range(3):
        executor.submit(identity_run(identity, number), done.append, Share())
    drain_until(executor, done, 3)
    assert (greedy.running, executor.queued) == (2, 2)
    for run in runs:
        run.terminate()
    drain_until(executor, done, 7)
    assert greedy.running == 0
    executor.close()


def test_the_share_with_the_fewest_running_goes_next(endless: Session, identity: Session) -> None:
    executor, order, done = Executor(2), list[str](), list[object]()
    blocked = [endless_run(endless) for _ in range(2)]
    shares = [Share(), Share()]
    for run, share in zip(blocked, shares, strict=True):
        executor.submit(run, done.append, share)
    wait_until_running(executor, 2)
    for number in range(3):
        executor.submit(identity_run(identity, number), lambda _: order.append("running"), shares[0])
    executor.submit(identity_run(identity, 9), lambda _: order.append("new"), Share())
    blocked[1].terminate()
    drain_until(executor, order, 1)
    assert order[0] == "new"
    blocked[0].terminate()
    drain_until(executor, order, 4)
    executor.close()


def test_overlong_jobs_lose_their_places_while_others_wait(endless: Session, identity: Session) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor(2, call_later=loop.call_later)
        loop.add_reader(executor, executor.drain)
        runs, done = [endless_run(endless) for _ in range(5)], asyncio.Event()
        for run in runs:  # each of another model
            executor.submit(run, None, Share())
        executor.submit(identity_run(identity, 1), lambda _: done.set(), Share())
        await asyncio.wait_for(done.wait(), 30)
        assert executor.running == 5
        assert executor.displaced in (4, 5)
        assert len(lower_priorities()) >= executor.displaced
        for run in runs:
            run.terminate()
        while executor.running:
            await asyncio.sleep(0.001)
        assert executor.displaced == 0
        for number in range(4):  # with as many threads as before
            executor.submit(identity_run(identity, number), None, Share())
        while len(executor):
            await asyncio.sleep(0.001)
        loop.remove_reader(executor)
        executor.close()

    asyncio.run(main())


def test_jobs_that_come_when_all_places_have_been_lowered_are_run(endless: Session, identity: Session) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor(3, call_later=loop.call_later, processes=usable_cores())
        loop.add_reader(executor, executor.drain)
        runs = [endless_run(endless) for _ in range(3)]
        for run in runs:  # two run at a time: the last place is for a share of which nothing runs
            executor.submit(run, None, Share())
        while len(lower_priorities()) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # all of them are overlong, and nobody waits
        for number in range(3):
            done = asyncio.Event()
            executor.submit(identity_run(identity, number), lambda _, done=done: done.set(), Share())
            await asyncio.wait_for(done.wait(), 5)
        for run in runs:
            run.terminate()
        while executor.running:
            await asyncio.sleep(0.001)
        loop.remove_reader(executor)
        executor.close()

    asyncio.run(main())


def test_the_end_of_a_lowered_job_lets_the_next_one_begin(endless: Session, identity: Session) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor(1, call_later=loop.call_later, processes=usable_cores())
        loop.add_reader(executor, executor.drain)
        share = Share()
        for number in range(3):
            run, done = endless_run(endless), asyncio.Event()
            executor.submit(run, None, share)
            executor.submit(identity_run(identity, number), lambda _, done=done: done.set(), share)  # waits for it
            while not lower_priorities():
                await asyncio.sleep(0.01)
            run.terminate()
            await asyncio.wait_for(done.wait(), 5)
        loop.remove_reader(executor)
        executor.close()

    asyncio.run(main())


def test_overlong_jobs_leave_a_core_to_the_others(endless: Session, identity: Session) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cores = usable_cores()
        executor = Executor(cores + 4, call_later=loop.call_later)
        loop.add_reader(executor, executor.drain)
        runs = [endless_run(endless) for _ in range(cores + 2)]
        for run in runs:
            executor.submit(run, None, Share())
        while len(lowered := lower_priorities()) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert lower_priorities() == lowered == [10] * 3
        assert (executor.running, executor.displaced) == (cores + 2, 0)
        for run in runs:
            run.terminate()
        while executor.running:
            await asyncio.sleep(0.001)
        for number in range(2 * cores + 8):
            executor.submit(identity_run(identity, number), None, Share())
        while len(executor):
            await asyncio.sleep(0.001)
        assert lower_priorities() == []  # their threads have ended with them
        loop.remove_reader(executor)
        executor.close()

    asyncio.run(main())


def test_places_are_given_up_to_a_bound(endless: Session) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor(1, call_later=loop.call_later)
        runs = [endless_run(endless) for _ in range(8)]
        for run in runs:
            executor.submit(run, None, Share())
        await asyncio.sleep(0.1)
        while executor.displaced < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert (executor.displaced, executor.running, executor.queued) == (4, 5, 3)
        for run in runs:
            run.terminate()
        executor.close()

    asyncio.run(main())


def test_close_finishes_what_runs_and_gives_up_what_waits(endless: Session, identity: Session) -> None:
    executor = Executor(1)
    done: list[object] = []
    running = endless_run(endless)
    executor.submit(running, done.append)
    wait_until_running(executor, 1)
    waiting = identity_run(identity, 1)
    executor.submit(waiting, done.append)
    threading.Timer(0.05, running.terminate).start()
    executor.close()
    assert done == [running]
    assert waiting.started_ns == 0
    assert (executor.queued, executor.running) == (0, 0)
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(waiting, done.append)


def test_jobs_are_released(executor: Executor, identity: Session) -> None:
    done: list[int] = []
    memory = np.array([3], "i8")
    alive = weakref.ref(memory)
    run = BatchRun(identity, [InferRequest([Tensor.from_numpy("x", memory)])], False)
    executor.submit(run, lambda _: done.append(1))
    del run, memory
    gc.collect()
    assert alive() is not None
    drain_until(executor, done, 1)
    gc.collect()
    assert alive() is None


def test_misuse(executor: Executor, endless: Session) -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        Executor(0)
    with pytest.raises(ValueError, match="when it is ready"):
        executor.submit(Job())
    run = endless_run(endless)
    executor.submit(run)
    with pytest.raises(ValueError, match="submitted once"):
        executor.submit(run)
    run.terminate()


def test_jobs_go_on_while_the_gil_is_held(executor: Executor, identity: Session) -> None:
    runs = [identity_run(identity, number) for number in range(100)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for run in runs:
            executor.submit(run)
        while executor.queued or executor.running:  # pure Python: never lets the GIL go
            pass
    finally:
        sys.setswitchinterval(interval)
    assert select.select([executor], [], [], 0)[0]
    executor.drain()
    assert [number_of(run) for run in runs] == list(range(100))


def test_the_eventfd_is_quiet_after_a_drain(executor: Executor, identity: Session) -> None:
    done: list[object] = []
    executor.submit(identity_run(identity, 1), done.append)
    drain_until(executor, done, 1)
    while select.select([executor], [], [], 0.01)[0]:
        executor.drain()
    assert len(done) == 1


def test_threads_are_named_and_take_no_signals(executor: Executor, endless: Session) -> None:
    runs = [endless_run(endless) for _ in range(2)]
    for run in runs:
        executor.submit(run, share=Share())
    wait_until_running(executor, 2)
    tasks = {}
    for task in Path("/proc/self/task").iterdir():
        tasks[(task / "comm").read_text().strip()] = (task / "status").read_text()
    for name in ("fastinfer-0", "fastinfer-1"):
        [blocked] = [line for line in tasks[name].splitlines() if line.startswith("SigBlk")]
        mask = int(blocked.split()[1], 16)
        assert all(mask >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        assert not mask >> (signal.SIGSEGV - 1) & 1
    for run in runs:
        run.terminate()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    Executor(1).close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_no_thread_and_no_descriptor_is_left() -> None:
    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    before = count()
    for _ in range(20):
        Executor(4).close()
    gc.collect()
    assert count() == before


def test_an_open_executor_at_interpreter_exit() -> None:
    source = (
        "import numpy as np, onnx_models as models\n"
        "from fastinfer.backends.batch_run import BatchRun\n"
        "from fastinfer.native.executor import Executor\n"
        "from fastinfer.tensor.message import InferRequest\n"
        "from fastinfer.backends.onnx.ort import Session\n"
        "from fastinfer.tensor.tensor import Tensor\n"
        "session, executor = Session(model=models.endless()), Executor(3)\n"
        "for _ in range(4):\n"
        "    x = Tensor.from_numpy('x', np.ones((1, 1), 'f4'))\n"
        "    executor.submit(BatchRun(session, [InferRequest([x])], True))\n"
        "while executor.running < 2: pass\n"
        "print('leaving')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "leaving\n", "")


# --- What memory safety rests on --------------------------------------------------------------------------------------


def test_a_job_runs_once_and_has_one_result() -> None:
    bare = Job()
    with pytest.raises(ValueError, match="when it is ready"):
        bare.run()
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT32","data":[7]}]}'
    for make in (lambda: DecodeJob(body), lambda: DecodeJob(b"12345678", 0), lambda: EncodeJob(RESPONSE)):
        job = make()
        with pytest.raises(ValueError, match="when it has ended"):
            job.result()
        job.run()
        with pytest.raises(ValueError, match="runs once"):
            job.run()
        job.result()
        with pytest.raises(ValueError, match="one result"):
            job.result()
