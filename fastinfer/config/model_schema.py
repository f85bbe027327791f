"""The tables of a model's configuration, with Triton's and AMD's field names.

A field is here only if it has an effect, or with only the values that mean "off". Triton's other fields are listed in
``NOT_SUPPORTED`` and refused by name, so that nobody relies on a field without effect. Devices are in
:mod:`fastinfer.config.devices`, queues in :mod:`fastinfer.config.queueing`; :mod:`fastinfer.config.model` combines the
tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from fastinfer.base import limits
from fastinfer.base.near import suggestion
from fastinfer.base.validation import shown
from fastinfer.config.pbtxt import Written, names_of

NOT_SUPPORTED = frozenset(
    {
        "control_input", "initial_state", "model_metrics", "model_repository_agents", "models", "sequence_batching",
    }
)  # fmt: skip
"""Fields of Triton or AMD that this server does not support."""

DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "BF16", "FP32", "FP64", "BYTES",
)  # fmt: skip
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
_OWN_LABELS = {"model", "version", "cause", "le"}  # of metrics about models
_FILE_NAME = re.compile(r"[^/\\\0]{1,255}")


# --- Values -----------------------------------------------------------------------------------------------------------


def no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a whole number, got {shown(value)}")
    return value


def _tensor_name(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("must be a name of printable characters")
    return value


def _file_name(value: str) -> str:
    if value and (not _FILE_NAME.fullmatch(value) or value in (".", "..")):
        raise ValueError("must be a file's name, without a directory")
    return value


def _datatype(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = value.removeprefix("TYPE_")
    name = "BYTES" if name == "STRING" else name
    if name not in DATATYPES:
        raise ValueError(f"{shown(value)} is not a data type{suggestion(name, DATATYPES)}")
    return name


def triton_datatype(name: str) -> str:
    return "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"


def read_parameters(value: Any) -> Any:
    """Convert parameters to plain values; Triton writes ``{"string_value": x}``, AMD ``{"int64_param": x}`` etc."""
    if not isinstance(value, dict):
        return value
    return {name: _parameter(name, item) for name, item in _flat(value)}


def _flat(table: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield parameters by their names: TOML reads ``session.log_id = "x"`` as a table in a table."""
    for key, value in table.items():
        dotted = isinstance(value, dict) and (prefix or key in _DOTTED) and not value.keys() & set(_NOTATIONS)
        if dotted and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parameter(key: Any, value: Any) -> Any:
    if isinstance(value, dict):
        if len(value) != 1 or next(iter(value)) not in _NOTATIONS:
            raise ValueError(f"'{str(key)[:60]}' must have one of {', '.join(_NOTATIONS)}")
        value = next(iter(value.values()))
    if not isinstance(value, str | bool | int | float):
        raise ValueError(f"'{str(key)[:60]}' must be text, a number, true or false")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError(f"'{str(key)[:60]}' must be a finite number")
    return value


_DOTTED = frozenset({"ep", "memory", "mlas", "optimization", "provider", "provider_library", "qnn", "session"})
"""The beginnings of parameters whose names have dots."""
_NOTATIONS = ("string_value", "bool_param", "int64_param", "double_param", "string_param")  # of ParameterValue
Whole = Annotated[int, BeforeValidator(no_bool), Field(ge=0, le=2**62)]
Dimension = Annotated[int, BeforeValidator(no_bool), Field(ge=-1, le=2**62)]
Text = Annotated[str, Field(max_length=1024)]
FileName = Annotated[str, AfterValidator(_file_name)]
Name = Annotated[str, Field(max_length=1024), AfterValidator(_tensor_name)]
_TritonType = Literal[
    "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16",
    "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
]  # fmt: skip
Datatype = Annotated[str, BeforeValidator(_datatype), Written((("data_type", _TritonType), ("datatype", str)))]
Dims = Annotated[tuple[Dimension, ...], Field(max_length=limits.MAX_RANK)]
BatchAxis = Annotated[int, BeforeValidator(no_bool), Field(ge=-1, lt=limits.MAX_RANK)]
_DATATYPE: Any = Field(validation_alias=AliasChoices("data_type", "datatype"))
_DIMS: Any = Field(default=(), validation_alias=AliasChoices("dims", "shape"))


def _metric_tags(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not _LABEL.fullmatch(name) or name.startswith("__") or name in _OWN_LABELS:
            raise ValueError(f"{shown(name)} cannot be the name of a metric's label")
    return value


MetricTags = Annotated[
    dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=16), AfterValidator(_metric_tags)
]
"""Labels that the model's metrics have, besides those of all models."""


class Table(BaseModel):
    """A table of the configuration; an unknown field is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=(), defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, field in cls.model_fields.items():
                given = [alias for alias in names_of(name, field) if alias in value]
                if len(given) > 1:
                    raise ValueError(f"{' and '.join(given)} are the same field; keep one of them")
        return value


class Nothing(Table):
    """A table without fields."""


Never = Annotated[tuple[Nothing, ...], Field(max_length=0)]


# --- Tensors ----------------------------------------------------------------------------------------------------------


class Reshape(Table):
    """The shape that the graph has in place of ``dims``, also without the batch dimension."""

    shape: Dims = ()


class TensorConfig(Table):
    """An input or an output; ``dims`` has no batch dimension if ``max_batch_size`` is above 0."""

    name: Name
    datatype: Datatype = _DATATYPE
    dims: Dims = _DIMS
    batch_axis: BatchAxis | None = None
    """The dimension of rows of a batched model; -1: an input without rows, of which a batch has one value; None: found
    from the graph."""
    reshape: Reshape | None = None
    is_shape_tensor: Literal[False] = False
    is_non_linear_format_io: Literal[False] = False

    @model_validator(mode="after")
    def _check_reshape(self) -> Self:
        if self.reshape is None:
            return self
        for one, other in ((_fixed, "elements"), (_open_dims, "open dimensions")):
            if one(self.dims) != one(self.reshape.shape):
                shapes = f"{list(self.dims)} and the reshape's {list(self.reshape.shape)}"
                raise ValueError(f"the dims {shapes} have different numbers of {other}")
        return self

    @property
    def inner_dims(self) -> tuple[int, ...]:
        """The dims that the graph has."""
        return self.dims if self.reshape is None else self.reshape.shape


def _fixed(dims: tuple[int, ...]) -> int:
    return math.prod(dim for dim in dims if dim >= 0)


def _open_dims(dims: tuple[int, ...]) -> int:
    return sum(dim < 0 for dim in dims)


class InputConfig(TensorConfig):
    """An input."""

    format: Literal["FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"] = "FORMAT_NONE"
    allow_ragged_batch: Literal[False] = False
    optional: StrictBool = False
    """A request may leave it out. Such an input has no batch dimension."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format != "FORMAT_NONE" and len(self.dims) != 3:
            raise ValueError(f"the format {self.format} needs three dims")
        return self


class OutputConfig(TensorConfig):
    """An output."""

    batch_axis: Annotated[BatchAxis, Field(ge=0)] | None = None
    label_filename: FileName = ""


# --- Versions ---------------------------------------------------------------------------------------------------------


class Latest(Table):
    num_versions: Annotated[Whole, Field(ge=1)] = 1


class Specific(Table):
    versions: Annotated[tuple[Annotated[Whole, Field(ge=1)], ...], Field(min_length=1, max_length=1024)]


class VersionPolicy(Table):
    """Which of a model's versions are loaded."""

    latest: Latest | None = None
    all: Nothing | None = None
    specific: Specific | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if value in ("all", "latest"):
            return {value: {}}
        if isinstance(value, str):
            raise ValueError(f'must be "all", "latest" or a table, got {shown(value)}')
        return {"latest": {}} if value == {} else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(choice is not None for choice in (self.latest, self.all, self.specific)) != 1:
            raise ValueError("must have one of latest, all and specific")
        return self

    def select(self, versions: Iterable[int]) -> list[int]:
        """Return those of ``versions`` that should be loaded, ascending."""
        ordered = sorted(versions)
        if self.specific is not None:
            return [version for version in ordered if version in self.specific.versions]
        return ordered if self.latest is None else ordered[-self.latest.num_versions :]


# --- The rest ---------------------------------------------------------------------------------------------------------


class WarmupInput(Table):
    """The values of one input of a warm-up run, from exactly one of three sources."""

    datatype: Datatype = _DATATYPE
    dims: Dims = _DIMS
    zero_data: StrictBool = False
    random_data: StrictBool = False
    input_data_file: FileName = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.zero_data + self.random_data + bool(self.input_data_file) != 1:
            raise ValueError("must have exactly one of zero_data, random_data and input_data_file")
        if any(dim < 0 for dim in self.dims):
            raise ValueError("dims must not hold -1 here")
        return self


class Warmup(Table):
    """A request that is run before the model becomes ready."""

    name: Text = ""
    batch_size: Annotated[Whole, Field(le=1_000_000)] = 0
    count: Annotated[Whole, Field(le=10_000)] = 1
    inputs: Annotated[dict[Name, WarmupInput], Field(max_length=limits.MAX_INPUTS)] = {}


class ModelOperations(Table):
    """Libraries of custom operators, as paths in the model's directory or in one that the server's options allow."""

    op_library_filename: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(max_length=64),
    ] = ()


class Transactions(Table):
    decoupled: Literal[False] = False


class ResponseCache(Table):
    """Has no effect: answers are not cached."""

    enable: StrictBool = False


class ParameterValue(Table):
    """The notations of a parameter's value: Triton's, then AMD's."""

    string_value: str = ""
    bool_param: bool = False
    int64_param: int = 0
    double_param: float = 0.0
    string_param: str = ""


Parameter = str | bool | int | float
