"""Work that costs more than it should, that nobody waits for, or that takes what others need.

The notion behind all of it: each piece of work has an owner, a deadline from arrival, a byte count and a share. What
bombs cost is compared with an honest request of as many bytes as the server may be expected to inflate of them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.load.servers import read
from bench.make_models import product_chain
from tests import onnx_models
from tests.fault import bombs
from tests.fault.bombs import Bomb
from tests.fault.clients import connect, post, reset
from tests.fault.load import Kind, failed, infer, load
from tests.fault.subject import Subject, peak_rss, repository_of, rss, seconds_until, subject, wait_for
from tests.fault.trial import CORES, KIB, MIB, Trial
from tests.support import inference, tensor

THREADS = 2 * CORES  # the server's default
MOST = 10  # times what is fair, of memory and of processor time
PATIENCE_S = 60.0


def ask(port: int, message: bytes) -> int:
    """Sends a request and reads its answer without keeping it: the status, 0 if there is no answer."""
    return ask_all(port, [message])[0]


def ask_all(port: int, messages: Sequence[bytes]) -> list[int]:
    """The same of several requests, which are all sent before the first answer is read."""
    with contextlib.ExitStack() as stack:
        socks = []
        for message in messages:
            socks.append(stack.enter_context(connect(port)))
            socks[-1].settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):  # a refusal may come before the body is sent
                socks[-1].sendall(message)
        return [_status(sock) for sock in socks]


def _status(sock: socket.socket) -> int:
    try:
        start = sock.recv(64 * KIB)
        while b"\r\n\r\n" not in start:
            more = sock.recv(64 * KIB)
            if not more:
                return 0
            start += more
        text, _, body = start.partition(b"\r\n\r\n")
        size = next((int(line[15:]) for line in text.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        left, buffer = size - len(body), bytearray(MIB)
        while left > 0:
            count = sock.recv_into(buffer, min(left, MIB))
            if not count:
                return 0
            left -= count
        return int(start[9:12])
    except OSError:
        return 0


def process_s(pid: int) -> float:
    """Processor time of a process with all its threads, those that have ended included, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED of <linux/posix-timers.h>


def wait_idle(pid: int, patience_s: float = PATIENCE_S) -> float:
    """Waits until a process computes nothing for 0.3 s; how long it took until then. Infinite if it goes on.

    A thread of low priority may get no time for longer than that on a busy machine, but it is seen to want it.
    """
    end = time.monotonic() + patience_s
    began = idle_from = time.monotonic()
    before_s = process_s(pid)
    while (now := time.monotonic()) < end:
        if process_s(pid) - before_s > 0.005 or _wants_a_core(pid):
            before_s, idle_from = process_s(pid), now
        if now - idle_from > 0.3:
            return idle_from - began
        time.sleep(0.02)
    return float("inf")


def _wants_a_core(pid: int) -> bool:
    """Whether a thread runs or could run."""
    stats = (read(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir())
    return any(stat.rpartition(") ")[2].startswith("R") for stat in stats)


@contextlib.contextmanager
def target(*options: str) -> Iterator[Subject]:
    """A server with the models that bombs are sent to."""
    with repository_of(bombs.MODELS) as repository, subject(*options, repository=repository) as server:
        server.load("base64_decode")
        for encoding in ("", "gzip"):  # what is made once and kept is not what a bomb costs
            assert ask(server.port, bombs.honest(encoding, MIB).message) == 200
        yield server


# --- What a bomb costs ------------------------------------------------------------------------------------------------


def cost(server: Subject, message: bytes) -> tuple[int, float, float]:
    """A request's status, the most bytes that it took, and its processor time, of a server that is idle."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # forgets the peak
    before, before_s = rss(server.pid), process_s(server.pid)
    status = ask(server.port, message)
    wait_idle(server.pid)
    return status, max(0, peak_rss(server.pid) - before), process_s(server.pid) - before_s


def _honest_s(server: Subject, encoding: str) -> tuple[float, float]:
    """Processor time of honest requests: of each, and of each byte."""
    small, large = MIB, 8 * MIB
    at = []
    for size in (small, large):
        made = bombs.honest(encoding, size)
        costs = [cost(server, made.message) for _ in range(3)]
        assert {status for status, _, _ in costs} == {200}, costs
        at.append(statistics.median(seconds for _, _, seconds in costs))
    per_byte = max(0.0, at[1] - at[0]) / (large - small)
    return max(0.0, at[0] - per_byte * small), per_byte


def _set_of_bombs(trial: Trial) -> Iterator[Bomb]:
    """Each kind in several sizes and encodings."""
    sizes = [("gzip", 16)] if trial.quick else [("gzip", 64), ("gzip", 6), ("deflate", 32), ("deflate of zlib", 12)]
    for kind in bombs.KINDS:
        for encoding, mib in sizes:
            yield bombs.bomb(kind, encoding, mib * MIB)
        if kind not in ("zeros", "depth"):
            yield bombs.bomb(kind, "", trial.count(8, 4) * MIB)


def bomb_costs(trial: Trial) -> None:
    """Each kind of bomb by itself: memory and processor time, against what is fair."""
    with target() as server:
        wait_idle(server.pid)
        honest_s = {encoding: _honest_s(server, encoding) for encoding in ("", "gzip")}
        memory: list[tuple[float, str]] = []
        cpu: list[tuple[float, str]] = []
        unanswered = 0
        for each in _set_of_bombs(trial):
            base_s, per_byte_s = honest_s["" if each.received == each.inflated else "gzip"]
            status, peak, took_s = cost(server, each.message)
            unanswered += status == 0
            described = (
                f"{each.kind} ({each.received // KIB} KiB sent, status {status}, {peak // MIB} MiB, {took_s:.2g} s)"
            )
            memory.append((max(0, peak - MIB) / each.fair_bytes, described))
            cpu.append((took_s / (base_s + per_byte_s * each.fair_bytes), described))
        _worst(trial, "memory beyond 1 MiB, times the bytes that are fair to inflate", memory)
        _worst(trial, "processor time, times an honest request of as many bytes", cpu)
        trial.equal("bombs without an answer", unanswered, 0)
        trial.tell("bombs", len(cpu))
        trial.equal("bytes in flight at the end", server.metric("fastinfer_in_flight_bytes"), 0)
        trial.equal("server processes that ended", float(server.process.poll() is not None), 0)


def _worst(trial: Trial, what: str, ratios: Sequence[tuple[float, str]]) -> None:
    """Judges the worst, and each other one that is too much."""
    for place, (ratio, described) in enumerate(sorted(ratios, reverse=True)):
        if place == 0 or ratio > MOST:
            trial.most(f"{what}: {described}", ratio, MOST)


# --- Clients that have gone -------------------------------------------------------------------------------------------


def leave(port: int, messages: Sequence[bytes], stay: Callable[[], object]) -> None:
    """Clients that send a whole request each, all at once, and are gone after a while, which `stay` spends."""
    socks: list[socket.socket] = []
    for message in messages:
        sock = connect(port)
        with contextlib.suppress(OSError):
            sock.sendall(message)
        socks.append(sock)
    stay()
    for place, sock in enumerate(socks):
        (reset if place % 2 else socket.socket.close)(sock)


def _slowest_s(port: int, message: bytes, count: int) -> tuple[float, int]:
    """The longest of several requests, one after the other, and how many were not answered with 200."""
    slowest, wrong = 0.0, 0
    for _ in range(count):
        began = time.monotonic()
        wrong += ask(port, message) != 200
        slowest = max(slowest, time.monotonic() - began)
    return slowest, wrong


def stays(seconds: float) -> Callable[[], None]:
    return partial(time.sleep, seconds)


def _left(trial: Trial, server: Subject, what: str, messages: Sequence[bytes], stay: Callable[[], object]) -> None:
    """Has clients leave; how long honest requests take right after it, and how long the server computes on."""
    wait_idle(server.pid)
    before_s = process_s(server.pid)
    leave(server.port, messages, stay)
    worst, wrong = 0.0, 0
    for encoding in ("gzip", ""):
        took, failures = _slowest_s(server.port, bombs.honest(encoding, 200 * KIB).message, 3)
        worst, wrong = max(worst, took), wrong + failures
    trial.most(f"{what}: seconds of an honest request after it, the longest", worst, 1, timed=True)
    trial.equal(f"{what}: honest requests not answered with 200", wrong, 0)
    trial.most(f"{what}: seconds until the server is idle", wait_idle(server.pid), 1, timed=True)
    trial.tell(f"{what}: seconds of processor time", process_s(server.pid) - before_s)
    trial.most(f"{what}: seconds until no byte is in flight", seconds_until(
        lambda: server.metric("fastinfer_in_flight_bytes") == 0), 1, timed=True)  # fmt: skip


def gone_bombs(trial: Trial) -> None:
    """Compressed bodies whose clients do not wait for the answer."""
    with target() as server:
        for kind, encoding, mib in (("wrong datatype", "gzip", 64), ("spaces", "deflate", 48), ("inputs", "gzip", 32)):
            made = bombs.bomb(kind, encoding, mib * MIB)
            _left(trial, server, made.kind, [made.message] * trial.count(60, 12), stays(0.2))
        large = bombs.honest("gzip", 32 * MIB)
        _left(trial, server, f"{large.kind}, of fair ratio", [large.message] * trial.count(12, 4), stays(0.2))


def gone_work(trial: Trial) -> None:
    """Decoding, classifying and encoding for clients that have gone: as many as native threads, twice."""
    with target() as server:
        count = trial.count(4 * THREADS, 2 * THREADS)
        size = trial.count(48, 24) * MIB
        for kind in ("long numbers", "short numbers", "classes", "escaped strings"):
            made = bombs.bomb(kind, "", size // 4)
            messages = [made.message] * count
            _left(trial, server, f"{made.kind}, while decoded", messages, stays(0.02))
            wait_idle(server.pid)
            _left(trial, server, f"{made.kind}, while run or encoded", messages, partial(
                _wait_for_runs, server, made.model, server.runs(made.model) + THREADS - 1))  # fmt: skip


def _wait_for_runs(server: Subject, model: str, count: int) -> None:
    """Until some have run, so that their outputs are being classified and encoded."""
    seconds_until(lambda: server.runs(model) >= count, 5)


# --- Images -----------------------------------------------------------------------------------------------------------


def images(trial: Trial) -> None:
    """JPEGs and PNGs of a few KiB that take seconds to decode, with a deadline of 0.1 s, and without a client."""
    timeout_us = 100_000
    with target() as server:
        scans = trial.count(400, 200)
        small = bombs.image("honest", bombs.png(64)).message
        assert ask(server.port, small) == 200
        sides = {"JPEG": bombs.jpeg(4700, scans), "JPEG of half the side": bombs.jpeg(2350, 4 * scans),
                 "PNG": bombs.png(4700)}  # fmt: skip
        for name, file in sides.items():
            what = f"{name}, {len(file) // KIB} KiB"
            made = bombs.image(name, file, timeout_us=timeout_us)
            wait_idle(server.pid)
            began = time.monotonic()
            status = ask(server.port, made.message)
            trial.most(f"{what}: seconds until its answer ({status}), beside its deadline", time.monotonic() - began
                       - timeout_us / 1e6, 0.05, timed=True)  # fmt: skip
            trial.most(f"{what}: seconds that it is decoded after its deadline", wait_idle(server.pid), 1, timed=True)
            leave(server.port, [bombs.image(name, file).message] * trial.count(2 * THREADS, THREADS), stays(0.2))
            took, wrong = _slowest_s(server.port, small, 3)
            trial.most(f"{what}: seconds of a small image after clients have gone", took, 1, timed=True)
            trial.equal(f"{what}: small images not answered with 200", wrong, 0)
            trial.most(f"{what}: seconds until the server is idle", wait_idle(server.pid), 1, timed=True)


# --- Fairness ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute without end: they take what endless runs take of the cores, but nothing of the server."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def endless_runs(trial: Trial) -> None:
    """Runs without end, of one model and of as many as native threads, beside a model of milliseconds.

    The cores are shared with the endless runs whatever the server does, so the healthy model's latency is compared
    with its latency beside as many processes that compute.
    """
    names = [f"endless{number}" for number in range(THREADS)]
    made = product_chain("healthy", 8).SerializeToString()
    body = json.dumps(inference(tensor("x", [1, 1], "FP32", [0.0]))).encode()
    config = "max_batch_size = 0\n"  # taken at its word: no trial runs
    models = {**dict.fromkeys(names, onnx_models.endless()), "healthy": made}
    value = np.float32(2.0)
    with repository_of(models, dict.fromkeys(names, config)) as repository, subject(repository=repository) as server:
        request = infer("healthy", inference(tensor("input", [1, 1], "FP32", [float(value)])), lambda data: bool(data))
        what: Any = [(Kind("healthy"), [request])]
        seconds, rate = trial.count(15, 3), 20
        with load(server.port, 1, rate, what) as running:
            alone = running.result()
        with busy_processes(THREADS - 1), load(server.port, seconds, rate, what) as running:
            control = running.result()
        trial.tell("ms of the healthy model, p99, alone", alone["p99_us"] / 1e3, timed=True)
        trial.tell(f"ms beside {THREADS - 1} busy processes, p99", control["p99_us"] / 1e3, timed=True)
        kinds = {
            "of one model": [names[0]] * (4 * THREADS),
            f"of {THREADS} models": names,
            f"of {THREADS} models, four each": 4 * names,
        }
        for kind, asked in kinds.items():
            socks = [connect(server.port) for _ in asked]
            for sock, name in zip(socks, asked, strict=True):
                sock.sendall(post(name, body))
            wait_for(lambda: server.metric("fastinfer_batches_running") >= 1, "a run")
            time.sleep(0.5)
            with load(server.port, seconds, rate, what) as running:
                beside = running.result()
            trial.most(f"endless runs {kind}: p99 of another model, times beside busy processes",
                       beside["p99_us"] / control["p99_us"], 2, timed=True)  # fmt: skip
            trial.equal(f"endless runs {kind}: failed requests of another model", failed(beside), 0)
            for sock in socks:
                reset(sock)
            trial.most(f"endless runs {kind}: seconds until they end", seconds_until(
                lambda: server.metric("fastinfer_batches_running") == 0), 1, timed=True)  # fmt: skip
