"""Metadata: the server, the list of models, a model's signature and configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from fastinfer import __version__
from fastinfer.api.routes.router import Route
from fastinfer.http.exchange import Exchange
from fastinfer.tensor.tensor import TensorSpec

if TYPE_CHECKING:
    from fastinfer.api.service import Service

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
"""Triton's extensions that this server implements."""


def routes(service: Service) -> list[Route]:
    """``/v2``, ``/v2/models``, a model's metadata and its ``config``."""

    def server(exchange: Exchange) -> None:
        body = {"name": service.config.server_name, "version": __version__, "extensions": EXTENSIONS}
        exchange.respond(200, orjson.dumps(body))

    def models(exchange: Exchange) -> None:
        service.repository.check_read()
        exchange.respond(200, orjson.dumps({"models": service.repository.names()}))

    def model(exchange: Exchange) -> None:
        found = service.repository.find(*exchange.arguments)
        body = {
            "name": found.name,
            "versions": service.repository.versions(found.name),
            "platform": found.platform,
            "inputs": _tensors(found.signature.inputs) + _tensors(found.signature.optional_inputs, optional=True),
            "outputs": _tensors(found.signature.outputs),
        }
        exchange.respond(200, orjson.dumps(body))

    def config(exchange: Exchange) -> None:
        found = service.repository.find(*exchange.arguments)
        exchange.respond(200, found.shown_config.to_triton_json())

    return [
        Route(("GET",), "/v2", server),
        Route(("GET",), "/v2/models", models),
        Route(("GET",), "/v2/models/{model}", model),
        Route(("GET",), "/v2/models/{model}/versions/{version}", model),
        Route(("GET",), "/v2/models/{model}/config", config),
        Route(("GET",), "/v2/models/{model}/versions/{version}/config", config),
    ]


def _tensors(specs: Sequence[TensorSpec], *, optional: bool = False) -> list[dict[str, Any]]:
    return [_tensor(spec, optional) for spec in specs]


def _tensor(spec: TensorSpec, optional: bool) -> dict[str, Any]:
    described = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    flags = {"open_rank": spec.open_rank, "optional": optional}
    parameters = {name: True for name, is_set in flags.items() if is_set}
    return described | {"parameters": parameters} if parameters else described
