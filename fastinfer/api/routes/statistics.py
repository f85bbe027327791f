"""Triton's statistics extension: counters of all models, of one, or of one version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer.api.routes.router import Route, with_deadline
from fastinfer.http.exchange import Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service


def routes(service: Service) -> list[Route]:
    """The three forms of the endpoint."""

    async def statistics(exchange: Exchange) -> None:
        exchange.in_pieces = True
        exchange.respond(200, await service.statistics(*exchange.arguments))

    handler = with_deadline(service.config.request_timeout_s, statistics)
    return [
        Route(("GET",), "/v2/models/stats", handler),
        Route(("GET",), "/v2/models/{model}/stats", handler),
        Route(("GET",), "/v2/models/{model}/versions/{version}/stats", handler),
    ]
