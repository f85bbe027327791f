"""The counters of a model, and the statistics extension's view of them."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest
from reports import statistics_entry

from fastinfer.shared import statistics
from fastinfer.shared.statistics import CAUSES, ModelStats


def test_an_unused_model_has_all_keys() -> None:
    entry = statistics_entry(ModelStats())
    zero = {"count": 0, "ns": 0}
    assert entry == {
        "name": "m0",
        "version": "1",
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": dict.fromkeys(
            (
                "success",
                "fail",
                "queue",
                "compute_input",
                "compute_infer",
                "compute_output",
                "cache_hit",
                "cache_miss",
            ),
            zero,
        ),
        "batch_stats": [],
        "memory_usage": [],
    }


def test_a_batch_of_three_requests() -> None:
    counted = ModelStats()
    before_ms = time.time_ns() // 1_000_000
    for total_ns, queue_ns, rows in ((100, 10, 1), (200, 20, 2), (300, 30, 1)):
        counted.record_success(total_ns, queue_ns, rows)
    counted.record_batch(4, 3, 5, 50, 7)
    entry = statistics_entry(counted)
    assert entry["inference_count"] == 4
    assert entry["execution_count"] == 1
    assert entry["last_inference"] >= before_ms
    durations = entry["inference_stats"]
    assert durations["success"] == {"count": 3, "ns": 600}
    assert durations["queue"] == {"count": 3, "ns": 60}
    # Each request of the batch spent the batch's time.
    assert durations["compute_input"] == {"count": 3, "ns": 15}
    assert durations["compute_infer"] == {"count": 3, "ns": 150}
    assert durations["compute_output"] == {"count": 3, "ns": 21}
    # A line of batch_stats counts runs.
    assert entry["batch_stats"] == [
        {
            "batch_size": 4,
            "compute_input": {"count": 1, "ns": 5},
            "compute_infer": {"count": 1, "ns": 50},
            "compute_output": {"count": 1, "ns": 7},
        }
    ]


def test_failures_are_summed_over_their_causes() -> None:
    counted = ModelStats()
    for position, cause in enumerate(CAUSES):
        counted.record_failure(cause, position)
    assert statistics_entry(counted)["inference_stats"]["fail"] == {"count": 5, "ns": 10}
    assert {cause: counted.failures[cause].count for cause in CAUSES} == dict.fromkeys(CAUSES, 1)


def test_a_batch_that_failed_is_a_run_but_not_an_inference() -> None:
    counted = ModelStats()
    counted.record_failure("model", 9)
    counted.record_batch(8, 0, 1, 2, 3)
    entry = statistics_entry(counted)
    assert (counted.runs, counted.rows) == (1, 8)
    assert (entry["execution_count"], entry["inference_count"], entry["batch_stats"]) == (0, 0, [])


@pytest.mark.parametrize(
    ("rows", "shown"), [(1, 1), (2, 2), (127, 127), (128, 128), (129, 256), (256, 256), (257, 512), (2**40, 2**30)]
)
def test_large_batches_share_lines(rows: int, shown: int) -> None:
    counted = ModelStats()
    counted.record_batch(rows, 1, 0, 0, 0)
    assert [line["batch_size"] for line in statistics_entry(counted)["batch_stats"]] == [shown]


def test_the_block_can_be_read_by_somebody_else() -> None:
    block = bytearray(statistics.NBYTES + 100)
    counted = ModelStats(block)
    counted.record_success(10, 1)
    assert ModelStats(block).success.count == 1
    assert not any(block[statistics.NBYTES :])


def test_too_little_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ModelStats(bytearray(100))


def test_counters_in_a_cycle_with_their_memory_are_collected() -> None:
    class Model:
        """Refers to itself, as a model does through what it has under way."""

    for _ in range(3):
        model: Any = Model()
        model.itself = model
        model.memory = memoryview(bytearray(2 * statistics.NBYTES)).cast("q")
        model.counters = ModelStats(model.memory[: statistics.NBYTES // 8])
        del model
        gc.collect()
