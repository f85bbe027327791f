"""Drives loadgen.cpp, the load generator of our own: builds it on demand, checks what it was answered.

Every distinct answer to every request is checked against ONNX Runtime's values, so a server cannot be fast by being
wrong, or by mixing up the rows of a batch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from bench.load.scenarios import Case, Part

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_suffix(".cpp")
PROGRAM = ROOT / "build" / "bench" / "loadgen"
PERCENTILES = {"p50_us": 50.0, "p90_us": 90.0, "p99_us": 99.0, "p99_9_us": 99.9, "max_us": 100.0}

Asked = Sequence[tuple[Part, Sequence[Case]]]


@dataclass
class WrongAnswer(Exception):
    """A server answered something else than it should."""

    what: str

    def __str__(self) -> str:
        return self.what


def build() -> Path:
    """The program, compiled if it is not there or older than its source."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        PROGRAM.parent.mkdir(parents=True, exist_ok=True)
        compiler = shutil.which(os.environ.get("CXX", "g++")) or "g++"
        subprocess.run([compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", SOURCE, "-o", PROGRAM], check=True)
    return PROGRAM


def histogram(counts: Sequence[tuple[int, int]]) -> HdrHistogram:
    """Of nanoseconds up to a minute, three significant digits."""
    made = HdrHistogram(1, 60_000_000_000, 3)
    for value, count in counts:
        made.record_value(min(value, 60_000_000_000), count)
    return made


def summary(made: HdrHistogram) -> dict[str, float]:
    """Its percentiles in microseconds."""
    return {name: round(made.get_value_at_percentile(part) / 1e3, 1) for name, part in PERCENTILES.items()}


def run(
    port: int,
    asked: Asked,
    connections: int,
    seconds: float,
    *,
    rate: float = 0,
    silent: int = 0,
    warmup: float = 0.2,
    cores: set[int] | None = None,
    check: bool = True,
    errors_allowed: bool = False,
    until_refused: bool = False,
) -> dict[str, Any]:
    """One measurement; `rate` requests a second, or 0 for the closed loop; `silent` connections are open beside
    those that ask.

    Args:
        check: compare the answers with the right ones.
        errors_allowed: count errors instead of raising at the first; answers of 200 are checked all the same.
        until_refused: end when nobody listens any more; what was sent by then is waited for.

    Raises:
        WrongAnswer: at least one answer is not right, or not 200.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        plan = []
        for i, (part, cases) in enumerate(asked):
            for j, case in enumerate(cases):
                file = Path(directory, f"request-{i}-{j}")
                file.write_bytes(case.request())
                plan.append(f"{i} {part.weight} {file}")
        answers = Path(directory, "answers")
        words = [str(build()), *map(str, (port, connections, silent, warmup, seconds, rate, answers))]
        words.append(str(int(until_refused)))
        done = subprocess.run(
            words,
            input="\n".join(plan) + "\n",
            text=True,
            capture_output=True,
            timeout=warmup + seconds + 30,
            preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
        )
        if done.returncode:
            raise WrongAnswer(done.stderr.strip()[-300:] or f"the load generator ended with {done.returncode}")
        got: dict[str, Any] = json.loads(done.stdout)
        if check:
            if got["errors"] and not errors_allowed:
                raise WrongAnswer(f"{got['errors']} errors, the first: {got['first_error']}")
            check_answers(answers.read_bytes(), asked)
    latencies = [histogram(each["latencies"]) for each in got["classes"]]
    every = histogram([pair for each in got["classes"] for pair in each["latencies"]])
    completed = sum(each["completed"] for each in got["classes"])
    measured: dict[str, Any] = {"requests_per_s": completed / got["seconds"], **summary(every)}
    measured["errors"] = got["errors"]
    measured["answered"] = got["answered"]
    if got["errors"]:
        measured["first_error"] = got["first_error"]
    measured |= {name: got[name] for name in ("closed", "malformed", "refused", "unsent")}
    measured["unfinished"] = sum(each["unfinished"] for each in got["classes"])
    measured["unchecked"] = got["unchecked"]
    measured["client_cpu"] = {key: round(got[key] / (got["seconds"] + warmup), 3) for key in ("user_s", "sys_s")}
    if rate:
        measured["client_late"] = summary(histogram(got["lateness"]))
    measured["classes"] = {
        part.name: {"requests": made.get_total_count(), **summary(made), "hdr": made.encode().decode(), **others(each)}
        for (part, _), made, each in zip(asked, latencies, got["classes"], strict=True)
        if made.get_total_count()
    }
    return measured


def others(counted: dict[str, Any]) -> dict[str, Any]:
    """Of a class that was answered with anything but 200: how often with what, and after how long."""
    if set(counted["statuses"]) <= {"200"}:
        return {}
    refusals = histogram(counted["refusals"])
    kept = {name: counted[name] for name in ("statuses", "without_retry_after")}
    return kept | {"refusals": {"requests": refusals.get_total_count(), **summary(refusals)}}


def check_answers(answers: bytes, asked: Asked) -> None:
    """Each distinct answer that the program kept."""
    at = 0
    while at < len(answers):
        end = answers.index(b"\n", at)
        part, case, json_size, size = map(int, answers[at:end].split())
        at = end + 1 + size
        try:
            asked[part][1][case].check(answers[end + 1 : at], json_size)
        except (ValueError, KeyError, TypeError) as wrong:
            raise WrongAnswer(f"{asked[part][0].name}: {wrong!r}"[:400]) from None
