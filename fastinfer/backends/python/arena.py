"""Shared memory between the server and a model's process: one side writes a message, the other one maps it.

A message is a header (JSON) and blocks of bytes: tensors, source code. The writer owns the memory and says how long the
header is; a new block of memory is sent along as a file descriptor. The memory is sealed: it can be neither shrunk nor
grown, so reading it cannot fail (a mapping that is cut short would kill the reader). The next message overwrites it:
the reader is done with one before it answers.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from typing_extensions import Buffer

from fastinfer.base import limits
from fastinfer.base.budget import Budget

_ALIGNMENT = 64
_SMALLEST = 64 * limits.KIB
_DOUBLED_BELOW = 1024 * limits.MIB  # sizes above are taken as they are
KEPT_BYTES = limits.MIB  # memory above is given back after its message
_MAX_HEADER_BYTES = 4 * limits.MIB  # more than any configuration takes
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ArenaError(Exception):
    """A message does not fit the memory that it is in."""


def _aligned(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


class Writer:
    """The memory that this side writes.

    Args:
        budget: counts it; None: nothing does.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget
        self._fd = -1
        self._bytes: np.ndarray[Any, np.dtype[np.uint8]] = np.empty(0, np.uint8)

    def write(self, header: Mapping[str, Any], blocks: Sequence[Sequence[Buffer]]) -> tuple[int, int | None]:
        """Writes a message; may run on any thread, one at a time.

        Args:
            header: JSON; the reader also learns where the blocks begin.
            blocks: each a sequence of parts, which become contiguous.

        Returns:
            The header's length, and the descriptor to send along; None: the reader has it already.

        Raises:
            MemoryError: there is none, or the budget is spent.
        """
        sizes = [sum(memoryview(part).nbytes for part in parts) for parts in blocks]
        text = orjson.dumps([header, sizes])
        start = _aligned(len(text))
        total = start + sum(_aligned(size) for size in sizes)
        fresh = total > len(self._bytes)
        if fresh:
            self._replace(max(_SMALLEST, 1 << (total - 1).bit_length() if total < _DOUBLED_BELOW else total))
        self._bytes[: len(text)] = np.frombuffer(text, np.uint8)
        for parts, size in zip(blocks, sizes, strict=True):
            at = start
            for part in parts:
                if nbytes := memoryview(part).nbytes:
                    self._bytes[at : at + nbytes] = np.frombuffer(memoryview(part), np.uint8)  # numpy releases the GIL
                    at += nbytes
            start += _aligned(size)
        return len(text), self._fd if fresh else None

    def trim(self) -> None:
        """After a message has been read: gives large memory back."""
        if len(self._bytes) > KEPT_BYTES:
            self.close()

    def close(self) -> None:
        """Gives the memory back."""
        if self._fd >= 0:
            if self._budget is not None:
                self._budget.release(len(self._bytes))
            os.close(self._fd)
            self._fd, self._bytes = -1, np.empty(0, np.uint8)

    def _replace(self, size: int) -> None:
        self.close()
        if self._budget is not None and not self._budget.reserve(size):
            raise MemoryError
        try:
            fd = os.memfd_create("fastinfer-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(fd, size)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                self._bytes = np.frombuffer(mmap.mmap(fd, size), np.uint8)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            if self._budget is not None:
                self._budget.release(size)
            raise MemoryError from error
        self._fd = fd


class Reader:
    """The other side's memory.

    Args:
        writable: the arrays that are made over it may be written to; the writer never reads them again.
    """

    def __init__(self, writable: bool = False) -> None:
        self._prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = memoryview(b"")

    def read(self, length: int) -> tuple[dict[str, Any], list[memoryview]]:
        """Reads a message; the blocks are valid until the next one.

        Args:
            length: the header's.

        Raises:
            ArenaError: the message is not inside of the memory.
        """
        if not 0 < length <= min(len(self._map), _MAX_HEADER_BYTES):
            raise ArenaError("a message outside of its memory")
        try:
            message = orjson.loads(self._map[:length])
        except ValueError:
            raise ArenaError("a message that is not JSON") from None
        match message:
            case [dict() as header, list() as sizes]:
                pass
            case _:
                raise ArenaError("a message without a header")
        at, blocks = _aligned(length), []
        for size in sizes:
            if not isinstance(size, int) or not 0 <= size <= len(self._map) - at:
                raise ArenaError("a tensor outside of its memory")
            blocks.append(self._map[at : at + size])
            at += _aligned(size)
        return header, blocks

    def trim(self) -> None:
        """After a message: gives large memory back."""
        if len(self._map) > KEPT_BYTES:
            self._map = memoryview(b"")

    def take(self, fd: int) -> None:
        """Maps the memory of the next messages; closes its descriptor. ArenaError: the memory is not sealed."""
        with os.fdopen(fd, "rb") as file:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise ArenaError("memory that is not sealed")
            size = os.fstat(file.fileno()).st_size
            self._map = memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED, self._prot))
