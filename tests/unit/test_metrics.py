"""The page for Prometheus, read back with its own parser."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from fastinfer.metrics import Metrics
from fastinfer.models.banks import Alone
from fastinfer.models.stats import ModelStats

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def model(name: str, version: str = "1", stats: ModelStats | None = None, **scheduler: int) -> Any:
    state = {"queued": 0, "in_flight": 0, "running": 0, **scheduler}
    stats = stats or ModelStats()
    return SimpleNamespace(name=name, version=version, number=1, stats=stats, scheduler=SimpleNamespace(**state))


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
    samples = read(Metrics(lambda: [model("m", stats=stats, queued=4, in_flight=7, running=1)], Alone()))
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
    samples = read(Metrics(lambda: [model("m", stats=stats)], Alone()))
    name = "request_duration_seconds_bucket"
    assert samples[labelled(name, le="1e-05")] == 1
    assert samples[labelled(name, le="2.5e-05")] == 2
    assert samples[labelled(name, le="60.0")] == 2
    assert samples[labelled(name, le="+Inf")] == 3 == samples[labelled("request_duration_seconds_count")]


def test_models_and_versions_are_kept_apart() -> None:
    counted = ModelStats()
    counted.record_batch(3, 0, 0, 0, 0)
    samples = read(Metrics(lambda: [model("a", "1"), model("a", "2", counted), model("b.c-d", "1")], Alone()))
    rows = {labels: value for (name, labels), value in samples.items() if name == "fastinfer_rows_total"}
    assert {(dict(labels)["model"], dict(labels)["version"]): value for labels, value in rows.items()} == {
        ("a", "1"): 0,
        ("a", "2"): 3,
        ("b.c-d", "1"): 0,
    }


def test_the_counters_of_server_and_log() -> None:
    metrics = Metrics(list, Alone())
    assert "fastinfer_connections" not in page(metrics)  # there is no server
    hub: Any = SimpleNamespace(connections=3, connections_total=9, answers=[0, 0, 100, 0, 5, 1], in_flight_bytes=77)
    metrics.http, metrics.logs = hub, SimpleNamespace(dropped=2)
    samples = read(metrics)
    assert samples["fastinfer_connections", ()] == 3
    assert samples["fastinfer_connections_accepted_total", ()] == 9
    assert samples["fastinfer_in_flight_bytes", ()] == 77
    assert samples["fastinfer_answers_total", (("status", "2xx"),)] == 100
    assert samples["fastinfer_answers_total", (("status", "4xx"),)] == 5
    assert samples["fastinfer_log_lines_dropped_total", ()] == 2
    assert samples["process_resident_memory_bytes", ()] > 0


def test_two_pages_do_not_share_a_registry() -> None:
    """Two servers in one process, as tests start them."""
    assert "fastinfer_rows_total{" in page(Metrics(lambda: [model("m")], Alone()))
    assert "fastinfer_rows_total{" not in page(Metrics(list, Alone()))


def test_the_page_does_not_grow_with_traffic() -> None:
    stats = ModelStats()
    metrics = Metrics(lambda: [model("m", stats=stats)], Alone())
    before = re.sub(r" \S+$", "", page(metrics), flags=re.M)
    for rows in range(1, 3000):
        stats.record_success(rows * 1000, rows, rows)
        stats.record_batch(rows, 1, rows, rows, rows)
    assert re.sub(r" \S+$", "", page(metrics), flags=re.M) == before
