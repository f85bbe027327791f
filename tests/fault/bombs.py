"""Requests that cost a server more than their sender: a few KiB on the wire, or cheap text, that make much of either.

Each kind exists in several sizes. Bodies are made once in a process and kept, because attackers share the cores with
the server that they attack: sending must cost them nothing.
"""

from __future__ import annotations

import base64
import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from PIL import Image

from tests import onnx_models
from tests.fault.clients import head
from tests.fault.trial import KIB, MIB

MAX_BODY_BYTES = 64 * MIB  # the server's default, which an inflated body must not exceed
FREE_INFLATION_BYTES = MIB  # up to which any ratio is fair
FAIR_RATIO = 100  # inflated bytes to received ones, above that

MODELS = {
    "same_fp32": onnx_models.identity("FP32"),
    "same_fp64": onnx_models.identity("FP64"),
    "same_bytes": onnx_models.identity("BYTES"),
}
"""The models that bombs are sent to; for images, the worker base64_decode."""


@dataclass(frozen=True)
class Bomb:
    """A request, whole.

    Attributes:
        kind: what is wrong with it.
        model: who is asked.
        message: head and body, as sent.
        received: bytes of its body.
        inflated: the same, once inflated.
    """

    kind: str
    model: str
    message: bytes
    received: int
    inflated: int

    @property
    def fair_bytes(self) -> int:
        """What the server may be expected to inflate of it."""
        return min(self.inflated, max(FREE_INFLATION_BYTES, self.received, FAIR_RATIO * self.received))


def _json(datatype: str, shape: str, data: bytes, more: str = "", *, data_first: bool = False) -> bytes:
    named = f'"name":"x","datatype":"{datatype}","shape":{shape}'.encode()
    parts = (b'"data":[' + data + b"]", named) if data_first else (named, b'"data":[' + data + b"]")
    return b'{"inputs":[{' + b",".join(parts) + b"}]" + more.encode() + b"}"


def _repeated(element: bytes, size: int) -> tuple[int, bytes]:
    """As many elements as fit the size, with commas between them."""
    count = (size - KIB) // (len(element) + 1)
    return count, (element + b",") * (count - 1) + element


def _zeros(size: int) -> tuple[str, bytes]:
    return "same_fp32", b"\0" * size


def _spaces(size: int) -> tuple[str, bytes]:
    return "same_fp32", b'{"inputs":' + b" " * (size - KIB) + b"[]}"


def _honest_numbers(size: int) -> tuple[str, bytes]:
    count, data = _repeated(b"0.37109375", size)
    return "same_fp32", _json("FP32", f"[1,{count}]", data)


def _wrong_datatype(size: int) -> tuple[str, bytes]:
    count, data = _repeated(b"0", size)
    return "same_fp32", _json("INT64", f"[1,{count}]", data)


def _wrong_shape(size: int) -> tuple[str, bytes]:
    count, data = _repeated(b"0", size)
    return "same_fp32", _json("FP32", f"[{count},1,1,1]", data)


def _data_first(size: int) -> tuple[str, bytes]:
    count, data = _repeated(b"1", size)
    return "same_fp32", _json("BYTES", f"[1,{count}]", data, data_first=True)


def _short_numbers(size: int) -> tuple[str, bytes]:
    """Each takes two bytes on the way in, eight in memory, and eighteen on the way out."""
    count, data = _repeated(b"1", size)
    return "same_fp64", _json("FP64", f"[1,{count}]", data)


def _classes(size: int) -> tuple[str, bytes]:
    """Each of the classes is a text of more than 300 characters."""
    count, data = _repeated(b"1.7e308", size)
    wanted = f',"outputs":[{{"name":"y","parameters":{{"classification":{count}}}}}]'
    return "same_fp64", _json("FP64", f"[1,{count}]", data, wanted)


def _classes_of_rows(size: int) -> tuple[str, bytes]:
    """A fair number of classes of each of many rows, with texts as long."""
    count, data = _repeated(b"-1e308", size // 10_000 * 10_000)
    columns = 1000
    rows = count // columns
    data = data[: rows * columns * 7 - 1]
    wanted = f',"outputs":[{{"name":"y","parameters":{{"classification":{columns}}}}}]'
    return "same_fp64", _json("FP64", f"[{rows},{columns}]", data, wanted)


def _empty_strings(size: int) -> tuple[str, bytes]:
    count, data = _repeated(b'""', size)
    return "same_bytes", _json("BYTES", f"[1,{count}]", data)


def _escaped_strings(size: int) -> tuple[str, bytes]:
    r"""Control characters: one byte in memory, six (`\u0001`) on either way."""
    count, data = _repeated(b'"' + b"\\u0001" * 20 + b'"', size)
    return "same_bytes", _json("BYTES", f"[1,{count}]", data)


def _depth(size: int) -> tuple[str, bytes]:
    return "same_fp32", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":' + b"[" * (size - KIB)


def _nested_pairs(size: int) -> tuple[str, bytes]:
    """Within the depth, but with a bracket for each number."""
    count, data = _repeated(b"[1]", size)
    return "same_fp32", _json("FP32", f"[{count},1]", data)


def _long_number(size: int) -> tuple[str, bytes]:
    return "same_fp64", _json("FP64", "[1,1]", b"0." + b"1" * (size - KIB))


def _long_exponents(size: int) -> tuple[str, bytes]:
    """Numbers that no short way can round: 800 digits each."""
    count, data = _repeated(b"0." + b"9" * 797 + b"e-8", size)
    return "same_fp64", _json("FP64", f"[1,{count}]", data)


def _unknown_fields(size: int) -> tuple[str, bytes]:
    count = (size - KIB) // 13
    return "same_fp32", b'{"inputs":[],"u":{' + b",".join(b'"k%07d":1' % each for each in range(count)) + b"}}"


def _inputs(size: int) -> tuple[str, bytes]:
    one = b'{"name":"x","datatype":"FP32","shape":[1,0],"data":[]}'
    return "same_fp32", b'{"inputs":[' + _repeated(one, size)[1] + b"]}"


KINDS: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "zeros": _zeros,
    "spaces": _spaces,
    "wrong datatype": _wrong_datatype,
    "wrong shape": _wrong_shape,
    "data before its datatype": _data_first,
    "short numbers": _short_numbers,
    "classes": _classes,
    "classes of rows": _classes_of_rows,
    "empty strings": _empty_strings,
    "escaped strings": _escaped_strings,
    "depth": _depth,
    "nested numbers": _nested_pairs,
    "a long number": _long_number,
    "long numbers": _long_exponents,
    "unknown fields": _unknown_fields,
    "inputs": _inputs,
}
"""How the text of each kind is made, for a size: its model and itself."""

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, 6, mtime=0),
    "deflate": lambda text: _deflate(text, -zlib.MAX_WBITS),  # raw, as some clients send it
    "deflate of zlib": lambda text: _deflate(text, zlib.MAX_WBITS),
    "": lambda text: text,
}


def _deflate(text: bytes, window: int) -> bytes:
    made = zlib.compressobj(6, wbits=window)
    return made.compress(text) + made.flush()


@cache
def bomb(kind: str, encoding: str, size: int) -> Bomb:
    """One of :data:`KINDS`, about so large when inflated."""
    model, text = KINDS[kind](size)
    return _bomb(f"{kind}, {encoding or 'plain'}, {size // MIB} MiB", model, text, encoding)


@cache
def honest(encoding: str, size: int) -> Bomb:
    """No bomb: numbers that the model gives back. Those of a compressed body differ, so that its ratio is fair."""
    text = _varied_numbers(size) if encoding else _honest_numbers(size)[1]
    return _bomb(f"honest, {encoding or 'plain'}, {size // KIB} KiB", "same_fp32", text, encoding)


def _varied_numbers(size: int) -> bytes:
    """They compress to about a third."""
    count = (size - KIB) // 11
    state, numbers = 12345, []
    for _ in range(min(count, 50_000)):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        numbers.append(b"0.%08d" % (state % 10**8))
    block = b",".join(numbers)
    times, rest = divmod(count, len(numbers))
    data = b",".join([block] * times + numbers[:rest])
    return _json("FP32", f"[1,{count}]", data)


def _bomb(kind: str, model: str, text: bytes, encoding: str) -> Bomb:
    body = ENCODINGS[encoding](text)
    fields = [f"Content-Encoding: {encoding.split()[0]}"] if encoding else []
    return Bomb(kind, model, head(f"/v2/models/{model}/infer", len(body), *fields) + body, len(body), len(text))


# --- Images -----------------------------------------------------------------------------------------------------------


@cache
def jpeg(side: int, more_scans: int = 0) -> bytes:
    """A progressive JPEG of one colour; each further scan makes the decoder walk through all of it once more."""
    file = io.BytesIO()
    Image.new("L", (side, side), 99).save(file, "jpeg", progressive=True, quality=30)
    made = file.getvalue()
    last = made.rindex(b"\xff\xda")  # start of scan; no such bytes are inside of a scan's data
    return made[:last] + made[last:-2] * (1 + more_scans) + made[-2:]


@cache
def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "png", compress_level=9)
    return file.getvalue()


@cache
def image(kind: str, file: bytes, *, timeout_us: int = 0) -> Bomb:
    """A request to the worker base64_decode."""
    text = base64.b64encode(file).decode()
    more = f',"parameters":{{"timeout":{timeout_us}}}' if timeout_us else ""
    body = (
        f'{{"inputs":[{{"name":"x","shape":[1],"datatype":"BYTES","data":["{text}"]}}]{more},'
        '"outputs":[{"name":"output","parameters":{"binary_data":true}}]}'
    ).encode()
    message = head("/v2/models/base64_decode/infer", len(body)) + body
    return Bomb(kind, "base64_decode", message, len(body), len(body))
