"""Starts servers, waits until they are ready, counts their CPU time, ends them."""

from __future__ import annotations

import contextlib
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.environments import ROOT
from bench.peers import PEERS, Models

LARGE_MODELS = ROOT / "build" / "bench-models"
REPOSITORIES = (ROOT / "model-repository", LARGE_MODELS)
START_TIMEOUT_S = 90
END_TIMEOUT_S = 5  # then it is killed: nobody waits for an answer of it
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def environment(name: str) -> dict[str, str]:
    """Ours, with what the server needs."""
    return {**os.environ, **PEERS[name].environment()}


class FailedError(Exception):
    """A server could not be started or measured; the text says why."""


def models(names: set[str]) -> Models:
    """The files of these models; those that are not committed are made first."""
    if not (LARGE_MODELS / "mlp_large").exists():
        print(f"making the larger models in {LARGE_MODELS.relative_to(ROOT)}", file=sys.stderr)
        runpy.run_path(str(ROOT / "bench" / "make_models.py"))["make"](LARGE_MODELS, ["mlp", "mlp_large"])
    files = {file.parents[1].name: file for root in REPOSITORIES for file in root.glob("*/1/model.onnx")}
    return Models(REPOSITORIES, {name: files[name] for name in sorted(names)})


@dataclass(frozen=True)
class Server:
    """One that is ready."""

    name: str
    port: int
    pid: int

    def processes(self) -> list[int]:
        """It and its children."""
        found, last = [], [self.pid]
        while last:
            found += last
            last = [int(word) for pid in last for file in tasks(pid) for word in read(file / "children").split()]
        return found

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far, of the program and of the system for it."""
        times = [read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[11:13] for pid in self.processes()]
        user, system = (sum(int(each[i]) for each in times if each) / TICKS_PER_S for i in (0, 1))
        return user, system

    def pin(self, cores: set[int]) -> None:
        """All its threads run on these cores from now on."""
        for pid in self.processes():
            for task in tasks(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), cores)

    def memory_bytes(self) -> int:
        """Resident; what processes share counts for each."""
        pages = [read(Path(f"/proc/{pid}/statm")).split()[1:2] for pid in self.processes()]
        return sum(int(each[0]) for each in pages if each) * os.sysconf("SC_PAGE_SIZE")


def prepared(cores: set[int] | None) -> None:
    """What a server's process does before its program: cores, and as many open files as it may have."""
    if cores:
        os.sched_setaffinity(0, cores)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def read(file: Path) -> str:
    """What is in the file; nothing if its process has ended."""
    try:
        return file.read_text()
    except OSError:
        return ""


def free_port() -> int:
    """A port that is free, with two free ones behind it: some servers want more than one."""
    while True:
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(3)]
            probes[0].bind(("127.0.0.1", 0))
            port: int = probes[0].getsockname()[1]
            try:
                for i in (1, 2):
                    probes[i].bind(("127.0.0.1", port + i))
            except (OSError, OverflowError):
                continue
            return port


def is_ready(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serving(name: str, served: Models, cores: set[int] | None = None, answer: bytes = b"") -> Iterator[Server]:
    """A server that is ready; ended afterwards, with all its children. `answer` is what the floor says.

    Raises:
        FailedError: it does not become ready.
    """
    peer = PEERS[name]
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory, tempfile.TemporaryFile() as log:
        if answer:
            Path(directory, "answer").write_bytes(answer)
        port = free_port()
        process = subprocess.Popen(
            peer.command(port, served, Path(directory)),
            cwd=ROOT,
            env=environment(name),
            stdout=log,
            stderr=log,
            start_new_session=True,  # a group of its own, which ends together
            preexec_fn=partial(prepared, cores),
        )
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while not is_ready(port, peer.ready):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip()[-1500:]
                    raise FailedError(f"does not become ready:\n{said}")
                time.sleep(0.05)
            yield Server(name, port, process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
