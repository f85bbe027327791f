"""A disk that does not answer, or answers with an error, for a server's processes.

It is played by the functions with which Python asks the disk: while a file says so, each waits, or fails.
"""

from __future__ import annotations

from pathlib import Path

_CODE = """
import os, time
def unreliable(function):
    def asked(path, *args, **kwargs):
        while PART in str(path) + "/":
            try:
                with open(GATE) as gate:
                    error = gate.read()
            except FileNotFoundError:
                break
            if error:
                raise OSError(int(error), os.strerror(int(error)), str(path))
            time.sleep(0.01)
        return function(path, *args, **kwargs)
    return asked
PART, GATE = {part!r}, {gate!r}
for name in ("open", "stat", "lstat", "listdir", "scandir"):
    setattr(os, name, unreliable(getattr(os, name)))
"""


class UnreliableDisk:
    """What part of the paths is on it, and how it is now.

    Args:
        directory: for its files.
        part: of the paths that are on it.

    Attributes:
        env: of the server.
    """

    def __init__(self, directory: Path, part: str) -> None:
        self._gate = directory / "gate"
        code = directory / "code"
        code.mkdir()
        (code / "sitecustomize.py").write_text(_CODE.format(part=part, gate=str(self._gate)))
        self.env = {"PYTHONPATH": str(code)}

    def hang(self) -> None:
        """From now on it does not answer."""
        self._say("")

    def fail(self, error: int) -> None:
        """From now on it answers with an error, by its number."""
        self._say(str(error))

    def _say(self, text: str) -> None:
        fresh = self._gate.with_name("fresh")
        fresh.write_text(text)
        fresh.rename(self._gate)

    def answer(self) -> None:
        """It is well again."""
        self._gate.unlink(missing_ok=True)
