"""Runs of batches: every request gets exactly its own rows back."""

from __future__ import annotations

import select
import time

import numpy as np
import onnx_models as models
import pytest

from fastinfer.backends.batch_run import BatchRun
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.native.executor import Executor
from fastinfer.tensor import datatype
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor


def request(*arrays: object, name: str | None = None, batched: bool = True) -> InferRequest:
    made = InferRequest([Tensor.from_numpy(f"x{i}", np.asarray(array), name) for i, array in enumerate(arrays)])
    made.rows = np.asarray(arrays[0]).shape[0] if batched else 1
    return made


def run(session: Session, requests: list[InferRequest], batched: bool = True) -> BatchRun:
    made = BatchRun(session, requests, batched)
    made.run()
    return made


@pytest.fixture(scope="module")
def simple() -> Session:
    return Session(model=models.simple())


@pytest.mark.parametrize("counts", [[1], [3], [1, 1], [2, 1, 5], [1] * 64, [0, 2, 0], [0], [0, 0]])
def test_rows_go_back_to_their_requests(simple: Session, counts: list[int]) -> None:
    random = np.random.default_rng(1)
    pairs = [[random.integers(-99, 99, (n, 16)).astype("i4") for _ in range(2)] for n in counts]
    done = run(simple, [request(*pair) for pair in pairs])
    assert done.error is None
    assert done.rows == sum(counts)
    assert done.input_bytes == sum(counts) * 16 * 4 * 2
    parts = done.split()
    assert len(parts) == len(counts)
    for (a, b), (total, difference) in zip(pairs, parts, strict=True):
        assert (total.name, difference.name) == ("OUTPUT0", "OUTPUT1")
        assert total.shape == difference.shape == a.shape
        assert total.numpy().tolist() == (a + b).tolist()
        assert difference.numpy().tolist() == (a - b).tolist()


@pytest.mark.parametrize("name", [name for name in datatype.NAMES if name != "BYTES"])
def test_every_numeric_datatype(name: str) -> None:
    random = np.random.default_rng(2)
    session = Session(model=models.identity(name))
    arrays = []
    for rows in (1, 4, 2):
        bits = random.integers(0, 2 if name == "BOOL" else 256, rows * 3 * datatype.itemsize(name), dtype="u1")
        arrays.append(bits.view(datatype.numpy_dtype(name)).reshape(rows, 3))
    parts = run(session, [request(array, name=name) for array in arrays]).split()
    assert [bytes(part[0]) for part in parts] == [array.tobytes() for array in arrays]


@pytest.mark.parametrize("size", [1, 3])
def test_strings(size: int) -> None:
    session = Session(model=models.identity("BYTES"))
    rows = [[[b"", b"a\0b\0"]], [[b"\xff", b"x" * 70_000], ["grün".encode(), b"\0"]], [[b"", b""]]][:size]
    parts = run(session, [request(np.array(row, dtype=object)) for row in rows]).split()
    assert [part[0].numpy().tolist() for part in parts] == rows


def test_a_model_that_is_not_batched() -> None:
    session = Session(model=models.scalar_sum())
    [[total]] = run(session, [request(np.ones((2, 4), "f4"), batched=False)], batched=False).split()
    assert total.shape == ()
    assert total.numpy() == 8
    with pytest.raises(ValueError, match="one request"):
        BatchRun(session, [request(np.ones((2, 4), "f4"))] * 2, False)


@pytest.mark.parametrize("made", [models.batch_mean, models.scalar_sum])
@pytest.mark.parametrize("counts", [[2], [1, 2]])
def test_models_that_do_not_keep_the_batch(made: object, counts: list[int]) -> None:
    done = run(Session(model=made()), [request(np.ones((n, 4), "f4")) for n in counts])
    assert isinstance(done.error, OrtError)
    assert "does not keep the batch dimension" in str(done.error)
    with pytest.raises(OrtError):
        done.split()


def test_shapes_that_depend_on_values() -> None:
    session = Session(model=models.nonzero())
    done = run(session, [request(np.array([[1, 0, 3, 0]], "f4"), batched=False)], batched=False)
    assert done.split()[0][0].numpy().tolist() == [[0, 0], [0, 2]]


def test_an_output_that_is_an_input_does_not_share_memory_with_it() -> None:
    session = Session(model=models.passed_through())
    array = np.ones((1, 4), "f4")
    for requests in ([request(array)], [request(array), request(array + 1)]):
        parts = run(session, requests).split()
        array[:] = 7
        assert [part[0].numpy().tolist() for part in parts] == [[[1.0] * 4], [[2.0] * 4]][: len(requests)]
        array[:] = 1


def test_outputs_outlive_everything() -> None:
    session = Session(model=models.simple())
    arrays = [np.full((1, 16), n, "i4") for n in range(8)]
    done = run(session, [request(array, array) for array in arrays])
    parts = done.split()
    del session, done
    kept = parts[5][0]
    del parts
    assert kept.numpy().tolist() == [[10] * 16]


def test_one_request_fails_the_batch_and_nothing_leaks_into_the_next() -> None:
    session = Session(model=models.gather_rows())
    good, bad = request(np.array([1, 2])), request(np.array([9]))
    assert run(session, [good, bad]).error is not None
    assert run(session, [bad]).error is not None
    assert run(session, [good]).split()[0][0].numpy().tolist() == [[2, 3], [4, 5]]


def test_requests_that_do_not_share_a_batch(simple: Session) -> None:
    a = np.zeros((1, 16), "i4")
    fits = request(a, a)
    for other in (
        request(a),
        request(a, a, a),
        request(a, np.zeros((2, 16), "i4")),
        request(a, np.zeros((1, 15), "i4")),
        request(a, np.zeros((1, 16, 1), "i4")),
        request(a, np.zeros((1, 16), "f4")),
        request(a, np.zeros((), "i4")),
    ):
        with pytest.raises(ValueError):
            BatchRun(simple, [fits, other], True)
    with pytest.raises(ValueError):
        BatchRun(simple, [], True)
    with pytest.raises(TypeError):
        BatchRun(simple, [None], True)


def test_what_the_model_refuses(simple: Session) -> None:
    wrong = np.zeros((1, 17), "i4")
    error = run(simple, [request(wrong, wrong)]).error
    assert error is not None
    assert error.code == 2
    assert "Got: 17 Expected: 16" in str(error)


def test_times(simple: Session) -> None:
    a = np.zeros((4, 16), "i4")
    done = run(simple, [request(a, a)] * 4)
    parts = (done.compute_input_ns, done.compute_infer_ns, done.compute_output_ns)
    assert all(part > 0 for part in parts)
    assert sum(parts) <= done.ended_ns - done.started_ns


def test_split_is_for_once_and_after_the_end(simple: Session) -> None:
    a = np.zeros((1, 16), "i4")
    done = BatchRun(simple, [request(a, a)], True)
    with pytest.raises(RuntimeError, match="after its end"):
        done.split()
    done.run()
    ended = done.compute_infer_ns
    with pytest.raises(ValueError, match="runs once"):
        done.run()
    assert done.compute_infer_ns == ended
    done.split()
    with pytest.raises(RuntimeError, match="split once"):
        done.split()


def test_terminate_before_the_start_and_after_the_end(simple: Session) -> None:
    a = np.zeros((1, 16), "i4")
    done = BatchRun(simple, [request(a, a)], True)
    done.terminate()
    done.run()
    assert "before it started" in str(done.error)
    done = run(simple, [request(a, a)])
    done.terminate()
    assert done.error is None
    assert len(done.split()) == 1


def test_terminate_ends_an_endless_loop_and_no_other_run() -> None:
    session, executor = Session(model=models.endless()), Executor(3)
    ended: list[BatchRun] = []
    runs = [BatchRun(session, [request(np.ones((1, 1), "f4"))], True) for _ in range(2)]
    for each in runs:
        executor.submit(each, ended.append)
    while executor.running < 2:
        time.sleep(0.001)
    for each in runs:
        each.terminate()
        assert select.select([executor], [], [], 30)[0]
        executor.drain()
        assert ended[-1] is each
        assert "terminate" in str(each.error)
    executor.close()


def test_terminate_races_with_the_end(simple: Session) -> None:
    executor, a = Executor(2), np.ones((1, 16), "i4")
    ended: list[BatchRun] = []
    for count in range(1, 501):
        each = BatchRun(simple, [request(a, a)], True)
        executor.submit(each, ended.append)
        for _ in range(count % 40):
            pass
        each.terminate()
        while len(ended) < count:
            assert select.select([executor], [], [], 30)[0]
            executor.drain()
        assert each.error is not None or each.split()[0][0].numpy()[0, 0] == 2
    executor.close()


def test_parallel_batches_of_unique_values(simple: Session) -> None:
    executor = Executor(2)
    left = 100
    wrong: list[object] = []

    def check(first: int) -> object:
        def done(each: BatchRun) -> None:
            nonlocal left
            left -= 1
            for k, (total, difference) in enumerate(each.split()):
                value = first + k
                if set(total.numpy().ravel()) != {2 * value} or set(difference.numpy().ravel()) != {0}:
                    wrong.append(value)

        return done

    for i in range(100):
        arrays = [np.full((1 + k % 3, 16), i * 1000 + k, "i4") for k in range(1 + i % 32)]
        executor.submit(BatchRun(simple, [request(array, array) for array in arrays], True), check(i * 1000))
    while left:
        assert select.select([executor], [], [], 30)[0]
        executor.drain()
    executor.close()
    assert not wrong
