"""The bodies of control requests: small JSON objects, read by orjson."""

from __future__ import annotations

from typing import Any

import orjson

from fastinfer.base.errors import ApiError
from fastinfer.base.json_count import values_and_depth
from fastinfer.base.limits import MAX_CONTROL_VALUES, MAX_JSON_DEPTH
from fastinfer.http.exchange import Exchange


def read_object(exchange: Exchange, example: str) -> dict[str, Any]:
    """Return the body of a request as an object.

    Args:
        example: a valid body, for the error's sentence.

    Raises:
        ApiError: 400 if it is not JSON, not an object, nested too deeply, or has too many values.
    """
    text = bytes(exchange.body)
    # Values are counted first because making and freeing a few hundred thousand objects stops the loop.
    values, depth = values_and_depth(text)
    if values > MAX_CONTROL_VALUES:
        raise ApiError(400, f"the body has more than {MAX_CONTROL_VALUES} values")
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, f"the body must be an object: {example}")
    if depth > MAX_JSON_DEPTH:  # orjson reads up to 1,024 levels, but writes at most 254
        raise ApiError(400, f"the body is nested deeper than {MAX_JSON_DEPTH} levels")
    return given


def without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    """Return the members that are not null; null means that the key is absent."""
    return {key: value for key, value in given.items() if value is not None}
