"""What the server stands on gives way: disk, log, clock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.load.servers import free_port, is_ready
from tests.fault.clients import SIMPLE_BODY, answers, connect, post
from tests.fault.load import half_of_peak, neighbours
from tests.fault.subject import offers, seconds_until, subject, wait_for
from tests.fault.trial import AbsentError, Trial
from tests.support import REPOSITORY, Answer, exchange

CLOCK = Path(__file__).with_name("clock.cpp")
PIPE_BYTES = 4096


@contextlib.contextmanager
def writing_to(log: int, env: Mapping[str, str] = {}) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A server that logs to a descriptor which nobody reads: its port, and its process."""
    port = free_port()
    words = [sys.executable, "-m", "fastinfer", "serve", "--port", str(port), "--model-repository", str(REPOSITORY)]
    words += ["--load", "simple", "--log-level", "debug", *(["--processes", "0"] if offers("--processes") else [])]
    process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **env})
    try:
        wait_for(lambda: is_ready(port, "/v2/health/ready"), "readiness")
        yield port, process
    finally:
        process.kill()
        process.wait()


def disk_full(trial: Trial) -> None:
    """Every line of the log is refused: no space left on the device."""
    with Path("/dev/full").open("wb") as full:
        _unheard(trial, full.fileno())


def log_blocked(trial: Trial) -> None:
    """The log goes into a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        _unheard(trial, writer)
    finally:
        os.close(reader)
        os.close(writer)


def _unheard(trial: Trial, log: int) -> None:
    """Load, and loads and unloads that are worth a line each; then the end."""
    loads = trial.count(12_000, 600)
    with writing_to(log) as (port, process):
        with (
            neighbours(port, half_of_peak(port) / 2) as beside,
            contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection,
        ):
            wrong = 0
            for _ in range(loads // 2):
                wrong += exchange(connection, "POST", "/v2/workers/echo/load").status != 200
                wrong += exchange(connection, "POST", "/v2/models/echo/unload").status != 200
            page = exchange(connection, "GET", "/metrics")
        trial.equal("failed requests", beside["failed"], 0)
        trial.equal("loads and unloads not answered with 200", wrong, 0)
        trial.tell("ms, the longest wait of others", beside["max_us"] / 1000, timed=True)
        trial.tell("lines that were lost and counted", _lost(page))
        process.terminate()
        took = seconds_until(lambda: process.poll() is not None)
        trial.equal("exit status", process.poll() if took < float("inf") else -1, 0)  # type: ignore[arg-type]
        trial.most("seconds from the signal to the end", took, 10, timed=True)


def _lost(page: Answer) -> float:
    found = [line.split()[1] for line in page.body.decode().splitlines() if line.startswith("fastinfer_log_lines_dro")]
    return float(found[0])


def clock_jumps(trial: Trial) -> None:
    """The wall clock jumps by an hour each second, back and forth; the monotonic clock goes on."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        raise AbsentError("the preloaded clock needs Linux and g++")
    with tempfile.TemporaryDirectory(prefix="fault-") as directory, Path(os.devnull).open("wb") as nobody:
        library = Path(directory, "clock.so")
        subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-o", library, CLOCK], check=True)
        shown = subprocess.run(
            [sys.executable, "-c", "import time; a = time.time(); time.sleep(1); print(time.time() - a)"],
            env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        trial.least("seconds that a second takes by that clock", abs(float(shown.stdout)), 3000)
        with writing_to(nobody.fileno(), {"LD_PRELOAD": str(library)}) as (port, process):
            _through_jumps(trial, port, trial.count(20, 2))
            trial.equal("server processes that ended", float(process.poll() is not None), 0)
            process.terminate()
            trial.equal("exit status", process.wait(30), 0)


def _through_jumps(trial: Trial, port: int, seconds: int) -> None:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        assert exchange(connection, "POST", "/v2/workers/fake/load", {"delay_ms": 1500}).status == 200
    with connect(port) as still, neighbours(port, half_of_peak(port)) as beside:
        wrong: list[Any] = []
        for _ in range(seconds // 3 + 1):
            with connect(port) as sock:
                sock.sendall(post("fake", SIMPLE_BODY))  # waits through a jump
                wrong += [status for status, _, _ in [next(answers(sock))] if status != 200]
                sock.sendall(post("fake", SIMPLE_BODY[:-1] + b',"parameters":{"timeout":1200000}}'))
                wrong += [status for status, _, _ in [next(answers(sock))] if status != 504]
        still.sendall(post("simple", SIMPLE_BODY))
        trial.equal("status on a connection that was idle all the time", next(answers(still))[0], 200)
        time.sleep(0.1)
    trial.equal("failed requests", beside["failed"], 0)
    trial.tell("requests", beside["answered"])
    trial.equal("slow requests and deadlines answered wrongly", len(wrong), 0)


def no_memory_for_a_body(trial: Trial) -> None:
    """More bodies than the budget for them, their tensors and answers: those above are refused, not closed."""
    body = b'{"inputs":[{"name":"INPUT0","shape":[1,200000],"datatype":"FP32","data":[' + b"0.5," * 199_999 + b"1]}]}"
    with subject("--load", "identity_fp32", "--in-flight-bytes", "4MiB") as server:
        message = post("identity_fp32", body)
        half = [connect(server.port) for _ in range(20)]
        for sock in half:
            sock.sendall(message[:-1000])
        time.sleep(0.5)
        seen: dict[int, int] = {}
        unretryable = 0
        for sock in half:
            with contextlib.suppress(OSError):
                sock.sendall(message[-1000:])
            status, fields, _ = next(answers(sock), (0, {}, b""))
            seen[status] = seen.get(status, 0) + 1
            unretryable += status == 503 and "retry-after" not in fields
        trial.least("answered with 200", seen.get(200, 0), 1)
        trial.least("refused with 503", seen.get(503, 0), 1)
        trial.equal("closed without an answer, or answered otherwise", 20 - seen.get(200, 0) - seen.get(503, 0), 0)
        trial.equal("503 without Retry-After", unretryable, 0)
        trial.equal("bytes in flight at the end", server.metric("fastinfer_in_flight_bytes"), 0)
