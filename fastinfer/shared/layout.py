"""Memory that all serving processes share, for their counters: what a process has counted outlives it.

The supervisor only makes it and numbers its parts. A *bank* has one writer at a time: a process, and then, in the same
slot, another one that goes on counting. A slot has two, since an old process still counts while a new one begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fastinfer.base import machine

BLOCK_BYTES: Final = 8192
BLOCKS: Final = 1024  # of a bank; the first one is the process's own, each other one a model's
BANK_BYTES: Final = BLOCK_BYTES * BLOCKS  # pages that are not used take no memory
BANKS_PER_SLOT: Final = 2


def create(slots: int) -> int:
    """A descriptor of memory for so many slots, all zero. OSError as of
    :func:`fastinfer.base.machine.shared_memory`."""
    return machine.shared_memory("fastinfer-counters", slots * BANKS_PER_SLOT * BANK_BYTES)


def free_bank(slot: int, used: Iterable[int]) -> int | None:
    """A bank of a slot to which no process writes; None: there is none."""
    banks = range(slot * BANKS_PER_SLOT, (slot + 1) * BANKS_PER_SLOT)
    return next((bank for bank in banks if bank not in set(used)), None)
