"""The goals: what is measured, what is required, and what a run says about it. Pure: a result in, rows out.

A goal is a ratio within one run. Where a goal has rounds, its ratio is taken in each of them, between measurements
that were made within seconds of each other; the median is judged, and the least and the largest are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load import runtime

Result = dict[str, Any]


class MissingError(Exception):
    """A run does not have what the goal needs; the text says why."""


@dataclass
class Measured:
    """A ratio in each round, and what a reader should know."""

    ratios: Sequence[float]
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """One row.

    Attributes:
        ratio: how the ratios are taken from a result; raises MissingError.
        least: what the ratio must reach; or
        most: what it must not exceed.
        native: how much faster than its Python backend, which anybody can install, Triton's native ONNX Runtime backend
            was at this work where both could be measured. The ratio to the former is divided by it.
    """

    number: int
    what: str
    ratio: Callable[[Result], Measured]
    least: float | None = None
    most: float | None = None
    native: float | None = None

    def row(self, result: Result) -> dict[str, Any]:
        """What the run says: ratio, spread, and whether the goal is met, missed or not measured."""
        required = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        head = {"goal": self.number, "what": self.what, "required": required}
        try:
            measured = self.ratio(result)
        except MissingError as missing:
            return head | {"verdict": "not measured", "note": str(missing)}
        ratios, note = list(measured.ratios), measured.note
        if self.native:
            python = statistics.median(ratios)
            note = f"{python:.2f} times its Python backend, which the native one beats {self.native:.2f} times"
            ratios = [ratio / self.native for ratio in ratios]
        ratio, spread = statistics.median(ratios), [min(ratios), max(ratios)]
        met = ratio >= self.least if self.least is not None else ratio <= (self.most or 0)
        verdict = "met" if met else "missed"
        return head | {"ratio": ratio, "spread": spread, "rounds": len(ratios), "verdict": verdict, "note": note}


# --- Where the ratios come from ---------------------------------------------------------------------------------------


def rounds(result: Result, scenario: str, connections: int, server: str, load: float | None = None) -> list[Any]:
    """The measurements of one server."""
    require(result, server)
    for cell in result["results"]:
        found = (cell["scenario"], cell["connections"], cell["server"], cell["load"])
        if found == (scenario, connections, server, load):
            if "failed" in cell:
                raise MissingError(f"{server}: {short(cell['failed'])}")
            return list(cell["rounds"])
    raise MissingError(f"{server} in {scenario} at {connections} is not part of this run")


def require(result: Result, name: str) -> None:
    """Raises MissingError if this server or part of the run is absent."""
    if name in result["absent"]:
        raise MissingError(f"{name} is absent: {short(result['absent'][name])}")


def short(reason: str) -> str:
    return " ".join(reason.split())[:120]


def rate(scenario: str, connections: int, other: str) -> Callable[[Result], Measured]:
    """Requests per second, as a multiple of another server's."""

    def ratio(result: Result) -> Measured:
        ours, theirs = (rounds(result, scenario, connections, name) for name in ("fastinfer", other))
        return Measured([a["requests_per_s"] / b["requests_per_s"] for a, b in zip(ours, theirs, strict=False)])

    return ratio


def median_latency(scenario: str, connections: int, other: str) -> Callable[[Result], Measured]:
    """p50, as a multiple of another server's."""

    def ratio(result: Result) -> Measured:
        ours, theirs = (rounds(result, scenario, connections, name) for name in ("fastinfer", other))
        pairs = list(zip(ours, theirs, strict=False))
        shown = [f"{statistics.median(pair[i]['p50_us'] for pair in pairs):,.0f} µs" for i in (0, 1)]
        return Measured([a["p50_us"] / b["p50_us"] for a, b in pairs], " against ".join(shown))

    return ratio


def tail(percentile: str) -> Callable[[Result], Measured]:
    """A percentile of the mix's small requests as a multiple of their p50; open loop at half of peak."""

    def ratios(result: Result, server: str) -> list[float]:
        classes = [each["classes"]["small"] for each in rounds(result, "mix", 64, server, 0.5)]
        return [each[percentile] / each["p50_us"] for each in classes]

    def ratio(result: Result) -> Measured:
        late = max(each["client_late"][percentile] for each in rounds(result, "mix", 64, "fastinfer", 0.5))
        note = f"the client itself was late by {late:,.0f} µs"
        try:
            note = f"the floor: {statistics.median(ratios(result, 'floor')):.1f}; " + note
        except MissingError:
            pass
        return Measured(ratios(result, "fastinfer"), note)

    return ratio


def of_runtime(scenario: str, connections: int) -> Callable[[Result], Measured]:
    """Items per second, as a share of ONNX Runtime's own best beside the same traffic (see runtime.py)."""

    def ratio(result: Result) -> Measured:
        ours = [each["requests_per_s"] for each in rounds(result, scenario, connections, "fastinfer")]
        require(result, "onnxruntime")
        for measured in result.get("onnxruntime", ()):
            if measured["scenario"] == scenario:
                beside, alone = (runtime.best(measured["rounds"], kind) for kind in ("beside", "alone"))
                if not beside or not alone:
                    raise MissingError("the floor is absent, so there was no traffic to run beside")
                shares = [a / b for a, b in zip(ours, alone[1], strict=False)]
                note = (
                    f"{statistics.median(beside[1]):,.0f} items/s, {runtime.describe(beside[0])}, beside the same "
                    f"traffic; {statistics.median(shares):.2f} of its {statistics.median(alone[1]):,.0f} with no client"
                )
                return Measured([a / b for a, b in zip(ours, beside[1], strict=False)], note)
        raise MissingError("ONNX Runtime's own best is not part of this run")

    return ratio


def codec(other: str, *prefixes: str, but: str = " x ") -> Callable[[Result], Measured]:
    """How many times longer another decoder or encoder takes: the least favourable of the cases with such names.

    `but` is in the names of the others; " x " is in those of a few elements, where the call itself is all.
    """

    def ratio(result: Result) -> Measured:
        require(result, "codec")
        passes = result.get("codec", ())
        if not passes:
            raise MissingError("the codec is not part of this run")
        found: dict[str, list[float]] = {}
        for each in passes:
            for case in each:
                if case["case"].startswith(prefixes) and but not in case["case"] and case.get(f"{other}_us"):
                    found.setdefault(case["case"], []).append(case[f"{other}_us"] / case["us"])
        if not found:
            raise MissingError("libsimdjson-dev is not installed" if other == "simdjson" else "there is no such case")
        name, ratios = min(found.items(), key=lambda item: statistics.median(item[1]))
        return Measured(ratios, f"{name}, the least of {len(found)}" if len(found) > 1 else name)

    return ratio


def growth_of(result: Result) -> Any:
    require(result, "growth")
    if "growth" not in result:
        raise MissingError("growth is not part of this run")
    return result["growth"]


def connections(asking: int, few: int, many: int, *, beside_floor: bool = False) -> Callable[[Result], Measured]:
    """Time per request with many connections, as a multiple of that with few; or that of the floor's own growth."""

    def ratio(result: Result) -> Measured:
        grown = growth_of(result)
        if reason := grown["absent"].get(str(many)):
            raise MissingError(reason)
        small, large = (grown["connections"][key] for key in (f"{min(asking, few)}/{few}", f"{asking}/{many}"))
        ratios = {name: [b / a for a, b in zip(small[name], large[name], strict=True)] for name in large}
        if "fastinfer" not in ratios:
            raise MissingError("fastinfer is not part of this run")
        ours, floor = ratios["fastinfer"], ratios.get("floor")
        if beside_floor:
            if not floor:
                raise MissingError("the floor is not part of this run")
            note = f"{statistics.median(ours):.2f} times; the floor {statistics.median(floor):.2f} times"
            return Measured([a / b for a, b in zip(ours, floor, strict=True)], note)
        return Measured(ours, f"the floor: {statistics.median(floor):.2f}" if floor else "")

    return ratio


def models(few: str, many: str) -> Callable[[Result], Measured]:
    def ratio(result: Result) -> Measured:
        timed = growth_of(result)["models"]
        return Measured([b / a for a, b in zip(timed[few], timed[many], strict=True)])

    return ratio


def heads(result: Result) -> Measured:
    """The server's CPU time for a request with a head of its own, as a multiple of that with an equal one."""
    timed = growth_of(result)["heads"]
    shown = ", ".join(f"{kind}: {statistics.median(us):.2f} µs" for kind, us in timed.items())
    return Measured([own / equal for equal, own in zip(timed["equal"], timed["own"], strict=True)], shown)


def per_byte(kind: str) -> Callable[[Result], Measured]:
    """Time per byte of 64 MiB, as a multiple of that of 64 KiB."""

    def ratio(result: Result) -> Measured:
        ratios: list[float] = []
        by_size: dict[int, list[float]] = {}
        for sizes in growth_of(result)["bytes"]:
            timed = {each["bytes"]: each[f"{kind}_ns"] for each in sizes}
            ratios.append(timed[64 << 20] / timed[64 << 10])
            for size, ns in timed.items():
                by_size.setdefault(size, []).append(ns)
        shown = ", ".join(f"{size_text(size)}: {statistics.median(ns):.2f}" for size, ns in by_size.items())
        return Measured(ratios, f"ns a byte: {shown}")

    return ratio


def size_text(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"


def memory(result: Result) -> Measured:
    """What a request in flight takes at most, as a share of body + tensors + 64 KiB."""
    measured = growth_of(result)["memory"]
    ratios = [each["a_request"] / (each["body"] + each["tensors"] + (64 << 10)) for each in measured]
    parts = [statistics.median(each[name] for each in measured) / 1e6 for name in ("a_request", "body", "tensors")]
    return Measured(ratios, "{:.2f} MB for a body of {:.2f} MB and tensors of {:.2f} MB".format(*parts))


# --- The goals --------------------------------------------------------------------------------------------------------

# Triton's native backend against its Python backend, requests/s on one machine in one run.
NATIVE = {
    "simple": 41_400 / 16_400,
    "image JSON, 8": 203 / 179,
    "image binary, 1": 1_375 / 940,
    "image binary, 16": 2_550 / 1_550,
    "large MLP": 3_455 / 2_310,
    "large MLP binary": 5_970 / 3_900,
}
NOT_SLOWER = 0.95  # two equal servers differ by chance
FLAT = 1.2  # "flat": what a run can tell from noise
LINEAR = 1.5  # "linear": large tensors leave the caches and get fresh pages from the kernel

GOALS = [
    Goal(1, "simple, 64 connections: rate, times the floor's", rate("simple", 64, "floor"), least=0.7),
    Goal(1, "the same, times the naive server's", rate("simple", 64, "naive"), least=3.5),
    Goal(1, "the same, times native Triton's", rate("simple", 64, "triton"), least=3.5, native=NATIVE["simple"]),
    Goal(1, "the same, times Triton's Python backend's", rate("simple", 64, "triton"), least=9),
    Goal(1, "the same, times MLServer's", rate("simple", 64, "mlserver"), least=60),
    Goal(1, "simple, 1 connection: p50, times the floor's", median_latency("simple", 1, "floor"), most=1.2),
    Goal(1, "MLP, 64 connections: rate, times the naive server's", rate("MLP", 64, "naive"), least=3.5),
    Goal(2, "image as JSON, 1 connection: rate, times the naive server's", rate("image JSON", 1, "naive"), least=5),
    Goal(2, "the same, 8 connections", rate("image JSON", 8, "naive"), least=5),
    Goal(
        2,
        "the same, times native Triton's",
        rate("image JSON", 8, "triton"),
        least=4,
        native=NATIVE["image JSON, 8"],
    ),
    Goal(
        2,
        "image as binary tensor, 1 connection: rate, times native Triton's",
        rate("image binary", 1, "triton"),
        least=1.8,
        native=NATIVE["image binary, 1"],
    ),
    Goal(
        2,
        "the same, 16 connections",
        rate("image binary", 16, "triton"),
        least=1.5,
        native=NATIVE["image binary, 16"],
    ),
    Goal(
        3,
        "decoder, FP32 text: times as fast as simdjson on-demand",
        codec("simdjson", "decode FP32", but="doubles"),
        least=1.9,
    ),
    Goal(3, "the same, small integers", codec("simdjson", "decode UINT8"), least=1.9),
    Goal(
        3,
        "the same, FP64 text",
        codec("simdjson", "decode FP64", "decode FP32 written as doubles"),
        least=1.6,
    ),
    Goal(3, "encoder, FP32: times as fast as orjson with numpy", codec("orjson", "encode FP32"), least=2),
    Goal(3, "the same, FP64", codec("orjson", "encode FP64"), least=2),
    Goal(3, "the same, integers", codec("orjson", "encode UINT", "encode INT"), least=2),
    Goal(
        4, "large MLP, 64 connections: items/s, times ONNX Runtime's own best", of_runtime("large MLP", 64), least=0.85
    ),
    Goal(
        4,
        "large MLP, 1 connection: rate, times the same server's without batching",
        rate("large MLP", 1, "unbatched"),
        least=NOT_SLOWER,
    ),
    Goal(
        4,
        "large MLP, 64 connections: rate, times native Triton's",
        rate("large MLP", 64, "triton"),
        least=2,
        native=NATIVE["large MLP"],
    ),
    Goal(
        4,
        "the same with binary tensors",
        rate("large MLP binary", 64, "triton"),
        least=1.2,
        native=NATIVE["large MLP binary"],
    ),
    Goal(5, "small requests beside images, half of peak: p99, times their p50", tail("p99_us"), most=3),
    Goal(5, "the same, p99.9", tail("p99_9_us"), most=10),
    Goal(6, "1 connection asks among 10,000: p50, times alone", connections(1, 1, 10_000), most=FLAT),
    Goal(6, "64 ask among 10,000: time per request, times alone", connections(64, 64, 10_000), most=FLAT),
    Goal(
        6,
        "1,000 ask: growth of the time per request over 64, times the floor's growth",
        connections(1000, 64, 1000, beside_floor=True),
        most=FLAT,
    ),
    Goal(
        6,
        "1 of 100 models asked, 64 connections: time per request, times with 1 model",
        models("64 connections, 1 model", "64 connections, 1 of 100 models"),
        most=FLAT,
    ),
    Goal(
        6,
        "100 models asked in turn, 1 connection: p50, times with 1 model",
        models("1 connection, 1 model", "1 connection, 100 models in turn"),
        most=FLAT,
    ),
    Goal(6, "heads that differ in each request, 64 connections: CPU time, times that of equal ones", heads, most=1.1),
    Goal(6, "decoder: time per byte of 64 MiB, times that of 64 KiB", per_byte("decode"), most=LINEAR),
    Goal(6, "encoder: the same", per_byte("encode"), most=LINEAR),
    Goal(6, "memory of a request, times body + tensors + 64 KiB", memory, most=1),
]


def rows(result: Result) -> list[dict[str, Any]]:
    """All goals, in order."""
    return [goal.row(result) for goal in GOALS]
