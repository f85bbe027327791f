"""The counters of a model version, and their JSON in the statistics extension.

All counters are 64-bit integers in one block of memory, which the caller may provide (a shared mapping). Another
process that knows the layout can read the block while it changes, and add up several blocks. Only the loop's thread
writes counters: one call per request, one call per batch. A report reads them on any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import orjson

from fastinfer.shared.counters import (
    ANSWERED_ROWS_CELL,
    CAUSES,
    CELLS_OF_LINE,
    HISTOGRAMS,
    LAST_INFERENCE_CELL,
    LINE_CELL,
    LINES,
    NBYTES,
    OVERRUNS_CELL,
    WITHDRAWN_CELL,
    Counters,
    batch_size_of,
)
from fastinfer.shared.report import Entry, Section, Step, Template

__all__ = [
    "CAUSES",
    "LABELS",
    "LAST_INFERENCE_CELL",
    "NBYTES",
    "OVERRUNS_CELL",
    "WITHDRAWN_CELL",
    "ModelStats",
    "counts",
    "entry",
    "statistics_template",
    "total",
]

_NO_TAGS: Mapping[str, str] = MappingProxyType({})
LABELS, NAMES = 0, 1  # the texts of an entry: labels on the metrics page, members in JSON


class ModelStats(Counters):
    """The counters of one version of a model, with derived values."""

    @property
    def rows(self) -> int:
        """The rows of all batches that ran."""
        return self.batch_size.sum

    @property
    def runs(self) -> int:
        """The number of batches that ran."""
        return self.batch_size.count


def entry(
    name: str, version: str, counters: Counters | None = None, key: bytes = b"", tags: Mapping[str, str] = _NO_TAGS
) -> Entry:
    """A model's entry in reports: the texts that name it, its key and its counters; ``tags``: further labels."""
    labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in _labels(name, version, tags)).encode()
    return Entry((labels, orjson.dumps({"name": name, "version": version})[1:-1]), key, counters)


def _labels(name: str, version: str, tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "model", name
    yield "version", version
    yield from sorted(tags.items())


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


# --- Cells ------------------------------------------------------------------------------------------------------------


def total(histogram: str) -> int:
    """The cell with a histogram's sum."""
    return HISTOGRAMS[histogram][0]


def counts(histogram: str) -> range:
    """The cells of a histogram's buckets."""
    cell, bounds = HISTOGRAMS[histogram]
    return range(cell + 1, cell + 2 + len(bounds))


# --- The statistics extension -----------------------------------------------------------------------------------------


def _duration(name: str, times: Sequence[int], nanoseconds: Sequence[int], before: str = ",") -> Iterator[Step]:
    yield Step(f'{before}"{name}":{{"count":'.encode(), cells=times, form="whole")
    yield Step(b',"ns":', cells=nanoseconds, form="whole")
    yield Step(b"}")


def _line(line: int) -> Iterator[Step]:
    """The entry for batches of one size, if any ran."""
    runs = LINE_CELL + line * CELLS_OF_LINE
    rest: list[Step] = []
    for place, part in enumerate(("compute_input", "compute_infer", "compute_output")):
        rest += _duration(part, [runs], [runs + 1 + place])
    rest.append(Step(b"}"))
    yield Step(b'{"batch_size":%d' % batch_size_of(line), condition=runs, skipped=len(rest), listed=True)
    yield from rest


def _statistics() -> Iterator[Step]:
    runs = [LINE_CELL + line * CELLS_OF_LINE for line in range(LINES)]
    failed = [cell for cause in CAUSES for cell in counts(cause)]
    yield Step(b"{", NAMES)
    yield Step(b',"last_inference":', cells=[LAST_INFERENCE_CELL], form="whole")
    yield Step(b',"inference_count":', cells=[ANSWERED_ROWS_CELL], form="whole")
    yield Step(b',"execution_count":', cells=runs, form="whole")
    yield from _duration("success", counts("success"), [total("success")], ',"inference_stats":{')
    yield from _duration("fail", failed, [total(cause) for cause in CAUSES])
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        yield from _duration(name, counts(name), [total(name)])
    yield Step(b',"cache_hit":{"count":0,"ns":0},"cache_miss":{"count":0,"ns":0}},"batch_stats":[')
    for line in range(LINES):
        yield from _line(line)
    yield Step(b'],"memory_usage":[]}')


def statistics_template() -> Template:
    """The template of the statistics extension's answer; its entries come from :func:`entry`."""
    return Template([Section(0, b'{"model_stats":[', b",", b"]}", list(_statistics()))])
