"""What requests hold, counted: tensors, texts of answers, classes; and what is refused before it is decoded."""

from __future__ import annotations

import gc
import json
from typing import Any

import numpy as np
import pytest

from fastinfer.base import limits
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import KIB, MIB
from fastinfer.codec import decode as codec
from fastinfer.codec import encode
from fastinfer.native.executor import Executor
from fastinfer.tensor.message import InferResponse
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec
from fastinfer.tensor.top_k import Classification


def body_of(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def given(data: list[Any], datatype: str = "FP32", name: str = "x", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [1, len(data)], "datatype": datatype, "data": data}


def test_a_budget_counts_and_refuses() -> None:
    budget = Budget(100)
    assert budget.reserve(60)
    assert not budget.reserve(41)
    assert budget.reserve(40)
    assert (budget.limit, budget.used, budget.refused) == (100, 100, 1)
    budget.release(100)
    assert budget.used == 0
    assert not budget.reserve((1 << 63) - 1)
    assert budget.used == 0
    with pytest.raises(ValueError, match="not negative"):
        Budget(-1)


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "UINT8", "BOOL", "BYTES"])
@pytest.mark.parametrize("count", [1, 1000, 50_000])
def test_tensors_count_until_their_last_view_is_gone(datatype: str, count: int) -> None:
    element = {"BOOL": True, "BYTES": "ab"}.get(datatype, 1)
    budget = Budget()
    request = codec.decode(body_of(given([element] * count, datatype)), budget=budget)
    assert budget.used >= request.inputs[0].nbytes
    view = request.inputs[0].slice_rows(0, 1)
    del request
    assert budget.used >= view.nbytes
    del view
    assert budget.used == 0


def test_what_is_over_the_budget_is_503_and_counts_nothing() -> None:
    body = body_of(given([1] * 1000), given([2] * 1000, name="y"))
    budget = Budget(7999)
    for decode in (lambda: codec.decode(body, budget=budget), lambda: run(codec.DecodeJob(body, budget=budget))):
        with pytest.raises(ApiError) as raised:
            decode()
        assert (raised.value.status, raised.value.message) == (503, "out of memory for the request's tensors")
        assert raised.value.headers
    assert (budget.used, budget.refused) == (0, 2)
    assert codec.decode(body, budget=Budget(8000)).inputs[1].nbytes == 4000


def run(job: codec.DecodeJob) -> object:
    job.run()
    return job.result()


@pytest.mark.parametrize("count", [3, 10_000])
def test_the_text_of_an_answer_counts_what_it_takes(count: int) -> None:
    response = InferResponse("m", "1", [Tensor.from_numpy("y", np.zeros(count, "f8"))])
    budget = Budget()
    encoded = encode.encode(response, budget=budget)
    assert budget.used == encoded.json_size
    job = encode.EncodeJob(response, budget=budget)
    job.run()
    again = job.result()
    assert budget.used == 2 * encoded.json_size
    del encoded, again, job
    assert budget.used == 0
    size = len(memoryview(encode.encode(response)))
    with pytest.raises(ApiError) as raised:
        encode.encode(response, budget=Budget(size - 1))
    assert raised.value.status == 503


def test_a_long_text_takes_little_more_of_the_budget_than_it_has_bytes() -> None:
    response = InferResponse("m", "1", [Tensor.from_numpy("y", np.zeros(100_000, "f8"))])  # might be 2.5 MB
    size = encode.encode(response).json_size
    budget = Budget(size + MIB // 2)
    assert encode.encode(response, budget=budget).json_size == size
    assert (budget.used, budget.refused) == (0, 0)


def classes(rows: int, width: int, wanted: int, value: float) -> InferResponse:
    scores = Tensor.from_numpy("y", np.full((rows, width), value))
    classification = Classification(scores, wanted, batched=True)
    return InferResponse("m", "1", [scores], classes=(classification,))


def test_classes_have_a_limit_of_text_however_they_are_asked_for() -> None:
    most = 4 * MIB
    for rows, width, wanted in ((1, 10_000, 10_000), (10, 1000, 1000), (2000, 5, 5)):  # 10,000 of 328 bytes
        budget = Budget()
        encoded = encode.encode(classes(rows, width, wanted, 1e308), budget=budget)
        assert 3 * MIB < len(memoryview(encoded)) < most
        assert budget.used <= 2 * most
    for rows, width, wanted in ((2, 10_000, 10_000), (20, 1000, 1000), (4000, 5, 5), (1_000_000, 1, 1)):
        budget = Budget()
        response = classes(rows, width, wanted, 1e308)
        with pytest.raises(ApiError) as raised:
            encode.encode(response, budget=budget)
        assert (raised.value.status, raised.value.message) == (
            400,
            f"outputs[0]: its classes have more than {most} bytes of text",
        )
        del response, raised
        gc.collect()
        assert budget.used == 0
    assert len(memoryview(encode.encode(classes(100, 1000, 1000, 0.5), budget=Budget()))) > MIB


def test_a_row_has_ten_thousand_classes_at_most() -> None:
    body = body_of(given([1]), outputs=[{"name": "y", "parameters": {"classification": limits.MAX_CLASSES}}])
    assert codec.decode(body).outputs[0].classification == limits.MAX_CLASSES
    body = body_of(given([1]), outputs=[{"name": "y", "parameters": {"classification": limits.MAX_CLASSES + 1}}])
    with pytest.raises(ApiError, match=r"outputs\[0\].parameters.classification is larger than 10000"):
        codec.decode(body)


# --- Refused before it is decoded -------------------------------------------------------------------------------------

SIGNATURE = Signature([TensorSpec("x", "FP32", [-1, 4])], [TensorSpec("y", "FP32", [-1, 4])],
                      batched=True, max_batch_size=8, max_batch_size_configured=True)  # fmt: skip
LARGE = [0] * 100_000


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (given(LARGE, "FP64"), "data-type is 'FP64', but model 'm' expects 'FP32'"),
        (given(LARGE, name="z"), "unexpected inference input 'z'"),
        (given(LARGE), "unexpected shape"),
        (given(LARGE, shape=[len(LARGE)]), "unexpected shape"),
        (given(LARGE, shape=[1, 1, 1, len(LARGE)]), "unexpected shape"),
        (given(LARGE, shape=[20_000, 5]), "unexpected shape"),
        ({"data": LARGE, "name": "x", "datatype": "INT8", "shape": [1, len(LARGE)]}, "data-type is 'INT8'"),
        ({"data": LARGE, "datatype": "FP32", "shape": [1, 3], "name": "x"}, "unexpected shape"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("off_loop", [False, True])
def test_data_that_cannot_fit_is_not_decoded(tensor: dict[str, Any], sentence: str, off_loop: bool) -> None:
    budget = Budget(100 * KIB)
    body = body_of(tensor)
    expectation = SIGNATURE.expectation
    if off_loop:
        job = codec.DecodeJob(body, model="m", expectation=expectation, budget=budget)
        job.run()
        request = job.result()
    else:
        request = codec.decode(body, model="m", expectation=expectation, budget=budget)
    assert (budget.used, budget.refused) == (0, 0)
    with pytest.raises(ApiError, match=sentence):
        SIGNATURE.check(request, "m")


@pytest.mark.parametrize("keys", [("name", "shape", "datatype", "data"), ("data", "datatype", "shape", "name"),
                                  ("datatype", "data", "name", "shape")])  # fmt: skip
def test_what_fits_is_decoded_whatever_the_order_of_its_keys(keys: tuple[str, ...]) -> None:
    for shape in ([2, 4], [4]):
        tensor = given(list(range(8 if shape == [2, 4] else 4)), shape=shape)
        body = body_of({key: tensor[key] for key in keys})
        request = codec.decode(body, model="m", expectation=SIGNATURE.expectation)
        configured = Signature([TensorSpec("x", "FP32", [-1, 4])], [], batched=True, max_batch_size=8,
                               max_batch_size_configured=True)  # fmt: skip
        configured.check(request, "m")
        assert request.inputs[0].numpy().ravel().tolist() == tensor["data"]


def test_a_request_that_was_not_decoded_never_passes_a_check() -> None:
    other = Signature([TensorSpec("x", "FP64", [-1, -1])], [], batched=True, max_batch_size=8)
    request = codec.decode(body_of(given([1] * 9, "FP64")), expectation=SIGNATURE.expectation)
    with pytest.raises(ApiError, match="the inputs do not fit model 'm'"):
        other.check(request, "m")  # of a model that has taken the first one's place meanwhile
    anything = Signature([], [], accepts_anything=True)
    assert anything.expectation is None
    with pytest.raises(ApiError):
        anything.check(request, "m")


def test_binary_data_that_cannot_fit_is_not_copied() -> None:
    text = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32",
                                   "parameters": {"binary_data_size": 12}}]}).encode()  # fmt: skip
    budget = Budget()
    request = codec.decode(text + bytes(12), len(text), expectation=SIGNATURE.expectation, budget=budget)
    assert budget.used == 0
    with pytest.raises(ApiError, match="unexpected shape"):
        SIGNATURE.check(request, "m")


# --- Strings ----------------------------------------------------------------------------------------------------------


def test_strings_may_take_ten_times_their_body_and_sixteen_mebibytes() -> None:
    free = limits.FREE_STRING_BYTES // limits.STRING_BYTES
    for text, count in (("", free), ("abcdefgh", 4 * free)):
        body = body_of(given([text] * count, "BYTES"))
        assert codec.decode(body).inputs[0].shape == (1, count)
    for text, count in (("", 2 * free), ("a", 3 * free)):
        body = body_of(given([text] * count, "BYTES")).replace(b", ", b",")
        with pytest.raises(ApiError) as raised:
            codec.decode(body)
        assert raised.value.status == 413
        assert raised.value.message.startswith(f"inputs[0].data: {count} strings in a body of {len(body)} bytes")
    text = json.dumps({"inputs": [{"name": "x", "shape": [4 * free], "datatype": "BYTES",
                                   "parameters": {"binary_data_size": 16 * free}}]}).encode()  # fmt: skip
    with pytest.raises(ApiError) as raised:
        codec.decode(text + bytes(16 * free), len(text))
    assert raised.value.status == 413


def test_a_shape_that_lies_is_told_so() -> None:
    with pytest.raises(ApiError, match="2 elements, but the shape"):
        codec.decode(body_of(given(["a", "b"], "BYTES", shape=[1 << 40])))


# --- Interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [list(range(200_000)), ["abc"] * 200_000])
def test_a_job_that_nobody_waits_for_ends(data: list[Any]) -> None:
    datatype = "BYTES" if data[0] == "abc" else "INT64"
    budget = Budget()
    job = codec.DecodeJob(body_of(given(data, datatype)), budget=budget)
    job.terminate()
    job.run()
    del job
    assert budget.used == 0
    response = InferResponse("m", "1", [codec.decode(body_of(given(data, datatype))).inputs[0]])
    encoding = encode.EncodeJob(response, budget=budget)
    encoding.terminate()
    encoding.run()
    with pytest.raises(ApiError, match="given up"):
        encoding.result()
    del encoding
    assert budget.used == 0


def test_jobs_end_between_pieces_too() -> None:
    executor = Executor(1)
    body = body_of(given([0.123456789] * 3_000_000, "FP64"))
    budget = Budget()
    for _ in range(20):  # until one is met at work
        job = codec.DecodeJob(body, budget=budget)
        executor.submit(job)
        while not executor.running:
            pass
        job.terminate()
        while len(executor):
            executor.drain()
        try:
            job.result()
        except ApiError as error:
            assert error.message == "the request was given up"
            break
    else:
        pytest.fail("no job ended between its pieces")
    del job
    executor.close()
    assert budget.used == 0
