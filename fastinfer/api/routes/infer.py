"""``POST /v2/models/M[/versions/V]/infer``; :mod:`fastinfer.api.inference` handles it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer.api.inference import InferHandler
from fastinfer.api.routes.router import Route

if TYPE_CHECKING:
    from fastinfer.api.service import Service


def routes(service: Service) -> list[Route]:
    """The two forms of the endpoint."""
    repository, config = service.repository, service.config
    infer = InferHandler(
        repository.find,
        repository.ready,
        service.executor,
        config.off_loop_bytes,
        service.nonfinite,
        service.budget,
    )
    return [
        Route(("POST",), path, infer, config.max_body_bytes, compress_from=config.compress_answers)
        for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
    ]
