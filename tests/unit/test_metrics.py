"""The page for Prometheus, read back with its own parser."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import re
import weakref
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastinfer.api.metrics import Gauges, Metrics, Paced
from fastinfer.base.budget import Budget
from fastinfer.codec.encode import EncodeJob
from fastinfer.native.executor import Executor
from fastinfer.shared.model_counters import LocalCounters
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import InferResponse

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def model(name: str, version: str = "1", stats: ModelStats | None = None, **scheduler: int) -> Any:
    state = {"queued": 0, "in_flight": 0, "running": 0, **scheduler}
    stats = stats or ModelStats()
    return SimpleNamespace(
        name=name,
        version=version,
        number=1,
        stats=stats,
        scheduler=SimpleNamespace(**state),
        config=SimpleNamespace(metric_tags={}),
    )


def page(metrics: Metrics) -> str:
    return bytes(asyncio.run(metrics.page()).text).decode()


def read(metrics: Metrics) -> Samples:
    families = text_string_to_metric_families(page(metrics))
    samples = [sample for family in families for sample in family.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples), "a sample is there twice"
    return found


def labelled(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"fastinfer_{name}", tuple(sorted({"model": "m", "version": "1", **labels}.items()))


def test_the_counters_of_a_model() -> None:
    stats = ModelStats()
    for total_ns in (4_000, 20_000, 2_000_000_000):
        stats.record_success(total_ns, 1_000, 2)
    stats.record_failure("rejected", 0)
    stats.record_failure("timeout", 5_000)
    stats.record_batch(6, 3, 1_000, 2_000, 3_000)
    samples = read(Metrics(lambda: [model("m", stats=stats, queued=4, in_flight=7, running=1)], LocalCounters()))
    assert samples[labelled("requests_total")] == 5
    assert samples[labelled("rows_total")] == 6
    assert samples[labelled("runs_total")] == 1
    assert samples[labelled("failures_total", cause="rejected")] == 1
    assert samples[labelled("failures_total", cause="timeout")] == 1
    assert samples[labelled("failures_total", cause="model")] == 0
    assert samples[labelled("queue_depth")] == 4
    assert samples[labelled("requests_in_flight")] == 7
    assert samples[labelled("batches_running")] == 1
    assert samples[labelled("compute_infer_duration_seconds_count")] == 3
    assert samples[labelled("compute_infer_duration_seconds_sum")] == 6e-6
    assert samples[labelled("batch_size_sum")] == 6


def test_buckets_are_cumulated_and_in_seconds() -> None:
    stats = ModelStats()
    for total_ns in (10_000, 10_001, 70_000_000_000):
        stats.record_success(total_ns, 0)
    samples = read(Metrics(lambda: [model("m", stats=stats)], LocalCounters()))
    name = "request_duration_seconds_bucket"
    assert samples[labelled(name, le="1e-05")] == 1
    assert samples[labelled(name, le="2.5e-05")] == 2
    assert samples[labelled(name, le="60.0")] == 2
    assert samples[labelled(name, le="+Inf")] == 3 == samples[labelled("request_duration_seconds_count")]


def test_models_and_versions_are_kept_apart() -> None:
    counted = ModelStats()
    counted.record_batch(3, 0, 0, 0, 0)
    samples = read(Metrics(lambda: [model("a", "1"), model("a", "2", counted), model("b.c-d", "1")], LocalCounters()))
    rows = {labels: value for (name, labels), value in samples.items() if name == "fastinfer_rows_total"}
    assert {(dict(labels)["model"], dict(labels)["version"]): value for labels, value in rows.items()} == {
        ("a", "1"): 0,
        ("a", "2"): 3,
        ("b.c-d", "1"): 0,
    }


def test_the_counters_of_server_and_log() -> None:
    metrics = Metrics(list, LocalCounters())
    assert "fastinfer_connections" not in page(metrics)  # there is no server
    hub: Any = SimpleNamespace(
        connections=3, connections_total=9, answers=[0, 0, 100, 0, 5, 1], in_flight_bytes=77, budget=Budget(99)
    )
    metrics.http, metrics.logs = hub, SimpleNamespace(dropped=2)
    samples = read(metrics)
    assert samples["fastinfer_connections", ()] == 3
    assert samples["fastinfer_connections_accepted_total", ()] == 9
    assert samples["fastinfer_in_flight_bytes", ()] == 77
    assert samples["fastinfer_in_flight_bytes_limit", ()] == 99
    assert samples["fastinfer_answers_total", (("status", "2xx"),)] == 100
    assert samples["fastinfer_answers_total", (("status", "4xx"),)] == 5
    assert samples["fastinfer_log_lines_dropped_total", ()] == 2
    assert samples["process_resident_memory_bytes", ()] > 0


def test_two_pages_do_not_share_a_registry() -> None:
    """Two servers in one process, as tests start them."""
    assert "fastinfer_rows_total{" in page(Metrics(lambda: [model("m")], LocalCounters()))
    assert "fastinfer_rows_total{" not in page(Metrics(list, LocalCounters()))


def test_the_page_does_not_grow_with_traffic() -> None:
    stats = ModelStats()
    metrics = Metrics(lambda: [model("m", stats=stats)], LocalCounters())
    before = re.sub(r" \S+$", "", page(metrics), flags=re.M)
    for rows in range(1, 3000):
        stats.record_success(rows * 1000, rows, rows)
        stats.record_batch(rows, 1, rows, rows, rows)
    assert re.sub(r" \S+$", "", page(metrics), flags=re.M) == before


# --- Where and how often reports are written --------------------------------------------------------------------------


class Made:
    """Counts how often something is made; each takes until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.gates: list[asyncio.Event] = []

    async def make(self) -> int:
        self.begun += 1
        number = self.begun
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        if number == 3:
            raise RuntimeError("the third one fails")
        return number

    async def let_go(self, number: int) -> None:
        while len(self.gates) < number:
            await asyncio.sleep(0.001)
        self.gates[number - 1].set()


def test_all_who_ask_meanwhile_share_the_next_one() -> None:
    async def ask() -> None:
        made = Made()
        paced = Paced(made.make)
        first = [asyncio.create_task(paced.next()) for _ in range(3)]
        while made.begun == 0:
            await asyncio.sleep(0)
        # Those that come later must not get what was begun before.
        second = [asyncio.create_task(paced.next()) for _ in range(50)]
        await asyncio.sleep(0.01)
        assert made.begun == 1
        await made.let_go(1)
        assert await asyncio.gather(*first) == [1] * 3
        second[0].cancel()
        await made.let_go(2)
        assert await asyncio.gather(*second[1:]) == [2] * 49
        third = [asyncio.create_task(paced.next()) for _ in range(2)]
        await made.let_go(3)
        assert {str(error) for error in await asyncio.gather(*third, return_exceptions=True)} == {"the third one fails"}
        fourth = asyncio.create_task(paced.next())
        await made.let_go(4)
        assert await fourth == 4
        assert second[0].cancelled()

    asyncio.run(ask())


def test_the_next_one_begins_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []
    sleep = asyncio.sleep

    async def ask() -> None:
        clock = [100.0]
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0], raising=False)

        async def pause(seconds: float) -> None:
            pauses.append(round(seconds, 6))
            clock[0] += seconds
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", pause)
        takes = iter([0.01, 0.05, 3.0, 0.01])

        async def make() -> None:
            clock[0] += next(takes)

        paced = Paced(make)
        for between in (0, 0, 0.2, 0.4):  # how much later each is asked for
            clock[0] += between
            await paced.next()

    asyncio.run(ask())
    assert pauses == [0.1, 0.3, 0.6]


def test_reports_are_written_while_models_keep_all_threads() -> None:
    async def ask() -> None:
        loop = asyncio.get_running_loop()
        executor = Executor(1)
        loop.add_reader(executor.fileno(), executor.drain)
        metrics = Metrics(lambda: [model(f"m{number}") for number in range(200)], LocalCounters(), executor)
        free = bytes((await metrics.page()).text)
        loop.remove_reader(executor.fileno())  # a job that it is given has not ended now, as far as anybody knows
        executor.submit(EncodeJob(InferResponse("m", "1", [])))
        text = bytes((await metrics.page()).text)
        assert json.loads(bytes(await metrics.statistics()))["model_stats"][199]["name"] == "m199"
        executor.close()
        assert [line for line in text.splitlines() if b"model=" in line] == [
            line for line in free.splitlines() if b"model=" in line
        ]

    asyncio.run(ask())


def test_what_is_unloaded_is_forgotten() -> None:
    loaded = [model(f"m{number}", stats=ModelStats()) for number in range(20)]
    counters = [weakref.ref(each.stats) for each in loaded]
    metrics = Metrics(lambda: loaded, LocalCounters())
    assert page(metrics).count("fastinfer_rows_total{") == 20
    del loaded[5:]
    assert page(metrics).count("fastinfer_rows_total{") == 5
    gc.collect()
    assert [each() is not None for each in counters] == [True] * 5 + [False] * 15


def test_a_model_that_comes_back_under_its_number_counts_anew() -> None:
    loaded = [model("m")]
    loaded[0].stats.record_batch(3, 1, 1, 1, 1)
    metrics = Metrics(lambda: loaded, LocalCounters())
    assert read(metrics)[labelled("rows_total")] == 3
    loaded[:] = [model("m")]
    assert read(metrics)[labelled("rows_total")] == 0


def test_a_page_is_compressed_once_for_all() -> None:
    async def ask() -> None:
        found = await Metrics(lambda: [model("m")], LocalCounters()).page()
        packed = await asyncio.gather(*[found.packed(coding) for coding in (b"gzip", b"gzip", b"deflate")])
        assert packed[0] is packed[1]
        assert gzip.decompress(packed[0]) == zlib.decompress(packed[2]) == bytes(found.text)

    asyncio.run(ask())


def test_gauges_of_other_processes_are_added() -> None:
    async def everywhere() -> list[Gauges]:
        return [
            {"pid": 1},
            {"pid": 2, "connections": 3, "in_flight_bytes": 5, "stuck_loads": 2, "models": [["m", "1", [1, 2, 3]]]},
            {
                "pid": 3,
                "connections": 4,
                "in_flight_bytes": 6,
                "models": [["m", "1", [4, 5, 6]], ["new", "1", [1] * 3]],
            },
        ]

    metrics = Metrics(lambda: [model("l"), model("m")], LocalCounters())
    metrics.collect_gauges = everywhere
    metrics.http = SimpleNamespace(connections=1, connections_total=9, answers=[0] * 6, in_flight_bytes=1)
    samples = read(metrics)
    assert [samples[labelled(name)] for name in ("queue_depth", "requests_in_flight", "batches_running")] == [5, 7, 9]
    assert samples[labelled("queue_depth", model="l")] == 0
    assert not any(dict(labels).get("model") == "n" for _, labels in samples)
    assert samples["fastinfer_connections", ()] == 7
    assert samples["fastinfer_in_flight_bytes", ()] == 11
    assert samples["fastinfer_stuck_loads", ()] == 2
