"""``/v2/hardware``: lists the hardware, and checks that there is enough of a kind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastinfer.api import hardware
from fastinfer.api.routes.body import read_object
from fastinfer.api.routes.router import Route, with_deadline
from fastinfer.base.errors import ApiError
from fastinfer.base.validation import place, reason, shown
from fastinfer.http.exchange import Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service


class HardwareRequest(BaseModel):
    """The body of a hardware check.

    Attributes:
        name: the kind of hardware.
        num: the number required.
    """

    model_config = ConfigDict(strict=True)

    name: str
    num: Annotated[int, Field(ge=1)] = 1


def routes(service: Service) -> list[Route]:
    """The list and the check."""
    timeout_s = service.config.request_timeout_s

    async def everything(exchange: Exchange) -> None:
        found = await asyncio.to_thread(hardware.available)
        listed = [{"name": name, "available": number} for name, number in found.items()]
        exchange.respond(200, orjson.dumps({"hardware": listed}))

    async def enough(exchange: Exchange) -> None:
        requested = _read_request(exchange)
        number = (await asyncio.to_thread(hardware.available)).get(requested.name, 0)
        if number < requested.num:
            raise ApiError(404, f"{number} of {shown(requested.name)} exist, {requested.num} are requested")
        exchange.respond(200, orjson.dumps({"name": requested.name, "num": requested.num, "available": number}))

    return [
        Route(("GET",), "/v2/hardware", with_deadline(timeout_s, everything)),
        Route(("POST",), "/v2/hardware", with_deadline(timeout_s, enough)),
    ]


def _read_request(exchange: Exchange) -> HardwareRequest:
    given = read_object(exchange, '{"name": ..., "num": ...}')
    try:
        return HardwareRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ApiError(400, f"{place(first['loc'])} {reason(first)}") from error
