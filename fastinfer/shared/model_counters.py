"""Counters for models, in a process's own memory or in memory shared by all processes.

A single process counts in its own memory. One of several processes has a bank of shared memory (see
:mod:`fastinfer.shared.layout`); the sum over all banks is the whole server's, ended processes included. A block belongs
to a model by its key, which is the same in all processes. A process that takes over a bank continues the blocks of its
models.

A report in any process finds blocks by their keys while others write them (see shared/shared_counters.h). Therefore
blocks are first used in order, so that the first block without a key ends a bank; and a block that is being given to
another model has a mark instead of a key until its counters are 0.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, Protocol

from fastinfer.shared.layout import BANK_BYTES, BLOCK_BYTES, BLOCKS
from fastinfer.shared.report import Shared
from fastinfer.shared.statistics import NBYTES, ModelStats

log = logging.getLogger(__name__)

_KEY_BYTES: Final = 16
_COUNTERS_AT: Final = 64  # after the key, at the start of a cache line
_NO_KEY: Final = bytes(_KEY_BYTES)  # of a block that was never used
_MARK: Final = b"\xff" * _KEY_BYTES  # of a block that is being given to another model
assert _COUNTERS_AT + NBYTES <= BLOCK_BYTES


class ModelCounters(Protocol):
    """The counters of a process's models, and of the process itself.

    Attributes:
        http: memory for the HTTP server's counters; None: it uses its own.
        log: memory for the count of lost log lines; None: the log uses its own.
        shared: the counters of all processes; None: there are no other processes.
    """

    http: memoryview | None = None
    log: memoryview | None = None
    shared: Shared | None = None

    def counters_for(self, name: str, version: str, number: int) -> ModelStats:
        """The counters of a model; ``number`` is that of the operation that loaded it."""

    def key(self, name: str, version: str, number: int) -> bytes:
        """The key of a model's counters in all processes; empty if there are no other processes."""

    def release(self, stats: ModelStats) -> None:
        """Takes back the counters of a model that is gone."""

    def process_totals(self) -> tuple[list[int], int] | None:
        """Sums over all processes: the cells of their HTTP servers, and the lost log lines. None: there are no other
        processes."""


class LocalCounters(ModelCounters):
    """The counters of a single process, in its own memory."""

    def counters_for(self, name: str, version: str, number: int) -> ModelStats:  # noqa: ARG002
        return ModelStats()

    def key(self, name: str, version: str, number: int) -> bytes:  # noqa: ARG002
        return b""

    def release(self, stats: ModelStats) -> None:
        pass

    def process_totals(self) -> tuple[list[int], int] | None:
        return None


class SharedCounters(ModelCounters):
    """The counters of one of several processes, in shared memory. Loop's thread only.

    Args:
        descriptor: the file descriptor of the shared memory.
        bank: the bank that this process writes.
    """

    def __init__(self, descriptor: int, bank: int) -> None:
        self._memory = memoryview(mmap.mmap(descriptor, 0))
        self._bank_count = len(self._memory) // BANK_BYTES
        self._bank = bank
        self._used: dict[int, int] = {}  # the block of each model, by the id() of its counters
        self._inherited = dict(self._blocks())  # from an earlier process, by key
        self._free = sorted(set(range(1, BLOCKS)) - set(self._inherited.values()), reverse=True)
        first = self._block(bank, 0)
        self.http, self.log = first[: BLOCK_BYTES // 2], first[BLOCK_BYTES // 2 :].cast("q")
        self.shared = Shared(self._memory, BANK_BYTES, BLOCK_BYTES, _COUNTERS_AT)

    def counters_for(self, name: str, version: str, number: int) -> ModelStats:
        key = self.key(name, version, number)
        block = self._inherited.pop(key, None)
        if block is None and not self._free:
            self._free = list(self._inherited.values())  # their models are gone
            self._inherited.clear()
        if block is None and not self._free:
            log.warning("the counters of '%s' cover this process only: all %d blocks are in use", name, BLOCKS - 1)
            return ModelStats()
        if block is None:
            block = self._free.pop()
            memory = self._block(self._bank, block)
            memory[:_KEY_BYTES] = _MARK
            memory[_KEY_BYTES:] = bytes(BLOCK_BYTES - _KEY_BYTES)
            memory[:_KEY_BYTES] = key
        stats = ModelStats(self._block(self._bank, block)[_COUNTERS_AT:])
        self._used[id(stats)] = block
        return stats

    def key(self, name: str, version: str, number: int) -> bytes:
        return blake2b(f"{name}\0{version}\0{number}".encode(), digest_size=_KEY_BYTES).digest()

    def release(self, stats: ModelStats) -> None:
        # The block keeps its counts until another model needs it, because other processes may still serve the model.
        block = self._used.pop(id(stats), None)
        if block is not None:
            self._free.insert(0, block)

    def process_totals(self) -> tuple[list[int], int] | None:
        first = [self._block(bank, 0).cast("q") for bank in range(self._bank_count)]
        half = BLOCK_BYTES // 2 // 8
        return [sum(cells[i] for cells in first) for i in range(7)], sum(cells[half] for cells in first)

    def _blocks(self) -> Iterator[tuple[bytes, int]]:
        """The keys in this process's bank, and their blocks."""
        for block in range(1, BLOCKS):
            key = bytes(self._block(self._bank, block)[:_KEY_BYTES])
            if key == _NO_KEY:
                return
            if key != _MARK:
                yield key, block

    def _block(self, bank: int, block: int) -> memoryview:
        begin = bank * BANK_BYTES + block * BLOCK_BYTES
        return self._memory[begin : begin + BLOCK_BYTES]
