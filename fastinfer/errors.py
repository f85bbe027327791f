"""One error type, with its HTTP status.

Every failure that a client may see is an :class:`ApiError`; whatever else is raised while a request is handled is a bug
and is answered with a bare 500.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

MAX_MESSAGE_BYTES = 512
"""An error's sentence is cut here, at a character's border."""

_PATH = re.compile(r"(?<![\w.])\.{0,2}/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_SOURCE = re.compile(r"\S+\.(?:cc|cpp|h|hpp):\d+ (?:[^()\n]{1,300}\([^()\n]{0,500}\)(?: const)?|\w+) ?")


class ApiError(Exception):
    """A refusal or a failure that is told to the client.

    Args:
        status: the HTTP status code, 4xx or 5xx.
        message: one sentence that names the place; no file paths, no Python type names.
        retry_after_s: seconds for ``Retry-After`` (503 only).
        headers: further headers of the answer, as pairs of bytes.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after_s: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        if retry_after_s is not None:
            headers = (*headers, (b"Retry-After", str(retry_after_s).encode()))
        self.headers = headers

    def body(self) -> bytes:
        """The answer's body: ``{"error": "<sentence>"}``, compact."""
        return orjson.dumps({"error": clip(self.message)})

    def told(self) -> dict[str, Any]:
        """What another process makes the same error of, as JSON."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
        return {"status": self.status, "message": self.message, "headers": headers}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> ApiError:
        """The error that :meth:`told` has told."""
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in told["headers"])
        return cls(told["status"], told["message"], headers=headers)


def clip(message: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """``message`` as one line of at most ``limit`` bytes of UTF-8, cut at a character's border; ``?`` for what cannot
    be printed."""
    begin = message[: 4 * limit]  # a client's text in it may be as large as a body: nothing is made of its rest
    line = " ".join(begin.split())
    if not line.isprintable():
        line = "".join([c if c.isprintable() else "?" for c in line])
    encoded = line.encode()
    if len(encoded) <= limit and len(begin) == len(message):
        return line
    return encoded[: limit - 3].decode("utf-8", "ignore") + "..."


def without_paths(message: str) -> str:
    """``message`` with every file path reduced to its last part, and without places in source code.

    ONNX Runtime puts both into its own texts: ``/src/op_kernel.cc:87 virtual OrtValue* Context::Output(int) …``.
    """
    message = _SOURCE.sub("", message)
    return _PATH.sub(lambda found: found.group().rstrip("/").rsplit("/", 1)[-1], message)
