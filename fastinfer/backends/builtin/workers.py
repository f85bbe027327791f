"""The built-in workers, by name.

A worker is an implementation that serves an endpoint. Two names are not in the table: ``onnx``, which serves models of
the repository, and ``cplusplus``, whose parameter ``model`` names a built-in worker, because clients of the AMD
Inference Server load workers in this way.
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
from fastinfer.backends.parameters import Integer, Number, Parameters, parse, warn_of_misspelt
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.base.machine import usable_cores
from fastinfer.schedule.backend import Implementation

ALIAS = "cplusplus"


class EncodeParameters(Parameters):
    """Parameters of ``base64_encode``."""

    format: Annotated[Literal["png", "jpeg"], BeforeValidator(lambda value: str(value).lower())] = "png"


class FakeParameters(Parameters):
    """Parameters of ``fake``."""

    delay_ms: Annotated[Delay, BeforeValidator(Delay.parse)] = Delay()
    error_rate: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Integer | None = None


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """A worker that can be loaded.

    Attributes:
        name: as in ``/v2/workers/{name}/load``.
        description: one sentence.
        parameters: the class of its parameters.
        factory: makes an implementation; called with parsed ``parameters``.
        instances: concurrent runs, if the load does not set them.
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
        _item("invert_image", "Inverts the colours of an image.", InvertImage, usable_cores()),
        _item("base64_decode", "Decodes base64 text of a JPEG or PNG file to pixels.", Base64Decode, usable_cores()),
        WorkerKind(
            "base64_encode",
            "Encodes pixels to base64 text of a PNG or JPEG file.",
            EncodeParameters,
            _base64_encode,
            usable_cores(),
        ),
        # Requests of this worker only wait, so the number of instances is practically unlimited.
        WorkerKind("fake", "Returns its inputs after a delay.", FakeParameters, _fake, 65_536),
    )
}


def resolve(worker: str, parameters: Mapping[str, object]) -> tuple[WorkerKind, Parameters]:
    """Find the worker that a load names, and parse its parameters.

    Args:
        worker: the name in the path, case-insensitive; not ``onnx``.
        parameters: of the load.

    Raises:
        ApiError: 400 if there is no such worker, or a parameter is wrong.
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
    warn_of_misspelt(kind.parameters, parameters, f"worker '{name}'")
    return kind, parse(kind.parameters, parameters)
