"""The built-in workers, by name.

A worker is an implementation that serves an endpoint. Two names are not in the table: ``onnx``, which serves models of
the repository, and ``cplusplus``, which with the parameter ``model`` stands for the worker of that name, as clients of
the AMD Inference Server load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fastinfer.backends.builtin.echo import Echo, EchoMulti
from fastinfer.backends.builtin.fake import Delay, FakeWorker
from fastinfer.backends.builtin.image import Base64Decode, Base64Encode, InvertImage
from fastinfer.backends.builtin.item import Computation, ItemWorker, WorkerContext
from fastinfer.backends.parameters import Integer, Number, Parameters, parse
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.machine import usable_cores
from fastinfer.schedule.backend import Implementation

ALIAS = "cplusplus"


class EncodeParameters(Parameters):
    """Of ``base64_encode``."""

    format: Annotated[Literal["png", "jpeg"], BeforeValidator(lambda value: str(value).lower())] = "png"


class FakeParameters(Parameters):
    """Of ``fake``."""

    delay_ms: Annotated[Delay, BeforeValidator(Delay.parse)] = Delay()
    error_rate: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Integer | None = None


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """A worker that can be loaded.

    Attributes:
        name: as in ``/v2/workers/{name}/load``.
        description: one sentence for people.
        parameters: those that it understands.
        factory: makes an implementation; called with parsed ``parameters``.
        instances: concurrent runs, where the load does not say.
    """

    name: str
    description: str
    parameters: type[Parameters]
    factory: Callable[[Any, WorkerContext], Implementation]
    instances: int


def _item(name: str, description: str, computation: Callable[[Budget], Computation], instances: int) -> WorkerKind:
    return WorkerKind(
        name,
        description,
        Parameters,
        lambda _parameters, context: ItemWorker(computation(context.budget), context),
        instances,
    )


def _base64_encode(parameters: EncodeParameters, context: WorkerContext) -> Implementation:
    return ItemWorker(Base64Encode(parameters.format), context)


def _fake(parameters: FakeParameters, context: WorkerContext) -> Implementation:
    return FakeWorker(parameters.delay_ms, parameters.error_rate, parameters.seed, context.loop)


KINDS: Mapping[str, WorkerKind] = {
    kind.name: kind
    for kind in (
        _item("echo", "Adds one to a number.", lambda _: Echo(), 1),
        _item("echo_multi", "Repeats three numbers over three outputs.", lambda _: EchoMulti(), 1),
        _item("invert_image", "Turns each colour of an image into its opposite.", InvertImage, usable_cores()),
        _item("base64_decode", "Makes pixels of the base64 text of a JPEG or PNG file.", Base64Decode, usable_cores()),
        WorkerKind(
            "base64_encode",
            "Makes base64 text of a PNG or JPEG file of pixels.",
            EncodeParameters,
            _base64_encode,
            usable_cores(),
        ),
        # Its requests only wait, so any number may.
        WorkerKind("fake", "Gives back its inputs after a while.", FakeParameters, _fake, 65_536),
    )
}


def resolve(worker: str, parameters: Mapping[str, object]) -> tuple[WorkerKind, Parameters]:
    """The worker that a load asks for, and its parameters.

    Args:
        worker: the name in the path, in any case; not ``onnx``.
        parameters: of the load, as they were given.

    Raises:
        ApiError: 400, no such worker or a parameter that will not do.
    """
    name = worker.lower()
    if name == ALIAS:
        parameters = dict(parameters)
        model = parameters.pop("model", None)
        if not isinstance(model, str):
            raise ApiError(400, f"worker '{ALIAS}' needs the parameter 'model', the name of a built-in worker")
        name = model.lower()
    kind = KINDS.get(name)
    if kind is None:
        raise ApiError(400, f"unknown worker '{name}': it is none of {', '.join(sorted([*KINDS, ALIAS, 'onnx']))}")
    return kind, parse(kind.parameters, parameters)
