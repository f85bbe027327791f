"""``GET /metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer.api.metrics import CONTENT_TYPE
from fastinfer.api.routes.router import Route, with_deadline
from fastinfer.base import limits
from fastinfer.http.exchange import Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service


def routes(service: Service) -> list[Route]:
    """The page for Prometheus."""

    async def metrics(exchange: Exchange) -> None:
        page = await service.metrics.page()
        coding = exchange.accepted
        if coding is None:
            exchange.in_pieces = True
            exchange.respond(200, page.text, CONTENT_TYPE)
        else:
            fields = ((b"Content-Encoding", coding), (b"Vary", b"Accept-Encoding"))
            packed = await page.packed(coding)
            exchange.packed = True
            exchange.respond(200, packed, CONTENT_TYPE, fields)

    return [
        Route(
            ("GET",),
            "/metrics",
            with_deadline(service.config.request_timeout_s, metrics),
            compress_from=limits.MIN_COMPRESSED_BYTES,
        )
    ]
