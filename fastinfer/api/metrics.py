"""The Prometheus page and the JSON of the statistics extension: the counters of models and of the HTTP server.

Both are reports (:mod:`fastinfer.shared.report`): a table says which cells of the counters each line sums, and a native
job sums the cells and writes the text, so that a page of hundreds of models delays no request. A new family is a row of
:func:`_families`.

With several processes the page has the sums, whichever process answers: counters are in shared memory that outlives a
process; gauges are requested from each process. Labels are names and versions of loaded models and words of this code,
so the page does not grow with traffic. An unloaded model leaves the page, and its counters restart at 0 when it is
loaded again.

Loop's thread only.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from fastinfer import __version__
from fastinfer.backends.onnx import ort
from fastinfer.base.budget import Budget
from fastinfer.http.compression import deflate
from fastinfer.native.executor import Executor
from fastinfer.repository.crashes import Crashes
from fastinfer.schedule.model import Model
from fastinfer.shared.counters import HISTOGRAMS
from fastinfer.shared.model_counters import ModelCounters
from fastinfer.shared.report import USAGE_CELLS, Entry, Group, Report, Section, Step, Template, Text
from fastinfer.shared.statistics import (
    CAUSES,
    LABELS,
    LAST_INFERENCE_CELL,
    OVERRUNS_CELL,
    WITHDRAWN_CELL,
    counts,
    entry,
    statistics_template,
    total,
)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_MODELS_PER_TURN: Final = 64  # models that are visited in one turn of the loop
_PAUSE_FACTOR: Final = 10  # the pause after a report is this many times its duration ...
_MAX_PAUSE_S: Final = 1.0  # ... and at most this time

T = TypeVar("T")


class HttpCounters(Protocol):
    """The HTTP server's counters; see :class:`fastinfer.http.hub.Hub`."""

    connections: int
    connections_total: int
    answers: list[int]
    in_flight_bytes: int
    budget: Budget


class LogCounters(Protocol):
    """The log's counters; see :class:`fastinfer.base.logs.Logs`."""

    @property
    def dropped(self) -> int: ...


Gauges = dict[str, Any]
"""The gauges of one process: ``pid``, the server's gauges by name, and ``models``: name, version and the values of
:data:`_GAUGES` of each model that is not idle."""


# --- The table --------------------------------------------------------------------------------------------------------

_MODELS, _SERVER = 0, 1  # groups of a report

_GAUGES: dict[str, tuple[str, Callable[[Model], int]]] = {
    "queue_depth": ("Requests in the queue.", lambda model: model.scheduler.queued),
    "requests_in_flight": ("Requests in the queue or running.", lambda model: model.scheduler.in_flight),
    "batches_running": ("Batches that are running.", lambda model: model.scheduler.running),
}
_DURATIONS = {
    "request": ("success", "From the first byte to the encoded answer, of requests that got outputs."),
    "queue": ("queue", "Time in the queue, of requests that got outputs."),
    "compute_input": ("compute_input", "Gathering a batch's inputs, once for each of its requests."),
    "compute_infer": ("compute_infer", "Running a batch, once for each of its requests."),
    "compute_output": ("compute_output", "Scattering a batch's outputs, once for each of its requests."),
}
_CLASSES: Final = range(2, 6)  # of an answer's status

# The server's cells. The first ones, the resources of processes, are filled by the report itself.
_VIRTUAL, _RESIDENT, _START, _CPU, _OPEN_FILES, _MAX_FILES = range(USAGE_CELLS)
_BOOT, _ONE, _CONNECTIONS, _ACCEPTED, _IN_FLIGHT_BYTES, _BYTES_LIMIT, _DISPLACED, _STUCK_LOADS, _CULPRITS = range(
    USAGE_CELLS, USAGE_CELLS + 9
)
_WITHDRAWN: Final = _CULPRITS + 1
_LOST_LINES: Final = _WITHDRAWN + 1
_ANSWERS: Final = _LOST_LINES + 1
_SERVER_CELLS: Final = _ANSWERS + len(_CLASSES)


class _Sample(NamedTuple):
    """A line of a family: the sum of some cells, divided by the unit; ``goes_on``: plus the previous line's sum."""

    cells: Sequence[int]
    unit: float = 1.0
    suffix: str = ""
    labels: str = ""
    goes_on: bool = False


class _Family(NamedTuple):
    """The lines of one metric, for each model or for the server."""

    group: int
    name: str
    kind: str
    text: str
    samples: Sequence[_Sample]

    def section(self) -> Section:
        steps = []
        for sample in self.samples:
            name = f"\n{self.name}{sample.suffix}"
            if self.group == _MODELS:
                labels = f"{sample.labels}," if sample.labels else ""
                start, text, end = f"{name}{{{labels}", LABELS, b"} "
            else:
                start, text, end = (f"{name}{{{sample.labels}}} " if sample.labels else f"{name} "), None, b""
            steps.append(Step(start.encode(), text, end, sample.cells, sample.goes_on, "decimal", sample.unit))
        head = f"# HELP {self.name} {self.text}\n# TYPE {self.name} {self.kind}"
        return Section(self.group, head.encode(), b"", b"\n", steps)


def _of_processes() -> Iterator[_Family]:
    """Yield Prometheus' usual families of a process, summed over all, processor time of ended ones included."""
    ticks = os.sysconf("SC_CLK_TCK")
    start = "Start time of the process since unix epoch in seconds."
    for name, kind, text, cells, unit in (
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", [_VIRTUAL], 1),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", [_RESIDENT], 1),
        ("start_time_seconds", "gauge", start, [_START, _BOOT], ticks),
        ("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", [_CPU], ticks),
        ("open_fds", "gauge", "Number of open file descriptors.", [_OPEN_FILES], 1),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", [_MAX_FILES], 1),
    ):  # fmt: skip
        yield _Family(_SERVER, f"process_{name}", kind, text, [_Sample(cells, unit)])


def _of_models() -> Iterator[_Family]:
    """Yield the families of models. A model's cells are its gauges, then its counters."""

    def counters(cells: Iterable[int]) -> list[int]:
        return [len(_GAUGES) + cell for cell in cells]

    def histogram(name: str, text: str, counted: str, unit: float) -> _Family:
        bounds = [*(str(bound / unit) for bound in HISTOGRAMS[counted][1]), "+Inf"]
        samples = [
            _Sample(counters([cell]), suffix="_bucket", labels=f'le="{bound}"', goes_on=cell != counts(counted)[0])
            for bound, cell in zip(bounds, counts(counted), strict=True)
        ]
        samples.append(_Sample([], suffix="_count", goes_on=True))
        samples.append(_Sample(counters([total(counted)]), unit, suffix="_sum"))
        return _Family(_MODELS, name, "histogram", text, samples)

    requests = [cell for ends in ("success", *CAUSES) for cell in counts(ends)]
    for name, text, cells in (
        ("requests", "Requests that have ended, with or without outputs.", requests),
        ("rows", "Rows of all batches that ran.", [total("batch_size")]),
        ("runs", "Batches that ran.", counts("batch_size")),
    ):
        yield _Family(_MODELS, f"fastinfer_{name}_total", "counter", text, [_Sample(counters(cells))])
    failures = [_Sample(counters(counts(cause)), labels=f'cause="{cause}"') for cause in CAUSES]
    yield _Family(_MODELS, "fastinfer_failures_total", "counter", "Requests without outputs.", failures)
    overruns = "Runs on the event loop's thread that took more than ten times the predicted time."
    refused = "Requests that were refused because their model has ended several processes."
    for name, text, cell in (
        ("inline_overruns", overruns, OVERRUNS_CELL),
        ("withdrawn_refused", refused, WITHDRAWN_CELL),
    ):
        yield _Family(_MODELS, f"fastinfer_{name}_total", "counter", text, [_Sample(counters([cell]))])
    for cell, (name, (text, _)) in enumerate(_GAUGES.items()):
        yield _Family(_MODELS, f"fastinfer_{name}", "gauge", text, [_Sample([cell])])
    for name, (counted, text) in _DURATIONS.items():
        yield histogram(f"fastinfer_{name}_duration_seconds", text, counted, 1e9)
    yield histogram("fastinfer_batch_size", "Rows of a batch.", "batch_size", 1)


def _of_http() -> Iterator[_Family]:
    held = "Bytes of bodies, tensors, outputs and answers of unanswered requests."
    stuck = "Steps of loads and repository scans that timed out and have not returned."
    for name, kind, text, cell in (
        ("connections", "gauge", "Open connections.", _CONNECTIONS),
        ("connections_accepted_total", "counter", "Connections accepted.", _ACCEPTED),
        ("in_flight_bytes", "gauge", held, _IN_FLIGHT_BYTES),
        ("in_flight_bytes_limit", "gauge", "Limit of these bytes; requests beyond it get 503.", _BYTES_LIMIT),
        ("displaced_runs", "gauge", "Long runs that no longer count against --threads.", _DISPLACED),
        ("stuck_loads", "gauge", stuck, _STUCK_LOADS),
    ):
        yield _Family(_SERVER, f"fastinfer_{name}", kind, text, [_Sample([cell])])
    answers = [_Sample([_ANSWERS + place], labels=f'status="{of}xx"') for place, of in enumerate(_CLASSES)]
    yield _Family(_SERVER, "fastinfer_answers_total", "counter", "Answers by class of their status.", answers)


def _families(http: bool, logs: bool) -> Iterator[_Family]:
    """Yield all families in the order of the page."""
    yield from _of_processes()
    build = f'onnxruntime="{ort.version()}",version="{__version__}"'
    yield _Family(
        _SERVER, "fastinfer_build_info", "gauge", "Versions of the software.", [_Sample([_ONE], labels=build)]
    )
    yield from _of_models()
    text = "Requests that were refused because they had ended a process."
    yield _Family(_SERVER, "fastinfer_culprits_refused_total", "counter", text, [_Sample([_CULPRITS])])
    text = "Models that are withdrawn because they have ended several processes."
    yield _Family(_SERVER, "fastinfer_models_withdrawn", "gauge", text, [_Sample([_WITHDRAWN])])
    if http:
        yield from _of_http()
    if logs:
        text = "Log lines that were dropped because they could not be written fast enough."
        yield _Family(_SERVER, "fastinfer_log_lines_dropped_total", "counter", text, [_Sample([_LOST_LINES])])


# --- The reports ------------------------------------------------------------------------------------------------------


class Page:
    """A page, shared by all clients that requested it before it was begun.

    Attributes:
        text: the page, uncompressed.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self._packed: dict[bytes, asyncio.Future[bytes]] = {}

    async def packed(self, coding: bytes) -> bytes:
        """Return the text compressed; each coding is compressed once, on a thread."""
        packed = self._packed.get(coding)
        if packed is None:
            threads = ThreadPoolExecutor(1, "fastinfer-report")
            packed = asyncio.get_running_loop().run_in_executor(threads, deflate, coding, self.text)
            self._packed[coding] = packed
            threads.shutdown(wait=False)
        return await asyncio.shield(packed)


class Metrics:
    """The reports of a server.

    Args:
        models: returns the loaded versions.
        counters: the counters of this process or of all.
        executor: the native threads that write reports; None: the loop's thread writes them, in pieces.

    Attributes:
        crashes: the crash record, if there is one.
        http: the HTTP server's counters, or None.
        logs: the log's counters, or None.
        stuck_loads: returns how many calls of loads timed out and have not returned.
        collect_gauges: returns the gauges of all processes; None: there is only this one.
    """

    def __init__(
        self, models: Callable[[], Sequence[Model]], counters: ModelCounters, executor: Executor | None = None
    ) -> None:
        self._models = models
        self._counters = counters
        self._executor = executor
        self.crashes = Crashes()
        self.http: HttpCounters | None = None
        self.logs: LogCounters | None = None
        self.stuck_loads: Callable[[], int] = lambda: 0
        self.collect_gauges: Callable[[], Awaitable[list[Gauges]]] | None = None
        self._boot_ticks = _boot_ticks()
        self._templates: dict[tuple[bool, bool], Template] = {}  # by whether the page has HTTP and log counters
        self._statistics_template: Template | None = None
        self._known: dict[tuple[str, str, int], Entry] = {}  # of the last report of all models
        self._pages = Paced(self._page)
        self._statistics = Paced(self._statistics_of_all)

    async def page(self) -> Page:
        """Return the page, of type :data:`CONTENT_TYPE`. It has everything that was counted before the call."""
        return await self._pages.next()

    async def statistics(self) -> Text:
        """Return the JSON of the statistics extension for all models, with everything counted before the call."""
        return await self._statistics.next()

    async def statistics_of(self, models: Sequence[Model]) -> Text:
        """Return the same for some models."""
        return await self._statistics_written([self._entry(model) for model in models])

    async def gauges(self) -> Gauges:
        """Return the gauges of this process."""
        busy = []
        for place, model in enumerate(self._models(), 1):
            if model.scheduler.in_flight or model.scheduler.running:
                busy.append((model.name, model.version, [value(model) for _, value in _GAUGES.values()]))
            if place % _MODELS_PER_TURN == 0:
                await asyncio.sleep(0)
        http = self.http
        return {
            "pid": os.getpid(),
            "connections": http.connections if http else 0,
            "in_flight_bytes": http.in_flight_bytes if http else 0,
            "in_flight_bytes_limit": http.budget.limit if http else 0,
            "displaced_runs": self._executor.displaced if self._executor else 0,
            "stuck_loads": self.stuck_loads(),
            "models": busy,
        }

    async def _page(self) -> Page:
        all_gauges = [await self.gauges()] if self.collect_gauges is None else await self.collect_gauges()
        models = self._models()
        entries = await self._entries(models)
        has = self.http is not None, self.logs is not None
        template = self._templates.get(has)
        if template is None:
            sections = [family.section() for family in _families(*has)]
            template = self._templates[has] = Template(sections, (len(_GAUGES), _SERVER_CELLS))
        server = Group([Entry(())], self._server_cells(all_gauges))
        groups = [Group(entries, _model_gauges(models, all_gauges)), server]
        return Page(await self._written(template, groups, [gauges["pid"] for gauges in all_gauges]))

    async def _statistics_of_all(self) -> Text:
        return await self._statistics_written(await self._entries(self._models()))

    async def _statistics_written(self, entries: Sequence[Entry]) -> Text:
        if self._statistics_template is None:
            self._statistics_template = statistics_template()
        return await self._written(self._statistics_template, [Group(entries)])

    async def _written(self, template: Template, groups: Sequence[Group], pids: Sequence[int] = ()) -> Text:
        executor = self._executor
        report = Report(template, groups, self._counters.shared, pids, LAST_INFERENCE_CELL)
        if executor is None or len(executor) >= executor.threads:  # runs may occupy the threads for long
            while not report.step():
                await asyncio.sleep(0)
        else:
            ended = asyncio.get_running_loop().create_future()
            executor.submit(report, lambda _: _end(ended))
            await ended
        return report.result()

    def _entry(self, model: Model) -> Entry:
        key = self._counters.key(model.name, model.version, model.number)
        return entry(model.name, model.version, model.stats, key, model.config.metric_tags)

    async def _entries(self, models: Sequence[Model]) -> list[Entry]:
        """Return the report entries of all models; unchanged ones are reused from the last report."""
        known, entries, new = self._known, {}, 0
        for model in models:
            of = model.name, model.version, model.number
            found = known.get(of)
            if found is None or found.counters is not model.stats:
                found = self._entry(model)
                new += 1
                if new % _MODELS_PER_TURN == 0:
                    await asyncio.sleep(0)
            entries[of] = found
        self._known = entries
        return list(entries.values())

    def _server_cells(self, all_gauges: Sequence[Gauges]) -> array[int]:
        cells = array("q", bytes(8 * _SERVER_CELLS))
        cells[_BOOT], cells[_ONE] = self._boot_ticks, 1
        cells[_CULPRITS] = self.crashes.refused or 0
        cells[_WITHDRAWN] = self.crashes.withdrawn
        totals = self._counters.process_totals()
        if self.http is not None:
            *answers, accepted = totals[0] if totals else [*self.http.answers, self.http.connections_total]
            cells[_ACCEPTED] = accepted
            cells[_ANSWERS:] = array("q", answers[_CLASSES.start : _CLASSES.stop])
            for cell, gauge in (
                (_CONNECTIONS, "connections"),
                (_IN_FLIGHT_BYTES, "in_flight_bytes"),
                (_BYTES_LIMIT, "in_flight_bytes_limit"),
                (_DISPLACED, "displaced_runs"),
                (_STUCK_LOADS, "stuck_loads"),
            ):
                cells[cell] = sum(gauges.get(gauge, 0) for gauges in all_gauges)
        if self.logs is not None:
            cells[_LOST_LINES] = totals[1] if totals else self.logs.dropped
        return cells


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _model_gauges(models: Sequence[Model], all_gauges: Sequence[Gauges]) -> array[int]:
    """Return the gauges of each model, summed over processes."""
    cells = array("q", bytes(8 * len(_GAUGES) * len(models)))
    busy = [each for gauges in all_gauges for each in gauges.get("models", ())]
    places = {(model.name, model.version): place for place, model in enumerate(models)} if busy else {}
    for name, version, values in busy:
        place = places.get((name, version))
        if place is not None:  # another process may be one operation ahead
            for number, value in enumerate(values):
                cells[place * len(_GAUGES) + number] += value
    return cells


def _boot_ticks() -> int:
    """Return when the machine started, in clock ticks since 1970."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0
    boot_s = next((int(line.split()[1]) for line in lines if line.startswith("btime ")), 0)
    return boot_s * os.sysconf("SC_CLK_TCK")


class Paced(Generic[T]):
    """Rate-limits an expensive report: makes one at a time, with pauses, and shares it between callers.

    A caller gets the next report that begins after the call, so it has everything that happened before. The pauses
    bound the work to about a tenth of a thread, however many callers there are; a caller during a pause waits.

    Args:
        make: makes a report.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._waiting: asyncio.Task[T] | None = None  # not begun yet
        self._running: asyncio.Task[T] | None = None
        self._free_at = 0.0

    async def next(self) -> T:
        """Return the next report that begins. Raises what ``make`` raises."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_task(self._run(self._running))
        return await asyncio.shield(self._waiting)

    async def _run(self, before: asyncio.Task[T] | None) -> T:
        loop = asyncio.get_running_loop()
        if before is not None:
            await asyncio.wait([before])
        if self._free_at > loop.time():
            await asyncio.sleep(self._free_at - loop.time())
        self._running, self._waiting = self._waiting, None
        began = loop.time()
        try:
            return await self._make()
        finally:
            self._running = None
            ended = loop.time()
            self._free_at = ended + min(_MAX_PAUSE_S, _PAUSE_FACTOR * (ended - began))
