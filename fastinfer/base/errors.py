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
"""The longest error sentence; a longer one is cut at a character boundary."""

_PATH = re.compile(r"(?<![\w.])\.{0,2}/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_SOURCE = re.compile(r"\.(?:cc|cpp|cu|h|hpp):\d+ ?")  # the end of a source location
_NODE = re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'([^'\n]{0,200})' Status Message: ")
_MAX_READ = 8 * MAX_MESSAGE_BYTES  # characters of a foreign text that are read; some have all names of a graph
_SHORT_FUNCTION = re.compile(r"(?:operator\(\)|[\w:~]+) ?")  # after a file name without a directory
_AFTER_FUNCTION = re.compile(r" ?(?:const|noexcept)\b")
_CONDITION = re.compile(r"[^\n]{1,300}? was false\. ?(?=\S)")
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")


class ApiError(Exception):
    """A refusal or a failure that the client gets as an answer.

    Args:
        status: the HTTP status code, 4xx or 5xx.
        message: one sentence that names the model, input or option; no file paths, no Python type names.
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

    def to_json(self) -> dict[str, Any]:
        """Serialises the error for another process."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
        return {"status": self.status, "message": self.message, "headers": headers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ApiError:
        """The error that :meth:`to_json` has serialised."""
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in data["headers"])
        return cls(data["status"], data["message"], headers=headers)


def clip(message: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """``message`` as one line of at most ``limit`` bytes of UTF-8, cut at a character boundary; ``?`` replaces each
    character that cannot be printed."""
    begin = message[: 4 * limit]  # a client's text in the message may be as large as a body: the rest is ignored
    line = " ".join(begin.split())
    if not line.isprintable():
        line = "".join([c if c.isprintable() else "?" for c in line])
    encoded = line.encode()
    if len(encoded) <= limit and len(begin) == len(message):
        return line
    return encoded[: limit - 3].decode("utf-8", "ignore") + "..."


def without_paths(message: str) -> str:
    """``message`` with every file path reduced to its last part, without source locations and a line break at its end.

    ONNX Runtime puts these into its error texts, with C++ around them: ``/src/op_kernel.cc:87 virtual OrtValue*
    Context::Output(int) …``, ``matmul_helper.h:59 Compute …``.
    """
    message = _NODE.sub(_operator, _STATUS.sub("", message[:_MAX_READ]))
    parts: list[str] = []
    at = 0
    while (source := _SOURCE.search(message, at)) is not None:
        before = message[at : source.start()]
        name = before[before.rfind("\n") + 1 :].rpartition(" ")[2]
        parts.append(before.removesuffix(name))
        at = _after_function(message, source.end(), "/" in name)
    message = "".join([*parts, message[at:]])
    return _PATH.sub(lambda found: found.group().rstrip("/").rsplit("/", 1)[-1], message).rstrip()


def _operator(found: re.Match[str]) -> str:
    """The failed node in a few words."""
    return f"operator '{found[1]}'" + (f" ('{found[2]}'): " if found[2] else ": ")


def _after_function(message: str, at: int, whole: bool) -> int:
    """The start of the text after a function. ``whole``: the text has the function with its types and parameters."""
    if not whole:
        found = _SHORT_FUNCTION.match(message, at)
        return found.end() if found else at
    end, after = at, _after_brackets(message, at, "(", ")")
    if after == at:
        return at
    while after > end:  # several pairs, of a lambda: <lambda(int)>::operator()(int)
        end = after
        after = _after_brackets(message, end, "(", ")") if message[end : end + 1] in ("(", ":", ">") else end
    end += message.startswith(">", end)
    while (found := _AFTER_FUNCTION.match(message, end)) is not None:
        end = found.end()
    if message.startswith(" [with ", end):
        end = _after_brackets(message, end, "[", "]")
    end += message.startswith(" ", end)
    condition = _CONDITION.match(message, end)  # the failed C++ condition; a readable sentence follows
    return condition.end() if condition else end


def _after_brackets(message: str, at: int, opening: str, closing: str) -> int:
    """The index after the first pair of brackets in this line, nested ones included; ``at`` if there is none."""
    depth = 0
    for place in range(at, len(message)):
        if message[place] == "\n":
            break
        if message[place] == opening:
            depth += 1
        elif message[place] == closing and depth:
            depth -= 1
            if not depth:
                return place + 1
    return at
