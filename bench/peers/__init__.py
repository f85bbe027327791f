"""The servers that are measured: how each is installed and started.

    python -m bench.peers                   which are there, and why others are not
    python -m bench.peers install [NAME...] install them, each into its own environment below .venv/peers
    python -m bench.peers serve NAME PORT   start one with the models of the bench, as a measurement does

Each serves on one port until it is terminated.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.environments import ENVIRONMENTS, AbsentError, VirtualEnvironment, missing_libraries

HERE = Path(__file__).parent
ONNXRUNTIME = "onnxruntime==1.32.0"  # the same for all


@dataclass(frozen=True)
class Models:
    """What a server shall serve: repositories, and of them the files of the models that are asked."""

    repositories: tuple[Path, ...]
    files: dict[str, Path]


class Peer(ABC):
    """A server.

    Attributes:
        requirements: what its own environment has; empty: it runs in ours.
        binary: whether it takes and gives binary tensors.
        distant: whether it is ten times slower and more, so that only closed loops are worth the time.
        ready: the path that answers 200 when all models are loaded.
        note: what a reader of the figures should know.
    """

    name: ClassVar[str]
    requirements: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = False
    distant: ClassVar[bool] = False
    ready: ClassVar[str] = "/v2/health/ready"
    note: ClassVar[str] = ""

    @property
    def home(self) -> Path:
        return self._own.home

    @property
    def python(self) -> str:
        return str(self._own.python) if self.requirements else sys.executable

    def install(self) -> None:
        """Makes it ready to be started.

        Raises:
            AbsentError: that failed; the reason is kept for the reports.
        """
        if self.requirements:
            self._own.install(self.finish)

    def finish(self) -> None:  # noqa: B027
        """What is to do after the packages are there."""

    def require(self) -> None:
        """Raises AbsentError unless it is installed."""
        if self.requirements:
            self._own.require()

    @property
    def _own(self) -> VirtualEnvironment:
        return VirtualEnvironment(ENVIRONMENTS / "peers" / self.name, self.requirements, "make bench-peers")

    @abstractmethod
    def command(self, port: int, models: Models, directory: Path) -> list[str]:
        """How it is started; `directory` is empty, for files of its own."""

    def environment(self) -> dict[str, str]:
        """Variables that it is started with, beside ours."""
        return {}


class Fastinfer(Peer):
    name = "fastinfer"
    binary = True

    def command(self, port: int, models: Models, directory: Path) -> list[str]:  # noqa: ARG002
        options = [word for path in models.repositories for word in ("--model-repository", str(path))]
        return [self.python, "-m", "fastinfer", "serve", *options, "--port", str(port)]


class Unbatched(Fastinfer):
    name = "unbatched"
    note = "fastinfer that runs every request by itself; only to compare batching with"

    def command(self, port: int, models: Models, directory: Path) -> list[str]:
        return [*super().command(port, models, directory), "--default-max-batch-size", "1"]


class Floor(Peer):
    name = "floor"
    binary = True
    note = "uvloop and httptools, a fixed answer, no work"

    def command(self, port: int, models: Models, directory: Path) -> list[str]:  # noqa: ARG002
        """Answers with what is in the file `answer` of the directory."""
        return [self.python, str(HERE / "floor.py"), str(port), str(directory / "answer")]


class Naive(Peer):
    name = "naive"
    note = "httptools, orjson, numpy and InferenceSession.run on the loop; no batching, no checks"

    def command(self, port: int, models: Models, directory: Path) -> list[str]:  # noqa: ARG002
        return [self.python, str(HERE / "naive.py"), str(port), *map(str, models.repositories)]


class FastApi(Peer):
    name = "fastapi"
    requirements = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", ONNXRUNTIME, "numpy>=2")
    distant = True
    note = "FastAPI with pydantic models on one uvicorn process: what people write themselves"

    def command(self, port: int, models: Models, directory: Path) -> list[str]:  # noqa: ARG002
        words = [self.python, str(HERE / "fastapi_server.py"), str(port)]
        return words + [f"{name}={file}" for name, file in models.files.items()]


class MlServer(Peer):
    name = "mlserver"
    requirements = ("mlserver==1.7.1", ONNXRUNTIME)
    distant = True
    note = "MLServer with a runtime of our own that calls onnxruntime, in one process (parallel_workers 0)"

    def command(self, port: int, models: Models, directory: Path) -> list[str]:
        from bench.peers import mlserver_config

        mlserver_config.write(port, models.files, directory)
        return [str(self.home / "bin" / "mlserver"), "start", str(directory)]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(HERE), "PATH": f"{self.home / 'bin'}:{os.environ['PATH']}"}


class Triton(Peer):
    name = "triton"
    requirements = ("nvidia-pytriton==0.7.0", ONNXRUNTIME)
    binary = True
    note = "tritonserver of the wheel nvidia-pytriton: Python backend that calls onnxruntime, dynamic batching"

    @property
    def server(self) -> Path:
        (found,) = self.home.glob("lib/python*/site-packages/pytriton/tritonserver")
        return found

    def finish(self) -> None:
        """The backend looks for the stub of its interpreter beside itself; then the program must start."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self.server / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise AbsentError(f"the wheel has no backend for Python {version}")
        target = self.server / "backends" / "python" / stub.name
        shutil.copyfile(stub, target)
        for file in (target, self.server / "bin" / "tritonserver"):
            file.chmod(0o755)
            if missing := missing_libraries(file, self.environment()):
                raise AbsentError(f"{file.name} needs {', '.join(missing)}")

    def command(self, port: int, models: Models, directory: Path) -> list[str]:
        from bench.peers import triton_config

        triton_config.write(models.files, directory)
        return [
            str(self.server / "bin" / "tritonserver"),
            f"--model-repository={directory}",
            f"--backend-directory={self.server / 'backends'}",
            f"--http-port={port}",
            "--http-address=127.0.0.1",
            *("--allow-grpc=false", "--allow-metrics=false", "--log-info=false", "--exit-timeout-secs=2"),
        ]

    def environment(self) -> dict[str, str]:
        packages = self.server.parent.parent
        libraries = sysconfig.get_config_var("LIBDIR") or ""
        path = f"{self.home / 'bin'}:{os.environ['PATH']}"
        return {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": libraries, "PATH": path}


PEERS: dict[str, Peer] = {
    peer.name: peer for peer in (Floor(), Naive(), FastApi(), MlServer(), Triton(), Fastinfer(), Unbatched())
}
