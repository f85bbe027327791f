"""A request that a loaded model answers, and how long it takes: for ``fastinfer check``. Loop's thread only."""

from __future__ import annotations

import asyncio
import math
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

import numpy as np
import orjson

from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.schedule.backend import BatchResult, Implementation
from fastinfer.tensor.datatype import itemsize, numpy_dtype
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

_OPEN_DIMENSIONS = (1, 8, 3, 16, 32, 224)  # sizes that are tried for open dimensions, in this order
_MANY_ROWS = 16
_RUNS = 9  # that are timed, unless ...
_RUNS_S = 0.5  # ... they take longer than this together
_MAX_BYTES = 64 * limits.MIB  # of an example's inputs
_MAX_ELEMENTS = 64  # of an example that is written as JSON
_EMPTY_TEXT_BYTES = 4  # of an empty BYTES element in binary form: its length


@dataclass(frozen=True, slots=True)
class Example:
    """A request of zeros and empty texts.

    Attributes:
        inputs: of each input, the name, datatype and shape.
        run_s: the typical time of a run in seconds, by its rows.
    """

    inputs: Sequence[tuple[str, str, Sequence[int]]]
    run_s: dict[int, float]

    def command(self, url: str) -> str:
        """Return a shell command that sends the request."""
        if sum(math.prod(shape) for _, _, shape in self.inputs) <= _MAX_ELEMENTS:
            body = {"inputs": [_described(*each, data=_zeros(*each[1:])) for each in self.inputs]}
            return f"curl -d {shlex.quote(orjson.dumps(body).decode())} {url}"
        sizes = [_binary_bytes(datatype, shape) for _, datatype, shape in self.inputs]
        described = [
            _described(*each, parameters={"binary_data_size": size})
            for each, size in zip(self.inputs, sizes, strict=True)
        ]
        header = orjson.dumps({"inputs": described})
        print_body = f"(printf %s {shlex.quote(header.decode())}; head -c {sum(sizes)} /dev/zero)"
        return f"{print_body} | curl --data-binary @- -H 'Inference-Header-Content-Length: {len(header)}' {url}"


async def find_example(implementation: Implementation, limit_s: float) -> Example:
    """Find a request that the model answers, and time it with one row, and with several if the model is batched.

    Args:
        implementation: the loaded model; nobody else runs it.
        limit_s: seconds that a run may take.

    Raises:
        ApiError: no request was answered; the error of the first.
    """
    signature = implementation.signature
    errors: list[ApiError] = []
    for size in _OPEN_DIMENSIONS:
        try:
            run_s = {1: await _time(implementation, _tensors(signature, 1, size), limit_s)}
        except ApiError as error:
            errors.append(error)
            if error.status == 504:  # another size would also take too long
                break
            continue
        rows = min(_MANY_ROWS, signature.max_batch_size)
        if signature.batched and rows > 1:
            with suppress(ApiError):  # this many rows may be too large
                run_s[rows] = await _time(implementation, _tensors(signature, rows, size), limit_s)
        inputs = [(spec.name, spec.datatype, _shape(signature, spec, 1, size)) for spec in signature.inputs]
        return Example(inputs, run_s)
    raise errors[0]


def _shape(signature: Signature, spec: TensorSpec, rows: int, size: int) -> list[int]:
    shape = [size if dimension == -1 else dimension for dimension in spec.shape]
    if signature.batched and not spec.open_rank and spec.batch_axis >= 0:
        shape[spec.batch_axis] = rows
    return shape


def _tensors(signature: Signature, rows: int, size: int) -> list[Tensor]:
    """Make the example's inputs. ApiError if they are too large."""
    shapes = [_shape(signature, spec, rows, size) for spec in signature.inputs]
    if sum(map(_binary_bytes, (spec.datatype for spec in signature.inputs), shapes)) > _MAX_BYTES:
        raise ApiError(400, "an example would be too large")
    return [
        Tensor.from_numpy(spec.name, _array(spec.datatype, shape), spec.datatype)
        for spec, shape in zip(signature.inputs, shapes, strict=True)
    ]


def _array(datatype: str, shape: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.full(shape, b"", object) if datatype == "BYTES" else np.zeros(shape, numpy_dtype(datatype))


async def _time(implementation: Implementation, inputs: list[Tensor], limit_s: float) -> float:
    """Return the typical seconds of a run. ApiError."""
    await _run(implementation, inputs, limit_s)  # the first run is slower
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _RUNS_S:
        started = time.perf_counter()
        await _run(implementation, inputs, limit_s)
        times.append(time.perf_counter() - started)
    return median(times)


async def _run(implementation: Implementation, inputs: list[Tensor], limit_s: float) -> None:
    """Runs a request once. ApiError if the model does not answer it; 504 if it takes too long."""
    request = InferRequest(list(inputs))
    implementation.signature.check(request, "")
    result: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    run = implementation.start([request], result.set_result)
    await asyncio.wait([result], timeout=limit_s)
    if not result.done():
        if run is not None:
            run.terminate()
        await result  # the model must not be closed before
        raise ApiError(504, f"an example takes longer than {limit_s:g} s")
    (outcome,) = result.result().outputs
    if isinstance(outcome, ApiError):
        raise outcome


# --- The request as text ----------------------------------------------------------------------------------------------


def _described(name: str, datatype: str, shape: Sequence[int], **more: object) -> dict[str, object]:
    return {"name": name, "shape": shape, "datatype": datatype, **more}


def _zeros(datatype: str, shape: Sequence[int]) -> list[object]:
    zero: object = {"BYTES": "", "BOOL": False}.get(datatype, 0)
    return [zero] * math.prod(shape)


def _binary_bytes(datatype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * (itemsize(datatype) or _EMPTY_TEXT_BYTES)
