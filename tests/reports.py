"""Reports of counters, and the same written in Python: the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from fastinfer.shared.report import Group, Report
from fastinfer.shared.statistics import CAUSES, LAST_INFERENCE_CELL, ModelStats, entry, statistics_template

PARTS = ("compute_input", "compute_infer", "compute_output")
ZERO = {"count": 0, "ns": 0}


def statistics(*several: ModelStats) -> list[dict[str, Any]]:
    """The entries of the statistics extension for models `m0`, `m1`, ..."""
    entries = [entry(f"m{number}", "1", stats) for number, stats in enumerate(several)]
    report = Report(statistics_template(), [Group(entries)], latest=LAST_INFERENCE_CELL)
    report.run()
    return json.loads(bytes(report.result()))["model_stats"]


def statistics_entry(stats: ModelStats) -> dict[str, Any]:
    """The entry of one model."""
    (entry,) = statistics(stats)
    return entry


def duration(histogram: Any) -> dict[str, int]:
    return {"count": histogram.count, "ns": histogram.sum}


def expected_statistics(name: str, version: str, stats: ModelStats, lines: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the statistics extension tells; lines: size of the batch, runs, nanoseconds of its three parts."""
    failures = [stats.failures[cause] for cause in CAUSES]
    return {
        "name": name,
        "version": version,
        "last_inference": stats.last_inference_ms,
        "inference_count": stats.answered_rows,
        "execution_count": sum(line[1] for line in lines),
        "inference_stats": {
            "success": duration(stats.success),
            "fail": {"count": sum(each.count for each in failures), "ns": sum(each.sum for each in failures)},
            "queue": duration(stats.queue),
            **{part: duration(getattr(stats, part)) for part in PARTS},
            "cache_hit": ZERO,
            "cache_miss": ZERO,
        },
        "batch_stats": [
            {"batch_size": size, **{part: {"count": runs, "ns": ns} for part, ns in zip(PARTS, times, strict=True)}}
            for size, runs, *times in lines
        ],
        "memory_usage": [],
    }


def escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


DURATIONS = {"request": "success", "queue": "queue", **{part: part for part in PARTS}}
COUNTERS: dict[str, Callable[[ModelStats], int]] = {
    "requests": lambda stats: stats.success.count + sum(each.count for each in stats.failures.values()),
    "rows": lambda stats: stats.batch_size.sum,
    "runs": lambda stats: stats.batch_size.count,
}


def expected_lines(models: Sequence[tuple[str, str, ModelStats]]) -> list[str]:
    """The lines of the page that the counters of models make, in its order."""
    labels = [(f'model="{escaped(name)}",version="{escaped(version)}"', stats) for name, version, stats in models]
    lines = [
        f"fastinfer_{name}_total{{{of}}} {float(count(stats))}"
        for name, count in COUNTERS.items()
        for of, stats in labels
    ]
    for of, stats in labels:
        lines += [
            f'fastinfer_failures_total{{cause="{cause}",{of}}} {float(stats.failures[cause].count)}' for cause in CAUSES
        ]
    lines += [f"fastinfer_inline_overruns_total{{{of}}} {float(stats.overruns)}" for of, stats in labels]
    lines += [f"fastinfer_withdrawn_refused_total{{{of}}} {float(stats.withdrawn)}" for of, stats in labels]
    histograms = {f"{name}_duration_seconds": (attribute, 1e9) for name, attribute in DURATIONS.items()}
    for name, (attribute, unit) in {**histograms, "batch_size": ("batch_size", 1)}.items():
        for of, stats in labels:
            histogram = getattr(stats, attribute)
            bounds = [*(str(bound / unit) for bound in histogram.bounds), "+Inf"]
            counted = zip(bounds, accumulate(histogram.counts()), strict=True)
            lines += [f'fastinfer_{name}_bucket{{le="{bound}",{of}}} {float(count)}' for bound, count in counted]
            lines.append(f"fastinfer_{name}_count{{{of}}} {float(histogram.count)}")
            lines.append(f"fastinfer_{name}_sum{{{of}}} {histogram.sum / unit}")
    return lines
