"""Where models count, and what all processes have counted together.

A process that serves alone counts in memory of its own. One of several has a bank of shared memory (see
:mod:`fastinfer.shared.layout`), and the sum over all banks is the whole server's: those of processes that have
ended are in it. A block belongs to a model by its key, which is the same in all processes. A process that goes on with
a bank finds the blocks of its models there, and goes on with them too.

A report of any process finds blocks by their keys while others write them (see shared/shared_counters.h). For it,
blocks are first used in order, so that the first one without a key ends a bank; and one that is given to another model
has a mark instead of a key until its counters are 0.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from fastinfer.shared.layout import BANK_BYTES, BLOCK_BYTES, BLOCKS
from fastinfer.shared.report import Shared
from fastinfer.shared.statistics import NBYTES, ModelStats

log = logging.getLogger(__name__)

_KEY_BYTES: Final = 16
_COUNTERS_AT: Final = 64  # behind the key; a cache line's border
_NO_KEY: Final = bytes(_KEY_BYTES)  # of a block that was never used
_MARK: Final = b"\xff" * _KEY_BYTES  # of a block that is about to be another model's
assert _COUNTERS_AT + NBYTES <= BLOCK_BYTES


class Alone:
    """The counters of a process that serves alone."""

    http: memoryview | None = None
    log: memoryview | None = None
    shared: Shared | None = None  # where the counters of all processes lie

    def stats(self, name: str, version: str, number: int) -> ModelStats:  # noqa: ARG002
        """Counters for a model."""
        return ModelStats()

    def key(self, name: str, version: str, number: int) -> bytes:  # noqa: ARG002
        """What finds a model's counters among those of all processes; empty where there are no others."""
        return b""

    def release(self, stats: ModelStats) -> None:
        """The model is gone."""

    def process_totals(self) -> tuple[list[int], int] | None:
        """What all processes have counted besides: the cells of their hubs, and lost lines of the log. None: nobody
        else counts."""
        return None


class Banks(Alone):
    """The counters of one of several processes. Loop's thread only.

    Args:
        descriptor: of the shared memory.
        own: the bank that this process writes.
    """

    def __init__(self, descriptor: int, own: int) -> None:
        self._memory = memoryview(mmap.mmap(descriptor, 0))
        self._banks = len(self._memory) // BANK_BYTES
        self._own = own
        self._used: dict[int, int] = {}  # the blocks that models have, by the identity of their counters
        self._left = dict(self._blocks())  # by an earlier process
        self._free = sorted(set(range(1, BLOCKS)) - set(self._left.values()), reverse=True)
        first = self._block(own, 0)
        self.http, self.log = first[: BLOCK_BYTES // 2], first[BLOCK_BYTES // 2 :].cast("q")
        self.shared = Shared(self._memory, BANK_BYTES, BLOCK_BYTES, _COUNTERS_AT)

    def stats(self, name: str, version: str, number: int) -> ModelStats:
        key = self.key(name, version, number)
        block = self._left.pop(key, None)
        if block is None and not self._free:
            self._free = list(self._left.values())  # of models that are gone
            self._left.clear()
        if block is None and not self._free:
            log.warning("'%s' counts for this process alone: %d models share the memory for it", name, BLOCKS - 1)
            return ModelStats()
        if block is None:
            block = self._free.pop()
            memory = self._block(self._own, block)
            memory[:_KEY_BYTES] = _MARK
            memory[_KEY_BYTES:] = bytes(BLOCK_BYTES - _KEY_BYTES)
            memory[:_KEY_BYTES] = key
        stats = ModelStats(self._block(self._own, block)[_COUNTERS_AT:])
        self._used[id(stats)] = block
        return stats

    def key(self, name: str, version: str, number: int) -> bytes:
        return blake2b(f"{name}\0{version}\0{number}".encode(), digest_size=_KEY_BYTES).digest()

    def release(self, stats: ModelStats) -> None:
        # The counts stay until another model needs the block: other processes may still serve the model.
        block = self._used.pop(id(stats), None)
        if block is not None:
            self._free.insert(0, block)

    def process_totals(self) -> tuple[list[int], int] | None:
        first = [self._block(bank, 0).cast("q") for bank in range(self._banks)]
        half = BLOCK_BYTES // 2 // 8
        return [sum(cells[i] for cells in first) for i in range(7)], sum(cells[half] for cells in first)

    def _blocks(self) -> Iterator[tuple[bytes, int]]:
        """The keys in this process's bank, and their blocks."""
        for block in range(1, BLOCKS):
            key = bytes(self._block(self._own, block)[:_KEY_BYTES])
            if key == _NO_KEY:
                return
            if key != _MARK:
                yield key, block

    def _block(self, bank: int, block: int) -> memoryview:
        begin = bank * BANK_BYTES + block * BLOCK_BYTES
        return self._memory[begin : begin + BLOCK_BYTES]
