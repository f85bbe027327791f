"""The page for Prometheus: what the models and the HTTP server have counted, read when it is asked for.

Of several processes it tells the sums, whichever is asked: counters are in memory that all share and that outlives a
process, gauges are asked for.

Labels are names and versions of loaded models and words of this code, so the page does not grow with traffic. A model
that is unloaded leaves the page, and its counters begin again at 0 when it comes back. Loop's thread only.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import ProcessCollector, generate_latest
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
from fastinfer.models.banks import Alone
from fastinfer.models.crashes import Crashes
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
    "request": ("From the first byte to the encoded answer, if that has outputs.", lambda stats: stats.success),
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

    @property
    def dropped(self) -> int: ...


Gauges = dict[str, Any]
"""What is so now in one process: ``pid``, ``connections``, ``in_flight_bytes``, and ``models``: a list of name, version
and the values of :data:`_GAUGES` in order."""


def totals(counters: Alone, models: Sequence[Model]) -> list[ModelStats]:
    """What all processes have counted for these models, which this process has."""
    found = counters.totals({(model.name, model.version, model.number): model.stats for model in models})
    return [found[model.name, model.version, model.number] for model in models]


class Metrics:
    """The page of a server.

    Args:
        models: the versions that are loaded.
        counters: where they count.

    Attributes:
        crashes: what is known of crashes, where they are recorded.
        http: the HTTP server's counters, where there is a server.
        logs: the log's counters, where there is a log.
        everywhere: tells the gauges of all processes, where there are several.
    """

    def __init__(self, models: Callable[[], Sequence[Model]], counters: Alone) -> None:
        self._models = models
        self._counters = counters
        self.crashes = Crashes()
        self.http: HttpCounters | None = None
        self.logs: LogCounters | None = None
        self.everywhere: Callable[[], Awaitable[list[Gauges]]] | None = None

    async def page(self) -> bytes:
        """The text, of type :data:`CONTENT_TYPE`; others have a turn of the loop after each family."""
        told = [self.gauges()] if self.everywhere is None else await self.everywhere()
        parts = []
        for family in self._families(told):
            parts.append(generate_latest(_Alone(family)))
            await asyncio.sleep(0)
        return b"".join(parts)

    def gauges(self) -> Gauges:
        """What is so now in this process."""
        models = [
            (model.name, model.version, [value(model) for _, value in _GAUGES.values()]) for model in self._models()
        ]
        http = self.http
        return {
            "pid": os.getpid(),
            "connections": http.connections if http else 0,
            "in_flight_bytes": http.in_flight_bytes if http else 0,
            "models": models,
        }

    def _families(self, told: Sequence[Gauges]) -> Iterator[Metric]:
        yield from _of_processes([gauges["pid"] for gauges in told])
        versions = {"version": __version__, "onnxruntime": ort.version()}
        yield InfoMetricFamily("fastinfer_build", "What is running.", versions)
        yield from _of_models(self._models(), self._counters, told)
        text = "Requests that were not run because they had ended a process."
        yield CounterMetricFamily("fastinfer_culprits_refused", text, self.crashes.refused or 0)
        if self.http is not None:
            yield from self._of_http(told)
        if self.logs is not None:
            text = "Log lines that were lost because they could not be written fast enough."
            everybodys = self._counters.process_totals()
            yield CounterMetricFamily(
                "fastinfer_log_lines_dropped", text, everybodys[1] if everybodys else self.logs.dropped
            )

    def _of_http(self, told: Sequence[Gauges]) -> Iterator[Metric]:
        assert self.http is not None
        everybodys = self._counters.process_totals()
        *answers, accepted = everybodys[0] if everybodys else [*self.http.answers, self.http.connections_total]
        connections = sum(gauges.get("connections", 0) for gauges in told)
        yield GaugeMetricFamily("fastinfer_connections", "Connections that are open.", connections)
        yield CounterMetricFamily("fastinfer_connections_accepted", "Connections so far.", accepted)
        text = "Bytes of request bodies that are received and not answered yet."
        waiting = sum(gauges.get("in_flight_bytes", 0) for gauges in told)
        yield GaugeMetricFamily("fastinfer_in_flight_bytes", text, waiting)
        family = CounterMetricFamily("fastinfer_answers", "Answers by class of their status.", labels=("status",))
        for first in range(2, 6):
            family.add_metric((f"{first}xx",), answers[first])
        yield family


class _Alone(Collector):
    """A family by itself."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def _of_processes(pids: Sequence[int]) -> Iterator[Metric]:
    """The usual families of a process, summed over several; the times of those that have ended count."""
    families: dict[str, Metric] = {}
    for pid in pids:
        for family in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            sample = family.samples[0]
            before = families.get(family.name)
            if before is not None:
                pick = min if family.name == "process_start_time_seconds" else sum
                sample = sample._replace(value=pick((before.samples[0].value, sample.value)))
            family.samples[:1] = [sample]
            families[family.name] = family
    cpu = families.get("process_cpu_seconds")
    if cpu is not None:
        cpu.samples[0] = cpu.samples[0]._replace(value=cpu.samples[0].value + _cpu_s_of_ended_children(pids[0]))
    yield from families.values()


def _cpu_s_of_ended_children(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[13]) + int(words[14])) / os.sysconf("SC_CLK_TCK")


def _of_models(models: Sequence[Model], counters: Alone, told: Sequence[Gauges]) -> Iterator[Metric]:
    labelled = list(zip([(model.name, model.version) for model in models], totals(counters, models), strict=True))
    for name, (text, count) in _COUNTERS.items():
        counter = CounterMetricFamily(f"fastinfer_{name}", text, labels=_MODEL)
        for labels, stats in labelled:
            counter.add_metric(labels, count(stats))
        yield counter

    failures = CounterMetricFamily("fastinfer_failures", "Requests without outputs.", labels=(*_MODEL, "cause"))
    for labels, stats in labelled:
        for cause in CAUSES:
            failures.add_metric((*labels, cause), stats.failures[cause].count)
    yield failures

    now = {labels: [0] * len(_GAUGES) for labels, _ in labelled}
    for gauges in told:
        for name, version, values in gauges.get("models", ()):
            if (name, version) in now:  # another process may be a step ahead
                now[name, version] = [a + b for a, b in zip(now[name, version], values, strict=True)]
    for place, (name, (text, _)) in enumerate(_GAUGES.items()):
        gauge = GaugeMetricFamily(f"fastinfer_{name}", text, labels=_MODEL)
        for labels, values in now.items():
            gauge.add_metric(labels, values[place])
        yield gauge

    for name, (text, durations) in _DURATIONS.items():
        family = HistogramMetricFamily(f"fastinfer_{name}_duration_seconds", text, labels=_MODEL)
        for labels, stats in labelled:
            _add(family, labels, durations(stats), 1e9)
        yield family
    sizes = HistogramMetricFamily("fastinfer_batch_size", "Rows of a batch.", labels=_MODEL)
    for labels, stats in labelled:
        _add(sizes, labels, stats.batch_size, 1)
    yield sizes


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram, unit: float) -> None:
    bounds = [*(str(bound / unit) for bound in histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts()), strict=True)), histogram.sum / unit)
