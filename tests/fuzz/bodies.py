"""Decodes random bodies, sound and damaged, in all ways at once. Not part of the everyday tests.

    python -m tests.fuzz.bodies --count 100000 --seed 1

Each body holds one tensor: of any datatype, flat or nested, in neat and odd layouts, with common and awkward elements.
It is decoded with registers of every width, at the beginning of its pages and at their end; the pages around must not
be touched. All shall find the same tensor, which is the oracle's (Python's json, exact numbers), or refuse the body
with the same sentence where the oracle does. Then a byte is changed, removed or doubled, and all shall agree again.
Prints how many bodies were decoded; raises AssertionError at a difference, ends with a signal at a touch.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import faulthandler
import json
import math
import mmap
import random
import time
from collections.abc import Callable, Iterator

from fastinfer.base.errors import ApiError
from fastinfer.codec import decode as codec
from tests import reference
from tests.unit.test_decode_hostile import agree
from tests.unit.test_number_parse import WIDTHS

DATATYPES = [*reference.FLOATS, *reference.INTEGERS, "BOOL", "BYTES"]
SHORT = r"""
    +1 01 -01 00 -00 -0 -0.0 0. .5 -.5 1. 1.2.3 - -- 1- 1e 1e5 1E-3 1.5e+2 1e400 1e-400 -1 300 99999999999999999999
    18446744073709551615 0x1 1_0 1Y 1/2 ٣ NaN -NaN Infinity -Infinity true True null [1] [] ] [ } {} "1" " \
"""
AWKWARD = [*SHORT.split(), "", "1 2", "1\n2", "1\x00", "\x01", "4" * 40, "0." + "0" * 60 + "7", "5" * 2100]
BLANKS = ["", "", " ", "\n", "\t", "\r\n  ", " " * 70]
DAMAGE = b'[]{},:"\\.-+0159 eEYaN\n\x00\x1f\x80\xff'


# --- Bodies ----------------------------------------------------------------------------------------------------------


def element(source: random.Random, datatype: str, content_type: str = "") -> str:
    """A sound element's text."""
    if datatype == "BYTES" and content_type == "base64":
        text = base64.b64encode(source.randbytes(source.choice([0, 1, 2, 3, 20, 21, 22, 300]))).decode()
        return json.dumps(text) if source.random() < 0.5 else f'"{text}"'.replace("/", "\\/")
    if datatype in reference.FLOATS and source.random() < 0.02:
        return "null"
    if datatype == "BOOL":
        return source.choice(["true", "false"])
    if datatype == "BYTES":
        text = "".join(source.choices('abc \\"/,[]\n\x7fé€😀', k=source.randrange(12)))
        return json.dumps(text, ensure_ascii=source.random() < 0.5)
    if datatype in reference.INTEGERS:
        sign, bits = reference.INTEGERS[datatype]
        low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        anything = source.randint(low, high) >> source.randrange(bits)
        return str(source.choice([low, low + 1, 0, 1, high - 1, high] + 6 * [anything]))
    kind = source.randrange(6)
    if kind == 0:
        return f"{source.gauss(0, 1):.{source.randrange(1, 34)}f}"
    if kind == 1:
        return f"{source.randrange(10 ** source.randrange(1, 5))}.{source.randrange(10 ** source.randrange(1, 28)):04}"
    if kind == 2:
        return f"{source.gauss(0, 1):.{source.randrange(20)}{source.choice('eE')}}"
    if kind == 3:
        return source.choice(["0.0", "-0", str(source.randint(-1000, 1000))])
    return source.choice([repr(source.random()), f"{source.random():.7g}"])


def arranged(texts: Iterator[str], dims: list[int], blank: Callable[[], str]) -> str:
    """Arrays in arrays of these dimensions, with white space around what they hold."""
    if not dims:
        return next(texts)
    inner = [blank() + arranged(texts, dims[1:], blank) + blank() for _ in range(dims[0])]
    return f"[{','.join(inner)}]"


def body_of_one_tensor(source: random.Random) -> bytes:
    datatype = source.choice(DATATYPES)
    rank = source.choice([0, 1, 1, 2, 2, 3])
    dims = [source.choice([1, 2, 3, 4, 5, 7, 16, 33, 0, 100, 700][: (0, 11, 9, 7)[rank]]) for _ in range(rank)]
    size = math.prod(dims)
    content_type = source.choice(["", "base64", "base64", "str", "text"]) if source.random() < 0.3 else ""
    texts = [element(source, datatype, content_type) for _ in range(size)]
    for _ in range(source.choice([0, 0, 0, 1, 3]) if texts else 0):
        texts[source.randrange(size)] = source.choice(AWKWARD)
    blanks = source.choice([[""], [" "], ["", "", " "], BLANKS])
    levels = dims if dims and source.random() < 0.7 else [size]
    data = arranged(iter(texts), levels, lambda: source.choice(blanks))
    members = ['"name":"x"', f'"datatype":"{datatype}"', f'"shape":{dims}', f'"data":{data}']
    if content_type:
        members.append(f'"parameters":{{"content_type":"{content_type}"}}')
    source.shuffle(members)
    return f'{{"inputs":[{{{",".join(members)}}}]}}'.encode()


def damaged(source: random.Random, body: bytes) -> bytes:
    """One byte is changed, removed or doubled."""
    at = source.randrange(len(body))
    byte = body[at : at + 1]
    return body[:at] + source.choice([bytes([source.choice(DAMAGE)]), b"", byte + byte]) + body[at + 1 :]


# --- Decoding --------------------------------------------------------------------------------------------------------


class Pages:
    """Memory between pages that may not be touched."""

    GUARD = 1 << 17  # farther than 16 bits of offset lead

    def __init__(self, size: int) -> None:
        whole = mmap.mmap(-1, size + 2 * self.GUARD)
        start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
        for guard in (start, start + self.GUARD + size):
            if ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(self.GUARD), 0):
                raise OSError("mprotect")
        self.room = memoryview(whole)[self.GUARD : -self.GUARD]

    def at_both_ends(self, body: bytes) -> Iterator[memoryview]:
        """The body at the beginning of the memory, then at its end."""
        for place in (self.room[: len(body)], self.room[len(self.room) - len(body) :]):
            place[:] = body
            yield place


def decoded(body: memoryview, width: int, nullable: bool) -> tuple[object, ...]:
    """What a decoder makes of it: the tensor, or its sentence."""
    try:
        tensor = codec.decode(body, width=width, nullable=nullable).inputs[0]
    except ApiError as error:
        return error.status, error.message
    return tensor.name, tensor.datatype, tensor.shape, bytes(memoryview(tensor))


def check(body: bytes, pages: Pages) -> None:
    for nullable in (False, True):
        outcomes = {decoded(place, width, nullable) for place in pages.at_both_ends(body) for width in WIDTHS}
        assert len(outcomes) == 1, (body, outcomes)
    agree(body)


def run(count: int, seed: int) -> None:
    source = random.Random(seed)
    pages = Pages(1 << 20)
    for _ in range(count):
        body = body_of_one_tensor(source)
        check(body, pages)
        check(damaged(source, body), pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="bodies")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    faulthandler.enable()
    print(f"seed {arguments.seed}", flush=True)
    run(arguments.count, arguments.seed)
    print(f"{arguments.count:,} bodies decoded alike, and as many damaged ones")


if __name__ == "__main__":
    main()
