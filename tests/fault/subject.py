"""The server that things happen to: a process of its own, watched from outside."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from bench.load.servers import TICKS_PER_S, read
from tests.fault.trial import AbsentError
from tests.support import REPOSITORY, Server

PATIENCE_S = 20.0  # for what must come about, however busy the machine is


@cache
def offers(option: str) -> bool:
    """Whether `fastinfer serve` has the option."""
    words = [sys.executable, "-m", "fastinfer", "serve", "--help"]
    return option in subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Subject(Server):
    """A server with gauges. They are of the serving process: `processes` 0 is a server without a supervisor."""

    def __init__(self, *options: str, processes: int = 0, **kwargs: object) -> None:
        if offers("--processes"):
            options = ("--processes", str(processes), *options)
        elif processes:
            raise AbsentError("`fastinfer serve` has no --processes yet")
        super().__init__(*options, **kwargs)  # type: ignore[arg-type]
        self.pid = self.process.pid

    def children(self) -> list[int]:
        """The serving processes below a supervisor."""
        return [int(word) for word in read(Path(f"/proc/{self.pid}/task/{self.pid}/children")).split()]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def runs(self, model: str) -> int:
        """Batches that ran."""
        return int(self.metric("fastinfer_runs_total", model=model))

    def load(self, name: str, **parameters: object) -> str:
        """Loads a worker; returns its endpoint."""
        answer = self.post(f"/v2/workers/{name}/load", parameters)
        assert answer.status == 200, answer.body
        return answer.body.decode()

    def fds(self) -> int:
        return fds(self.pid)

    def fds_above(self, before: int) -> int:
        """Open files more than before: what is being closed gets a moment."""
        seconds_until(lambda: self.fds() <= before, 5)
        return self.fds() - before

    def threads(self) -> int:
        return threads(self.pid)

    def rss(self) -> int:
        return rss(self.pid)

    def cpu_s(self) -> float:
        return cpu_s(self.pid)


@contextlib.contextmanager
def subject(*options: str, repository: Path = REPOSITORY, processes: int = 0, **more: object) -> Iterator[Subject]:
    """A server for the length of a block; ended by force if it has not ended by itself."""
    server = Subject(*options, repository=repository, processes=processes, **more)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def repository_of(models: dict[str, bytes], configs: dict[str, str] | None = None) -> Iterator[Path]:
    """A repository of these models, by name, with the configurations of some."""
    with tempfile.TemporaryDirectory(prefix="fault-") as directory:
        for name, model in models.items():
            version = Path(directory, name, "1")
            version.mkdir(parents=True)
            (version / "model.onnx").write_bytes(model)
            if name in (configs or {}):
                (version.parent / "config.toml").write_text((configs or {})[name])
        yield Path(directory)


def seconds_until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """How long it takes until something holds; infinite where it does not come about."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience_s:
            return float("inf")
        time.sleep(0.01)
    return time.monotonic() - began


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits for what must come about before the fault can be tried."""
    assert seconds_until(condition) < PATIENCE_S, f"never came about: {what}"


# --- Gauges of a process ----------------------------------------------------------------------------------------------


def fds(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def rss(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def peak_rss(pid: int) -> int:
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", read(Path(f"/proc/{pid}/status")))
    return int(found[1]) * 1024 if found else 0


def cpu_s(pid: int) -> float:
    fields = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
