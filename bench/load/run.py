"""Measures servers against each other, closed loop: `python bench/load/run.py [--quick]`.

For each scenario all servers are started and their answers' values checked under load; then they are measured in turn,
round after round, so that a slow minute of the machine hurts all of them. Reported are medians over the rounds. Each
run writes one JSON file into bench/results/ with all that is needed to repeat it, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import runpy
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import client
from scenarios import SCENARIOS, Case, Scenario, cases

ROOT = Path(__file__).resolve().parents[2]
LARGE_MODELS = ROOT / "build" / "bench-models"
REPOSITORIES = [ROOT / "model-repository", LARGE_MODELS]
PEERS = ROOT / "bench" / "peers"
METHOD = (
    "closed loop, one process per server, servers in turn in every round, medians over rounds; values checked first"
)


# --- Servers ---------------------------------------------------------------------------------------------------------


def command(server: str, port: int, answer: Path) -> list[str]:
    """How a server is started. `answer` holds what the floor answers."""
    repositories = [str(path) for path in REPOSITORIES]
    match server:
        case "floor":
            return [sys.executable, str(PEERS / "floor.py"), str(port), str(answer)]
        case "naive":
            return [sys.executable, str(PEERS / "naive.py"), str(port), *repositories]
        case "fastinfer":
            options = [word for path in repositories for word in ("--model-repository", path)]
            return [sys.executable, "-m", "fastinfer", "serve", *options, "--port", str(port)]
    raise SystemExit(f"unknown server: {server}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serving(server: str, answer: Path, cores: set[int] | None) -> Iterator[int]:
    """A server that is ready, on the port given; ended afterwards."""
    port = free_port()
    pin = partial(os.sched_setaffinity, 0, cores) if cores else None
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(server, port, answer), cwd=ROOT, stdout=log, stderr=log, preexec_fn=pin)
        try:
            end = time.monotonic() + 60
            while not ready(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"{server} does not become ready:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- One measurement -------------------------------------------------------------------------------------------------

LUA = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{{"requests_per_s":%.1f,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d,"errors":%d}}',
    summary.requests / summary.duration * 1e6, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency.max, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def measure(
    port: int, path: str, case: Case, connections: int, seconds: float, cores: set[int] | None
) -> dict[str, Any]:
    """Rate and latencies of one request asked again and again, by wrk or else by our own client."""
    if not shutil.which("wrk"):
        latencies = sorted(client.run(port, path, [case], connections, seconds))
        share = {name: latencies[int(part * (len(latencies) - 1))] for name, part in PERCENTILES.items()}
        return (
            {"requests_per_s": len(latencies) / seconds} | {k: round(v * 1e6) for k, v in share.items()} | {"errors": 0}
        )
    with tempfile.TemporaryDirectory() as directory:
        body, script = Path(directory, "body.json"), Path(directory, "ask.lua")
        body.write_bytes(case.body)
        script.write_text(LUA.format(body=body))
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(script)]
        pin = partial(os.sched_setaffinity, 0, cores) if cores else None
        result = subprocess.run(
            [*words, f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, text=True, preexec_fn=pin
        )
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


PERCENTILES = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "max_us": 1.0}


def run_scenario(scenario: Scenario, options: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All servers, all numbers of connections, all rounds of one scenario."""
    asked = cases(scenario, REPOSITORIES)
    path = f"/v2/models/{scenario.model}/infer"
    server_cores, client_cores = ({0}, {1}) if options.pin else (None, None)
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        answer = Path(stack.enter_context(tempfile.TemporaryDirectory()), "answer.json")
        answer.write_bytes(asked[0].answer())
        ports = {name: stack.enter_context(serving(name, answer, server_cores)) for name in options.servers}
        for server, port in ports.items():
            say(f"{scenario.name}: checking the values of {server}")
            checked = asked[:1] if server == "floor" else asked
            try:
                client.run(port, path, checked, max(scenario.connections), 0.5)
            except ValueError as wrong:
                raise SystemExit(f"{server}, {scenario.name}: {wrong}") from None
        for number in range(options.rounds):
            for connections in options.connections or scenario.connections:
                for server, port in ports.items():
                    say(f"{scenario.name}: round {number + 1}/{options.rounds}, {connections} connections, {server}")
                    measured = measure(port, path, asked[0], connections, options.seconds, client_cores)
                    rows.setdefault((connections, server), []).append(measured)
    return [
        {
            "scenario": scenario.name,
            "connections": connections,
            "server": server,
            "median": {key: statistics.median(each[key] for each in rounds) for key in rounds[0] if key != "errors"},
            "errors": sum(each["errors"] for each in rounds),
            "rounds": rounds,
        }
        for (connections, server), rounds in rows.items()
    ]


# --- The report ------------------------------------------------------------------------------------------------------


def output_of(*words: str) -> str:
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    wrk = (output_of("wrk", "-v").splitlines() or ["not installed: own client"])[0]
    packages = ["fastinfer", "numpy", "onnxruntime", "uvloop", "httptools", "orjson", "cython"]
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": (cpu or [platform.processor()])[0],
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
        },
        "versions": {"python": platform.python_version(), "wrk": wrk}
        | {name: installed.get(name, "not installed") for name in packages},
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "flags": {
            name: value for name, value in os.environ.items() if name.startswith("FASTINFER_") or name == "CFLAGS"
        },
        "method": {"summary": METHOD}
        | {name: getattr(options, name) for name in ("rounds", "seconds", "pin", "servers")},
    }


def table(results: Sequence[dict[str, Any]], servers: Sequence[str]) -> str:
    """Requests per second and p99, a row for each scenario and number of connections; ratios to the other servers."""
    found = {(each["scenario"], each["connections"], each["server"]): each for each in results}
    others = [server for server in servers if server != "fastinfer"] if "fastinfer" in servers else []
    heads = [*(f"{server} req/s (p50, p99 µs)" for server in servers), *(f"fastinfer / {other}" for other in others)]
    lines = [["scenario", "connections", *heads], ["---"] * (len(heads) + 2)]
    for scenario, connections in dict.fromkeys((each["scenario"], each["connections"]) for each in results):
        cell = {server: found[scenario, connections, server]["median"] for server in servers}
        cells = [f"{m['requests_per_s']:,.0f} ({m['p50_us']:,.0f}, {m['p99_us']:,.0f})" for m in cell.values()]
        ratios = [f"{cell['fastinfer']['requests_per_s'] / cell[other]['requests_per_s']:.2f}" for other in others]
        lines.append([scenario, str(connections), *cells, *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures fastinfer and other servers on the same work.")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--servers", nargs="+", default=["floor", "naive", "fastinfer"], metavar="NAME")
    parser.add_argument("--scenarios", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--connections", nargs="+", type=int, help="instead of each scenario's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--pin", action="store_true", help="servers on core 0, the client on core 1")
    parser.add_argument("--quick", action="store_true", help="one round of one second; a look, not a result")
    parser.add_argument("--output", type=Path, help="default: a new file in bench/results/")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1
    return options


def main() -> int:
    options = arguments()
    if not (LARGE_MODELS / "mlp_large").exists():
        print(f"making the larger models in {LARGE_MODELS.relative_to(ROOT)}", file=sys.stderr)
        runpy.run_path(str(ROOT / "bench" / "make_models.py"))["make"](LARGE_MODELS, ["mlp", "mlp_large"])
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {text}", file=sys.stderr, flush=True)

    report: dict[str, Any] = surroundings(options) | {"results": []}
    for scenario in SCENARIOS:
        if scenario.name in options.scenarios:
            report["results"] += run_scenario(scenario, options, say)
    stamp = report["time"].replace(":", "").split("+")[0]
    output = options.output or ROOT / "bench" / "results" / f"{stamp}{'-quick' if options.quick else ''}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["results"], options.servers))
    print(f"\n{output}", file=sys.stderr)
    errors = sum(each["errors"] for each in report["results"])
    if errors:
        print(f"{errors} errors: see the file", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
