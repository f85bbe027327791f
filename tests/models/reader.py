"""Does what a reader of docs/models.md does: runs the lines of a section, in order and unchanged."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from models.document import Section
from support import Server, serving

from bench.environments import ENVIRONMENTS, VirtualEnvironment

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PYTHON_TIMEOUT_S = 600
COMMAND_TIMEOUT_S = 600
TOLERANCE = 0.02
"""Absolute, of a floating-point number: training gives other last digits on another processor."""
REST = "…"
"""Ends a list of which the document shows only the beginning."""


def environment(section: Section) -> VirtualEnvironment:
    """The section's environment; it outlives the tests, because the downloads are large."""
    name = re.sub(r"\W+", "-", section.title.lower())
    return VirtualEnvironment(
        ENVIRONMENTS / "models" / name, section.requirements, "make test-models", constraints=CONSTRAINTS
    )


class Reader:
    """A reader with a folder and a virtual environment; as a context, ends the servers that were started.

    The document's addresses name port 8000. The servers get free ports, and curl is told by its configuration file to
    connect to the last one.
    """

    def __init__(self, section: Section, folder: Path):
        self._section = section
        self._installed = installed = environment(section)
        self._folder = folder
        self._program = ""
        self._printed = ""
        self._servers = ExitStack()
        self._variables = {
            **os.environ,
            "PATH": f"{installed.home / 'bin'}:{os.environ['PATH']}",
            "CURL_HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
        }

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._servers.__exit__(kind, error, traceback)

    def follow(self) -> None:
        """Runs the commands and programs of the section, and compares what they print with what it says."""
        for block in self._section.blocks:
            match block.language:
                case "python":
                    self._program += block.text
                case "sh":
                    self._run_program()
                    for line in block.lines:
                        self._run_command(shlex.split(line, comments=True))
                case "json":
                    assert_same_answer(json.loads(self._printed), json.loads(block.text.replace(REST, f'"{REST}"')))
                case "text":
                    assert without_measures(self._printed) == without_measures(block.text)
                case language:
                    raise AssertionError(f"nobody knows how to read {language}")

    def _run_program(self) -> None:
        """Runs the parts of a program that the section has shown so far."""
        program, self._program = self._program, ""
        if program:
            self._run([self._installed.python, "-W", "ignore", "-c", program], PYTHON_TIMEOUT_S)

    def _run_command(self, words: list[str]) -> None:
        match words:
            case ["pip", "install", *_]:
                self._installed.install()
            case ["fastinfer", "serve", *arguments]:
                server = self._servers.enter_context(serving(*arguments, repository=None, cwd=self._folder))
                self._connect_curl(server)
            case ["fastinfer", *arguments]:
                self._run([sys.executable, "-m", "fastinfer", *arguments])
            case ["curl", *arguments]:
                self._run(["curl", "--silent", "--show-error", *arguments])
            case _:
                self._run(words)

    def _connect_curl(self, server: Server) -> None:
        (self._folder / ".curlrc").write_text(f'connect-to = "localhost:8000:127.0.0.1:{server.port}"\n')

    def _run(self, words: list[Any], timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        done = subprocess.run(
            words, cwd=self._folder, env=self._variables, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        self._printed = done.stdout


def without_measures(text: str) -> str:
    """A text without what depends on the machine, or on the exporter's version: times, sizes, operator sets."""
    return re.sub(r"\b(opset )\d+|[\d.e-]+( (?:ms|s|MiB)\b)", r"\1#\2", text).strip()


def assert_same_answer(answer: Any, documented: Any, field: str = "answer") -> None:
    """Compares two JSON values: floating-point numbers by TOLERANCE, everything else exactly."""
    if isinstance(documented, dict):
        assert isinstance(answer, dict) and list(answer) == list(documented), f"{field}: {answer}"
        for key in documented:
            assert_same_answer(answer[key], documented[key], f"{field}.{key}")
    elif isinstance(documented, list):
        assert isinstance(answer, list), f"{field}: {answer}"
        if documented[-1:] == [REST]:
            documented = documented[:-1]
            answer = answer[: len(documented)]
        assert len(answer) == len(documented), f"{field}: {answer}"
        for index, (one, other) in enumerate(zip(answer, documented, strict=True)):
            assert_same_answer(one, other, f"{field}[{index}]")
    elif isinstance(documented, float) or isinstance(answer, float):  # a whole number may be written without a point
        numbers = isinstance(answer, int | float) and isinstance(documented, int | float)
        close = numbers and math.isclose(answer, documented, abs_tol=TOLERANCE)
        assert close, f"{field}: {answer}, documented {documented}"
    else:
        assert type(answer) is type(documented) and answer == documented, f"{field}: {answer}"
