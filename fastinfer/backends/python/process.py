"""The server's side of a model's process: starts it, sends it work, and ends it.

Loop's thread only. What may block (starting, large copies, waiting for an end) is done on the backend's threads, not on
the loop's default executor, where images wait. A process does one thing at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from fastinfer.backends.python.arena import ArenaError, Reader, Writer
from fastinfer.backends.python.child import DONE, FAILED, LOAD, MESSAGE, RUN
from fastinfer.backends.python.hosted import HostedError
from fastinfer.backends.python.resources import Resources
from fastinfer.tensor.tensor import Tensor

log = logging.getLogger(__name__)

_CHILD = (sys.executable, "-m", "fastinfer.backends.python.child")
_CLOSES_S = 2.0  # what a model's close() may take


class EndedError(Exception):
    """The process has ended; the text says how: ``was ended by SIGSEGV``."""


class ModelProcess:
    """A process that holds one model, from :meth:`start` to :meth:`kill` or :meth:`close`.

    Args:
        process: the started process.
        connection: to it.
        lifeline: its other end is watched by the process: it dies when this one is closed.
        resources: of the backend.

    Attributes:
        pid: the process's number.
        ended: it takes no more work.
        on_end: called with how it ended, unless it was closed.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        connection: socket.socket,
        lifeline: socket.socket,
        resources: Resources,
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._connection = connection
        self._lifeline = lifeline
        self._resources = resources
        self._loop = resources.loop
        self._writer = Writer(resources.budget)
        self._reader = Reader()
        self._copying = False  # a thread uses the writer
        self.ended = False
        self._answer: asyncio.Future[tuple[int, int]] | None = None
        self.on_end: Callable[[str], None] | None = None
        connection.setblocking(False)
        self._loop.add_reader(connection.fileno(), self._readable)

    @classmethod
    async def start(cls, resources: Resources) -> ModelProcess:
        """Starts a process without a model. OSError: the system does not."""
        connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lifeline, watched = socket.socketpair()
        spawning = resources.threads.submit(_spawn, theirs, watched)  # it needs its sockets, even if nobody waits
        try:
            process = await asyncio.wrap_future(spawning)
        except BaseException:
            connection.close()
            lifeline.close()  # which ends a process that is started nevertheless
            spawning.add_done_callback(_reap)
            raise
        return cls(process, connection, lifeline, resources)

    async def load(self, header: Mapping[str, Any], source: bytes) -> None:
        """Loads the model.

        Raises:
            HostedError: it does not load.
            EndedError: the process has ended.
        """
        await self._ask(LOAD, header, [[source]])

    async def run(
        self, header: Mapping[str, Any], inputs: Sequence[Sequence[Tensor]]
    ) -> tuple[dict[str, Any], list[memoryview]]:
        """Runs a batch.

        Args:
            header: its shapes.
            inputs: for each input of the model, the tensors whose rows it gets.

        Returns:
            The answer's header, and the bytes of the outputs, valid until the next call; see :meth:`release`.

        Raises:
            HostedError, EndedError: as of :meth:`load`.
            MemoryError: there is no room for the inputs.
            ArenaError: the process does not keep to the protocol.
        """
        return await self._ask(RUN, header, inputs)

    def release(self) -> None:
        """The outputs of the last run are not needed any more."""
        self._reader.trim()

    def kill(self) -> None:
        """Ends the process at once; what waits for it gets EndedError."""
        if not self.ended:
            _kill_group(self.pid)
            self._disconnect()
            self._lifeline.close()
            reaped = self._loop.run_in_executor(self._resources.threads, self._process.wait)
            reaped.add_done_callback(partial(self._reaped, self._answer))

    def close(self) -> None:
        """Lets the model close, and ends the process after a while at the latest."""
        if not self.ended:
            self._disconnect()
            self._resources.threads.submit(_wait, self._process, self._lifeline)

    async def _ask(
        self, kind: int, header: Mapping[str, Any], blocks: Sequence[Sequence[Any]]
    ) -> tuple[dict[str, Any], list[memoryview]]:
        if self.ended:
            raise EndedError("has ended")
        length, fd = await self._write(header, blocks)
        if self.ended:  # while a thread wrote
            raise EndedError("has ended")
        self._answer = self._loop.create_future()
        try:
            socket.send_fds(self._connection, [MESSAGE.pack(kind, length)], [] if fd is None else [fd])
        except OSError:
            self.kill()
        try:
            kind, length = await self._answer
        finally:
            self._answer = None
        self._writer.trim()
        answer, outputs = self._reader.read(length)
        if kind == FAILED:
            self._reader.trim()
            raise HostedError(answer["status"], answer["reason"], answer["trace"])
        return answer, outputs

    async def _write(self, header: Mapping[str, Any], blocks: Sequence[Sequence[Any]]) -> tuple[int, int | None]:
        if sum(memoryview(part).nbytes for parts in blocks for part in parts) <= self._resources.off_loop_bytes:
            return self._writer.write(header, blocks)
        self._copying = True
        written = self._loop.run_in_executor(self._resources.threads, self._writer.write, header, blocks)
        written.add_done_callback(self._copied)
        return await asyncio.shield(written)

    def _copied(self, written: asyncio.Future[Any]) -> None:
        self._copying = False
        written.exception()  # has been asked for, so it is not logged as forgotten
        if self.ended:
            self._writer.close()

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._connection, MESSAGE.size, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if len(data) == MESSAGE.size and self._answer is not None and not self._answer.done():
            kind, length = MESSAGE.unpack(data)
            if kind in (DONE, FAILED) and self._map(fds):
                self._answer.set_result((kind, length))
                return
        else:
            for fd in fds:
                os.close(fd)
        self.kill()  # it has ended, or sends what it should not

    def _map(self, fds: list[int]) -> bool:
        try:
            for fd in fds:
                self._reader.take(fd)
            return True
        except (ArenaError, OSError, ValueError) as error:
            log.error("the memory of a model's process cannot be used: %s", error)
            return False

    def _reaped(self, answer: asyncio.Future[tuple[int, int]] | None, status: asyncio.Future[int]) -> None:
        how = _how(status.result())
        if answer is not None and not answer.done():
            answer.set_exception(EndedError(how))
        if self.on_end is not None:
            self.on_end(how)

    def _disconnect(self) -> None:
        self.ended = True
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        if not self._copying:
            self._writer.close()


def _spawn(connection: socket.socket, lifeline: socket.socket) -> subprocess.Popen[bytes]:
    """Starts the process; closes its sockets on this side."""
    with connection, lifeline:
        fds = (connection.fileno(), lifeline.fileno())
        # A session of its own: what is typed on the server's terminal is not for it.
        return subprocess.Popen(
            [*_CHILD, *map(str, fds)], stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True
        )


def _reap(spawning: Future[subprocess.Popen[bytes]]) -> None:
    """On a thread: waits for a process that nobody wants any more."""
    if spawning.exception() is None:
        spawning.result().wait()


def _wait(process: subprocess.Popen[bytes], lifeline: socket.socket) -> None:
    with lifeline:
        try:
            process.wait(_CLOSES_S)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            process.wait()


def _kill_group(pid: int) -> None:
    """Ends a process that is not reaped yet, and what it has started: it leads a group of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _how(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
