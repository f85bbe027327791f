"""Triton's statistics extension: what models have counted, of all, of one, of one version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer.api.routes.router import Route, in_time
from fastinfer.http.exchange import Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service


def routes(service: Service) -> list[Route]:
    """The three forms of the endpoint."""

    async def statistics(exchange: Exchange) -> None:
        exchange.in_pieces = True
        exchange.respond(200, await service.statistics(*exchange.arguments))

    handler = in_time(service.config.request_timeout_s, statistics)
    return [
        Route(("GET",), "/v2/models/stats", handler),
        Route(("GET",), "/v2/models/{model}/stats", handler),
        Route(("GET",), "/v2/models/{model}/versions/{version}/stats", handler),
    ]
