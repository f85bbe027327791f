"""What number/shortest.h takes for granted, computed; and both ways to put digits, which no one machine runs."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests import reference
from tests.unit.test_number_format import NUMPY, encode_texts, integer_blocks, whole_bits
from tests.unit.test_number_parse import bits_of_interest

HEADERS = Path(__file__).parents[2] / "ext"
FORMAT = """
#include "fastinfer/number/format.h"
using namespace fastinfer::number;
extern "C" char* format(const char* datatype, const char* memory, long count, char* out) {
    int64_t fault;
    #define RUN(name, call) if (!strcmp(datatype, name)) return call(memory, count, 0, out, &fault);
    RUN("FP16", format_binary_span<Binary16>) RUN("BF16", format_binary_span<BFloat16>)
    RUN("FP32", format_binary_span<Binary32>) RUN("FP64", format_binary_span<Binary64>)
    RUN("INT8", format_integer_span<int8_t>) RUN("INT16", format_integer_span<int16_t>)
    RUN("INT32", format_integer_span<int32_t>) RUN("INT64", format_integer_span<int64_t>)
    RUN("UINT32", format_integer_span<uint32_t>) RUN("UINT64", format_integer_span<uint64_t>)
    return out;
}
"""


def closest_approach(step: Fraction, most: int) -> Fraction:
    """The least distance of ``step * m`` to a whole number, but for 0, over all m from 1 to ``most``.

    The best approximations are those of the continued fraction.
    """
    if step.denominator <= most:
        return Fraction(1, step.denominator)
    numerator, denominator = step.denominator, step.numerator % step.denominator
    before, now = (1, 0), (step.numerator // step.denominator, 1)  # convergents
    while True:
        term, rest = divmod(numerator, denominator)
        numerator, denominator = denominator, rest
        before, now = now, (term * now[0] + before[0], term * now[1] + before[1])
        if now[1] > most:
            return abs(before[1] * step - before[0])


@pytest.mark.parametrize(("datatype", "allowed"), [("FP16", -32.1), ("BF16", -32.1), ("FP32", -32.1), ("FP64", -62.9)])
def test_what_is_compared_is_equal_or_well_apart(datatype: str, allowed: float) -> None:
    mantissa, exponent = reference.FLOATS[datatype]
    bias = (1 << (exponent - 1)) - 1
    ends, middles = [], []
    for biased in range(1, (1 << exponent) - 1):
        step = Fraction(2) ** (biased - bias - mantissa)
        tens = Fraction(10) ** (math.floor(math.log10(step)) + 1)
        assert tens / 10 <= step < tens
        half = step / 2 / tens
        # A value is an even number of half steps, the ends of its interval odd ones. As for ties: 20 times a value.
        ends.append(closest_approach(half, 2 ** (mantissa + 2)))
        middles.append(closest_approach(40 * half, 2 ** (mantissa + 1)) / 2)
    assert math.log2(min(ends)) > allowed
    # A digit is rounded with 64 (60) bits of 10 times the fraction, cut off: only what is equal must be exact.
    assert math.log2(min(middles)) > (-65 if datatype == "FP64" else -33)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The formatter as it is built where there is no SSE2."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is absent")
    directory = tmp_path_factory.mktemp("portable")
    source, library = directory / "format.cpp", directory / "format.so"
    source.write_text(FORMAT)
    words = [
        compiler,
        "-std=c++17",
        "-O1",
        "-w",
        "-U__SSE2__",
        "-shared",
        "-fPIC",
        f"-I{HEADERS}",
        source,
        "-o",
        library,
    ]
    subprocess.run(words, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.format.restype = ctypes.c_void_p
    loaded.format.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
    return loaded


def portable_texts(library: ctypes.CDLL, array: np.ndarray, datatype: str) -> list[str]:
    out = ctypes.create_string_buffer(array.size * 25 + 64)
    end = library.format(datatype.encode(), array.ctypes.data, array.size, out)
    return out.raw[: end - ctypes.addressof(out)].decode().split(",")


@pytest.mark.parametrize("datatype", list(reference.FLOATS))
def test_floating_point_without_vectors(portable: ctypes.CDLL, datatype: str) -> None:
    width = {"FP32": np.uint32, "FP64": np.uint64}.get(datatype, np.uint16)
    for bits in (bits_of_interest(datatype, 3001), whole_bits(datatype)):
        array = np.array(bits, dtype=width).view(NUMPY[datatype])
        assert portable_texts(portable, array, datatype) == encode_texts(array, datatype)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64", "UINT32", "UINT64"])
def test_integers_without_vectors(portable: ctypes.CDLL, datatype: str) -> None:
    dtype = np.dtype(datatype.lower())
    limits = np.iinfo(dtype)
    source = np.random.default_rng(6)
    array = source.integers(limits.min, limits.max, 3001, dtype=dtype, endpoint=True)
    array >>= source.integers(0, limits.bits, array.size).astype(dtype)
    assert portable_texts(portable, array, datatype) == [str(v) for v in array.tolist()]
    assert encode_texts(array) == [str(v) for v in array.tolist()]
    for block in integer_blocks(datatype):
        assert portable_texts(portable, block, datatype) == [str(v) for v in block.tolist()]
