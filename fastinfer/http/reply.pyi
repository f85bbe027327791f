"""The head of an answer. Pure."""

from collections.abc import Sequence

def reply_head(
    status: int, content_type: bytes, size: int, fields: Sequence[tuple[bytes, bytes]], last: bool, version_10: bool
) -> bytes:
    """From the status line to the empty line.

    Args:
        size: of the body.
        fields: further header fields; a field with CR or LF in its value is a bug, and is refused with ValueError.
        last: the connection ends after this answer.
        version_10: the request was HTTP/1.0: the answer must say that the connection stays open.
    """
