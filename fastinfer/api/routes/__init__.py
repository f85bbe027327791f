"""All endpoints, by subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastinfer.api.routes import docs, hardware, health, infer, metadata, metrics, repository, statistics
from fastinfer.api.routes.router import Router

if TYPE_CHECKING:
    from fastinfer.api.service import Service

_SUBJECTS = (health, metadata, infer, repository, statistics, hardware, metrics, docs)


def build(service: Service) -> Router:
    """The router of a server."""
    return Router(
        (route for subject in _SUBJECTS for route in subject.routes(service)), service.config.max_control_body_bytes
    )
