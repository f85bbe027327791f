"""Text -> number: correctly rounded once to its own type, strict grammar, linear time. Seen through decode."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastinfer.base.errors import ApiError
from fastinfer.codec import decode as codec
from tests import reference

FLOATS = list(reference.FLOATS)
WIDTHS = [512, 256, 0]
"""Of the registers that numbers are read with; 0 is what any CPU has."""
BITS = {"FP16": np.uint16, "BF16": np.uint16, "FP32": np.uint32, "FP64": np.uint64}


def decode_data(data: str, shape: list[int], datatype: str) -> np.ndarray:
    """The tensor of this data, which all widths read alike, or refuse alike; floating point as its bits."""
    body = f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}'.encode()
    found, refused = [], []
    for width in WIDTHS:
        try:
            found.append(codec.decode(body, width=width).inputs[0].numpy())
        except ApiError as error:
            refused.append(error)
    assert not (found and refused)
    if refused:
        assert {(error.status, error.message) for error in refused} == {(refused[0].status, refused[0].message)}
        raise refused[0]
    array = found[0].view(BITS[datatype]) if datatype in BITS else found[0]
    assert all(other.tobytes() == array.tobytes() for other in found)
    return array


def decode_texts(texts: list[str], datatype: str, separator: str = ",") -> np.ndarray:
    """The tensor of these elements."""
    return decode_data(f"[{separator.join(texts)}]", [len(texts)], datatype)


def check(texts: list[str], datatype: str) -> None:
    """The oracle agrees about every text: its bits, or that it is out of range."""
    fitting, expected = [], []
    for text in texts:
        try:
            expected.append(reference.parse_float(text, datatype))
            fitting.append(text)
        except OverflowError:
            assert refusal(text, datatype).endswith(f" is out of range for {datatype}")
    got = decode_texts(fitting, datatype).tolist()
    wrong = [(t, hex(g), hex(e)) for t, g, e in zip(fitting, got, expected, strict=True) if g != e]
    assert not wrong, wrong[:5]


def refusal(text: str, datatype: str) -> str:
    with pytest.raises(ApiError) as raised:
        decode_texts([text], datatype)
    assert raised.value.status == 400
    return raised.value.message


def decimal(value: Fraction, digits: int) -> str:
    """A positive value's text with so many significant digits, cut off."""
    exponent = len(str(value.numerator)) - len(str(value.denominator))
    scaled = value * Fraction(10) ** (digits - exponent)
    return f"{scaled.numerator // scaled.denominator}e{exponent - digits}"


def exact(value: Fraction) -> str:
    """The exact text of a positive dyadic fraction, without an exponent."""
    shift = value.denominator.bit_length() - 1
    digits = str(value.numerator * 5**shift).rjust(shift + 1, "0")
    return f"{digits[: len(digits) - shift]}.{digits[len(digits) - shift :] or '0'}"


def bits_of_interest(datatype: str, random_count: int) -> list[int]:
    """Finite, positive: ends of ranges, powers of two, and random ones, all with their neighbours."""
    mantissa, exponent = reference.FLOATS[datatype]
    infinity = ((1 << exponent) - 1) << mantissa
    source = random.Random(datatype)
    chosen = {0, 1, 2, 3, (1 << mantissa) - 1, 1 << mantissa, infinity - 1, infinity - 2}
    for biased in source.sample(range(1, (1 << exponent) - 1), min(20, (1 << exponent) - 2)):
        chosen |= {(biased << mantissa) - 1, biased << mantissa, (biased << mantissa) + 1}
    chosen |= {source.randrange(infinity) for _ in range(random_count)}
    return sorted(bits for bits in chosen if 0 <= bits < infinity)


AWKWARD = """
    0 -0 0.0 -0.0 1 -1 1.0 0.1 0.2 0.3 -12.5 255 0.5 1e0 1E+2 1e-2 NaN Infinity -Infinity
    0e999999999999999999999 0.000e-5 1e-999999999999999999999 1.5e-45 1e-400 65504 65519.99999
    5e-324 2.4703282292062327e-324 2.4703282292062328e-324 2049 2051 5.960464477539063e-08
    1.00048828125 1.00048828125000000000001 1.0000000596046448 123456789012345 1234567890123456
    0.123456789012345 0.1234567890123456 0.12345678901234567 0.1234567890123456789 9007.199254740993
"""


@pytest.mark.parametrize("datatype", FLOATS)
def test_common_and_awkward_texts(datatype: str) -> None:
    long = ["0." + "0" * 400 + "1", "0." + "0" * 4999 + "1e5000", "1" + "0" * 4999 + "e-5000", "1." + "0" * 5000]
    long += ["1e" + "0" * 5000 + "4", "1e-" + "0" * 5000 + "4", "0e" + "9" * 5000, "1e-" + "9" * 5000]
    check([*AWKWARD.split(), *long], datatype)


@pytest.mark.parametrize("datatype", FLOATS)
def test_halfway_between_neighbours_and_just_beside(datatype: str) -> None:
    texts = []
    for bits in bits_of_interest(datatype, 60):
        middle = (reference.value_of(bits, datatype) + reference.value_of(bits + 1, datatype)) / 2
        text = exact(middle)
        texts += [text, text + "0" * 30, text + "0" * 30 + "1", exact(middle)[:-1] + "4" + "9" * 25]
        texts += [decimal(middle, digits) for digits in (9, 17, 19, 20, 25)]
    check(texts, datatype)


@pytest.mark.parametrize("datatype", FLOATS)
def test_random_texts_of_every_form(datatype: str) -> None:
    source = random.Random(f"forms {datatype}")
    span = 4 if datatype == "FP16" else 36
    texts = []
    for _ in range(3000):
        digits = str(source.randrange(10 ** source.randrange(1, 24)))
        point = source.randrange(len(digits)) + 1
        text = digits[:point] + ("." + digits[point:] if point < len(digits) else "")
        if source.random() < 0.4:
            text += f"{source.choice('eE')}{source.choice(['', '+', '-'])}{source.randrange(span)}"
        texts.append(source.choice(["", "-"]) + text)
    check(texts, datatype)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_short_value_reads_back_from_its_exact_text(datatype: str) -> None:
    mantissa, exponent = reference.FLOATS[datatype]
    bits = list(range(((1 << exponent) - 1) << mantissa))
    texts = [exact(reference.value_of(b, datatype)) if b else "0" for b in bits]
    assert decode_texts(texts, datatype).tolist() == bits


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=200, deadline=None)
def test_fp64_is_read_as_python_reads_it(value: float) -> None:
    for text in (repr(value), f"{value:.25e}", f"{value:.17g}"):
        assert decode_texts([text], "FP64").view(np.float64)[0] == float(text)


@pytest.mark.parametrize("datatype", FLOATS)
def test_the_end_of_the_range(datatype: str) -> None:
    mantissa, exponent = reference.FLOATS[datatype]
    greatest = (((1 << exponent) - 1) << mantissa) - 1
    value = reference.value_of(greatest, datatype)
    half_step = (value - reference.value_of(greatest - 1, datatype)) / 2
    assert decode_texts([exact(value)], datatype)[0] == greatest
    below = exact(value + half_step - Fraction(1, 2**20) * half_step)
    assert decode_texts([below], datatype)[0] == greatest
    for text in (exact(value + half_step), exact(value + 2 * half_step), "1e400", "1e999999999", "9" * 5000):
        assert refusal(text, datatype).endswith(f" is out of range for {datatype}")
        assert refusal("-" + text, datatype).endswith(f" is out of range for {datatype}")
    least = reference.value_of(1, datatype)
    assert decode_texts([exact(least / 2), exact(least / 2) + "1", exact(least)], datatype).tolist() == [0, 1, 1]


NOT_NUMBERS = """
    +1 01 -01 00 .5 1. - -.5 1e 1e+ 1.e5 0x10 1_0 1,,2 nan NAN Inf inf -NaN +Infinity Infinit NaN1 1.2.3 --1 1e5.5
    true null "1" {} [1] 1a 1/2 ٣ 0.1234567890123456789x 1234567890123x 0.123456789012345x 0:5 00.5 1.5-
"""
MALFORMED = [*NOT_NUMBERS.split(), "", " ", "- 1", "1 2", "1\x00", "1 .5", "1. 5", "1e 5"]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64", "INT8", "UINT8", "INT32", "UINT64"])
def test_malformed_numbers_are_refused_wherever_they_stand(datatype: str) -> None:
    for text in MALFORMED:
        refusal(text, datatype)
        for texts in (["1", text], [text, "1"], ["1"] * 300 + [text] + ["1"] * 300):
            with pytest.raises(ApiError):
                decode_texts(texts, datatype)


@pytest.mark.parametrize("datatype", reference.INTEGERS)
def test_integers_within_their_range(datatype: str) -> None:
    sign, bits = reference.INTEGERS[datatype]
    low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    source = random.Random(datatype)
    values = [low, high, 0, low + 1, high - 1, *[source.randint(low, high) for _ in range(500)]]
    values += [v for n in range(20) for v in (10**n, 10**n - 1, -(10**n)) if low <= v <= high]
    assert decode_texts([str(v) for v in values], datatype).tolist() == values
    assert decode_texts(["-0", " 7", "7 ", "\n7\t"], datatype).tolist() == [0, 7, 7, 7]
    for value in (low - 1, high + 1, 10**18, 10**19, 2**64, -(2**64), 10**20, 10**5000):
        if not low <= value <= high:
            text = str(value) if abs(value) < 10**100 else "1" + "0" * 5000
            assert refusal(text, datatype).endswith(f" is out of range for {datatype}")
    for text in ("1.0", "1e2", "1E2", "0.5", "1.5", "1e-2", "0e0", "-0.0", "NaN", "Infinity", "1" * 5000 + ".5"):
        refusal(text, datatype)


@pytest.mark.parametrize("separator", [",", ", ", " ,", ",\n  ", " \r\n,\t "])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "UINT8", "INT64", "BOOL"])
def test_white_space_between_elements(datatype: str, separator: str) -> None:
    source = random.Random(1)
    count = 1000
    if datatype == "BOOL":
        texts = [source.choice(["true", "false"]) for _ in range(count)]
        assert decode_texts(texts, datatype, separator).tolist() == [t == "true" for t in texts]
    elif datatype.startswith("FP"):
        texts = [repr(source.gauss(0, 1)) for _ in range(count)]
        assert decode_texts(texts, datatype, separator).tolist() == expected(texts, datatype)
    else:
        texts = [str(source.randrange(128)) for _ in range(count)]
        assert decode_texts(texts, datatype, separator).tolist() == [int(t) for t in texts]


def test_long_numbers_between_short_ones() -> None:
    source = random.Random(2)
    texts = []
    for _ in range(60):
        texts += ["1.5"] * source.randrange(3) + ["0." + "".join(source.choices("0123456789", k=5000))]
        texts += [" " * source.randrange(5000) + "7"]
    check([t.strip() for t in texts], "FP32")
    assert decode_texts(texts, "FP64").tolist() == decode_texts([t.strip() for t in texts], "FP64").tolist()


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 700, 2047, 2048, 2049])
def test_every_length_of_a_run(size: int) -> None:
    assert decode_texts([str(i % 100) for i in range(size)], "UINT8").tolist() == [i % 100 for i in range(size)]


def numbers(source: random.Random, datatype: str, count: int) -> list[str]:
    """Short and long ones of a type, in the forms that are read in different ways."""
    if datatype == "BOOL":
        return source.choices(["true", "false"], k=count)
    if datatype in reference.INTEGERS:
        sign, bits = reference.INTEGERS[datatype]
        limit = 2 ** (bits - (sign == ""))
        signs = [1] if sign else [1, -1]
        return [
            str(source.choice(signs) * source.randrange(min(limit, 10 ** source.randrange(1, 20))))
            for _ in range(count)
        ]
    forms = [".0f", ".1f", ".3f", ".7f", ".9g", ".12f", ".17f", ".24f", ".33f", ".9e"]
    return [f"{source.gauss(0, 1):{source.choice(forms)}}" for _ in range(count)]


def expected(texts: list[str], datatype: str) -> list[int]:
    if datatype in BITS:
        return [reference.parse_float(text, datatype) for text in texts]
    return [text == "true" if datatype == "BOOL" else int(text) for text in texts]


@pytest.mark.parametrize("datatype", ["BOOL", *reference.INTEGERS, *FLOATS])
@pytest.mark.parametrize("shape", [[3000], [700, 3], [3, 2, 500], [1500, 1], [7, 5, 3, 2]])
def test_rows_through_pieces_of_text(datatype: str, shape: list[int]) -> None:
    source = random.Random(f"{datatype} {shape}")
    for separator in (",", ", ", " ,\n "):
        texts = numbers(source, datatype, int(np.prod(shape)))

        def nested(level: int, elements: Iterator[str], separator: str = separator) -> str:
            if level == len(shape):
                return next(elements)
            return "[" + separator.join(nested(level + 1, elements) for _ in range(shape[level])) + "]"

        for data in (nested(0, iter(texts)), f"[{separator.join(texts)}]"):
            assert decode_data(data, shape, datatype).reshape(-1).tolist() == expected(texts, datatype)


@pytest.mark.parametrize("datatype", ["UINT8", "INT64", "FP32"])
def test_a_sign_a_dot_and_a_comma_at_every_place_of_a_piece(datatype: str) -> None:
    for size in [*range(1950, 2060), *range(50, 70)]:
        texts = ["1" * (size % 7 + 1)] * (datatype != "UINT8") + ["1"] * (size // 2) + ["-7"] * (datatype != "UINT8")
        texts += ["2.5", "-0.5", "3"] if datatype == "FP32" else ["3", "44"]
        assert decode_texts(texts, datatype).tolist() == expected(texts, datatype)
        wide = ["1" + " " * size, " " * size + "2", "3"]
        assert decode_texts(wide, datatype).tolist() == expected(["1", "2", "3"], datatype)


@pytest.mark.parametrize("datatype", FLOATS)
def test_exponents_of_every_form_among_decimals_at_every_place(datatype: str) -> None:
    powers = ["e-05", "E-5", "e0", "E+2", "e+02", "e-007", "E00", "e-10", "e-25", "e-45", "e3", "e+1", "e-123", "e-0"]
    for size in range(66):
        texts = ["1" * (size % 5 + 1)] * (size // 5 + 1)
        for power in powers:
            texts += ["0.75", "8.30483" + power, "-7" + power, "0.0" + power, "12.5"]
        check(texts, datatype)


@pytest.mark.parametrize("datatype", FLOATS)
def test_malformed_exponents_among_decimals_at_every_place(datatype: str) -> None:
    faults = [
        "1e",
        "1e+",
        "1e--5",
        "1e+-5",
        "1e5e3",
        "1e5.5",
        "1.e5",
        "e5",
        "-e5",
        "1e 5",
        "1x5",
        "1e*5",
        "01e5",
        "1e5-",
        "1-e5",
    ]
    for fault in faults:
        for size in (1, 20, 45, 46, 47, 48, 49, 60, 61, 62, 63, 64, 800):
            for other in ("0.25", "2.5e-3"):
                with pytest.raises(ApiError):
                    decode_texts([other] * 9 + ["7"] * size + [fault] + [other] * 40, datatype)


@pytest.mark.parametrize("separator", [",", ", ", " , "])
@pytest.mark.parametrize("datatype", ["UINT8", "INT32", "FP32", "FP64"])
def test_faults_between_rows(datatype: str, separator: str) -> None:
    rows = ["[1,2,3]"] * 300
    for fault in (
        "[1,2]",
        "[1,2,3,4]",
        "[]",
        "1",
        "[[1,2,3]]",
        "[1,2,3",
        "1,2,3]",
        "[1,,3]",
        "[1 2,3]",
        "[1,2,]",
        "[1,2,3],",
        "[1,2,3]]",
        "[1,2,3Y",
        "[1,2,3_",
        "Y1,2,3]",
        "[1,2,3][1,2,3]",
        "],[1,2,3]",
        "[1,2,300e999]",
        "[1,2],[3]",
        "[1,2,3],[4,5,6]",
        "{}",
        '"',
    ):
        for place in (0, 1, 150, 299):
            faulty = [*rows[:place], fault, *rows[place + 1 :]]
            with pytest.raises(ApiError):
                decode_data(f"[{separator.join(faulty)}]", [300, 3], datatype)


@pytest.mark.parametrize("datatype", ["INT32", "FP64"])
def test_odd_numbers_among_short_rows_take_linear_time(datatype: str) -> None:
    odd = "NaN" if datatype == "FP64" else "-0"
    rows = 100_000
    decode_data("[" + ",".join([f"[{odd}]", "[1]"] * (rows // 2)) + "]", [rows, 1], datatype)


def test_data_at_the_very_beginning_of_a_body() -> None:
    for width in WIDTHS:
        for size in range(1, 60):
            texts = [str(-i % 11) for i in range(size)]
            body = f'{{"inputs":[{{"data":[{",".join(texts)}],"name":"","shape":[{size}],"datatype":"FP32"}}]}}'
            assert codec.decode(body.encode(), width=width).inputs[0].numpy().tolist() == [float(t) for t in texts]
