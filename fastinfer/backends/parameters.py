"""The parameters of a load: a flat object of strings, booleans and numbers.

Parameters that every worker accepts are here; a worker adds its own in a subclass. A number may be a string. Unknown
parameters are accepted without effect, because they are part of an endpoint's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fastinfer.base.errors import ApiError


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

    @model_validator(mode="before")
    @classmethod
    def _batch(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if "batch" not in values:
            return values
        given = dict(values)
        batch = given.pop("batch")
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
