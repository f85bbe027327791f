"""Compressed bodies and answers, a piece at a time. No socket, no clock, no threads: see :mod:`fastinfer.http.pieces`.

What compresses well is small on the wire and large in memory. So a body is inflated in pieces, each is counted in the
budget before the next is made, and one that inflates to too many times its size is refused when it has done so for a
mebibyte, not when memory is gone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from typing_extensions import Buffer

from fastinfer.base.errors import ApiError
from fastinfer.base.limits import FREE_INFLATED_BYTES, KIB, MIB
from fastinfer.http.head import too_large
from fastinfer.http.upload import Body

# Pieces double from the first to the largest. The body with the fewest pieces goes next (pieces.py), so one of 100 KiB
# waits for as much of each of many large ones, and not for a mebibyte of each.
FIRST_PIECE_BYTES: Final = 64 * KIB  # inflated; some 0.1 ms: the first may be made on the loop's thread
PIECE_BYTES: Final = 1 * MIB  # some 3 ms
_INPUT_BYTES: Final = 64 * KIB  # compressed bytes that are given to zlib at once: it copies what it does not take


def inflating(coding: bytes, data: memoryview, body: Body, limit: int, ratio: int) -> Iterator[None]:
    """Inflates ``data`` into ``body``, which is complete at the end; each step makes one piece.

    Args:
        coding: ``gzip`` (one member) or ``deflate`` (zlib's format, or raw as some clients send it).
        data: the compressed body.
        body: where the bytes go; it may hold ``limit``.
        limit: bytes of the inflated body.
        ratio: how many times larger than ``data`` it may be, beyond its first mebibyte.

    Raises:
        ApiError: 400 for bad data, 413 above the limit or the ratio, 503 where there is no memory.
    """
    wbits = 31
    if coding == b"deflate":
        wbits = 15 if len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0 else -15
    stream = zlib.decompressobj(wbits)
    given, made = 0, 0
    piece_bytes = FIRST_PIECE_BYTES
    while not stream.eof:
        rest: bytes | memoryview = stream.unconsumed_tail
        if not rest:
            rest = data[given : given + _INPUT_BYTES]
            given += len(rest)
        try:
            piece = stream.decompress(rest, piece_bytes)
        except zlib.error:
            raise ApiError(400, f"the body is not in {coding.decode()} format") from None
        except MemoryError:
            raise _no_memory() from None
        made += len(piece)
        if made > limit:
            raise too_large(limit)
        if made > max(FREE_INFLATED_BYTES, ratio * (given - len(stream.unconsumed_tail))):
            raise ApiError(413, f"the body inflates to more than {ratio} times its size")
        if not piece and not len(rest):
            raise ApiError(400, f"the body ends inside its {coding.decode()} stream")
        try:
            body.take(piece)
        except MemoryError:
            raise _no_memory() from None
        if not stream.eof:
            piece_bytes = min(2 * piece_bytes, PIECE_BYTES)
            yield
    if stream.unused_data or given < len(data):
        raise ApiError(400, f"the body goes on after its {coding.decode()} stream")
    body.end()


def _no_memory() -> ApiError:
    return ApiError(503, "too many bytes of requests are in flight", retry_after_s=1)


def deflating(coding: bytes, parts: list[memoryview], packed: list[bytes]) -> Iterator[None]:
    """Compresses an answer into ``packed``, fast rather than small; each step takes one piece."""
    stream = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == b"gzip" else 15)
    piece_bytes = FIRST_PIECE_BYTES
    for part in parts:
        at = 0
        while at < len(part):
            packed.append(stream.compress(part[at : at + piece_bytes]))
            at += piece_bytes
            piece_bytes = min(2 * piece_bytes, PIECE_BYTES)
            yield
    packed.append(stream.flush())


def deflate(coding: bytes, *parts: Buffer) -> bytes:
    """The same of a small answer, or on a thread of its own, at once."""
    packed: list[bytes] = []
    for _ in deflating(coding, [memoryview(part).cast("B") for part in parts], packed):
        pass
    return b"".join(packed)
