"""A server whose file system can be made to wait, or to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support import Server, serving

# A file system that does not answer, or refuses, for as long as a file is there: directories called "slow".
SLOW = """
import os, time

scandir, listdir = os.scandir, os.listdir

def meet(path):
    if os.path.basename(str(path)) == "slow":
        while os.path.exists({gate!r} + "/wait"):
            time.sleep(0.01)
        if os.path.exists({gate!r} + "/refuse"):
            raise PermissionError(13, "Permission denied")

def slow_scandir(path="."):
    meet(path)
    return scandir(path)

def slow_listdir(path="."):
    meet(path)
    return listdir(path)

os.scandir, os.listdir = slow_scandir, slow_listdir
"""


class Gate:
    """Makes what is asked of a repository's directory wait, or fail."""

    def __init__(self, directory: Path) -> None:
        self.repository = directory / "slow"
        self._directory = directory
        self.repository.mkdir()
        (directory / "sitecustomize.py").write_text(SLOW.format(gate=str(directory)))

    @contextmanager
    def closed(self, how: str = "wait") -> Iterator[None]:
        (self._directory / how).touch()
        try:
            yield
        finally:
            (self._directory / how).unlink()

    @contextmanager
    def serving_closed(self, how: str, *options: str) -> Iterator[tuple[Server, Callable[[], None]]]:
        """A server that starts while the gate is closed, and what opens it."""
        with ExitStack() as stack:
            gate = stack.enter_context(ExitStack())
            gate.enter_context(self.closed(how))
            yield stack.enter_context(self.serving(*options, wait=False)), gate.close

    def serving(self, *options: str, **more: Any) -> Any:
        return serving(*options, repository=self.repository, env={"PYTHONPATH": str(self._directory)}, **more)
