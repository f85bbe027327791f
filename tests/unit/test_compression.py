"""Compressed bodies, inflated a piece at a time: what they may become, and what they hold meanwhile."""

from __future__ import annotations

import gc
import gzip
import random
import zlib
from collections.abc import Callable

import pytest

from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import KIB, MIB
from fastinfer.http.compression import FIRST_PIECE_BYTES, PIECE_BYTES, deflate, deflating, inflating
from fastinfer.http.upload import Body, BodyPool, new_body

CODERS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "zlib": (b"deflate", zlib.compress),
    "raw": (b"deflate", lambda data: zlib.compress(data, wbits=-15)),
}


def inflated(coding: bytes, data: bytes, limit: int = 64 * MIB, ratio: int = 100, budget: Budget | None = None) -> Body:
    body = new_body(BodyPool(0), budget or Budget(), limit)
    for _ in inflating(coding, memoryview(data), body, limit, ratio):
        pass
    return body


def refusal(coding: bytes, data: bytes, **limits: int) -> tuple[int, str]:
    with pytest.raises(ApiError) as raised:
        inflated(coding, data, **limits)
    return raised.value.status, raised.value.message


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    "size",
    [0, 1, 1000, FIRST_PIECE_BYTES - 1, FIRST_PIECE_BYTES, FIRST_PIECE_BYTES + 1,
     FIRST_PIECE_BYTES + PIECE_BYTES, 3 * MIB + 17],
)  # fmt: skip
def test_what_was_compressed_comes_back(coder: str, size: int) -> None:
    coding, compress = CODERS[coder]
    for content in (random.Random(size).randbytes(size), b"0123456789abcdef " * (size // 17) + b"x" * (size % 17)):
        body = inflated(coding, compress(content), ratio=10_000)
        assert bytes(memoryview(body)) == content


@pytest.mark.parametrize("coder", CODERS)
def test_a_body_may_grow_a_hundred_times_beyond_a_mebibyte(coder: str) -> None:
    coding, compress = CODERS[coder]
    assert len(inflated(coding, compress(bytes(MIB)))) == MIB
    for content in (bytes(MIB + 1), bytes(64 * MIB), b"[1,2]" * MIB):
        assert refusal(coding, compress(content)) == (413, "the body inflates to more than 100 times its size")
    text = random.Random(3).randbytes(30 * KIB)
    assert len(inflated(coding, compress(text + bytes(2 * MIB)))) == 30 * KIB + 2 * MIB
    assert refusal(coding, compress(text + bytes(4 * MIB)))[0] == 413
    assert refusal(coding, compress(text + bytes(2 * MIB)), ratio=20) == (
        413,
        "the body inflates to more than 20 times its size",
    )


def test_what_is_refused_is_refused_early() -> None:
    budget = Budget()
    body = new_body(BodyPool(0), budget, 64 * MIB)
    with pytest.raises(ApiError):
        for _ in inflating(b"gzip", memoryview(gzip.compress(bytes(64 * MIB))), body, 64 * MIB, 100):
            pass
    assert body.received <= 2 * MIB
    assert budget.used == body.received


def test_pieces_double_from_a_small_first_one() -> None:
    """A body of 100 KiB has ended before a mebibyte of each of many large ones is made."""
    body = new_body(BodyPool(0), Budget(), 64 * MIB)
    data = gzip.compress(random.Random(3).randbytes(8 * MIB), 1)
    sizes, before = [], 0
    for _ in inflating(b"gzip", memoryview(data), body, 64 * MIB, 100):
        sizes.append(body.received - before)
        before = body.received
    assert sizes[0] <= 64 * KIB
    assert all(size <= 64 * KIB << number for number, size in enumerate(sizes))
    assert max(sizes) <= PIECE_BYTES


@pytest.mark.parametrize("coder", CODERS)
def test_a_body_has_its_limit(coder: str) -> None:
    coding, compress = CODERS[coder]
    content = random.Random(5).randbytes(200_000)
    assert len(inflated(coding, compress(content), limit=200_000)) == 200_000
    assert refusal(coding, compress(content), limit=199_999)[0] == 413
    assert len(inflated(coding, compress(b""), limit=0)) == 0


@pytest.mark.parametrize("coder", CODERS)
def test_damaged_streams_are_400(coder: str) -> None:
    coding, compress = CODERS[coder]
    packed = compress(random.Random(7).randbytes(300_000))
    assert refusal(coding, b"")[0] == 400
    for size in (1, 2, 10, 100, len(packed) // 2, 64 * KIB, len(packed) - 1):
        assert refusal(coding, packed[:size])[0] == 400, size
    assert refusal(coding, packed + b"x") == (400, f"the body continues after its {coding.decode()} stream")
    assert refusal(coding, packed + packed)[0] == 400
    assert refusal(b"gzip", zlib.compress(b"x")) == (400, "the body is not in gzip format")


def test_bytes_count_before_they_are_there_and_until_the_last_view_is_gone() -> None:
    content = random.Random(9).randbytes(3 * MIB)
    budget = Budget(2 * MIB)
    with pytest.raises(ApiError, match="in flight") as raised:
        inflated(b"gzip", gzip.compress(content), budget=budget)
    assert raised.value.status == 503
    assert raised.value.headers
    del raised
    gc.collect()
    assert (budget.used, budget.refused) == (0, 1)
    budget = Budget(3 * MIB)
    body = inflated(b"gzip", gzip.compress(content), budget=budget)
    view = memoryview(body)
    del body
    assert budget.used == 3 * MIB
    view.release()
    assert budget.used == 0


def test_answers_are_compressed_in_pieces() -> None:
    parts = [memoryview(random.Random(i).randbytes(size)) for i, size in enumerate((0, 1, PIECE_BYTES + 1, 3 * MIB))]
    packed: list[bytes] = []
    # 1 byte with 64 KiB; 128, 256, 512 KiB and 1 MiB for the next part; then mebibytes.
    assert len(list(deflating(b"gzip", parts, packed))) == 1 + 4 + 3
    assert gzip.decompress(b"".join(packed)) == b"".join(parts)
    assert zlib.decompress(deflate(b"deflate", *parts)) == b"".join(parts)
