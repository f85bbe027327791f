"""``ensemble_scheduling``: the steps of an ensemble, with Triton's field names."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_validator

from fastinfer.base import limits
from fastinfer.base.validation import shown
from fastinfer.config.model_paths import NAME
from fastinfer.config.model_schema import Name, Table, Text

PLATFORM = "ensemble"
"""The platform of an ensemble, also accepted as its ``backend``."""

REFUSED_FIELDS = ("batching", "dynamic_batching", "instance_group", "model_warmup", "default_model_filename")
"""Fields of a configuration that an ensemble must not have, because they belong to its steps."""


def _model_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(f"{shown(value)} is not a model's name: 1 to 128 letters, digits, _ . -")
    return value


def _version(value: Any) -> Any:
    if isinstance(value, bool) or value == 0:
        raise ValueError("must be a version, or -1 for the highest one that is loaded")
    return value


_Map = Annotated[dict[Name, Name], Field(min_length=1, max_length=limits.MAX_INPUTS)]


class EnsembleStep(Table):
    """One step: a model, and the tensors of the ensemble that it takes and makes."""

    model_name: Annotated[Text, AfterValidator(_model_name)]
    model_version: Annotated[int, BeforeValidator(_version), Field(ge=-1, lt=10**18)] = -1
    model_namespace: Annotated[str, Field(max_length=0)] = ""
    input_map: _Map
    """By the model's input, the tensor that it takes."""
    output_map: _Map
    """By the model's output, the tensor that it makes."""

    @property
    def version(self) -> str | None:
        """The version as on the wire; None: the highest one that is loaded."""
        return None if self.model_version == -1 else str(self.model_version)


class EnsembleScheduling(Table):
    """The steps, in any order: a step begins when its tensors exist."""

    step: Annotated[tuple[EnsembleStep, ...], Field(min_length=1, max_length=limits.MAX_STEPS)] = Field(
        validation_alias=AliasChoices("step", "steps")
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = sum(len(step.input_map) + len(step.output_map) for step in self.step)
        if count > limits.MAX_STEP_TENSORS:
            raise ValueError(f"the steps take and make {count} tensors, at most {limits.MAX_STEP_TENSORS} are allowed")
        return self
