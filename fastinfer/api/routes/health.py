"""Health: server live, server ready, model ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from fastinfer.api.routes.router import Route
from fastinfer.base.errors import clip
from fastinfer.http.exchange import Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service


def routes(service: Service) -> list[Route]:
    """``/v2/health/live``, ``/v2/health/ready`` and the models' ``ready``."""

    def live(exchange: Exchange) -> None:
        exchange.respond(200, b'{"live":true}')

    def ready(exchange: Exchange) -> None:
        reason = service.why_not_ready()
        if reason is None:
            exchange.respond(200, b'{"ready":true}')
        else:
            exchange.respond(503, orjson.dumps({"ready": False, "error": clip(reason)}))

    def model_ready(exchange: Exchange) -> None:
        model = service.repository.find(*exchange.arguments)
        if (withdrawn := model.why_withdrawn()) is not None:
            raise withdrawn
        exchange.respond(200, orjson.dumps({"name": model.name, "ready": True}))

    return [
        Route(("GET",), "/v2/health/live", live),
        Route(("GET",), "/v2/health/ready", ready),
        Route(("GET",), "/v2/models/{model}/ready", model_ready),
        Route(("GET",), "/v2/models/{model}/versions/{version}/ready", model_ready),
    ]
