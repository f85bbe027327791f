"""Measures servers against each other: `python bench/load/run.py [--quick]`.

All servers are started once and run side by side; only one is asked at a time. In each scenario their answers' values
are checked under load, which also warms them up; then they are measured in turn, round after round, so that a slow
minute of the machine hurts all of them. Closed loop by wrk where it is installed and the scenario is one request, else
by loadgen.cpp; open loop by loadgen.cpp, at shares of the rate that the same server reached in the closed loop. Each
run writes bench/results/<run>.json with all that is needed to repeat it, and <run>/ with tables and plots.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.load import loadgen, report
from bench.load.scenarios import SCENARIOS, Case, Scenario, cases
from bench.load.servers import FailedError, Server, environment, models, serving
from bench.peers import PEERS, ROOT, AbsentError, Models
from fastinfer import __version__

RESULTS = ROOT / "bench" / "results"
QUICK_SERVERS = ["floor", "naive", "triton", "fastinfer"]
QUICK = {"simple": 64, "digits": 64, "MLP": 64, "large MLP": 64, "image JSON": 16, "image binary": 16, "mix": 64}
METHOD = (
    "one process per server (Triton: its own), servers in turn in every round, medians over rounds; values checked "
    "under load before; closed loop by wrk if installed, mix and open loop by bench/load/loadgen.cpp; open loop at "
    "constant rates, latency counted from the moment a request was due"
)


# --- One measurement -------------------------------------------------------------------------------------------------

LUA = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers = {{ {headers} }}
file:close()
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\n{{"requests_per_s":%.1f,"answered":%d,"errors":%d', summary.requests / summary.duration * 1e6,
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout))
  for name, part in pairs({{ p50 = 50, p90 = 90, p99 = 99, p99_9 = 99.9 }}) do
    io.write(string.format(',"%s_us":%d', name, latency:percentile(part)))
  end
  io.write(string.format(',"max_us":%d}}', latency.max))
end
"""


def wrk(port: int, case: Case, connections: int, seconds: int, cores: set[int] | None) -> dict[str, Any]:
    """Rate and latencies of one request asked again and again."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        body, script = Path(directory, "body"), Path(directory, "ask.lua")
        body.write_bytes(case.body)
        headers = ", ".join(f'["{name}"] = "{value}"' for name, value in case.headers().items())
        script.write_text(LUA.format(body=body, headers=headers))
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
        result = subprocess.run(
            [*words, f"http://127.0.0.1:{port}{case.path}"],
            check=True,
            capture_output=True,
            text=True,
            preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
        )
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


@dataclass
class Cell:
    """What is measured in all rounds: a server, in a scenario, with so many connections, at a load (None: closed)."""

    scenario: str
    connections: int
    server: str
    load: float | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""

    def summary(self) -> dict[str, Any]:
        """Medians, the spread of the rate, and the rounds themselves."""
        head = {"scenario": self.scenario, "connections": self.connections, "server": self.server, "load": self.load}
        if self.failed or not self.rounds:
            return head | {"failed": self.failed or "not measured"}
        numbers = [key for key, value in self.rounds[0].items() if isinstance(value, int | float) and key != "errors"]
        rates = [each["requests_per_s"] for each in self.rounds]
        made: dict[str, Any] = {key: statistics.median(each[key] for each in self.rounds) for key in numbers}
        classes = {
            name: {
                key: statistics.median(each["classes"][name][key] for each in self.rounds if name in each["classes"])
                for key in (*loadgen.PERCENTILES, "requests")
            }
            for name in self.rounds[0].get("classes", ())
        }
        return head | {
            "median": made,
            "classes": classes,
            "spread": [min(rates), max(rates)],
            "errors": sum(each["errors"] for each in self.rounds),
            "rounds": self.rounds,
        }


class Run:
    """A whole run; the servers are ready."""

    def __init__(self, options: argparse.Namespace, served: Models, servers: dict[str, Server], say: Progress) -> None:
        self.options = options
        self.served = served
        self.servers = servers
        self.say = say
        self.server_cores: set[int] | None = {0} if options.pin else None
        self.client_cores: set[int] | None = {1} if options.pin else None

    def scenario(self, scenario: Scenario) -> list[dict[str, Any]]:
        """All servers, all numbers of connections and loads, all rounds of one scenario."""
        options = self.options
        asked = [(part, cases(part, self.served.files)) for part in scenario.parts]
        cells: dict[tuple[int, str, float | None], Cell] = {}
        counts = connections_of(scenario, options)
        loads = loads_of(scenario, options)
        with contextlib.ExitStack() as stack:
            servers = dict(self.servers)
            if "floor" in servers:  # it answers with what suits the scenario
                answer = asked[0][1][0].answer()
                servers["floor"] = stack.enter_context(serving("floor", self.served, self.server_cores, answer))
            failed: dict[str, str] = {}
            for name, server in servers.items():
                if scenario.binary and not PEERS[name].binary:
                    failed[name] = "takes no binary tensors"
                    continue
                self.say(f"{scenario.name}: checking the values of {name}")
                try:
                    connections = min(16, max(counts))
                    loadgen.run(server.port, asked, connections, 0.5, warmup=0, check=name != "floor")
                except loadgen.WrongAnswer as wrong:
                    failed[name] = str(wrong)
            for name, reason in failed.items():
                for connections in counts:
                    cells[connections, name, None] = Cell(scenario.name, connections, name, failed=reason)
            measured = {name: server for name, server in servers.items() if name not in failed}
            rounds = range(options.rounds)
            order: list[tuple[int, float | None, int]] = [
                (number, None, connections) for number in rounds for connections in counts
            ]
            order += [(number, load, open_loop_connections(counts)) for number in rounds for load in loads]
            for number, load, connections in order:
                for name, server in measured.items():
                    cell = Cell(scenario.name, connections, name, load)
                    cell = cells.setdefault((connections, name, load), cell)
                    self.say(f"{scenario.name}: {number + 1}/{options.rounds}, {describe(cell)}", step=True)
                    rates = [each["requests_per_s"] for each in cells[connections, name, None].rounds]
                    try:
                        rate = load * statistics.median(rates) if load else 0.0
                        cell.rounds.append(self.measure(server, asked, connections, rate))
                    except (loadgen.WrongAnswer, subprocess.SubprocessError, statistics.StatisticsError) as error:
                        cell.failed = str(error)
        return [cell.summary() for cell in cells.values()]

    def measure(self, server: Server, asked: loadgen.Asked, connections: int, rate: float) -> dict[str, Any]:
        """One measurement, and the server's CPU time in it."""
        options, single = self.options, len(asked) == 1 and not rate
        before = server.cpu_s()
        if single and options.client == "wrk":
            got = wrk(server.port, asked[0][1][0], connections, options.seconds, self.client_cores)
        else:
            got = loadgen.run(
                server.port,
                asked,
                connections,
                options.seconds,
                rate=rate,
                cores=self.client_cores,
                check=server.name != "floor",
            )
        after = server.cpu_s()
        if rate:
            got["rate"] = rate
        for i, kind in enumerate(("user", "sys")):
            got[f"server_{kind}_us"] = (after[i] - before[i]) / max(1, got["answered"]) * 1e6  # a request
        got["server_memory_bytes"] = server.memory_bytes()
        return got

    def batch_sizes(self) -> dict[str, Any]:
        """How large fastinfer's batches were, by its own /metrics."""
        server = self.servers.get("fastinfer")
        return report.batch_sizes(server.port) if server else {}


def connections_of(scenario: Scenario, options: argparse.Namespace) -> Sequence[int]:
    if options.connections:
        return sorted(options.connections)
    if options.quick:
        return (QUICK.get(scenario.name, 8),)
    return scenario.connections


def open_loop_connections(counts: Sequence[int]) -> int:
    """How many of them the open loop uses: enough that the client is not what waits."""
    return max((count for count in counts if count <= 64), default=min(counts))


def loads_of(scenario: Scenario, options: argparse.Namespace) -> Sequence[float]:
    return [load for load in scenario.loads if load == 0.5] if options.quick else scenario.loads


def describe(cell: Cell) -> str:
    how = f"{cell.load:.0%} of peak, open loop" if cell.load else "closed loop"
    return f"{cell.connections} connections, {how}, {cell.server}"


class Progress:
    """A bar on a terminal, lines elsewhere."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.start = steps, 0, time.monotonic()

    def __call__(self, text: str, step: bool = False) -> None:
        share = min(1.0, self.done / max(1, self.steps))
        self.done += step
        took = time.monotonic() - self.start
        if not sys.stderr.isatty():
            print(f"{took:6.0f} s {share:4.0%}  {text}", file=sys.stderr, flush=True)
            return
        bar = ("#" * round(24 * share)).ljust(24, "-")
        width = shutil.get_terminal_size().columns - 42
        print(f"\r[{bar}] {share:4.0%} {took:5.0f} s  {text[:width]:{width}}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


# --- What the numbers depend on ---------------------------------------------------------------------------------------


def output_of(*words: str) -> str:
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if "model name" in line]
    tool = " ".join(output_of("wrk", "-v").split()[1:2]) or "not installed"
    packages = ["numpy", "onnxruntime", "uvloop", "httptools", "orjson", "cython"]
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": (cpu or [platform.processor()])[0],
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {"fastinfer": __version__, "python": platform.python_version(), "wrk": tool}
        | {name: installed.get(name, "not installed") for name in packages},
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "flags": {name: value for name, value in environment("fastinfer").items() if name.startswith("FASTINFER_")}
        | {name: os.environ[name] for name in ("CFLAGS", "CXXFLAGS") if name in os.environ},
        "method": {"summary": METHOD}
        | {name: getattr(options, name) for name in ("rounds", "seconds", "pin", "client", "quick")},
    }


# --- The command ------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures fastinfer and other servers on the same work.")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--servers", nargs="+", choices=PEERS, metavar="NAME", help=f"default: {', '.join(PEERS)}")
    parser.add_argument("--scenarios", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--connections", nargs="+", type=int, help="instead of each scenario's own")
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement; default: 1")
    parser.add_argument("--pin", action="store_true", help="servers on core 0, the client on core 1")
    parser.add_argument("--client", choices=("wrk", "loadgen"), help="of the closed loop; default: wrk if installed")
    parser.add_argument("--quick", action="store_true", help="one round, fewer servers; a look, not a result")
    parser.add_argument("--output", type=Path, help="the JSON file; default: a new one in bench/results/")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.servers = options.servers or (QUICK_SERVERS if options.quick else list(PEERS))
    options.scenarios = options.scenarios or (list(QUICK) if options.quick else names)
    options.client = options.client or ("wrk" if shutil.which("wrk") else "loadgen")
    if options.pin and len(os.sched_getaffinity(0)) < 2:
        parser.error("--pin needs two cores")
    return options


def start(options: argparse.Namespace, served: Models, stack: contextlib.ExitStack, say: Callable[[str], None]) -> Any:
    """The servers that start, and of the others the reason why not."""
    servers: dict[str, Server] = {}
    absent: dict[str, str] = {}
    for name in options.servers:
        say(f"starting {name}")
        try:
            PEERS[name].require()
            servers[name] = stack.enter_context(serving(name, served, {0} if options.pin else None, b"{}"))
        except (AbsentError, FailedError) as reason:
            absent[name] = str(reason)
    return servers, absent


def main() -> int:
    options = arguments()
    chosen = [scenario for scenario in SCENARIOS if scenario.name in options.scenarios]
    served = models({part.model for scenario in chosen for part in scenario.parts})
    loadgen.build()
    result = surroundings(options)
    steps = sum(len(connections_of(each, options)) + len(loads_of(each, options)) for each in chosen)
    say = Progress(steps * options.rounds * len(options.servers))
    with contextlib.ExitStack() as stack:
        servers, result["absent"] = start(options, served, stack, say)
        result["servers"] = {name: PEERS[name].note for name in servers}
        result["results"] = []
        run = Run(options, served, servers, say)
        for scenario in chosen:
            result["results"] += run.scenario(scenario)
        result["batch_sizes"] = run.batch_sizes()
    say.end()
    result["took_s"] = round(time.monotonic() - say.start)
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
    return 1 if bad or "fastinfer" in result["absent"] else 0


if __name__ == "__main__":
    sys.exit(main())
