"""Where the clients come from that the tests start as programs of their own, and what they are shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_models
from support import absent_client

from bench.environments import ENVIRONMENTS, AbsentError, VirtualEnvironment, missing_libraries

RUN_TIMEOUT_S = 60
DATATYPES = tuple(onnx_models.ONNX_TYPES)


@dataclass(frozen=True)
class Client:
    """A program in an environment of its own.

    Attributes:
        requirements: what its environment has.
        optional: whether it takes more than pip to install it, so that it may be missing where all others are there.
    """

    name: str
    requirements: tuple[str, ...]
    optional: bool = False

    @property
    def own(self) -> VirtualEnvironment:
        return VirtualEnvironment(ENVIRONMENTS / "clients" / self.name, self.requirements, "make test-clients")

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the process that it is started with, beside ours."""
        return {}

    def install(self) -> None:
        """Raises AbsentError where that fails."""
        self.own.install(self.finish)

    def finish(self) -> None:
        """What is to do after the packages are there."""

    def run(self, program: str, *arguments: str, timeout_s: float = RUN_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment to its end; see absent_client where it is not installed."""
        return run([self.require(program), *arguments], self.variables, timeout_s)

    def require(self, program: str) -> str:
        """The path of a program of the environment; see absent_client where it is not installed."""
        try:
            self.own.require()
        except AbsentError as reason:
            absent_client(f"{self.name}: {reason}", self.optional)
        return str(self.own.program(program))


class PerfAnalyzer(Client):
    """Triton's load generator: the wheel has the program, but not all libraries that it is linked with."""

    @property
    def variables(self) -> dict[str, str]:
        folders = [
            *self.own.home.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"),
            *self.debian.glob("usr/lib/*"),
        ]
        return {"LD_LIBRARY_PATH": ":".join(map(str, folders))}

    @property
    def debian(self) -> Path:
        return self.own.home / "debian"

    def finish(self) -> None:
        program = self.own.program("perf_analyzer")
        program.chmod(0o755)
        if missing_libraries(program, self.variables):
            self._unpack("libb64-0d")
        if missing := missing_libraries(program, self.variables):
            raise AbsentError(f"{program.name} needs {', '.join(missing)}")

    def _unpack(self, package: str) -> None:
        """Gets a library from Debian's archive, without installing it."""
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise AbsentError(f"{package} is missing, and there is no apt-get to get it with")
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True, text=True)
            (archive,) = Path(folder).iterdir()
            subprocess.run(["dpkg", "-x", archive, self.debian], check=True, capture_output=True, text=True)


KSERVE = Client("kserve", ("kserve==0.21.0",))
MLSERVER = Client("mlserver", ("mlserver==1.7.1",))
PERF_ANALYZER = PerfAnalyzer(
    "perf_analyzer", ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79"), optional=True
)
CLIENTS = (KSERVE, MLSERVER, PERF_ANALYZER)


def run(
    command: Sequence[str | Path], variables: dict[str, str] | None = None, timeout_s: float = RUN_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, whatever its exit status."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | (variables or {}),
        check=False,
    )


def add_model(repository: Path, name: str, model: bytes, config: str = "") -> None:
    """Puts a model of one version into a repository, with a config.toml if there is one."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(model)
    if config:
        (repository / name / "config.toml").write_text(config)


def add_identities(repository: Path) -> None:
    """Puts a model for each datatype into a repository: ``identity_fp32`` and so on, x to y, [batch, any]."""
    for datatype in DATATYPES:
        add_model(repository, f"identity_{datatype.lower()}", onnx_models.identity(datatype))
