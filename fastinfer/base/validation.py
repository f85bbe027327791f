"""pydantic's errors as sentences for people: the place, the fault, and a correct value."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import orjson
from pydantic_core import ErrorDetails

_SHOWN = 60  # characters of a refused value

_REASONS = {
    "missing": "is required",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "too_long": "has {actual_length} entries, at most {max_length} are allowed",
    "too_short": "has {actual_length} entries, at least {min_length} are needed",
    "string_too_long": "is longer than {max_length} characters",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "has characters that are not allowed, or a wrong length",
    "path_type": "must be a path",
}
_WITHOUT_VALUE = {"missing", "too_long", "too_short", "string_too_short", "string_too_long", "value_error"}


def place(location: Sequence[int | str]) -> str:
    """A location as a path: ``input[0].dims``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def reason(error: ErrorDetails) -> str:
    """The fault of a value, and the value, in a few words."""
    kind = error["type"]
    template = _REASONS.get(kind)
    context = error.get("ctx", {})
    if kind == "value_error":
        text = str(context.get("error", error["msg"]))
    elif template is not None:
        text = template.format(**context)
    else:
        text = error["msg"][:1].lower() + error["msg"][1:]
    return text if kind in _WITHOUT_VALUE else f"{text}, got {shown(error['input'])}"


def shown(value: Any) -> str:
    """A value as shortened JSON."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, str):
        value = value[:_SHOWN]
    try:
        text = orjson.dumps(value, default=str).decode()
    except (TypeError, ValueError, RecursionError):  # lone surrogates, integers beyond 64 bits, deep nesting
        text = "this value"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
