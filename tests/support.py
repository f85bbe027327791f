"""A server in a process of its own, and a small client; for tests that look from outside."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

START_TIMEOUT_S = 60
REPOSITORY = Path(__file__).resolve().parents[1] / "model-repository"


@dataclass
class Answer:
    """An answer, whole."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error; fails where it does not have the one shape that errors have."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json) == ["error"]
        assert len(self.body) <= 600
        return self.json["error"]


class Server:
    """``fastinfer serve`` on a free port; ``limits`` are its resource limits."""

    def __init__(
        self,
        *options: str,
        repository: Path | None = REPOSITORY,
        wait: bool = True,
        env: Mapping[str, str] = {},
        cwd: Path | None = None,
        limits: Mapping[int, tuple[int, int]] = {},
    ):
        self.repository = repository
        self.process_count = int(options[options.index("--processes") + 1]) if "--processes" in options else 1
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "fastinfer", "serve", "--port", "0"]
        if repository is not None:
            command += ["--model-repository", str(repository)]
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            cwd=cwd,
            preexec_fn=lambda: [resource.setrlimit(*each) for each in limits.items()],
        )
        try:
            self.port = self._wait_for_port()
            if wait:
                self.wait_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        """What the server has printed."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode()

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            found = re.search(r"http://[^ ]*:(\d+)", self.log)
            if found:
                return int(found[1])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the server did not start:\n{self.log}")

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.get("/v2/health/ready").status != 200:
            assert time.monotonic() < deadline, f"the server did not become ready:\n{self.log}"
            time.sleep(0.02)

    def serving_pids(self) -> list[int]:
        """The processes that serve: the supervisor's children."""
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def replace(self, index: int = 0) -> None:
        """Kills a process that serves; waits for the one that takes its place, and before for any that is leaving."""
        wait_for(lambda: len(self.serving_pids()) == self.process_count, START_TIMEOUT_S)
        killed = self.serving_pids()[index]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: killed not in self.serving_pids(), START_TIMEOUT_S)
        wait_for(lambda: len(self.serving_pids()) == self.process_count, START_TIMEOUT_S)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Answer:
        """One request on a connection of its own; ``body`` may be bytes, text, or anything for JSON."""
        with contextlib.closing(self.connect()) as connection:
            return exchange(connection, method, path, body, headers)

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.request("POST", path, body, headers)

    def infer(self, model: str, body: Any, version: str | None = None) -> Answer:
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
        return self.post(path, body)

    def metrics(self) -> str:
        return self.get("/metrics").body.decode()

    def load(self, path: str, parameters: Any = None) -> None:
        """Loads ``models/M`` or ``workers/W``; fails where that fails."""
        answer = self.post(f"/v2/{path}/load", parameters)
        assert answer.status == 200, answer.body

    def stop(self) -> int:
        """Lets it drain; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
) -> Answer:
    if body is not None and not isinstance(body, bytes):
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
    connection.request(method, path, body, dict(headers))
    with connection.getresponse() as response:  # closed if its process is killed before all of it is read
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, response.read(), fields)


@contextlib.contextmanager
def serving(*options: str, **kwargs: Any) -> Iterator[Server]:
    """A server for the length of a ``with`` block."""
    server = Server(*options, **kwargs)
    try:
        yield server
        server.stop()
    except BaseException:
        print(server.log)  # shown with a test that fails
        raise
    finally:
        server.kill()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Asks again and again until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tensor(name: str, shape: list[int], datatype: str, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def inference(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def stock_client(module: str) -> Any:
    """A client library, imported; see :func:`absent_client` for where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent_client(f"{error.name} is not installed: pip install '.[test-clients]'")


def absent_client(reason: str, optional: bool = False) -> NoReturn:
    """Skips what needs a client that is not there, or a whole module while it is imported. Where
    ``REQUIRE_TEST_CLIENTS`` is in the environment, as in CI, it fails instead, unless the client is optional."""
    if os.environ.get("REQUIRE_TEST_CLIENTS") and not optional:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
