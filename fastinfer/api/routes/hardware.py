"""``/v2/hardware``: what there is to compute with, and whether there is enough of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastinfer.api import hardware
from fastinfer.api.routes.body import read_object
from fastinfer.api.routes.router import Route, in_time
from fastinfer.base.errors import ApiError
from fastinfer.base.validation import place, reason, shown
from fastinfer.http.exchange import Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service


class Wanted(BaseModel):
    """What a client asks for.

    Attributes:
        name: of the hardware.
        num: how many there must be.
    """

    model_config = ConfigDict(strict=True)

    name: str
    num: Annotated[int, Field(ge=1)] = 1


def routes(service: Service) -> list[Route]:
    """List and question."""
    timeout_s = service.config.request_timeout_s

    async def everything(exchange: Exchange) -> None:
        found = await asyncio.to_thread(hardware.available)
        listed = [{"name": name, "available": number} for name, number in found.items()]
        exchange.respond(200, orjson.dumps({"hardware": listed}))

    async def enough(exchange: Exchange) -> None:
        wanted = _wanted(exchange)
        number = (await asyncio.to_thread(hardware.available)).get(wanted.name, 0)
        if number < wanted.num:
            raise ApiError(404, f"{number} of {shown(wanted.name)} exist, {wanted.num} are asked for")
        exchange.respond(200, orjson.dumps({"name": wanted.name, "num": wanted.num, "available": number}))

    return [
        Route(("GET",), "/v2/hardware", in_time(timeout_s, everything)),
        Route(("POST",), "/v2/hardware", in_time(timeout_s, enough)),
    ]


def _wanted(exchange: Exchange) -> Wanted:
    given = read_object(exchange, '{"name": ..., "num": ...}')
    try:
        return Wanted.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ApiError(400, f"{place(first['loc'])} {reason(first)}") from error
