"""Where models count, and what all processes have counted together.

A process that serves alone counts in memory of its own. One of several has a bank of shared memory (see
:mod:`fastinfer.supervisor.counters`), and the sum over all banks is the whole server's: those of processes that have
ended are in it. A block belongs to a model by its key, which is the same in all processes. A process that goes on with
a bank finds the blocks of its models there, and goes on with them too.
"""

from __future__ import annotations

import logging
import mmap
from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

import numpy as np

from fastinfer.models.stats import NBYTES, ModelStats
from fastinfer.supervisor.counters import BANK_BYTES, BLOCK_BYTES, BLOCKS

log = logging.getLogger(__name__)

_KEY_BYTES: Final = 16
_COUNTERS_AT: Final = 64  # behind the key; a cache line's border
_NO_KEY: Final = bytes(_KEY_BYTES)
assert _COUNTERS_AT + NBYTES <= BLOCK_BYTES


class Alone:
    """The counters of a process that serves alone."""

    http: memoryview | None = None
    log: memoryview | None = None

    def stats(self, name: str, version: str, number: int) -> ModelStats:  # noqa: ARG002
        """Counters for a model."""
        return ModelStats()

    def release(self, stats: ModelStats) -> None:
        """The model is gone."""

    def totals(self, wanted: dict[tuple[str, str, int], ModelStats]) -> dict[tuple[str, str, int], ModelStats]:
        """What all processes have counted.

        Args:
            wanted: this process's counters of each model, by name, version and number.
        """
        return wanted

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
        # The keys of all blocks: [bank, block] -> 16 bytes.
        cells = np.frombuffer(self._memory, np.uint8).reshape(self._banks, BLOCKS, BLOCK_BYTES)
        self._keys = cells[:, :, :_KEY_BYTES]
        self._used: dict[int, int] = {}  # the blocks that models have, by the identity of their counters
        self._left = {key: block for bank, block, key in self._blocks() if bank == own}  # by an earlier process
        self._free = sorted(set(range(1, BLOCKS)) - set(self._left.values()), reverse=True)
        first = self._block(own, 0)
        self.http, self.log = first[: BLOCK_BYTES // 2], first[BLOCK_BYTES // 2 :].cast("q")

    def stats(self, name: str, version: str, number: int) -> ModelStats:
        key = _key(name, version, number)
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
            memory[:] = bytes(BLOCK_BYTES)
            memory[:_KEY_BYTES] = key
        stats = ModelStats(self._block(self._own, block)[_COUNTERS_AT:])
        self._used[id(stats)] = block
        return stats

    def release(self, stats: ModelStats) -> None:
        # The counts stay until another model needs the block: other processes may still serve the model.
        block = self._used.pop(id(stats), None)
        if block is not None:
            self._free.insert(0, block)

    def totals(self, wanted: dict[tuple[str, str, int], ModelStats]) -> dict[tuple[str, str, int], ModelStats]:
        found: defaultdict[bytes, list[ModelStats]] = defaultdict(list)
        keys = {_key(*model) for model in wanted}
        for bank, block, key in self._blocks():
            if key in keys:
                found[key].append(ModelStats(self._block(bank, block)[_COUNTERS_AT:]))
        return {model: ModelStats.merged(found[_key(*model)] or [own]) for model, own in wanted.items()}

    def process_totals(self) -> tuple[list[int], int] | None:
        first = [self._block(bank, 0).cast("q") for bank in range(self._banks)]
        half = BLOCK_BYTES // 2 // 8
        return [sum(cells[i] for cells in first) for i in range(7)], sum(cells[half] for cells in first)

    def _blocks(self) -> Iterator[tuple[int, int, bytes]]:
        """The models' blocks that are or were in use, with their keys."""
        for bank, block in np.argwhere(self._keys.any(axis=2)).tolist():
            if block:
                yield bank, block, self._keys[bank, block].tobytes()

    def _block(self, bank: int, block: int) -> memoryview:
        begin = bank * BANK_BYTES + block * BLOCK_BYTES
        return self._memory[begin : begin + BLOCK_BYTES]


def _key(name: str, version: str, number: int) -> bytes:
    return blake2b(f"{name}\0{version}\0{number}".encode(), digest_size=_KEY_BYTES).digest()
