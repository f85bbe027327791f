"""``GET /metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer import limits
from fastinfer.http.exchange import Exchange
from fastinfer.metrics import CONTENT_TYPE
from fastinfer.routes.router import Route

if TYPE_CHECKING:
    from fastinfer.service import Service


def routes(service: Service) -> list[Route]:
    """The page for Prometheus."""

    async def metrics(exchange: Exchange) -> None:
        exchange.respond(200, await service.metrics.page(), CONTENT_TYPE)

    return [Route(("GET",), "/metrics", metrics, compress_from=limits.MIN_COMPRESSED_BYTES)]
