"""The oracle: what numbers and request bodies mean, by definition and slowly.

Numbers are exact fractions, rounded once to the type that they are for. numpy is no oracle here: it rounds texts of
FP16 and FP32 twice. Bodies are read with Python's json and checked key by key.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

MAX_DEPTH = 100
MAX_RANK = 16
MAX_INPUTS = 1024

FLOATS = {"FP16": (10, 5), "BF16": (7, 8), "FP32": (23, 8), "FP64": (52, 11)}
"""Stored bits of the mantissa, bits of the exponent."""
INTEGERS = {f"{sign}INT{bits}": (sign, bits) for sign in ("U", "") for bits in (8, 16, 32, 64)}
NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")


# --- Numbers ---------------------------------------------------------------------------------------------------------


def value_of(bits: int, datatype: str) -> Fraction:
    """The exact value of a finite number's bits; the sign of zero is lost."""
    mantissa_bits, exponent_bits = FLOATS[datatype]
    mantissa = bits & ((1 << mantissa_bits) - 1)
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    sign = -1 if bits >> (mantissa_bits + exponent_bits) else 1
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent:
        mantissa |= 1 << mantissa_bits
    return sign * mantissa * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)


def round_to(value: Fraction, datatype: str) -> int:
    """The bits of the nearest number, ties to even. OverflowError where that is an infinity. ``value`` >= 0."""
    mantissa_bits, exponent_bits = FLOATS[datatype]
    bias = (1 << (exponent_bits - 1)) - 1
    if value == 0:
        return 0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - bias)
    mantissa = round(value / Fraction(2) ** (exponent - mantissa_bits))  # Python rounds a Fraction half to even
    bits = ((exponent + bias - 1) << mantissa_bits) + mantissa
    if bits >= ((1 << exponent_bits) - 1) << mantissa_bits:
        raise OverflowError(datatype)
    return bits


def parse_float(text: str, datatype: str) -> int:
    """The bits that a JSON number has as a floating-point type. ValueError, or OverflowError past its range."""
    mantissa_bits, exponent_bits = FLOATS[datatype]
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    sign_bit = 1 << (mantissa_bits + exponent_bits)
    literals = {
        "NaN": infinity | 1 << (mantissa_bits - 1),
        "Infinity": infinity,
        "-Infinity": infinity | sign_bit,
    }
    if text in literals:
        return literals[text]
    found = NUMBER.fullmatch(text)
    if found is None:
        raise ValueError(text)
    minus, whole, fraction, exponent_text = found.groups()
    digits = (whole + (fraction or "")).lstrip("0")
    sign_of_exponent = -1 if (exponent_text or "").startswith("-") else 1
    exponent = sign_of_exponent * _integer((exponent_text or "").lstrip("+-")) - len(fraction or "")
    sign = sign_bit if minus else 0
    if not digits or exponent + len(digits) < -400:
        return sign
    if exponent + len(digits) > 400:
        raise OverflowError(text)
    scale = Fraction(10) ** exponent
    return sign | round_to(_integer(digits) * scale, datatype)


def _integer(digits: str) -> int:
    value = 0
    for start in range(0, len(digits), 4000):  # Python refuses longer texts at once
        part = digits[start : start + 4000]
        value = value * 10 ** len(part) + int(part)
    return value


def parse_integer(text: str, datatype: str) -> int:
    """The value of a JSON integer. ValueError, or OverflowError past the type's range."""
    sign, bits = INTEGERS[datatype]
    if not re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        raise ValueError(text)
    if len(text) > 25:
        raise OverflowError(text)
    value = int(text)
    low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if not low <= value <= high:
        raise OverflowError(text)
    return value


def shortest(bits: int, datatype: str) -> str:
    """The text of a finite number: fewest digits that read back, closest of those, in the form of Python's repr."""
    mantissa_bits, exponent_bits = FLOATS[datatype]
    sign_bit = 1 << (mantissa_bits + exponent_bits)
    sign = "-" if bits & sign_bit else ""
    bits &= sign_bit - 1
    value = value_of(bits, datatype)
    if value == 0:
        return sign + "0.0"
    magnitude = math.floor(math.log10(value.numerator) - math.log10(value.denominator))
    if Fraction(10) ** magnitude > value:
        magnitude -= 1
    elif Fraction(10) ** (magnitude + 1) <= value:
        magnitude += 1
    for count in range(1, 19):
        unit = Fraction(10) ** (magnitude - count + 1)
        below = value // unit
        fitting = [digits for digits in (below, below + 1) if _reads_back(digits * unit, bits, datatype)]
        if fitting:
            best = min(fitting, key=lambda digits: (abs(digits * unit - value), digits % 2))
            return sign + _repr(str(best).rstrip("0"), magnitude + len(str(best)) - count)
    raise AssertionError(bits)


def _reads_back(value: Fraction, bits: int, datatype: str) -> bool:
    try:
        return round_to(value, datatype) == bits
    except OverflowError:
        return False


def _repr(digits: str, magnitude: int) -> str:
    if -4 <= magnitude < 16:
        if magnitude < 0:
            return "0." + "0" * (-magnitude - 1) + digits
        whole = digits[: magnitude + 1].ljust(magnitude + 1, "0")
        return f"{whole}.{digits[magnitude + 1 :] or '0'}"
    point = "." + digits[1:] if len(digits) > 1 else ""
    return f"{digits[0]}{point}e{'-' if magnitude < 0 else '+'}{abs(magnitude):02d}"


# --- Request bodies --------------------------------------------------------------------------------------------------


class Invalid(Exception):
    """The body is not a request."""


class Number(str):
    """A JSON number's text."""


class Constant(str):
    """NaN, Infinity or -Infinity."""


class Members(list[tuple[str, Any]]):
    """An object's members, in order, with repetitions."""


@dataclass
class Input:
    name: str
    datatype: str
    shape: list[int]
    elements: list[Any]  # bits, integers, booleans or bytes


@dataclass
class Output:
    name: str
    binary: int = -1
    classification: int = 0


@dataclass
class Request:
    id: str = ""
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    timeout_us: int = 0
    priority: int = 0
    binary_output: bool = False


BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
CONTENT_TYPES = frozenset(
    [
        "base64",
        "str",
        "np",
        "nplist",
        "pd",
        "pd_json",
        "datetime",
        "raw",
        "dict",
        "hf",
        "hg_str",
        "hg_json",
        "hg_jsonlist",
        "hg_conversation",
        "pillow_image",
    ]
)


def decode(body: bytes, nullable: bool = False, keeps_base64: bool = False) -> Request:
    """Reads a body without binary tensors. Invalid where it is not a request.

    ``nullable``: null is a floating-point element, NaN. ``keeps_base64``: base64 text is not decoded.
    """
    try:
        text = body.decode("utf-8")
        if text.startswith("\ufeff") or depth_of(text) > MAX_DEPTH:
            raise Invalid
        document = json.loads(
            text, parse_float=Number, parse_int=Number, parse_constant=Constant, object_pairs_hook=Members
        )
        return _request(document, nullable, keeps_base64)
    except (ValueError, OverflowError, RecursionError) as error:
        raise Invalid from error


def depth_of(text: str) -> int:
    """The depth of a JSON text's arrays and objects."""
    depth = deepest = 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        deepest = max(deepest, depth)
    return deepest


def _check(condition: bool) -> None:
    if not condition:
        raise Invalid


def _plain(value: Any) -> None:
    """Any JSON value: no constants, no lone surrogates."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        _check(not isinstance(value, Constant))
        if isinstance(value, Members):
            for key, member in value:
                waiting += [key, member]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            value.encode("utf-8")


def _known(value: Any, *known: str) -> dict[str, Any]:
    _check(isinstance(value, Members))
    found: dict[str, Any] = {}
    for key, member in value:
        key.encode("utf-8")
        if key in known:
            _check(key not in found)
            found[key] = member
        else:
            _plain(member)
    return found


def _string(value: Any) -> str:
    _check(type(value) is str)
    value.encode("utf-8")
    return str(value)


def _array(value: Any) -> list[Any]:
    _check(isinstance(value, list) and not isinstance(value, Members))
    return list(value)


def _count(value: Any) -> int:
    _check(isinstance(value, Number))
    count = parse_integer(value, "INT64")
    _check(count >= 0)
    return count


def _flag(value: Any) -> bool:
    _check(isinstance(value, bool))
    return bool(value)


def _given(members: dict[str, Any]) -> dict[str, Any]:
    """Those that are not null."""
    return {key: value for key, value in members.items() if value is not None}


def _parameters(found: dict[str, Any], *known: str) -> dict[str, Any]:
    """The known ones of an object's parameters; shared memory may only be named as null."""
    given = found.get("parameters")
    if given is None:
        return {}
    parameters = _given(_known(given, *known))
    _check(not any(key.startswith("shared_memory_") and value is not None for key, value in given))
    return parameters


def _request(document: Any, nullable: bool, keeps_base64: bool) -> Request:
    request = Request()
    found = _given(_known(document, "id", "parameters", "inputs", "outputs"))
    if "id" in found:
        request.id = _string(found["id"])
    sequence = ("sequence_id", "sequence_start", "sequence_end")
    parameters = _parameters(found, "timeout", "priority", "binary_data_output", *sequence)
    request.timeout_us = _count(parameters.get("timeout", Number("0")))
    request.priority = _count(parameters.get("priority", Number("0")))
    request.binary_output = _flag(parameters.get("binary_data_output", False))
    for name in sequence:
        value = parameters.get(name, False)
        zero = isinstance(value, Number) and parse_integer(value, "INT64") == 0
        _check(value is False or zero or (type(value) is str and value == ""))
    _check("inputs" in found)
    request.inputs = [_input(entry, nullable, keeps_base64) for entry in _array(found["inputs"])]
    request.outputs = [_output(entry) for entry in _array(found.get("outputs", []))]
    _check(len(request.inputs) <= MAX_INPUTS)  # of one name: the model's signature says whether they may be
    _check(len({output.name for output in request.outputs}) == len(request.outputs) <= MAX_INPUTS)
    return request


def _output(entry: Any) -> Output:
    found = _known(entry, "name", "parameters")
    _check("name" in found)
    output = Output(_string(found["name"]))
    parameters = _parameters(found, "binary_data", "classification")
    if "binary_data" in parameters:
        output.binary = int(_flag(parameters["binary_data"]))
    if "classification" in parameters:
        output.classification = _count(parameters["classification"])
        _check(output.classification > 0)
    return output


def _input(entry: Any, nullable: bool, keeps_base64: bool) -> Input:
    found = _given(_known(entry, "name", "shape", "datatype", "data", "parameters"))
    _check({"name", "shape", "datatype", "data"} <= set(found))
    parameters = _parameters(found, "binary_data_size", "content_type")
    _check("binary_data_size" not in parameters)
    content_type = parameters.get("content_type", "")
    _plain(content_type)
    shape = [_count(dim) for dim in _array(found["shape"])]
    product = math.prod(shape)
    _check(len(shape) <= MAX_RANK and product < 2**63 and (0 in shape or product < 2**63))
    datatype = _string(found["datatype"])
    _check(datatype in FLOATS or datatype in INTEGERS or datatype in ("BOOL", "BYTES"))
    data = found["data"]
    if not isinstance(data, (list, dict)) and math.prod(shape) == 1:
        data = [data]
    data = _array(data)
    if shape and data and isinstance(data[0], list):
        data = _flatten(data, shape)
    elements = [_element(value, datatype, nullable) for value in data]
    if datatype == "BYTES" and len(elements) == 1 and shape == [len(elements[0])]:
        shape = [1]
    if datatype == "BYTES":
        _check(_string(content_type) == "" or content_type in CONTENT_TYPES)
        if content_type == "base64" and not keeps_base64:
            _check(all(BASE64.fullmatch(element) for element in elements))
            elements = [base64.b64decode(element) for element in elements]
    _check(len(elements) == math.prod(shape))
    return Input(_string(found["name"]), datatype, shape, elements)


def _flatten(data: Any, shape: list[int]) -> list[Any]:
    _check(isinstance(data, list) and not isinstance(data, Members) and len(data) == shape[0])
    if len(shape) == 1:
        return data
    return [element for row in data for element in _flatten(row, shape[1:])]


def _element(value: Any, datatype: str, nullable: bool) -> Any:
    if datatype == "BYTES":
        return _string(value).encode()
    if datatype == "BOOL":
        return _flag(value)
    if datatype in FLOATS:
        if value is None and nullable:
            value = Constant("NaN")
        _check(isinstance(value, Number | Constant))
        return parse_float(value, datatype)
    _check(isinstance(value, Number))
    return parse_integer(value, datatype)
