"""The layout of the memory for counters that all serving processes share; counts outlive the process that wrote them.

The supervisor only creates the memory and numbers its parts. A *bank* has one writer at a time: a process, and later,
in the same slot, its replacement, which continues the counts. A slot has two banks, because an old process still counts
while its replacement starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fastinfer.base import machine

BLOCK_BYTES: Final = 8192
BLOCKS: Final = 1024  # of a bank; the first block is the process's own, each other block is a model's
BANK_BYTES: Final = BLOCK_BYTES * BLOCKS  # unused pages take no memory
BANKS_PER_SLOT: Final = 2


def create(slots: int) -> int:
    """Creates zeroed memory for this many slots, and returns its file descriptor. OSError as in
    :func:`fastinfer.base.machine.shared_memory`."""
    return machine.shared_memory("fastinfer-counters", slots * BANKS_PER_SLOT * BANK_BYTES)


def free_bank(slot: int, used: Iterable[int]) -> int | None:
    """A bank of a slot that no process writes to; None: there is none."""
    banks = range(slot * BANKS_PER_SLOT, (slot + 1) * BANKS_PER_SLOT)
    return next((bank for bank in banks if bank not in set(used)), None)
