"""The bodies of control requests: small JSON objects, read by orjson."""

from __future__ import annotations

from typing import Any

import orjson

from fastinfer.errors import ApiError
from fastinfer.http.exchange import Exchange
from fastinfer.limits import MAX_JSON_DEPTH


def read_object(exchange: Exchange, example: str) -> dict[str, Any]:
    """The body of a request as an object.

    Args:
        example: what the body should look like, for the sentence of the refusal.

    Raises:
        ApiError: 400 for what is not JSON, not an object, or nested too deeply.
    """
    try:
        given = orjson.loads(bytes(exchange.body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ApiError(400, f"the body must be an object: {example}")
    _check_depth(given)
    return given


def without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    """The members that are not null: null is as if the key were not there."""
    return {key: value for key, value in given.items() if value is not None}


def _check_depth(given: dict[str, Any]) -> None:
    # Level by level, without recursion. orjson reads up to 1,024 levels, but writes at most 254.
    level: list[Any] = [given]
    for _ in range(MAX_JSON_DEPTH):
        inner = [value for each in level for value in (each.values() if isinstance(each, dict) else each)]
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise ApiError(400, f"the body is nested deeper than {MAX_JSON_DEPTH} levels")
