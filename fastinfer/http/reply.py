"""The head of an answer. Pure."""

from __future__ import annotations

from http import HTTPStatus

from fastinfer.http.exchange import Fields

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def reply_head(status: int, content_type: bytes, size: int, fields: Fields, last: bool, version_10: bool) -> bytes:
    """From the status line to the empty line.

    Args:
        size: of the body.
        fields: further header fields; a field with CR or LF in it is a bug, and is refused.
        last: the connection ends after this answer.
        version_10: the request was HTTP/1.0: a connection that stays open has to be told.
    """
    parts = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status]
    for name, value in ((b"Content-Type", content_type), *fields):
        if b"\n" in value or b"\r" in value:
            raise ValueError("a header field's value holds a line break")
        parts.append(b"%b: %b\r\n" % (name, value))
    if last:
        parts.append(b"Connection: close\r\n")
    elif version_10:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"Content-Length: %d\r\n\r\n" % size)
    return b"".join(parts)
