"""Inflates bodies and compresses answers, in pieces. No socket, clock or thread: see :mod:`fastinfer.http.pieces`.

A small compressed body can inflate to gigabytes. So each inflated piece counts in the budget before the next one is
made, and a body that inflates to too many times its size is refused after its first mebibyte, before memory is short.
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

# Pieces double in size, up to the largest. The body with the fewest pieces goes next (pieces.py), so a body of 100 KiB
# waits for 100 KiB of each large one, not for a mebibyte of each.
FIRST_PIECE_BYTES: Final = 64 * KIB  # inflated; about 0.1 ms, so the first one may run on the loop's thread
PIECE_BYTES: Final = 1 * MIB  # about 3 ms
_INPUT_BYTES: Final = 64 * KIB  # compressed bytes of one call: zlib copies those that it does not consume


def inflating(coding: bytes, data: memoryview, body: Body, limit: int, ratio: int) -> Iterator[None]:
    """Inflates ``data`` into ``body``, one piece in each step; after the last step the body is complete.

    Args:
        coding: ``gzip`` (one member) or ``deflate`` (zlib's format, or raw as some clients send it).
        data: the compressed body.
        body: receives the bytes; its capacity is ``limit``.
        limit: maximum bytes of the inflated body.
        ratio: how many times larger than ``data`` it may be, beyond its first mebibyte.

    Raises:
        ApiError: 400 for bad data, 413 above the limit or the ratio, 503 if there is no memory.
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
        raise ApiError(400, f"the body continues after its {coding.decode()} stream")
    body.end()


def _no_memory() -> ApiError:
    return ApiError(503, "too many bytes of requests are in flight", retry_after_s=1)


def deflating(coding: bytes, parts: list[memoryview], packed: list[bytes]) -> Iterator[None]:
    """Compresses an answer into ``packed``, at the fastest level; each step compresses one piece."""
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
    """Compresses an answer in one call: for small ones, or on another thread."""
    packed: list[bytes] = []
    for _ in deflating(coding, [memoryview(part).cast("B") for part in parts], packed):
        pass
    return b"".join(packed)
