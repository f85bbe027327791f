"""Python environments for programs whose dependencies would clash with ours.

They lie below .venv: git ignores it, and it outlives build/, which `make` empties when the build's switches change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv"
INSTALL_TIMEOUT_S = 900


class AbsentError(Exception):
    """A program is not there; the text says why."""


@dataclass(frozen=True)
class VirtualEnvironment:
    """An environment that has some packages.

    Attributes:
        home: its folder.
        requirements: its packages, as pip takes them; another list installs it anew.
        verb: the command that installs it, for the reason why it is not there.
        constraints: a file with versions that pip keeps to, whichever packages it needs; other ones install it anew.
    """

    home: Path
    requirements: tuple[str, ...]
    verb: str
    constraints: Path | None = None

    @property
    def python(self) -> Path:
        return self.program("python")

    def program(self, name: str) -> Path:
        return self.home / "bin" / name

    def install(self, finish: Callable[[], None] = lambda: None) -> None:
        """Makes it, unless it is there; ``finish`` does what is left to do after the packages are there.

        Raises:
            AbsentError: that failed; the reason is kept for `require`.
        """
        if self._is_installed:
            return
        shutil.rmtree(self.home, ignore_errors=True)
        words = [self.python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *self.requirements]
        if self.constraints:
            words += ["--constraint", self.constraints]
        try:
            for command in ([sys.executable, "-m", "venv", self.home], words):
                subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S, capture_output=True, text=True)
            finish()
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if not line.startswith("WARNING")]
            self._fail((lines or ["it cannot be installed"])[-1])
        except (subprocess.TimeoutExpired, OSError, AbsentError) as error:
            self._fail(str(error))
        self._stamp.write_text(self._wanted)

    def require(self) -> None:
        """Raises AbsentError unless it is installed."""
        if not self._is_installed:
            failed = self.home / "failed"
            raise AbsentError(failed.read_text() if failed.exists() else f"not installed; {self.verb} does that")

    @property
    def _stamp(self) -> Path:
        return self.home / "installed"

    @property
    def _wanted(self) -> str:
        """What the stamp of an environment says that has what is asked for."""
        return "\n".join(self.requirements) + (f"\n{self.constraints.read_text()}" if self.constraints else "")

    @property
    def _is_installed(self) -> bool:
        return self._stamp.exists() and self._stamp.read_text() == self._wanted

    def _fail(self, reason: str) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "failed").write_text(reason)
        raise AbsentError(reason)


def missing_libraries(program: Path, variables: Mapping[str, str]) -> list[str]:
    """The shared libraries that a program would not find when it is started with these variables beside ours."""
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, env=os.environ | variables, check=False)
    return [line.split()[0] for line in linked.stdout.splitlines() if "not found" in line]
