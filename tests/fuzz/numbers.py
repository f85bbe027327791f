"""Compares number texts in bulk with independent readers and writers. Not part of the everyday tests.

    python -m tests.fuzz.numbers --count 1000000 --seed 1

Reading: FP64 against Python's float; FP16, BF16 and FP32 against the oracle (exact fractions), and FP32 also against
the C library's strtof, which makes large counts bearable. Writing: FP64 against repr, FP32 against numpy's shortest
digits, both read back; FP16 and BF16 completely against the oracle. Prints what was compared; exits 1 at a difference.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from tests import reference
from tests.unit.test_number_format import encode_bits, encode_texts
from tests.unit.test_number_parse import decimal, decode_texts, exact

_strtof = ctypes.CDLL(None).strtof
_strtof.restype = ctypes.c_float
_strtof.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
BLOCK = 20_000


def awkward_texts(source: random.Random, datatype: str, count: int) -> Iterator[str]:
    """Texts near the middle of two neighbours, of random digits, and of every length and exponent."""
    mantissa, exponent = reference.FLOATS[datatype]
    infinity = ((1 << exponent) - 1) << mantissa
    span = {"FP16": 9, "BF16": 45, "FP32": 45, "FP64": 330}[datatype]
    for _ in range(count):
        kind = source.randrange(6)
        if kind == 0:  # beside the middle, cut to a random number of digits
            bits = source.randrange(infinity - 1)
            middle = (reference.value_of(bits, datatype) + reference.value_of(bits + 1, datatype)) / 2
            yield decimal(middle, source.randrange(1, 40))
        elif kind == 1 and datatype != "FP64":  # the middle, exactly, and a little more
            bits = source.randrange(infinity - 1)
            middle = (reference.value_of(bits, datatype) + reference.value_of(bits + 1, datatype)) / 2
            yield exact(middle) + "0" * source.randrange(5) + source.choice(["", "1"])
        elif kind == 2:
            digits = source.randrange(1, 30)
            yield f"{source.randrange(10**digits)}e{source.randrange(-span - digits, span - digits)}"
        elif kind == 3:
            yield f"{source.randrange(10 ** source.randrange(1, 6))}.{source.randrange(10 ** source.randrange(1, 25))}"
        elif kind == 4:
            yield f"{source.gauss(0, 1):.{source.randrange(1, 20)}f}"
        else:
            yield f"{source.uniform(0, 1):.{source.randrange(1, 25)}g}"


def expected_bits(text: str, datatype: str) -> int | None:
    if datatype == "FP64":
        value = float(text)
        return None if np.isinf(value) else int(np.float64(value).view(np.uint64))
    if datatype == "FP32":
        single = np.float32(_strtof(text.encode(), None))
        return None if np.isinf(single) else int(single.view(np.uint32))
    try:
        return reference.parse_float(text, datatype)
    except OverflowError:
        return None


def check_reading(source: random.Random, datatype: str, count: int) -> None:
    done = 0
    while done < count:
        texts = list(awkward_texts(source, datatype, min(BLOCK, count - done)))
        done += len(texts)
        pairs = [(text, bits) for text in texts if (bits := expected_bits(text, datatype)) is not None]
        got = decode_texts([text for text, _ in pairs], datatype).tolist()
        for (text, bits), ours in zip(pairs, got, strict=True):
            if ours != bits:
                sys.exit(f"{datatype}: {text} was read as {ours:#x}, not {bits:#x}")
    print(f"{datatype}: {count:,} texts read alike")


def check_writing(seed: int, datatype: str, count: int) -> None:
    generator = np.random.default_rng(seed)
    if datatype in ("FP16", "BF16"):
        mantissa, exponent = reference.FLOATS[datatype]
        bits = list(range(((1 << exponent) - 1) << mantissa))
        count = len(bits)
        texts = encode_bits(bits, datatype)
        wrong = [b for b, text in zip(bits, texts, strict=True) if text != reference.shortest(b, datatype)]
        if wrong:
            sys.exit(f"{datatype}: {wrong[0]:#x} was not written shortest")
    for start in range(0, count if datatype in ("FP32", "FP64") else 0, BLOCK):
        size = min(BLOCK, count - start)
        unsigned, floating = (np.uint32, np.float32) if datatype == "FP32" else (np.uint64, np.float64)
        values = generator.integers(0, 2 ** (32 if datatype == "FP32" else 64), size, dtype=unsigned).view(floating)
        values[::3] = generator.standard_normal(len(values[::3]))
        values = values[np.isfinite(values)]
        texts = encode_texts(values)
        for value, text in zip(values, texts, strict=True):
            shortest = repr(float(value)) if datatype == "FP64" else None
            digits = shortest_digits(np.format_float_scientific(value, unique=True)) if shortest is None else ""
            if (shortest is not None and text != shortest) or (digits and shortest_digits(text) != digits):
                sys.exit(f"{datatype}: {value!r} was written as {text}")
        if decode_texts(texts, datatype).tolist() != values.view(unsigned).tolist():
            sys.exit(f"{datatype}: what was written does not read back")
    print(f"{datatype}: {count:,} values written alike")


def shortest_digits(text: str) -> str:
    return text.split("e")[0].replace(".", "").lstrip("-0").rstrip("0") or "0"


def check_oracle(source: random.Random, count: int) -> None:
    """The oracle itself against Python's float."""
    for text in awkward_texts(source, "FP64", count):
        value = float(text)
        if not np.isinf(value) and Fraction(value) != reference.value_of(reference.parse_float(text, "FP64"), "FP64"):
            sys.exit(f"the oracle reads {text} wrongly")
    print(f"oracle: {count:,} texts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="texts and values a type")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    source = random.Random(arguments.seed)
    check_oracle(source, arguments.count // 20)
    for datatype in reference.FLOATS:
        check_reading(source, datatype, arguments.count)
        check_writing(arguments.seed, datatype, arguments.count)


if __name__ == "__main__":
    main()
