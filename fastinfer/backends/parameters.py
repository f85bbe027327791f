"""The parameters of a load: a flat object of strings, booleans and numbers.

Parameters that every worker accepts are here; a worker adds its own in a subclass. A number may be a string. A load
may have unknown parameters, because they are part of an endpoint's identity; a model's configuration may not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fastinfer.base.errors import ApiError
from fastinfer.base.near import Near, as_question

log = logging.getLogger(__name__)

_BATCH = "batch"  # the other name of batch_size
_MAX_COMPARED = 16  # unknown parameters of a load that are compared with the known ones


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


Integer = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean), Field(allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]  # "$" is the very end here


class Parameters(BaseModel):
    """Parameters of every load.

    Attributes:
        share: False: loading a loaded endpoint counts as one more load.
        batch_size: maximum rows of a batch, instead of the configuration's ``max_batch_size``; also called ``batch``.
        timeout: milliseconds that a request may wait for others to share its batch.
        instances: batches that may run concurrently; None: the configuration or the worker decides.
        next: a loaded endpoint that gets the outputs as its inputs.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True, protected_namespaces=())

    share: bool = True
    batch_size: Annotated[Integer, Field(ge=1, le=1 << 20)] | None = None
    timeout: Annotated[Number, Field(ge=0, le=60_000)] | None = None
    instances: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    next: Name | None = None

    @classmethod
    def known(cls, name: str) -> bool:
        """Whether a parameter has an effect. A backend that passes parameters on knows all."""
        return name in cls.model_fields or name == _BATCH

    @model_validator(mode="before")
    @classmethod
    def _batch(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if _BATCH not in values:
            return values
        given = dict(values)
        batch = given.pop(_BATCH)
        if given.setdefault("batch_size", batch) != batch:
            raise ValueError("'batch' and 'batch_size' are two names of one parameter, but have different values")
        return given


Read = TypeVar("Read", bound=Parameters)


def parse(model: type[Read], given: Mapping[str, object]) -> Read:
    """Parse the parameters with ``model``. ApiError 400 names the first wrong one."""
    for name, value in given.items():
        if not isinstance(value, str | bool | int | float):
            raise ApiError(400, f"parameter '{name}' should be a string, a boolean or a number")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if first["type"] == "string_pattern_mismatch":
            reason = "should be a name: 1 to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"
        place = f"parameter '{first['loc'][0]}' " if first["loc"] else ""
        raise ApiError(400, f"{place}{reason[:1].lower()}{reason[1:]}") from error


def check_configured(model: type[Parameters], names: Iterable[str]) -> None:
    """Refuses a parameter of a configuration that has no effect. ApiError 400 names the one that was meant."""
    for name in names:
        if not model.known(name):
            meant = as_question(Near(model.model_fields).to(name))
            raise ApiError(400, f"parameters: '{name[:60]}' has no effect{meant}")


def warn_of_misspelt(model: type[Parameters], names: Iterable[str], what: str) -> None:
    """Logs the parameters of a load that have no effect and nearly the name of one that has.

    Args:
        model: the parameters that have an effect.
        names: the parameters of the load.
        what: the model or worker, as the log names it.
    """
    near = Near(model.model_fields)
    for name in islice((name for name in names if not model.known(name)), _MAX_COMPARED):
        if (meant := near.to(name)) is not None:
            log.warning("%s: parameter '%s' of the load has no effect%s", what, name[:60], as_question(meant))
