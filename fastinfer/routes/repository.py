"""Loading and unloading: models under both URL families, and workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from fastinfer.errors import ApiError
from fastinfer.http.exchange import Exchange
from fastinfer.routes.router import Route

if TYPE_CHECKING:
    from fastinfer.service import Service


def routes(service: Service) -> list[Route]:
    """The load and unload endpoints of models and workers."""
    repository = service.repository

    async def load_model(exchange: Exchange) -> None:
        name, version = _target(exchange)
        parameters = _parameters(exchange)
        _allowed(service)
        endpoint = await repository.load_model(name, version, parameters)
        exchange.respond(200, orjson.dumps({"name": endpoint, "load": True}))

    async def unload_model(exchange: Exchange) -> None:
        name, version = _target(exchange)
        _parameters(exchange)
        _allowed(service)
        await repository.unload(name, version)
        exchange.respond(200, orjson.dumps({"name": name, "unload": True}))

    async def load_worker(exchange: Exchange) -> None:
        parameters = _parameters(exchange)
        _allowed(service)
        endpoint = await repository.load_worker(exchange.arguments[0], parameters)
        exchange.respond(200, endpoint.encode(), b"text/html")

    # "Identical to model unload": both families unload any endpoint.
    return [
        route
        for family in ("/v2/models/{model}", "/v2/repository/models/{model}")
        for target in (family, family + "/versions/{version}")
        for route in (
            Route(("POST",), target + "/load", load_model),
            Route(("POST",), target + "/unload", unload_model),
        )
    ] + [
        Route(("POST",), "/v2/workers/{worker}/load", load_worker),
        Route(("POST",), "/v2/workers/{worker}/unload", unload_model),
    ]


def _target(exchange: Exchange) -> tuple[str, int | None]:
    name, *version = exchange.arguments
    return name, int(version[0]) if version else None


def _allowed(service: Service) -> None:
    if service.config.model_control == "none":
        raise ApiError(403, "model control is off: the server was started with --model-control none")


def _parameters(exchange: Exchange) -> dict[str, Any]:
    """The optional body: a flat object of parameters, or ``{"parameters": {…}}``. ApiError 400."""
    body = bytes(exchange.body)
    if not body.strip():
        return {}
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if isinstance(given, dict) and isinstance(given.get("parameters"), dict):
        if len(given) > 1:
            raise ApiError(400, 'parameters are given either flat or in "parameters", not in both')
        given = given["parameters"]
    if not isinstance(given, dict):
        raise ApiError(400, 'the body must be an object of parameters, or {"parameters": {...}}')
    return given
