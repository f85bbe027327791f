"""The parameters of a load: a flat object of strings, booleans and numbers.

Those that every worker understands, and those of ``onnx``, are read here; unknown ones are kept, because they count for
an endpoint's identity, and otherwise ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictBool, ValidationError

from fastinfer.errors import ApiError


class LoadParameters(BaseModel):
    """What a load asks for, read and checked."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    share: StrictBool = True
    """False: a load of what is loaded already counts as one more load."""
    batch_size: int | None = Field(None, ge=1, le=1 << 20, validation_alias=AliasChoices("batch_size", "batch"))
    """Rows of a batch at most, in place of the configuration's ``max_batch_size``."""
    timeout: float | None = Field(None, ge=0, le=60_000)
    """Milliseconds that a request may wait for others to share its batch."""
    instances: int | None = Field(None, ge=1, le=64)
    """Batches that may run at once."""
    next: str | None = None
    """A loaded endpoint that gets the outputs."""

    model: str | None = None
    """``onnx``: the model of the repository; ``cplusplus``: the worker."""
    intra_op_threads: int | None = Field(None, ge=1, le=1024)
    inter_op_threads: int | None = Field(None, ge=1, le=1024)
    execution_providers: str | None = None
    """Names separated by commas, the most wanted first."""
    graph_optimization_level: str | int | None = None
    allow_spinning: StrictBool | None = None

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> LoadParameters:
        """Reads a load's parameters. ApiError 400 that names the parameter."""
        for name, value in parameters.items():
            if name.startswith("file:"):
                raise ApiError(400, "files cannot be given with a load; only 'config' can be overridden")
            if not isinstance(value, str | bool | int | float):
                raise ApiError(400, f"parameter '{name}' must be a string, a boolean or a number")
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            first = error.errors()[0]
            raise ApiError(400, f"parameter '{first['loc'][0]}': {first['msg'][:1].lower()}{first['msg'][1:]}") from error

    def other(self, name: str, default: Any = None) -> Any:
        """A parameter of the worker's own."""
        return (self.model_extra or {}).get(name, default)
