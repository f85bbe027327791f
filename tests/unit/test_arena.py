"""Shared memory with another process: what arrives is what was written, and nothing that it says is believed."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from fastinfer.backends.python.arena import KEPT_BYTES, ArenaError, Reader, Writer
from fastinfer.base.budget import Budget
from fastinfer.tensor.tensor import Tensor


def carried(writer: Writer, reader: Reader, header: dict, blocks: list[list[bytes]]) -> tuple[dict, list[bytes]]:
    length, fd = writer.write(header, blocks)
    if fd is not None:
        reader.take(os.dup(fd))
    found, parts = reader.read(length)
    return found, [bytes(part) for part in parts]


def test_messages_of_all_sizes_arrive() -> None:
    writer, reader = Writer(), Reader()
    random = np.random.default_rng(0)
    for sizes in ([], [0], [1], [63, 64, 65], [100_000, 3], [5 * KEPT_BYTES, 0, 1], [7], [200_000]):
        blocks = [[random.bytes(size)] for size in sizes]
        found, parts = carried(writer, reader, {"sizes": sizes}, blocks)
        assert found == {"sizes": sizes}
        assert parts == [b"".join(block) for block in blocks]
        writer.trim()
        reader.trim()
    writer.close()


def test_parts_lie_one_behind_the_other() -> None:
    blocks = [[b"ab", b"", b"cde"], [], [b"f"]]
    assert carried(Writer(), Reader(), {}, blocks)[1] == [b"abcde", b"", b"f"]


def test_memory_counts_and_is_given_back() -> None:
    budget = Budget(4 * KEPT_BYTES)
    writer = Writer(budget)
    writer.write({}, [[bytes(2 * KEPT_BYTES)]])
    assert budget.used >= 2 * KEPT_BYTES
    writer.trim()
    assert budget.used == 0
    with pytest.raises(MemoryError):
        writer.write({}, [[bytes(5 * KEPT_BYTES)]])
    assert budget.used == 0
    writer.write({}, [[b"small"]])
    writer.trim()
    assert 0 < budget.used <= KEPT_BYTES
    writer.close()
    writer.close()
    assert budget.used == 0


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def memory(content: bytes, size: int = 4096, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
           ) -> int:  # fmt: skip
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def over(content: bytes) -> Reader:
    reader = Reader()
    reader.take(memory(content))
    return reader


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL])
def test_memory_that_can_be_cut_short_is_refused(seals: int) -> None:
    with pytest.raises(ArenaError, match="not sealed"):
        Reader().take(memory(b"[]", seals=seals))


@pytest.mark.parametrize(
    "sizes",
    [[4096], [4033], [-1], [2**63], [2**64], [1.5], ["1"], [None], [True, 4096], [64] * 70, 7, {"0": 1}],
)
def test_a_tensor_outside_of_the_memory_is_refused(sizes: object) -> None:
    text = orjson.dumps([{}, sizes]) if sizes != [2**64] else b"[{},[18446744073709551616]]"
    with pytest.raises(ArenaError):
        over(text).read(len(text))


@pytest.mark.parametrize("text", [b"", b"x", b"[", b"{}", b"[1]", b"[{},[],3]", b"null", b"[1,[]]", b"\xff"])
def test_a_header_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ArenaError):
        over(text).read(len(text))


@pytest.mark.parametrize("length", [0, 4097, 2**32 - 1])
def test_a_header_outside_of_the_memory_is_refused(length: int) -> None:
    with pytest.raises(ArenaError):
        over(b"[{},[]]").read(length)
    with pytest.raises(ArenaError):
        Reader().read(length)


# --- Tensors over foreign memory --------------------------------------------------------------------------------------


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_a_copy_is_a_tensor_of_its_own() -> None:
    block = bytearray(np.arange(6, dtype=np.int16).tobytes())
    copy = Tensor.copied("x", "INT16", [2, 3], block)
    block[:] = bytes(12)
    assert copy.numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    texts = Tensor.copied("x", "BYTES", [3], packed(b"", b"abc", b"\0"))
    assert texts.numpy().tolist() == [b"", b"abc", b"\0"]
    assert Tensor.copied("x", "BOOL", [4], bytes([0, 1, 7, 255])).numpy().tolist() == [False, True, True, True]
    assert Tensor.copied("x", "FP32", [0, 5], b"").numpy().shape == (0, 5)
    assert Tensor.copied("x", "FP64", [], struct.pack("<d", 2.5)).numpy() == 2.5


def test_a_copy_counts() -> None:
    budget = Budget(100)
    copy = Tensor.copied("x", "UINT8", [64], bytes(64), budget)
    assert budget.used == 64
    with pytest.raises(MemoryError):
        Tensor.copied("x", "UINT8", [64], bytes(64), budget)
    del copy
    assert budget.used == 0


@pytest.mark.parametrize(
    ("datatype", "shape", "block"),
    [
        ("FP32", [2], bytes(7)),
        ("FP32", [2], bytes(12)),
        ("FP32", [-1], b""),
        ("FP32", [2**62, 2**62], b""),
        ("FP32", [1] * 17, bytes(4)),
        ("INT8", [2**63 - 1], bytes(8)),
        ("BYTES", [1], b""),
        ("BYTES", [1], b"\1\0\0"),
        ("BYTES", [1], b"\2\0\0\0a"),
        ("BYTES", [1], b"\xff\xff\xff\xffa"),
        ("BYTES", [2], packed(b"a")),
        ("BYTES", [1], packed(b"a", b"b")),
        ("BYTES", [0], packed(b"")),
        ("FLOAT", [1], bytes(4)),
    ],
)  # fmt: skip
def test_a_block_that_is_no_such_tensor_is_refused(datatype: str, shape: list[int], block: bytes) -> None:
    budget = Budget()
    with pytest.raises(ValueError):
        Tensor.copied("x", datatype, shape, block, budget)
    assert budget.used == 0
