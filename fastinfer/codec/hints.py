"""What to do about common mistakes in a request's body; each hint is the end of an error's sentence."""

from __future__ import annotations

import re

from fastinfer.base.near import suggestion
from fastinfer.tensor.datatype import NAMES

_BEGIN = 256  # bytes of a body that are looked at
_JSON = 'an inference request is JSON: {"inputs":[{"name":...,"shape":...,"datatype":...,"data":...}]}'
_FORM = re.compile(rb"[\w.%+-]+(\[\])?=")
_DATATYPES = {
    "BOOL": ("bool", "boolean", "bool_"),
    "UINT8": ("uint8", "uchar", "ubyte", "byte"),
    "UINT16": ("uint16", "ushort"),
    "UINT32": ("uint32", "uint"),
    "UINT64": ("uint64", "ulong"),
    "INT8": ("int8", "char", "sbyte"),
    "INT16": ("int16", "short"),
    "INT32": ("int32", "i32"),
    "INT64": ("int64", "int", "integer", "long", "i64"),
    "FP16": ("float16", "half", "f16"),
    "BF16": ("bfloat16",),
    "FP32": ("float32", "float", "single", "number", "f32"),
    "FP64": ("float64", "double", "f64"),
    "BYTES": ("string", "str", "object", "text", "utf8", "varchar"),
}
_BY_WORD = {word: name for name, words in _DATATYPES.items() for word in (name.lower(), *words)}
_AROUND = re.compile(r"^(type_|dt_|np\.|numpy\.|torch\.|tf\.|tensor\()|\)$")


def for_datatype(wrong: str) -> str:
    """Return which datatype another library's word means (``float32``: ``; use FP32``)."""
    word = wrong.strip('"')[:64].lower()
    name = _BY_WORD.get(_AROUND.sub("", word))
    return f"; use {name}" if name is not None else suggestion(word, NAMES)


def for_no_json(body: bytes) -> str:
    """Return what a body is that does not begin as JSON must: nothing, form data, a page."""
    begin = body[:_BEGIN].lstrip()
    if not begin:
        return f"; the body is empty, and {_JSON}"
    if begin.startswith(b"--"):
        return f"; the body is multipart form data, but {_JSON}"
    if _FORM.match(begin):
        return f"; the body is form data, but {_JSON}"
    if begin.startswith(b"<"):
        return f"; the body is XML or HTML, but {_JSON}"
    return ""
