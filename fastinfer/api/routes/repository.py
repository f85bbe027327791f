"""The repository: its index, and loads and unloads, of models under both URL families and of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from fastinfer.api.routes.body import read_object, without_nulls
from fastinfer.api.routes.router import Route, with_deadline
from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import Exchange
from fastinfer.http.origin import why_foreign

if TYPE_CHECKING:
    from fastinfer.api.service import Service


def routes(service: Service) -> list[Route]:
    """The index; the load and unload endpoints of models and workers."""
    control = service.control

    async def index(exchange: Exchange) -> None:
        entries = await service.index(ready_only=_flag(_object(exchange, '{"ready": true}'), "ready", "'ready'"))
        exchange.respond(200, orjson.dumps(entries))

    async def load_model(exchange: Exchange) -> None:
        _check_allowed(service, exchange)
        name, version = _target(exchange)
        parameters = _parameters(exchange)
        _check_size(parameters, service.config.max_control_body_bytes)
        endpoint = await control.load_model(name, version, parameters)
        exchange.respond(200, orjson.dumps({"name": endpoint, "load": True}))

    async def unload_model(exchange: Exchange) -> None:
        _check_allowed(service, exchange)
        name, version = _target(exchange)
        dependents = _flag(_parameters(exchange), "unload_dependents", "parameters.unload_dependents")
        await control.unload(name, version, dependents=dependents)
        exchange.respond(200, orjson.dumps({"name": name, "unload": True}))

    async def load_worker(exchange: Exchange) -> None:
        _check_allowed(service, exchange)
        parameters = _parameters(exchange)
        endpoint = await control.load_worker(exchange.arguments[0], parameters)
        exchange.respond(200, endpoint.encode(), b"text/html")

    # "Identical to model unload": both families unload any endpoint.
    return [
        route
        for family in ("/v2/models/{model}", "/v2/repository/models/{model}")
        for target in (family, family + "/versions/{version}")
        for route in (
            Route(("POST",), target + "/load", load_model, max_body_bytes=limits.MAX_LOAD_BODY_BYTES),
            Route(("POST",), target + "/unload", unload_model),
        )
    ] + [
        Route(("POST",), "/v2/repository/index", with_deadline(service.config.request_timeout_s, index)),
        Route(("POST",), "/v2/workers/{worker}/load", load_worker),
        Route(("POST",), "/v2/workers/{worker}/unload", unload_model),
    ]


def _target(exchange: Exchange) -> tuple[str, int | None]:
    name, *version = exchange.arguments
    return name, int(version[0]) if version else None


def _check_allowed(service: Service, exchange: Exchange) -> None:
    """Raises ApiError 403 if models may not be changed, or not by a web page of this origin."""
    config = service.config
    if config.model_control == "none":
        raise ApiError(403, "model control is off: the server was started with --model-control none")
    reason = why_foreign(exchange.headers, config.allowed_host, config.allowed_origin)
    if reason is not None:
        raise ApiError(403, reason)


def _parameters(exchange: Exchange) -> dict[str, Any]:
    """Read the optional body: a flat object of parameters, or ``{"parameters": {…}}``. ApiError 400."""
    given = _object(exchange, '{"parameters": {...}}, or the parameters alone')
    if "parameters" not in given:
        return without_nulls(given)
    if len(given) > 1:
        raise ApiError(400, 'parameters are given either flat or in "parameters", not in both')
    parameters = given["parameters"]
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ApiError(400, "'parameters' must be an object")
    return without_nulls(parameters)


def _check_size(parameters: dict[str, Any], most_bytes: int) -> None:
    """Bounds the parameters besides the configuration, because all processes keep them. ApiError 413."""
    rest = {key: value for key, value in parameters.items() if key != "config"}
    if len(orjson.dumps(rest)) > most_bytes:
        raise ApiError(413, f"the parameters beside 'config' are larger than {most_bytes} bytes")


def _object(exchange: Exchange, example: str) -> dict[str, Any]:
    """Read the body. An empty one is an empty object, and so is null, which the AMD Inference Server's client sends.

    ApiError 400.
    """
    return {} if bytes(exchange.body).strip() in (b"", b"null") else read_object(exchange, example)


def _flag(given: dict[str, Any], name: str, place: str) -> bool:
    """Read an optional boolean; absent or null is false. ApiError 400."""
    value = given.get(name)
    if not isinstance(value, bool | None):
        raise ApiError(400, f"{place} must be true or false")
    return bool(value)
