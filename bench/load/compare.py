"""All servers on one scenario, in rounds: a slow minute of the machine hurts all of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import batches, loadgen, runtime
from bench.load.progress import Progress
from bench.load.scenarios import Case, Scenario, cases
from bench.load.servers import FailedError, Server, serving
from bench.peers import PEERS, Models

SETUP_S = 1.5  # of a scenario: its requests, the floor with its answer
CHECK_S = 0.3  # under load, before the measurement; it warms up, too
UNBATCHED = "unbatched"  # fastinfer, told not to batch: what batching must not be slower than

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


# --- A scenario -------------------------------------------------------------------------------------------------------


def connections_of(scenario: Scenario, options: argparse.Namespace) -> Sequence[int]:
    if options.connections:
        return sorted(options.connections)
    return scenario.quick if options.quick else scenario.connections


def open_loop_connections(counts: Sequence[int]) -> int:
    """How many of them the open loop uses: enough that the client is not what waits."""
    return max((count for count in counts if count <= 64), default=min(counts))


def loads_of(scenario: Scenario, options: argparse.Namespace) -> Sequence[float]:
    """A quick run has the open loop only where the tail is the question."""
    return scenario.loads if scenario.client_apart or not options.quick else ()


def takes_part(name: str, scenario: Scenario) -> bool:
    """Whether it is worth the time: servers that are ten times slower are not asked everything."""
    return scenario.distant or not PEERS[name].distant


def planned_s(scenario: Scenario, options: argparse.Namespace) -> float:
    """How long all of it should take."""
    names = [name for name in options.servers if takes_part(name, scenario)]
    names = [name for name in names if PEERS[name].binary or not scenario.binary]
    near = [name for name in names if not PEERS[name].distant]
    closed, opened = len(connections_of(scenario, options)), len(loads_of(scenario, options))
    measured = options.rounds * (len(names) * closed + len(near) * opened) * step_s(options)
    unbatched = options.rounds * step_s(options) + CHECK_S + 1 if scenario.batching and closed > 1 else 0
    beside = runtime.planned_s(options.rounds) if scenario.batching else 0
    return SETUP_S + len(names) * CHECK_S + measured + unbatched + beside


def step_s(options: argparse.Namespace) -> float:
    """One measurement: it and its start."""
    return float(options.seconds) + 0.2


def apart(wanted: bool = True) -> tuple[set[int] | None, set[int] | None]:
    """Cores for the servers and for the client, if there are two; None: whichever are free."""
    cores = sorted(os.sched_getaffinity(0))
    return (set(cores[:-1]), {cores[-1]}) if wanted and len(cores) > 1 else (None, None)


class Comparison:
    """The servers are ready; one scenario after the other."""

    def __init__(self, options: argparse.Namespace, served: Models, servers: dict[str, Server], say: Progress) -> None:
        self.options = options
        self.served = served
        self.servers = servers
        self.say = say
        self.cores = os.sched_getaffinity(0)
        self.server_cores, self.client_cores = apart(options.pin)
        self.cells: list[dict[str, Any]] = []
        self.runtime: list[dict[str, Any]] = []
        self.absent: dict[str, str] = {}

    def run(self, scenario: Scenario) -> None:
        """All servers, all numbers of connections and loads, all rounds of one scenario."""
        self.say(f"{scenario.name}: making the requests", SETUP_S)
        asked = [(part, cases(part, self.served.files)) for part in scenario.parts]
        with contextlib.ExitStack() as stack:
            servers = {name: server for name, server in self.servers.items() if takes_part(name, scenario)}
            if "floor" in servers:  # it answers with what suits the scenario
                answer = asked[0][1][0].answer()
                servers["floor"] = stack.enter_context(serving("floor", self.served, self.server_cores, answer))
            failed: dict[str, str] = {}
            bare = None
            if scenario.batching:
                bare = stack.enter_context(
                    runtime.Runtime(self.served.files[scenario.parts[0].model], self.server_cores)
                )
            if scenario.batching and 1 in connections_of(scenario, self.options):
                try:
                    unbatched = stack.enter_context(serving(UNBATCHED, self.served, self.server_cores))
                except FailedError as reason:
                    failed[UNBATCHED] = str(reason)
                else:
                    servers[UNBATCHED] = unbatched
            client_cores = self.client_cores
            if scenario.client_apart and not self.options.pin:
                server_cores, client_cores = apart()
                for server in servers.values():
                    stack.callback(server.pin, self.cores)
                    server.pin(server_cores or self.cores)
            failed |= self.check(scenario, asked, servers)
            self.rounds(scenario, asked, servers, failed, client_cores, bare)

    def check(self, scenario: Scenario, asked: loadgen.Asked, servers: dict[str, Server]) -> dict[str, str]:
        """Looks at the values of all answers under load; returns who cannot be measured, and why."""
        failed: dict[str, str] = {}
        connections = min(16, max(connections_of(scenario, self.options)))
        for name, server in servers.items():
            if scenario.binary and not PEERS[name].binary:
                failed[name] = "takes no binary tensors"
                continue
            self.say(f"{scenario.name}: checking the values of {name}", CHECK_S)
            try:
                loadgen.run(server.port, asked, connections, CHECK_S, warmup=0, check=name != "floor")
            except loadgen.WrongAnswer as wrong:
                failed[name] = str(wrong)
        return failed

    def rounds(
        self,
        scenario: Scenario,
        asked: loadgen.Asked,
        servers: dict[str, Server],
        failed: dict[str, str],
        client_cores: set[int] | None,
        bare: runtime.Runtime | None,
    ) -> None:
        """The measurements; they are added to the cells."""
        options, counts = self.options, connections_of(scenario, self.options)
        cells: dict[tuple[int, str, float | None], Cell] = {}
        for name, reason in failed.items():
            for connections in counts:
                cells[connections, name, None] = Cell(scenario.name, connections, name, failed=reason)
        order: list[tuple[float | None, int]] = [(None, connections) for connections in counts]
        order += [(load, open_loop_connections(counts)) for load in loads_of(scenario, options)]
        for number in range(options.rounds):
            for load, connections in order:
                for name, server in servers.items():
                    if name in failed or (load and PEERS[name].distant) or (name == UNBATCHED and connections > 1):
                        continue
                    cell = Cell(scenario.name, connections, name, load)
                    cell = cells.setdefault((connections, name, load), cell)
                    what = f"{scenario.name}: {number + 1}/{options.rounds}, {describe(cell)}"
                    self.say(what, step_s(options))
                    rates = [each["requests_per_s"] for each in cells[connections, name, None].rounds]
                    try:
                        rate = load * statistics.median(rates) if load else 0.0
                        cell.rounds.append(self.measure(server, asked, connections, rate, client_cores))
                    except (loadgen.WrongAnswer, subprocess.SubprocessError, statistics.StatisticsError) as error:
                        cell.failed = str(error)
            if bare:
                ours = cells.get((max(counts), "fastinfer", None))
                rate = ours.rounds[-1]["requests_per_s"] if ours and ours.rounds else 0.0
                self.say(f"{scenario.name}: {number + 1}/{options.rounds}, ONNX Runtime alone", runtime.planned_s(1))
                floor = servers.get("floor")
                traffic = (
                    partial(loadgen.run, floor.port, asked, 64, cores=client_cores, check=False) if floor else None
                )
                try:
                    bare.round(traffic, rate)
                except (OSError, ValueError) as error:  # its process has ended
                    self.absent["onnxruntime"], bare = f"{scenario.name}: {error}", None
        self.cells += [cell.summary() for cell in cells.values()]
        if bare:
            self.runtime.append({"scenario": scenario.name, "connections": max(counts), "rounds": bare.rounds})

    def measure(
        self, server: Server, asked: loadgen.Asked, connections: int, rate: float, cores: set[int] | None
    ) -> dict[str, Any]:
        """One measurement, and the server's CPU time in it."""
        options, single = self.options, len(asked) == 1 and not rate
        batched = batches.so_far(server.port) if server.name == "fastinfer" else None
        before = server.cpu_s()
        if single and options.client == "wrk":
            got = wrk(server.port, asked[0][1][0], connections, options.seconds, cores)
        else:
            check = server.name != "floor"
            got = loadgen.run(server.port, asked, connections, options.seconds, rate=rate, cores=cores, check=check)
        after = server.cpu_s()
        if rate:
            got["rate"] = rate
        for i, kind in enumerate(("user", "sys")):
            got[f"server_{kind}_us"] = (after[i] - before[i]) / max(1, got["answered"]) * 1e6  # a request
        if batched is not None:
            got["batches"] = batches.between(batched, batches.so_far(server.port))
        got["server_memory_bytes"] = server.memory_bytes()
        return got


def describe(cell: Cell) -> str:
    how = f"{cell.load:.0%} of peak, open loop" if cell.load else "closed loop"
    return f"{cell.connections} connections, {how}, {cell.server}"
