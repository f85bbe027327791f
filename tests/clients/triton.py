"""The stock client of Triton in its three forms, each with the same methods, and tensors to send with it.

Importing this module skips the importing tests where ``tritonclient`` is not installed (``stock_client``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from support import Server, stock_client

http = stock_client("tritonclient.http")
aio = stock_client("tritonclient.http.aio")
utils = stock_client("tritonclient.utils")

SyncClient = http.InferenceServerClient
InferenceServerException = utils.InferenceServerException


class AsyncInferClient(http.InferenceServerClient):
    """Infers through ``async_infer``, whose request travels in a greenlet."""

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        return self.async_infer(*args, **kwargs).get_result()


class AioClient:
    """The asyncio client on a loop of its own: each call waits for its coroutine."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()

        async def opened() -> Any:
            return aio.InferenceServerClient(url, **options)

        self._client = self._runner.run(opened())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))

    def register_plugin(self, plugin: Any) -> None:
        self._client.register_plugin(plugin)

    def idle(self, seconds: float) -> None:
        """Lets the loop run on between two calls, so that it sees connections that are closed."""
        self._runner.run(asyncio.sleep(seconds))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


def idle(client: Any, seconds: float) -> None:
    """Does nothing with a client of any form for a while."""
    getattr(client, "idle", time.sleep)(seconds)


CLIENTS = {"sync": SyncClient, "async_infer": AsyncInferClient, "aio": AioClient}


def address(server: Server) -> str:
    """Where a server listens, as the clients want it."""
    return f"127.0.0.1:{server.port}"


def sent(name: str, array: np.ndarray, binary: bool = True) -> Any:
    """An input of the array's shape and datatype."""
    tensor = http.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def wanted(name: str, binary: bool = True, **more: Any) -> Any:
    """A requested output."""
    return http.InferRequestedOutput(name, binary_data=binary, **more)


def texts(*elements: str | bytes) -> np.ndarray:
    """A BYTES array ``[elements]``."""
    return np.array(elements, dtype=np.object_)


def dtype_of(datatype: str) -> np.dtype[Any]:
    """The numpy dtype with which the client stands for a v2 datatype."""
    return np.dtype(utils.triton_to_np_dtype(datatype))


def assert_same(actual: np.ndarray | None, expected: np.ndarray) -> None:
    """Equal shapes, dtypes and elements: the bits of numbers, the bytes of texts."""
    assert actual is not None, "the answer lacks the output"
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if expected.dtype == np.object_:
        assert [_encoded(each) for each in actual.flat] == [_encoded(each) for each in expected.flat]
    else:
        assert actual.tobytes() == expected.tobytes()


def _encoded(element: str | bytes) -> bytes:
    return element.encode() if isinstance(element, str) else element


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str | None, str]:
    """Status and sentence of the InferenceServerException that ``call(*args, **kwargs)`` must raise."""
    try:
        call(*args, **kwargs)
    except InferenceServerException as error:
        return error.status(), error.message()
    raise AssertionError("no InferenceServerException was raised")
