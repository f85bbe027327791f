"""The page for Prometheus: what the models and the HTTP server have counted, read when it is asked for.

Labels are names and versions of loaded models and words of this code, so the page does not grow with traffic. A model
that is unloaded leaves the page, and its counters begin again at 0 when it comes back. Loop's thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fastinfer import __version__
from fastinfer._ext import ort
from fastinfer._ext.histogram import Histogram
from fastinfer.models.model import Model
from fastinfer.models.stats import CAUSES, ModelStats

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_MODEL = ("model", "version")

_COUNTERS: dict[str, tuple[str, Callable[[ModelStats], int]]] = {
    "requests": (
        "Requests that have ended, with or without outputs.",
        lambda stats: stats.success.count + sum(failures.count for failures in stats.failures.values()),
    ),
    "rows": ("Rows of all batches that ran.", lambda stats: stats.rows),
    "runs": ("Batches that ran.", lambda stats: stats.runs),
}
_GAUGES: dict[str, tuple[str, Callable[[Model], int]]] = {
    "queue_depth": ("Requests that wait.", lambda model: model.scheduler.queued),
    "requests_in_flight": ("Requests that wait or run.", lambda model: model.scheduler.in_flight),
    "batches_running": ("Batches under way.", lambda model: model.scheduler.running),
}
_DURATIONS: dict[str, tuple[str, Callable[[ModelStats], Histogram]]] = {
    "request": ("From arrival to outputs, of requests that got them.", lambda stats: stats.success),
    "queue": ("The wait for a batch, of requests that got outputs.", lambda stats: stats.queue),
    "compute_input": ("Gathering a batch's inputs, once for each of its requests.", lambda stats: stats.compute_input),
    "compute_infer": ("Running a batch, once for each of its requests.", lambda stats: stats.compute_infer),
    "compute_output": (
        "Scattering a batch's outputs, once for each of its requests.",
        lambda stats: stats.compute_output,
    ),
}


class HttpCounters(Protocol):
    """What the HTTP server counts; see :class:`fastinfer.http.hub.Hub`."""

    connections: int
    connections_total: int
    answers: list[int]
    in_flight_bytes: int


class LogCounters(Protocol):
    """What the log counts; see :class:`fastinfer.logs.Logs`."""

    dropped: int


class Metrics(Collector):
    """The page of one process.

    Args:
        models: the versions that are loaded.

    Attributes:
        http: the HTTP server's counters, where there is a server.
        logs: the log's counters, where there is a log.
    """

    def __init__(self, models: Callable[[], Sequence[Model]]) -> None:
        self._models = models
        self.http: HttpCounters | None = None
        self.logs: LogCounters | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    async def page(self) -> bytes:
        """The text, of type :data:`CONTENT_TYPE`; others have a turn of the loop after each family."""
        parts = []
        for family in self._registry.collect():
            parts.append(generate_latest(_Alone(family)))
            await asyncio.sleep(0)
        return b"".join(parts)

    def collect(self) -> Iterator[Metric]:
        """All families but those of the process."""
        versions = {"version": __version__, "onnxruntime": ort.version()}
        yield InfoMetricFamily("fastinfer_build", "What is running.", versions)
        yield from _of_models(self._models())
        if self.http is not None:
            yield from _of_http(self.http)
        if self.logs is not None:
            text = "Log lines that were lost because they could not be written fast enough."
            yield CounterMetricFamily("fastinfer_log_lines_dropped", text, self.logs.dropped)


class _Alone(Collector):
    """A family by itself."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _of_models(models: Sequence[Model]) -> Iterator[Metric]:
    labelled = [((model.name, model.version), model) for model in models]
    for name, (text, count) in _COUNTERS.items():
        counter = CounterMetricFamily(f"fastinfer_{name}", text, labels=_MODEL)
        for labels, model in labelled:
            counter.add_metric(labels, count(model.stats))
        yield counter

    failures = CounterMetricFamily("fastinfer_failures", "Requests without outputs.", labels=(*_MODEL, "cause"))
    for labels, model in labelled:
        for cause in CAUSES:
            failures.add_metric((*labels, cause), model.stats.failures[cause].count)
    yield failures

    for name, (text, value) in _GAUGES.items():
        gauge = GaugeMetricFamily(f"fastinfer_{name}", text, labels=_MODEL)
        for labels, model in labelled:
            gauge.add_metric(labels, value(model))
        yield gauge

    for name, (text, durations) in _DURATIONS.items():
        family = HistogramMetricFamily(f"fastinfer_{name}_duration_seconds", text, labels=_MODEL)
        for labels, model in labelled:
            _add(family, labels, durations(model.stats), 1e9)
        yield family
    sizes = HistogramMetricFamily("fastinfer_batch_size", "Rows of a batch.", labels=_MODEL)
    for labels, model in labelled:
        _add(sizes, labels, model.stats.batch_size, 1)
    yield sizes


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram, unit: float) -> None:
    bounds = [*(str(bound / unit) for bound in histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts()), strict=True)), histogram.sum / unit)


def _of_http(http: HttpCounters) -> Iterator[Metric]:
    yield GaugeMetricFamily("fastinfer_connections", "Connections that are open.", http.connections)
    yield CounterMetricFamily("fastinfer_connections_accepted", "Connections so far.", http.connections_total)
    text = "Bytes of request bodies that are received and not answered yet."
    yield GaugeMetricFamily("fastinfer_in_flight_bytes", text, http.in_flight_bytes)
    answers = CounterMetricFamily("fastinfer_answers", "Answers by class of their status.", labels=("status",))
    for first in range(2, 6):
        answers.add_metric((f"{first}xx",), http.answers[first])
    yield answers
