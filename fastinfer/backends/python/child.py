"""The process of a Python model: ``python -m fastinfer.backends.python.child SOCKET LIFELINE``.

It reads a message, loads the model or runs a batch, answers, and waits for the next one. It ends when the server's side
is closed. If the server dies while the model computes, the lifeline's hang-up raises SIGIO, whose default is to end the
process: nothing in it has to be able to run for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.python.arena import Reader, Writer
from fastinfer.backends.python.hosted import Described, HostedError, HostedModel
from fastinfer.tensor.datatype import numpy_dtype
from fastinfer.tensor.tensor import Tensor

MESSAGE = struct.Struct("<BxxxI")  # what it is, the length of its header
LOAD, RUN, DONE, FAILED = range(4)


def main() -> None:
    """Serves the socket whose descriptor is the first argument."""
    connection, lifeline = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    sys.dont_write_bytecode = True  # a __pycache__ beside the model would be a change of its files
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(lifeline)
    _Child(connection).serve()


def _end_with(lifeline: int) -> None:
    """Has the kernel end this process when the other end of a socket is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    if select.select([lifeline], [], [], 0)[0]:  # it was closed before
        sys.exit(1)


class _Child:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = Reader(writable=True)
        self._writer = Writer()
        self._inputs: list[Described] = []
        self._model: HostedModel | None = None

    def serve(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._connection, MESSAGE.size, 1)
            if not data:
                break
            kind, length = MESSAGE.unpack(data)
            if fds:
                self._reader.take(fds[0])
            header, blocks = self._reader.read(length)
            try:
                answer, tensors = self._load(header, blocks) if kind == LOAD else self._run(header, blocks)
                kind = DONE
            except HostedError as error:
                answer = {"status": error.status, "reason": error.reason, "trace": error.trace}
                kind, tensors = FAILED, []
            self._answer(kind, answer, tensors)
        if self._model is not None:
            self._model.close()

    def _answer(self, kind: int, answer: dict[str, Any], tensors: list[Tensor]) -> None:
        try:
            length, fd = self._writer.write(answer, [[tensor] for tensor in tensors])
        except MemoryError:
            answer = {"status": 500, "reason": "out of memory for the outputs", "trace": ""}
            kind, (length, fd) = FAILED, self._writer.write(answer, [])
        self._reader.trim()
        with contextlib.suppress(BrokenPipeError):  # then the next read ends
            socket.send_fds(self._connection, [MESSAGE.pack(kind, length)], [] if fd is None else [fd])
        self._writer.trim()

    def _load(self, header: dict[str, Any], blocks: list[memoryview]) -> tuple[dict[str, Any], list[Tensor]]:
        path = Path(os.fsdecode(header["path"].encode("latin-1")))
        sys.path.insert(0, str(path.parent))  # modules beside model.py can be imported
        self._inputs = [Described(*each) for each in header["inputs"]]
        outputs = [Described(*each) for each in header["outputs"]]
        self._model = HostedModel(bytes(blocks[0]), path, "model", header["config"], outputs)
        return {}, []

    def _run(self, header: dict[str, Any], blocks: list[memoryview]) -> tuple[dict[str, Any], list[Tensor]]:
        if self._model is None:
            raise HostedError(500, "is not loaded")
        began_ns = time.monotonic_ns()
        inputs = {
            each.name: _array(each, shape, block)
            for each, shape, block in zip(self._inputs, header["shapes"], blocks, strict=True)
        }
        outputs = self._model.infer(inputs, header["rows"])
        took_ns = time.monotonic_ns() - began_ns
        return {"shapes": [tensor.shape for tensor in outputs], "ns": took_ns}, outputs


def _array(described: Described, shape: list[int], block: memoryview) -> NDArray[Any]:
    if described.datatype == "BYTES":
        return Tensor.copied(described.name, described.datatype, shape, block).numpy()
    return np.frombuffer(block, numpy_dtype(described.datatype)).reshape(shape)


if __name__ == "__main__":
    main()
