"""Everything at once: `python -m tests.fault.chaos [--minutes 10] [--processes 1 2] [--only NAME ...] [--seed N]`.

A client that does nothing wrong (healthy.py) asks a server twice: first beside honest actors, which is the control,
then beside hostile ones (actors.py): loads that fail and hang, restarts, disks that die, bombs, clients that leave. All
its answers must be right, and its 99th percentile at most twice the control's. No process may be lost, and memory must
stay inside the budget. Then, while the hanging files are still there, the server must be able to do its work: load,
replace a killed process, restart, end.

Why the control is not the server alone: on a machine of few cores everything shares them, so even honest requests of
others cost latency. An honest actor sends as many bytes at the same times as the hostile one, and reads the answers;
good loads, restarts and scrapes come in both runs. The difference that remains is what the hostile content adds, and
only that can a server prevent. The latency alone is shown too, but not judged. Actors run at the lowest priority
(nice 19) in both runs, and their bodies are made beforehand, so that the kernel prefers the server and the healthy
client: a real attacker has a machine of its own, and takes no processor time from them.

Memory: a serving process may grow by its budget for requests (`--in-flight-bytes`) and an allowance: what the
allocators keep, the runtime's own memory, and images that are decoded. All processes together live in a container of
4 GiB: if they need more, the largest one is killed, as the kernel would do, and counts as lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.load.machine import surroundings
from bench.load.run import RESULTS
from bench.load.tables import table
from tests.fault import actors, healthy
from tests.fault.actors import Actor, Arena, HangingLoads
from tests.fault.subject import Subject, fds, rss, seconds_until, threads
from tests.fault.trial import MIB, Trial, outcome
from tests.fault.work import process_s
from tests.support import REPOSITORY

MOUNT = Path(__file__).with_name("mount.cpp")
LOGS = REPOSITORY.parent / "build" / "chaos"
BUDGET_BYTES = 512 * MIB
ALLOWANCE_BYTES = 384 * MIB
CONTAINER_BYTES = 4096 * MIB
MOST_TIMES = 2.0  # the control's latency
ENDS_S = 25.0
GRACE_S = 12.0  # for an actor's last step
KINDS = ("answered", "failed", "p50_ms", "p99_ms", "p99_9_ms", "p100_ms")
HEALTHY = tuple(healthy.MODELS)


class Chaos(Subject):
    """A server in a chaos: its log may be long."""

    def whole_log(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def processes(self) -> list[int]:
        return [self.pid, *self.children()]


@contextlib.contextmanager
def arena(processes: int, fillers: int, full: bool) -> Iterator[tuple[Chaos, Arena]]:
    """A server with all models, and what actors need to know of it."""
    made, configs = actors.models(fillers)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        repository = Path(directory, "repository")
        for name, model in {**healthy.MODELS, **made}.items():
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "1" / "model.onnx").write_bytes(model)
            if name in configs:
                (repository / name / "config.toml").write_text(configs[name])
        control, env = _preloaded(Path(directory))
        options = ("--model-control", "poll", "--poll-interval-s", "1", "--in-flight-bytes", str(BUDGET_BYTES))
        server = Chaos(*options, repository=repository, processes=processes, env=env)
        try:
            server.load("base64_decode")
            yield server, Arena(server.port, server.pid, repository, control, HEALTHY, actors.bodies(full), full)
        finally:
            LOGS.mkdir(parents=True, exist_ok=True)
            (LOGS / f"processes-{processes}.log").write_text(server.whole_log())
            HangingLoads.release(repository)
            server.kill()


def _preloaded(directory: Path) -> tuple[Path | None, dict[str, str]]:
    if sys.platform != "linux" or shutil.which("g++") is None:
        return None, {}
    library, control = directory / "mount.so", directory / "control"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-o", library, MOUNT, "-ldl"], check=True)
    control.write_bytes(bytes(actors.CONTROL_BYTES))
    return control, {"LD_PRELOAD": str(library), "FAULT_MOUNT_CONTROL": str(control)}


# --- The actors' processes --------------------------------------------------------------------------------------------


def _act(kind: type[Actor], where: Arena, honest: bool, seed: str, seconds: float, results: Connection) -> None:
    """Runs in a process of its own."""
    os.nice(19)
    actor = kind(where, honest, random.Random(seed))

    def end(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, which ends its actors
    error = ""
    try:
        actor.run(seconds)
    except SystemExit:
        actor.seen["was cut in a step"] += 1
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    results.send({"seen": dict(actor.seen), "events": actor.events, "error": error})
    results.close()
    os._exit(0)  # what the parent has prepared is the parent's to end


@contextlib.contextmanager
def acting(
    kinds: Sequence[type[Actor]], where: Arena, honest: bool, seed: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Actors during a block; what they have seen stands in the dict afterwards."""
    context = multiprocessing.get_context("fork")
    running = []
    for kind in kinds:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_act, args=(kind, where, honest, f"{seed} {kind.name}", seconds, theirs))
        process.start()
        theirs.close()
        running.append((kind, process, mine))
    seen: dict[str, Any] = {}
    try:
        yield seen
    finally:
        end = time.monotonic() + GRACE_S
        for kind, process, results in running:
            # Read before the process is waited for: its report may be larger than the pipe.
            if not results.poll(max(0.0, end - time.monotonic())):
                process.terminate()
            try:
                seen[kind.name] = results.recv() if results.poll(5) else {"error": "it did not end"}
            except EOFError:
                seen[kind.name] = {"error": "it has ended without a report"}
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


class Watch(threading.Thread):
    """Looks at the server's processes ten times a second; kills the largest when they outgrow their container."""

    def __init__(self, server: Chaos) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._ended = threading.Event()
        self.largest = self.largest_total = self.killed = 0

    def run(self) -> None:
        while not self._ended.wait(0.1):
            with contextlib.suppress(OSError):
                self._look()

    def _look(self) -> None:
        children = self._server.children()
        sizes = {pid: rss(pid) for pid in [self._server.pid, *children]}
        self.largest = max(self.largest, *(sizes[pid] for pid in children), 0)
        self.largest_total = max(self.largest_total, sum(sizes.values()))
        if sum(sizes.values()) > CONTAINER_BYTES:
            os.kill(max(sizes, key=lambda pid: sizes[pid]), signal.SIGKILL)
            self.killed += 1
            self._ended.wait(0.5)

    def end(self) -> None:
        self._ended.set()
        self.join()


def ask_healthily(port: int, seconds: float, seed: int) -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.fault.healthy", str(port), str(seconds), str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 3 * healthy.PATIENCE_S)
    assert done.returncode == 0, done.stderr[-1000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


# --- The run ----------------------------------------------------------------------------------------------------------


def chaos(
    trial: Trial,
    processes: int,
    control_s: float,
    chaos_s: float,
    kinds: Sequence[type[Actor]],
    seed: int,
    details: dict[str, Any],
) -> None:
    """One server: control, chaos, and what it can do afterwards; fills in the details of what was seen."""
    fillers = trial.count(100, 20)
    with arena(processes, fillers, not trial.quick) as (server, where):
        if where.control is None:
            kinds = [kind for kind in kinds if kind is not actors.Mounts]
            trial.tell("no failing mounts, since there is no g++", 1)
        say(f"{processes} processes: alone and control, {control_s:g} s")
        ask_healthily(server.port, 2, seed)
        alone = ask_healthily(server.port, max(2.0, control_s / 4), seed + 1)
        with acting(kinds, where, True, seed, control_s) as honest:
            control = ask_healthily(server.port, control_s, seed + 2)
        _wait_idle(server)
        before = _gauges(server)
        base = max(map(rss, server.children()), default=0)
        deaths, withdrawn = _deaths(server), _withdrawn(server)
        say(f"chaos, {chaos_s:g} s")
        with acting(kinds, where, False, seed, chaos_s) as hostile:
            watch = Watch(server)
            watch.start()
            beside = ask_healthily(server.port, chaos_s, seed + 3)
        _restore(where)
        watch.end()
        details |= {"alone": alone, "control": control, "chaos": beside, "honest": honest, "hostile": hostile}
        _judge_clients(trial, alone, control, beside)
        trial.equal("serving processes that were lost", _deaths(server) - deaths, 0)
        trial.tell("processes that were withdrawn since they differed", _withdrawn(server) - withdrawn)
        trial.equal("times that the container's memory was used up", watch.killed, 0)
        trial.most("MiB that a process took above its base, at most", (watch.largest - base) / MIB,
                   (BUDGET_BYTES + ALLOWANCE_BYTES) / MIB)  # fmt: skip
        trial.tell("MiB of all processes together, at most", watch.largest_total / MIB)
        trial.equal("actors that failed by themselves", sum(bool(each["error"]) for each in hostile.values()), 0)
        _judge_loads(trial, hostile)
        _judge_answers(trial, hostile)
        if server.process.poll() is not None:
            trial.equal("exit status of a server that was not ended", server.process.returncode, 0)
            raise AssertionError(f"the server has ended in the chaos: {server.whole_log()[-800:]}")
        say("what the server can do afterwards")
        _judge_recovery(trial, server, where, seed)
        HangingLoads.release(where.repository)
        _judge_rest(trial, server, before)


def say(what: str) -> None:
    if __name__ == "__main__":
        print(time.strftime("%H:%M:%S"), what, file=sys.stderr)


def _judge_clients(trial: Trial, alone: dict[str, Any], control: dict[str, Any], beside: dict[str, Any]) -> None:
    trial.equal("failed healthy requests in the control", control["all"]["failed"], 0)
    trial.equal("failed healthy requests in the chaos", beside["all"]["failed"], 0)
    trial.tell("exact answers in the chaos", beside["all"]["answered"])
    for kind in ("all", *healthy.KINDS):
        first, second = (each["all"] if kind == "all" else each["kinds"][kind] for each in (control, beside))
        trial.most(f"{kind}: p99 in the chaos ({second['p99_ms']:.3g} ms), times the control's", _times(
            second["p99_ms"], first["p99_ms"]), MOST_TIMES, timed=True)  # fmt: skip
    trial.tell("p99.9 of all, times the control's", _times(beside["all"]["p99_9_ms"], control["all"]["p99_9_ms"]))
    trial.tell("p99 of all, times alone", _times(beside["all"]["p99_ms"], alone["all"]["p99_ms"]))
    trial.tell("ms, the longest", beside["all"]["p100_ms"])


def _times(value: float, control: float) -> float:
    return float("inf") if math.isnan(value) or not control > 0 else value / control


def _judge_loads(trial: Trial, hostile: dict[str, Any]) -> None:
    """Others' loads, which need nothing that fails."""
    events = hostile.get(actors.WorkerLoads.name, {}).get("events", [])
    seen = hostile.get(actors.WorkerLoads.name, {}).get("seen", {})
    trial.equal("worker loads and unloads not answered with 200", sum(
        count for what, count in seen.items() if not what.endswith("load 200")), 0)  # fmt: skip
    trial.tell("worker loads and unloads", sum(seen.values()))
    trial.tell("seconds of a load and unload, the longest", max((took for _, _, took in events), default=0))


def _judge_answers(trial: Trial, hostile: dict[str, Any]) -> None:
    """Those who wait for an answer get one, however bad their request is, and it is no internal error."""
    words = [
        (word, count)
        for kind in (actors.Bombs, actors.BombBursts, actors.Images, actors.ControlBodies, actors.ModelLoads)
        for what, count in hostile.get(kind.name, {}).get("seen", {}).items()
        for word in what.split()
    ]
    trial.equal("requests of actors without an answer", sum(count for word, count in words if word == "0"), 0)
    trial.equal("those answered with 500", sum(count for word, count in words if word == "500"), 0)


def _judge_recovery(trial: Trial, server: Chaos, where: Arena, seed: int) -> None:
    """What a server is for, while the files that hang are still there."""
    patience_s = trial.count(60, 20)
    trial.most("seconds until it computes nothing", _wait_idle(server, patience_s), 5, timed=True)
    for path in ("workers/echo/load", "models/spare0/load"):
        status = _status(server, f"/v2/{path}", patience_s)
        trial.equal(f"status of {path} in {patience_s} s", status, 200)
    victim, *others = server.children()
    count, loads = len(others) + 1, _loads(server)
    os.kill(victim, signal.SIGKILL)
    trial.most("seconds until a killed process is replaced", seconds_until(
        lambda: _loads(server) > loads and _serves(server, {victim}, count), patience_s), patience_s)  # fmt: skip
    time.sleep(1)  # it has loaded its models, and takes part a moment later: until then SIGHUP takes it for a new one
    old = set(server.children())
    server.process.send_signal(signal.SIGHUP)
    trial.most("seconds until SIGHUP has replaced all", seconds_until(
        lambda: _serves(server, old, count), patience_s), patience_s)  # fmt: skip
    after = ask_healthily(server.port, 2, seed + 4)
    trial.equal("failed healthy requests afterwards", after["all"]["failed"], 0)
    missing = [name for name in where.healthy if server.get(f"/v2/models/{name}/ready").status != 200]
    trial.equal("models that were lost", len(missing), 0)


def _judge_rest(trial: Trial, server: Chaos, before: dict[str, int]) -> None:
    """All is given back."""
    seconds_until(lambda: server.metric("fastinfer_in_flight_bytes") == 0, 5)
    trial.equal("bytes in flight at the end", server.metric("fastinfer_in_flight_bytes"), 0)
    seconds_until(lambda: all(now <= before[name] for name, now in _gauges(server).items()), 10)
    for name, now in _gauges(server).items():
        trial.most(f"{name} more than after the control", now - before[name], 0)
    began = time.monotonic()
    server.process.terminate()
    took = seconds_until(lambda: server.process.poll() is not None, 2 * ENDS_S)
    trial.equal("exit status", server.process.returncode if took < float("inf") else -1, 0)
    trial.most("seconds from SIGTERM to the end", time.monotonic() - began, ENDS_S)


def _status(server: Chaos, path: str, patience_s: float) -> int:
    """Of a load; 0 if it is not answered in time."""
    connection = server.connect()
    connection.timeout = patience_s
    with contextlib.closing(connection):
        try:
            connection.request("POST", path)
            return connection.getresponse().status
        except OSError:
            return 0


def _loads(server: Chaos) -> int:
    """How often a process has logged that it loads or serves the models that are always there."""
    log = server.whole_log()
    return log.count("'simple' version 1: ") + log.count(" models change;")


def _serves(server: Chaos, old: set[int], count: int) -> bool:
    """As many processes as before, none of the old ones, and all models are there."""
    now = server.children()
    try:
        return len(now) == count and not old & set(now) and server.get("/v2/health/ready").status == 200
    except OSError:
        return False


def _deaths(server: Chaos) -> int:
    """How often the log says that a process has ended by itself, or was killed because it stood still."""
    log = server.whole_log()
    return log.count(" has ended: ") + log.count(" has not started in ")


def _withdrawn(server: Chaos) -> int:
    """How often a process served something else than the others."""
    return server.whole_log().count(" does not serve the same models as the others")


def _gauges(server: Chaos) -> dict[str, int]:
    """Files and threads: of the supervisor, and of the serving process that has most."""
    seconds_until(lambda: bool(server.children()), 5)
    return {
        "open files of the supervisor": fds(server.pid),
        "threads of the supervisor": threads(server.pid),
        "open files of a process": max(map(fds, server.children()), default=0),
        "threads of a process": max(map(threads, server.children()), default=0),
    }


def _wait_idle(server: Chaos, patience_s: float = 60.0) -> float:
    """Until the processes together take less than a fifth of a core for half a second: a poll looks at the disk."""
    began = time.monotonic()
    while (at := time.monotonic()) - began < patience_s:
        try:
            before = {pid: process_s(pid) for pid in server.processes()}
            time.sleep(0.5)
            if sum(process_s(pid) - took for pid, took in before.items()) < 0.1:
                return at - began
        except OSError:  # one has ended meanwhile
            time.sleep(0.1)
    return float("inf")


def _restore(where: Arena) -> None:
    """What an actor that was ended by force has left."""
    if where.control is not None:
        with where.control.open("r+b") as file:
            file.write(bytes(8))
    aside = where.repository.parent / "aside"
    if aside.exists() and not where.repository.is_dir():
        where.repository.unlink(missing_ok=True)
        aside.rename(where.repository)


def row(trial: Trial) -> None:
    """The short form, as a row of the faults."""
    chaos(trial, 2, trial.count(20, 4), trial.count(60, 8), actors.ACTORS, 1, {})


# --- The command ------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Lets everything happen at once, and judges what others notice.")
    parser.add_argument("--minutes", type=float, default=10, help="of the chaos, for each server; default: 10")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of each server; default: 1 2")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*actors.BY_NAME], help="these actors alone")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", choices=[*actors.BY_NAME])
    parser.add_argument("--signals", action="store_true", help="send SIGUSR1 and SIGUSR2 too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="the JSON file; default: a new one in bench/results/")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> list[type[Actor]]:
    kinds = [*actors.ACTORS, *(actors.OPTIONAL if options.signals else ())]
    if options.only:
        kinds = [actors.BY_NAME[name] for name in options.only]
    return [kind for kind in kinds if kind.name not in options.without]


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    parts = ["# Chaos"]
    for each in result["servers"]:
        parts.append(f"## {each['processes']} serving processes: {each['verdict']}")
        if "reason" in each:
            parts.append(each["reason"])
        rows = [
            [f["what"], f"{f['value']:,.6g}", f["required"], {True: "", False: "**no**", None: "-"}[f["met"]]]
            for f in each["figures"]
        ]
        parts.append(table(["figure", "value", "required", "met"], rows))
        if "control" in each:
            parts.append(_latencies(each))
            parts.append(_actors(each))
    machine = result["machine"]
    parts.append(
        f"- {result['time']}, commit {result['commit'] or 'unknown'}, took {result['took_s']} s, "
        f"seed {result['seed']}, {result['minutes']:g} minutes of chaos for each server.\n"
        f"- {machine['cores']} cores of {machine['cpu']}, kernel {machine['kernel']}, load before "
        f"{machine['load_before']:.1f}.\n"
        "- Method: docstring of tests/fault/chaos.py."
    )
    return "\n\n".join(parts)


def _latencies(each: dict[str, Any]) -> str:
    rows = []
    for kind in ("all", *healthy.KINDS):
        for phase in ("alone", "control", "chaos"):
            figures = each[phase]["all"] if kind == "all" else each[phase]["kinds"][kind]
            rows.append([kind, phase, *(f"{figures[name]:,.6g}" for name in KINDS)])
    failures = [text for seen in each["chaos"]["kinds"].values() for text in seen["failures"]][:20]
    shown = "\n".join(f"- {text}" for text in failures).replace("|", "/")
    return table(["healthy requests", "beside", *KINDS], rows) + ("\n\nFailed:\n\n" + shown if failures else "")


def _actors(each: dict[str, Any]) -> str:
    rows = []
    for name, hostile in each["hostile"].items():
        seen = sorted(hostile.get("seen", {}).items(), key=lambda pair: -pair[1])[:12]
        rows.append([name, ", ".join(f"{what}: {count}" for what, count in seen) + hostile["error"]])
    return table(["actor", "what came of it"], rows)


def main() -> int:
    options = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kinds = chosen(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server and the actors are ended on every way out
    quick = options.minutes < 2  # too few requests for a percentile
    options.rounds, options.seconds, options.pin, options.client, options.quick = 1, 0, False, "healthy", quick
    result = {**surroundings(options), "seed": options.seed, "minutes": options.minutes, "servers": []}
    began = time.monotonic()
    chaos_s = 60 * options.minutes
    for processes in options.processes:
        trial = Trial(quick, 0)
        details: dict[str, Any] = {}
        with outcome(trial) as seen:
            control_s = min(120.0, max(4.0, chaos_s / 4))
            chaos(trial, processes, control_s, chaos_s, kinds, options.seed, details)
        result["servers"].append({"processes": processes, **seen, **details})
    result["took_s"] = round(time.monotonic() - began)
    stamp = result["time"].replace(":", "").split("+")[0] + "-chaos" + ("-quick" if quick else "")
    output = options.output or RESULTS / f"{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    for each in result["servers"]:
        for phase in {"honest", "hostile"} & each.keys():
            events = {name: seen.pop("events", []) for name, seen in each[phase].items()}
            file = LOGS / f"processes-{each['processes']}.{phase}"
            file.write_text("\n".join(actors.lines(events)) + "\n")
    output.write_text(json.dumps(result, indent=1) + "\n")
    text = report(result)
    output.with_suffix(".md").write_text(text + "\n")
    print(text)
    print(f"\nlogs and events: {LOGS}", file=sys.stderr)
    print(f"\n{output}", file=sys.stderr)
    return int(any(each["verdict"] == "failed" for each in result["servers"]))


if __name__ == "__main__":
    sys.exit(main())
