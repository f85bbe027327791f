"""Opens files that other programs have written.

Only regular files are opened: opening a pipe blocks until another process writes to it, which may be forever. A disk
that does not answer blocks its reader in any case, so no event loop's thread reads files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO


class NotRegularError(OSError):
    """A directory, a pipe, a socket or a device."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EINVAL, "is not a regular file", name)


@contextmanager
def regular_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading; follows symbolic links. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(path.name)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file; of a larger file, its first ``most_bytes`` + 1 bytes. OSError."""
    with regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size  # read() allocates all that is requested
        return file.read(min(size, most_bytes) + 1)
