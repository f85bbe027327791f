"""Counters in memory that processes share: sums, and going on with what another one has left."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fastinfer.shared import layout
from fastinfer.shared.counters import VERSION_CELL
from fastinfer.shared.model_counters import LocalCounters, ModelCounters, SharedCounters
from fastinfer.shared.report import Group, Report
from fastinfer.shared.statistics import LAST_INFERENCE_CELL, ModelStats, entry, statistics_template

MODEL = ("m", "1", 7)


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = layout.create(2)
    yield descriptor
    os.close(descriptor)


def counted(banks: SharedCounters, model: tuple[str, str, int] = MODEL, times: int = 1) -> ModelStats:
    stats = banks.counters_for(*model)
    for _ in range(times):
        stats.record_success(1000, 10, 2)
    return stats


def statistics(banks: ModelCounters, stats: ModelStats, model: tuple[str, str, int] = MODEL) -> dict[str, Any]:
    """What all processes have counted for a model."""
    entries = [entry(model[0], model[1], stats, banks.key(*model))]
    report = Report(statistics_template(), [Group(entries)], banks.shared, latest=LAST_INFERENCE_CELL)
    report.run()
    (found,) = json.loads(bytes(report.result()))["model_stats"]
    return found


def total(banks: ModelCounters, stats: ModelStats, model: tuple[str, str, int] = MODEL) -> int:
    return statistics(banks, stats, model)["inference_stats"]["success"]["count"]


def test_the_sum_is_seen_by_all(memory: int) -> None:
    first, second = SharedCounters(memory, 0), SharedCounters(memory, 2)
    mine, theirs = counted(first, times=3), counted(second, times=4)
    assert total(first, mine) == total(second, theirs) == 7
    assert statistics(first, mine)["inference_count"] == 14


def test_a_process_goes_on_where_another_one_has_ended(memory: int) -> None:
    counted(SharedCounters(memory, 0), times=3)
    after = SharedCounters(memory, 0)
    stats = after.counters_for(*MODEL)
    assert stats.success.count == 3
    stats.record_success(1, 1)
    assert total(after, stats) == 4


def test_models_of_one_name_that_came_one_after_the_other_are_told_apart(memory: int) -> None:
    banks = SharedCounters(memory, 0)
    counted(banks, times=3)
    again = counted(banks, ("m", "1", 8), times=1)
    assert total(banks, again, ("m", "1", 8)) == 1
    other = counted(banks, ("m", "2", 7), times=2)
    assert total(banks, other, ("m", "2", 7)) == 2


def test_memory_of_models_that_are_gone_is_used_again(memory: int, caplog: pytest.LogCaptureFixture) -> None:
    banks = SharedCounters(memory, 1)
    for number in range(3 * layout.BLOCKS):
        stats = counted(banks, ("m", "1", number))
        assert total(banks, stats, ("m", "1", number)) == 1
        banks.release(stats)
    after = SharedCounters(memory, 1)  # all blocks are left over
    kept = [after.counters_for("n", "1", number) for number in range(layout.BLOCKS - 1)]
    assert sum(stats.success.count for stats in kept) == 0
    assert not caplog.messages
    beyond = after.counters_for("o", "1", 1)
    assert "cover this process only" in caplog.text
    beyond.record_success(1, 1)
    assert total(after, beyond, ("o", "1", 1)) == 1


def test_counters_of_processes(memory: int) -> None:
    first, second = SharedCounters(memory, 0), SharedCounters(memory, 3)
    for banks in (first, second):
        assert banks.http is not None
        assert banks.log is not None
        banks.http.cast("q")[2] = 5
        banks.log[0] = 1
    assert first.process_totals() == second.process_totals() == ([0, 0, 10, 0, 0, 0, 0], 2)


def test_a_process_that_was_killed_while_it_counted_holds_up_nobody(memory: int) -> None:
    banks = SharedCounters(memory, 0)
    stats = counted(banks)
    cells = stats.block.cast("q")
    cells[VERSION_CELL] += 1  # odd: a change is under way
    assert total(banks, stats) == 1
    stats.record_failure("model", 5)  # its successor's first change
    assert cells[VERSION_CELL] % 2 == 0 and cells[VERSION_CELL] > 0
    assert statistics(banks, stats)["inference_stats"]["fail"] == {"count": 1, "ns": 5}


def test_a_slot_has_two_banks() -> None:
    assert layout.free_bank(1, []) == 2
    assert layout.free_bank(1, [0, 2]) == 3
    assert layout.free_bank(1, [2, 3]) is None


def test_alone() -> None:
    alone = LocalCounters()
    stats = alone.counters_for(*MODEL)
    stats.record_success(1, 1)
    assert total(alone, stats) == 1
    assert alone.process_totals() is None


def test_a_report_never_mixes_up_models_that_share_a_block_in_turn(memory: int) -> None:
    banks = SharedCounters(memory, 0)
    for number in range(layout.BLOCKS - 2):
        banks.counters_for("filler", "1", number)  # one block is left, and all models below get it
    names = ["one", "two", "three"]
    rows = {name: 1000 ** (place + 1) for place, name in enumerate(names)}
    ended = threading.Event()

    def take_turns() -> None:
        for place in itertools.count():
            if ended.is_set():
                return
            name = names[place % 3]
            stats = banks.counters_for(name, "1", 7)
            stats.record_success(1000, 10, rows[name])
            banks.release(stats)

    writer = threading.Thread(target=take_turns)
    writer.start()
    entries = [entry(name, "1", None, banks.key(name, "1", 7)) for name in names]
    seen: set[str] = set()
    reports = 0
    try:
        while reports < 500 or seen != set(names):
            report = Report(statistics_template(), [Group(entries)], banks.shared, latest=LAST_INFERENCE_CELL)
            report.run()
            reports += 1
            for found in json.loads(bytes(report.result()))["model_stats"]:
                assert found["inference_count"] in (0, rows[found["name"]])
                if found["inference_count"]:
                    seen.add(found["name"])
    finally:
        ended.set()
        writer.join()
