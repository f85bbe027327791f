"""Which process listens on a port, for the error of a server that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fastinfer.base.logs import printable

_PROC = Path("/proc")
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp
_MAX_PROCESSES = 10_000  # that are looked at
_SHOWN = 80  # characters of a command


def find_owner(port: int) -> str:
    """Return ``process 12 (nginx -g daemon off)``; empty if it is not known, for example another user's."""
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    for process in islice(_PROC.glob("[0-9]*"), _MAX_PROCESSES) if wanted else ():
        with suppress(OSError):  # it has ended, or is another user's
            if any(str(descriptor.readlink()) in wanted for descriptor in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                return f"process {process.name} ({printable(command[:_SHOWN])})"
    return ""


def _listening(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]
