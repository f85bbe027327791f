"""Opening files that others have put there.

What is no regular file is refused: to open a pipe waits until somebody writes to it, which may be for ever. A disk that
does not answer blocks its reader in any case, so no event loop's thread reads one.
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
    """A file, open for reading; a symbolic link is followed. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(path.name)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file, or one byte more than ``most_bytes`` of it. OSError."""
    with regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size  # a read takes memory for all that it is asked for
        return file.read(min(size, most_bytes) + 1)
