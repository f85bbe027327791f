"""Number -> text: the fewest digits that read back to the same value of the same type. Seen through encode."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer.codec import encode as codec
from fastinfer.tensor.message import InferResponse
from fastinfer.tensor.tensor import Tensor
from tests import reference
from tests.unit.test_number_parse import bits_of_interest, decode_texts

FLOATS = list(reference.FLOATS)
NUMPY = {"FP16": np.float16, "BF16": np.uint16, "FP32": np.float32, "FP64": np.float64}


def encode_texts(array: np.ndarray, datatype: str | None = None, nonfinite: int = codec.LITERAL) -> list[str]:
    """The texts of the elements."""
    tensor = Tensor.from_numpy("x", array, datatype)
    text = bytes(codec.encode(InferResponse("m", "1", [tensor]), nonfinite)).decode()
    data = text[text.index('"data":[') + 8 : -4]
    return data.split(",") if data else []


def encode_bits(bits: list[int], datatype: str) -> list[str]:
    width = {"FP32": np.uint32, "FP64": np.uint64}.get(datatype, np.uint16)
    return encode_texts(np.array(bits, dtype=width).view(NUMPY[datatype]), datatype)


@pytest.mark.parametrize("datatype", FLOATS)
def test_shortest_by_definition(datatype: str) -> None:
    bits = bits_of_interest(datatype, 300)
    sign = 1 << sum(reference.FLOATS[datatype])
    bits += [b | sign for b in bits[::7]]
    assert encode_bits(bits, datatype) == [reference.shortest(b, datatype) for b in bits]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_short_value(datatype: str) -> None:
    mantissa, exponent = reference.FLOATS[datatype]
    infinity = ((1 << exponent) - 1) << mantissa
    bits = [b for b in range(65536) if b & infinity != infinity]
    texts = encode_bits(bits, datatype)
    assert decode_texts(texts, datatype).tolist() == bits
    for b in random.Random(3).sample(bits, 2000):
        assert encode_bits([b], datatype) == [reference.shortest(b, datatype)]


def test_fp64_is_python_repr() -> None:
    source = np.random.default_rng(4)
    random_bits = source.integers(0, 2**64, 60_000, dtype=np.uint64).view(np.float64)
    scaled = source.standard_normal(60_000) * 10.0 ** source.integers(-20, 20, 60_000)
    rounded = np.round(source.standard_normal(60_000) * 1000, 2)
    whole = source.integers(-(2**60), 2**60, 20_000).astype(np.float64)
    powers = [s * m * 10.0**e for s in (1, -1) for m in (1, 1.5, 9.999999999999999, 123456) for e in range(-300, 300)]
    powers += [2.0**e for e in range(-1074, 1024)]
    for values in (random_bits, scaled, rounded, whole, np.array(powers)):
        values = values[np.isfinite(values)]
        assert encode_texts(values) == [repr(v) for v in values.tolist()]


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_fp64_is_python_repr_for_what_hypothesis_finds(value: float) -> None:
    assert encode_texts(np.array([value])) == [repr(value)]


def test_fp32_has_the_digits_of_numpy() -> None:
    source = np.random.default_rng(5)
    random_bits = source.integers(0, 2**32, 60_000, dtype=np.uint32).view(np.float32)
    usual = source.standard_normal(60_000).astype(np.float32)
    for values in (random_bits[np.isfinite(random_bits)], usual, np.ldexp(np.float32(1), np.arange(-149, 128))):
        texts = encode_texts(values)
        assert decode_texts(texts, "FP32").tolist() == values.view(np.uint32).tolist()
        digits = [np.format_float_scientific(v, unique=True, trim="-").split("e")[0] for v in values[:5000]]
        got = [t.split("e")[0].replace(".", "").lstrip("-0").rstrip("0") for t in texts[:5000]]
        assert got == [d.replace(".", "").lstrip("-0").rstrip("0") for d in digits]


def whole_bits(datatype: str) -> list[int]:
    """Blocks of whole numbers up to where their bits end, and such blocks with one that is none, at every place."""
    mantissa, _ = reference.FLOATS[datatype]
    source = random.Random(8)
    sign = 1 << sum(reference.FLOATS[datatype])
    half, minus_zero = reference.parse_float("0.5", datatype), sign
    most = min(20, mantissa + 2)
    bits = []
    for power in range(most):
        numbers = [2**power - 1, 2**power, 2**power + 1] + [source.randrange(2 ** (power + 1)) for _ in range(13)]
        bits += [reference.parse_float(str(n), datatype) for n in numbers]
    signed = [b | sign if b and source.randrange(2) else b for b in bits]
    for place in range(16):
        for other in (half, minus_zero, half | sign):
            block = source.sample(signed[:96], 16)
            block[place] = other
            bits += block
    return bits + signed


@pytest.mark.parametrize("datatype", FLOATS)
def test_blocks_of_whole_numbers(datatype: str) -> None:
    bits = whole_bits(datatype)
    expected = [reference.shortest(b, datatype) for b in bits]
    assert encode_bits(bits, datatype) == expected
    for size in range(1, 40):
        assert encode_bits(bits[size : 2 * size], datatype) == expected[size : 2 * size]


def test_the_form_is_that_of_repr() -> None:
    cases = ["0.0", "-0.0", "0.1", "1.0", "-1.5", "100.0", "123456.0", "0.0001", "0.00012", "1e-05", "1.5e-07", "1e+16"]
    cases += ["1234568000000000.0", "1.234568e+16", "3.4028235e+38", "1e-45", "1.1754944e-38", "9.999999e+15"]
    texts = encode_texts(np.array([float(c) for c in cases], dtype=np.float32))
    assert texts[:-1] == cases[:-1]
    assert texts[-1] == "9999999000000000.0"


def test_values_that_are_not_finite() -> None:
    for datatype in FLOATS:
        mantissa, exponent = reference.FLOATS[datatype]
        infinity = ((1 << exponent) - 1) << mantissa
        bits = [infinity, infinity | 1 << (mantissa + exponent), infinity | 1, infinity + (1 << mantissa) - 1, 0]
        assert encode_bits(bits, datatype) == ["Infinity", "-Infinity", "NaN", "NaN", "0.0"]
    values = np.array([1, np.nan, -np.inf], dtype=np.float32)
    assert encode_texts(values, nonfinite=codec.NULL) == ["1.0", "null", "null"]


@pytest.mark.parametrize("datatype", reference.INTEGERS)
def test_integers(datatype: str) -> None:
    dtype = np.dtype(datatype.lower())
    limits = np.iinfo(dtype)
    source = random.Random(datatype)
    values = [int(limits.min), int(limits.max), 0, 1]
    around = [s * 10**n + d for n in range(20) for d in (-1, 0, 1) for s in (1, -1)]
    values += [v for v in around if limits.min <= v <= limits.max]
    values += [source.randint(0, int(limits.max)) >> source.randrange(64) for _ in range(3000)]
    assert encode_texts(np.array(values, dtype=dtype)) == [str(v) for v in values]


@pytest.mark.parametrize("datatype", reference.INTEGERS)
def test_blocks_of_integers_by_their_largest(datatype: str) -> None:
    for values in integer_blocks(datatype):
        assert encode_texts(values) == [str(v) for v in values.tolist()]


def integer_blocks(datatype: str) -> list[np.ndarray]:
    """A largest one on either side of each limit, with none negative, with some, and as the least; of every size."""
    dtype = np.dtype(datatype.lower())
    limits = np.iinfo(dtype)
    source = np.random.default_rng(9)
    powers = [2**n for n in range(64)] + [10**n for n in range(20)] + [1845 * 10**n for n in (0, 8, 16)]
    largest = [v for p in powers for v in (p - 1, p, p + 1, -p, 1 - p) if limits.min <= v <= limits.max]
    blocks = []
    for number, value in enumerate(largest):
        least = max(-abs(value), int(limits.min)) if number % 2 else 0
        high = min(abs(value), int(limits.max))
        block = source.integers(least, high, 1 + number % 131, dtype=dtype, endpoint=True)
        block[source.integers(block.size)] = value
        blocks.append(block)
    return blocks


def test_booleans_and_nothing() -> None:
    assert encode_texts(np.array([True, False, True])) == ["true", "false", "true"]
    for dtype in (np.float32, np.int8, np.bool_):
        assert encode_texts(np.zeros(0, dtype=dtype)) == []
