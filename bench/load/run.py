"""Measures servers against each other: `python bench/load/run.py [--quick]`.

All servers are started once and run side by side; only one is asked at a time. In each scenario their answers' values
are checked under load, which also warms them up; then they are measured in turn, round after round, so that a slow
minute of the machine hurts all of them. Closed loop by wrk where it is installed and the scenario is one request, else
by loadgen.cpp; open loop by loadgen.cpp, at shares of the rate that the same server reached in the closed loop. Then
decoder and encoder are measured without a server, and what grows with connections, models, bytes and requests. Each
run writes bench/results/<run>.json with all that is needed to repeat it, and <run>/ with tables and plots; the first
table says which goals are met.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.environments import ROOT, AbsentError
from bench.load import compare, goals, growth, loadgen, report
from bench.load.machine import surroundings
from bench.load.progress import Progress
from bench.load.scenarios import SCENARIOS
from bench.load.servers import FailedError, Server, models, serving
from bench.peers import PEERS, Models

RESULTS = ROOT / "bench" / "results"
CODEC = ROOT / "bench" / "micro" / "codec.py"
QUICK_SERVERS = ["floor", "naive", "triton", "fastinfer"]
QUICK_SCENARIOS = [scenario.name for scenario in SCENARIOS if scenario.quick]
CODEC_ROUNDS = 10  # of each pass; a tenth of a second each
CODEC_S = 4.0
CODEC_TIMEOUT_S = 120
START_S = {"triton": 6.0, "mlserver": 4.0, "fastapi": 2.0}  # of servers that take long


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures fastinfer and other servers on the same work.")
    names = [*(scenario.name for scenario in SCENARIOS), "codec", "growth"]
    servers = [name for name in PEERS if name != compare.UNBATCHED]
    parser.add_argument("--servers", nargs="+", choices=servers, metavar="NAME", help=f"default: {', '.join(servers)}")
    parser.add_argument("--scenarios", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--connections", nargs="+", type=int, help="instead of each scenario's own")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement; default: 1")
    parser.add_argument("--pin", action="store_true", help="the client on the last core, servers on the others")
    parser.add_argument("--client", choices=("wrk", "loadgen"), help="of the closed loop; default: wrk if installed")
    parser.add_argument("--quick", action="store_true", help="one round, fewer servers; a look, not a result")
    parser.add_argument("--output", type=Path, help="the JSON file; default: a new one in bench/results/")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.servers = options.servers or (QUICK_SERVERS if options.quick else servers)
    options.growth = "growth" in (options.scenarios or ["growth"]) and not options.quick
    options.codec = "codec" in (options.scenarios or ["codec"])
    options.scenarios = options.scenarios or (QUICK_SCENARIOS if options.quick else names)
    options.client = options.client or ("wrk" if shutil.which("wrk") else "loadgen")
    if options.pin and len(os.sched_getaffinity(0)) < 2:
        parser.error("--pin needs two cores")
    return options


def start(options: argparse.Namespace, served: Models, stack: contextlib.ExitStack, say: Progress) -> Any:
    """The servers that start, and of the others the reason why not."""
    servers: dict[str, Server] = {}
    absent: dict[str, str] = {}
    for name in options.servers:
        say(f"starting {name}", START_S.get(name, 1))
        try:
            PEERS[name].require()
            servers[name] = stack.enter_context(serving(name, served, compare.apart(options.pin)[0], b"{}"))
        except (AbsentError, FailedError) as reason:
            absent[name] = str(reason)
    return servers, absent


def codec(passes: int, say: Progress) -> list[list[dict[str, Any]]]:
    """The figures of bench/micro/codec.py."""
    measured = []
    for number in range(passes):
        say(f"codec: {number + 1}/{passes}", CODEC_S)
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            file = Path(directory, "codec.json")
            words = [sys.executable, str(CODEC), "--rounds", str(CODEC_ROUNDS), "--json", str(file)]
            subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=CODEC_TIMEOUT_S)
            measured.append(json.loads(file.read_text())["results"])
    return measured


def part(result: dict[str, Any], name: str, measure: Callable[[], Any]) -> None:
    """A part of the run: its figures, or the reason why there are none; the rest is worth keeping."""
    try:
        result[name] = measure()
    except (FailedError, loadgen.WrongAnswer, subprocess.SubprocessError, OSError, ValueError) as error:
        result["absent"][name] = str(error)


def main() -> int:
    options = arguments()
    chosen = [scenario for scenario in SCENARIOS if scenario.name in options.scenarios]
    asked = {each.model for scenario in chosen for each in scenario.parts}
    served = models(asked | ({"simple", "identity_fp32"} if options.growth else set()))
    loadgen.build()
    result = surroundings(options)
    planned = sum(START_S.get(name, 1) for name in options.servers)
    planned += sum(compare.planned_s(scenario, options) for scenario in chosen)
    planned += options.codec * options.rounds * CODEC_S + (growth.planned_s(options) if options.growth else 0)
    say = Progress(planned)
    with contextlib.ExitStack() as stack:
        servers, result["absent"] = start(options, served, stack, say)
        result["servers"] = {name: PEERS[name].note for name in servers}
        comparison = compare.Comparison(options, served, servers, say)
        for scenario in chosen:
            comparison.run(scenario)
        result["results"], result["onnxruntime"] = comparison.cells, comparison.runtime
        result["absent"] |= comparison.absent
        if options.growth:
            part(result, "growth", lambda: growth.measure(options, served, servers, say))
    if options.codec:
        part(result, "codec", lambda: codec(options.rounds, say))
    say.end()
    result["took_s"] = round(time.monotonic() - say.start)
    result["goals"] = goals.rows(result)
    stamp = result["time"].replace(":", "").split("+")[0] + ("-quick" if options.quick else "")
    output = options.output or RESULTS / f"{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(report.write(result, output.with_suffix("")))
    print(f"\n{output}", file=sys.stderr)
    bad = [e for e in result["results"] if e["server"] == "fastinfer" and (e.get("errors") or "failed" in e)]
    for each in bad:
        reason = each.get("failed") or f"{each['errors']} errors"
        print(f"fastinfer, {each['scenario']}: {reason}", file=sys.stderr)
    return 1 if bad or {"fastinfer", "growth", "codec"} & set(result["absent"]) else 0


if __name__ == "__main__":
    sys.exit(main())
