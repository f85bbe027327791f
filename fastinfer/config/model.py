"""A model's configuration: ``config.toml`` or ``config.pbtxt``, with Triton's and AMD's field names.

One schema (:mod:`fastinfer.config.model_schema`) reads all three notations: TOML, protobuf's text format, Triton's
JSON.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, get_args, get_origin

import orjson
from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, StrictBool, ValidationError, model_validator

from fastinfer.base import disk, limits
from fastinfer.base.errors import ApiError, clip
from fastinfer.base.json_count import values_and_depth
from fastinfer.base.near import suggestion
from fastinfer.base.validation import place, reason, shown
from fastinfer.config import devices, ensemble, pbtxt
from fastinfer.config.devices import InstanceGroup, Optimization
from fastinfer.config.ensemble import EnsembleScheduling
from fastinfer.config.model_schema import (
    NOT_SUPPORTED,
    FileName,
    InputConfig,
    Latest,
    MetricTags,
    ModelOperations,
    Never,
    OutputConfig,
    Parameter,
    ParameterValue,
    ResponseCache,
    Table,
    TensorConfig,
    Text,
    Transactions,
    VersionPolicy,
    Warmup,
    Whole,
    read_parameters,
    triton_datatype,
)
from fastinfer.config.pbtxt import PbtxtError, Written, names_of
from fastinfer.config.queueing import DynamicBatching, QueuePolicy

__all__ = ["ConfigError", "ModelConfig", "TensorConfig", "load", "read_labels", "warn_of_other_spellings"]

log = logging.getLogger(__name__)

_MAX_TOML_LINE_BYTES = 4 * limits.KIB  # because the parser's time for a dotted key is quadratic in its length
_MAX_KEY_PARTS = 16  # of a dotted key: the parser makes a table for each; real fields have at most five
# The lookbehind and the possessive quantifiers keep the search linear.
_LONG_KEY = re.compile(
    r"(?<![\w\"'-])(?:(?:[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+)" + f"{{{_MAX_KEY_PARTS}}}", re.ASCII
)
_MAX_ENTRIES = 1024  # of one list or table, and ...
_MAX_VALUES = 50_000  # ... of all together
FILES = ("config.toml", "config.pbtxt")
PLATFORMS = ("onnxruntime_onnx", "onnx_onnxv1", "onnx")

_NO_STRINGS: Any = Field(default={}, max_length=0)

_GRAPH_LEVELS = {-1: "basic", 1: "extended", 2: "none"}
_BATCH_AXIS = "batch_axis."  # prefix of parameters, for files that Triton reads, too: its inputs have no such field
_TRITON_PARAMETERS = {"intra_op_thread_count": "intra_op_threads", "inter_op_thread_count": "inter_op_threads"}


class ConfigError(ApiError):
    """A configuration that cannot be used; the message is one sentence (status 400)."""

    def __init__(self, message: str) -> None:
        super().__init__(400, clip(message))


class Spec(Protocol):
    """A tensor of a loaded model."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def row_shape(self) -> Sequence[int]: ...
    @property
    def batch_axis(self) -> int: ...


class LoadedSignature(Protocol):
    """The inputs and outputs of a loaded model."""

    @property
    def inputs(self) -> Sequence[Spec]: ...
    @property
    def optional_inputs(self) -> Sequence[Spec]: ...
    @property
    def outputs(self) -> Sequence[Spec]: ...
    @property
    def batched(self) -> bool: ...
    @property
    def max_request_rows(self) -> int: ...


class ModelConfig(Table):
    """The configuration of one model."""

    name: Text = ""
    platform: Text = ""
    backend: Text = ""
    runtime: Literal[""] = ""
    version_policy: VersionPolicy = VersionPolicy(latest=Latest())
    max_batch_size: Annotated[Whole, Field(le=1_000_000)] | None = None
    """Rows of a batch; 0: not batched; None: not configured, the graph decides."""
    batching: Literal["auto", "exact"] | None = None
    """``exact``: requests share a batch only if that changes no bit of an answer; None: the server's option decides."""
    inputs: Annotated[tuple[InputConfig, ...], Field(max_length=limits.MAX_INPUTS)] = Field(
        default=(), validation_alias=AliasChoices("input", "inputs")
    )
    outputs: Annotated[tuple[OutputConfig, ...], Field(max_length=limits.MAX_INPUTS)] = Field(
        default=(), validation_alias=AliasChoices("output", "outputs")
    )
    batch_input: Never = ()
    batch_output: Never = ()
    optimization: Optimization = Optimization()
    dynamic_batching: DynamicBatching = DynamicBatching()
    instance_group: Annotated[tuple[InstanceGroup, ...], Field(max_length=64)] = ()
    default_model_filename: FileName = ""
    cc_model_filenames: dict[str, str] = _NO_STRINGS
    metric_tags: MetricTags = Field(default={})
    parameters: Annotated[
        dict[Annotated[str, Field(max_length=1024)], Any],
        BeforeValidator(read_parameters),
        Written((("parameters", dict[str, ParameterValue]),)),
    ] = Field(default={})
    model_operations: ModelOperations = ModelOperations()
    extensions: StrictBool = False
    """Whether the operators of onnxruntime-extensions are loaded."""
    model_warmup: Annotated[tuple[Warmup, ...], Field(max_length=1024)] = ()
    model_transaction_policy: Transactions = Transactions()
    response_cache: ResponseCache = ResponseCache()
    ensemble_scheduling: EnsembleScheduling | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{what} '{twice[:60]}' is listed twice")
        if self.max_batch_size is not None:
            self._check_preferred(self.max_batch_size)
        self._check_ensemble()
        self._check_axes()
        return self

    def _check_ensemble(self) -> None:
        engines = {"platform": self.platform, "backend": self.backend}
        wrong = next(
            (f"{key} {shown(name)}" for key, name in engines.items() if name not in ("", ensemble.PLATFORM)), ""
        )
        if self.ensemble_scheduling is None:
            if ensemble.PLATFORM in engines.values():
                raise ValueError("an ensemble needs ensemble_scheduling, with its steps")
            return
        if wrong:
            raise ValueError(f"ensemble_scheduling is of the platform 'ensemble', but the model has the {wrong}")
        for what, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not tensors:
                raise ValueError(f"an ensemble must list its {what}")
            if any(tensor.reshape is not None for tensor in tensors):
                raise ValueError("an ensemble has no reshape of its own; set it for the models of its steps")
        if self.batch_axes:
            raise ValueError("an ensemble has no batch_axis: its rows are along the first dimension")
        for field in ensemble.REFUSED_FIELDS:
            if field in self.model_fields_set and getattr(self, field) not in ((), "", None):
                raise ValueError(f"an ensemble has no {field} of its own; set it for the models of its steps")

    def _check_axes(self) -> None:
        """Checks the parameters ``batch_axis.NAME``. ValueError."""
        fields = {tensor.name: tensor.batch_axis for tensor in (*self.inputs, *self.outputs)}
        for key, value in self.parameters.items():
            if not key.startswith(_BATCH_AXIS):
                continue
            if not re.fullmatch(r"-1|\d\d?", str(value)) or int(value) >= limits.MAX_RANK:
                raise ValueError(f"parameters.{key[:80]} must be a dimension: -1 to {limits.MAX_RANK - 1}")
            if fields.get(key.removeprefix(_BATCH_AXIS)) not in (None, int(value)):
                raise ValueError(f"parameters.{key[:80]} differs from the field batch_axis")

    def _check_preferred(self, rows: int) -> None:
        largest = max(self.dynamic_batching.preferred_batch_size, default=0)
        if largest > rows:
            raise ValueError(f"dynamic_batching.preferred_batch_size {largest} is above max_batch_size {rows}")

    # --- Derived values ---

    @property
    def instances(self) -> int:
        """How many batches may run concurrently."""
        return sum(group.count for group in self.instance_group) or 1

    @property
    def batch_axes(self) -> dict[str, int]:
        """The dimension of rows of each input and output for which it is configured."""
        axes = {
            key.removeprefix(_BATCH_AXIS): int(value)
            for key, value in self.parameters.items()
            if key.startswith(_BATCH_AXIS)
        }
        given = {tensor.name: tensor.batch_axis for tensor in (*self.inputs, *self.outputs)}
        return axes | {name: axis for name, axis in given.items() if axis is not None}

    @property
    def without_effect(self) -> list[str]:
        """The fields that are set and have no effect here."""
        found = devices.without_effect(self.instance_group, self.optimization, self.parameters)
        return [*found, "response_cache"] if self.response_cache.enable else found

    @property
    def reshapes(self) -> bool:
        """Whether an input or output has another shape than the graph's."""
        return any(tensor.reshape is not None for tensor in (*self.inputs, *self.outputs))

    @property
    def label_files(self) -> list[str]:
        """The label files that the outputs name."""
        return sorted({output.label_filename for output in self.outputs if output.label_filename})

    @property
    def worker_parameters(self) -> dict[str, Parameter]:
        """``parameters`` by the names that a load uses, with the values of Triton's other fields."""
        merged: dict[str, Parameter] = {}
        if self.optimization.graph.level in _GRAPH_LEVELS:
            merged["graph_optimization_level"] = _GRAPH_LEVELS[self.optimization.graph.level]
        for key, value in self.parameters.items():
            if key.startswith(_BATCH_AXIS):
                continue
            merged[_TRITON_PARAMETERS.get(key, key)] = value
        if self.extensions:
            merged["extensions"] = True
        return merged

    def select_versions(self, versions: Iterable[int]) -> list[int]:
        """Return those of ``versions`` that the version policy selects, ascending."""
        return self.version_policy.select(versions)

    def effective(self, signature: LoadedSignature) -> ModelConfig:
        """Return the configuration, completed with the signature that was found at load.

        Raises:
            ConfigError: it contradicts the batch size that was found at load.
        """
        labels = {output.name: output.label_filename for output in self.outputs}
        formats = {given.name: given.format for given in self.inputs}
        reshapes = {given.name: given.reshape for given in (*self.inputs, *self.outputs)}
        inputs = tuple(
            InputConfig.model_construct(
                name=spec.name, datatype=spec.datatype, dims=_dims(spec, signature.batched),
                batch_axis=_batch_axis(spec, signature.batched),
                format=formats.get(spec.name, "FORMAT_NONE"), reshape=reshapes.get(spec.name),
            )
            for spec in signature.inputs
        ) + tuple(
            InputConfig.model_construct(
                name=spec.name, datatype=spec.datatype, dims=tuple(spec.shape), optional=True,
                format=formats.get(spec.name, "FORMAT_NONE"),
            )
            for spec in signature.optional_inputs
        )  # fmt: skip
        outputs = tuple(
            OutputConfig.model_construct(
                name=spec.name, datatype=spec.datatype, dims=_dims(spec, signature.batched),
                batch_axis=_batch_axis(spec, signature.batched),
                label_filename=labels.get(spec.name, ""), reshape=reshapes.get(spec.name),
            )
            for spec in signature.outputs
        )  # fmt: skip
        rows = signature.max_request_rows if signature.batched else 0
        try:
            self._check_preferred(rows)
        except ValueError as error:
            raise ConfigError(f"model '{self.name}': {error}") from None
        return self.model_copy(update={"inputs": inputs, "outputs": outputs, "max_batch_size": rows})

    def running(self, name: str, instances: int) -> ModelConfig:
        """Return the configuration of the endpoint ``name`` with this many instances."""
        if self.ensemble_scheduling is not None:
            return self.model_copy(update={"name": name})
        groups = self.instance_group
        if sum(group.count for group in groups) != instances:
            groups = (InstanceGroup.model_construct(count=instances),)
        named = tuple(
            InstanceGroup.model_construct(name=group.name or f"{name}_{number}", kind="KIND_CPU", count=group.count)
            for number, group in enumerate(groups)
        )
        return self.model_copy(update={"name": name, "instance_group": named})

    def to_triton_json(self) -> bytes:
        """Return compact JSON with Triton's field names, in Triton's order."""
        onnx = self.platform in ("", *PLATFORMS)
        batching = self.dynamic_batching.model_dump(
            exclude={"default_queue_policy", "max_queue_size", "default_timeout_microseconds", "priority_queue_policy"}
        )
        if self.dynamic_batching.default_policy != QueuePolicy():
            batching["default_queue_policy"] = self.dynamic_batching.default_policy.model_dump()
        if policies := self.dynamic_batching.priority_queue_policy:
            batching["priority_queue_policy"] = {str(level): each.model_dump() for level, each in policies.items()}
        groups = self.instance_group or (InstanceGroup(name=f"{self.name}_0", kind="KIND_CPU"),)
        body = {
            "name": self.name,
            "platform": "onnxruntime_onnx" if onnx else self.platform,
            "backend": "onnxruntime" if onnx else self.platform,
            "runtime": "",
            "version_policy": self.version_policy.model_dump(exclude_none=True),
            "max_batch_size": self.max_batch_size or 0,
            "input": [_tensor_json(tensor) for tensor in self.inputs],
            "output": [_tensor_json(tensor) for tensor in self.outputs],
            "batch_input": [],
            "batch_output": [],
            "optimization": self.optimization.model_dump(exclude={"cuda", "execution_accelerators"}),
            "dynamic_batching": batching,
            "instance_group": [group.model_dump(exclude={"rate_limiter"}) for group in groups],
            "default_model_filename": self.default_model_filename,
            "cc_model_filenames": {},
            "metric_tags": self.metric_tags,
            "parameters": {key: {"string_value": _as_text(value)} for key, value in self.parameters.items()},
            "model_warmup": [_warmup_json(sample) for sample in self.model_warmup],
            "model_transaction_policy": {"decoupled": False},
        }
        if self.model_operations.op_library_filename:
            body["model_operations"] = self.model_operations.model_dump()
        if self.ensemble_scheduling is not None:
            del body["dynamic_batching"]
            body |= {"backend": "", "instance_group": [], "ensemble_scheduling": self.ensemble_scheduling.model_dump()}
        elif not self.max_batch_size and self.dynamic_batching == DynamicBatching():
            del body["dynamic_batching"]
        return orjson.dumps(body)

    # --- Reading ---

    @classmethod
    def from_json(cls, text: str, name: str) -> ModelConfig:
        """Parse Triton's JSON, from the ``config`` parameter of a load.

        Raises:
            ConfigError: names the wrong field.
        """
        where = "config"
        content = text.encode("utf-8", "surrogatepass")
        if len(content) > limits.MAX_CONFIG_OVERRIDE_BYTES:
            raise ConfigError(f"{where}: is larger than {_size(limits.MAX_CONFIG_OVERRIDE_BYTES)}")
        if values_and_depth(content)[0] > _MAX_VALUES:
            raise ConfigError(f"{where}: has more than {_MAX_VALUES} values")
        try:
            values = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"{where}, line {error.lineno}: is not JSON: {error.msg}") from None
        return _validated(values, name, where)


def load(directory: Path, name: str) -> ModelConfig | None:
    """Read the configuration of the model in ``directory``; None if it has none.

    Args:
        directory: the model's directory; its ``config.toml`` or ``config.pbtxt`` is read.
        name: the model's name. If it is the directory's, the configuration may repeat but not change it.

    Raises:
        ConfigError: names the file, the line if it is known, and the wrong field.
    """
    found = [file for file in FILES if os.path.lexists(directory / file)]
    if not found:
        return None
    if len(found) > 1:
        raise ConfigError(f"{found[0]}: there is also a {found[1]}; keep one of them")
    text = _read(directory / found[0], limits.MAX_CONFIG_BYTES)
    values = _parse_toml(text) if found[0] == FILES[0] else _parse_pbtxt(text)
    if name != directory.name:  # the server's options give the name
        values["name"] = name
    return _validated(values, name, found[0])


def warn_of_other_spellings(directory: Path, name: str) -> None:
    """Logs files such as ``Config.toml``, which are not read because their name has another spelling."""
    try:
        with os.scandir(directory) as entries:
            found = [entry.name for entry in islice(entries, _MAX_ENTRIES)]
    except OSError:
        return  # whoever reads the file gives the reason
    for file in found:
        if file.lower() in FILES and file not in FILES:
            log.warning("model '%s': '%s' is not read, because its name is not '%s'", name, file, file.lower())


def read_labels(directory: Path, config: ModelConfig) -> dict[str, str]:
    """Read the label files that the configuration names; returns their text by output name.

    Args:
        directory: the model's directory. The files must be in it, after following symbolic links.
        config: the model's configuration.

    Raises:
        ConfigError: names the output and the file.
    """
    outputs = {output.name: output.label_filename for output in config.outputs if output.label_filename}
    texts: dict[str, str] = {}
    for output, name in outputs.items():
        try:
            if name not in texts:
                if not Path(os.path.realpath(directory / name)).is_relative_to(os.path.realpath(directory)):
                    raise ConfigError(f"{name}: leads out of the model's directory")
                texts[name] = _read(directory / name, limits.MAX_LABELS_BYTES).replace("\r\n", "\n")
        except ConfigError as error:
            raise ConfigError(f"the labels of output '{output[:60]}': {error}") from None
    return {output: texts[name] for output, name in outputs.items()}


def _read(path: Path, most_bytes: int) -> str:
    """Read a file's text. Symbolic links are followed; pipes and devices are refused, because they may block."""
    try:
        content = disk.read(path, most_bytes)
    except disk.NotRegularError as error:
        raise ConfigError(f"{path.name}: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(content) > most_bytes:
        raise ConfigError(f"{path.name}: is larger than {_size(most_bytes)}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path.name}, line {line}: is not UTF-8 text") from None


def _size(size: int) -> str:
    return f"{size // limits.MIB} MiB" if size >= limits.MIB else f"{size // limits.KIB} KiB"


def _parse_toml(text: str) -> dict[str, Any]:
    name = FILES[0]
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > _MAX_TOML_LINE_BYTES:
            raise ConfigError(f"{name}, line {number}: is longer than 4 KiB")
        if _LONG_KEY.search(line):
            raise ConfigError(f"{name}, line {number}: a key has more than {_MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, position = str(error).rpartition(" (at ")
        where = re.search(r"line (\d+)", position)
        raise ConfigError(f"{name}, line {where[1]}: {message}" if where else f"{name}: {error}") from None
    except (RecursionError, ValueError):  # ValueError: an integer of more digits than Python reads
        raise ConfigError(f"{name}: is nested too deeply, or holds a number of too many digits") from None


def _parse_pbtxt(text: str) -> dict[str, Any]:
    name = FILES[1]
    try:
        return pbtxt.parse(text, ModelConfig)
    except PbtxtError as error:
        message = _unknown(error.unknown) if error.unknown in NOT_SUPPORTED else str(error)
        raise ConfigError(f"{name}, line {error.line}: {message}" if error.line else f"{name}: {message}") from None


def _validated(values: Any, name: str, where: str) -> ModelConfig:
    """Validate the values that were read. ConfigError names the first error."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: must be a table of fields")
    _check_size(values, where)
    if values.get("name") not in (None, "", name):
        raise ConfigError(f"{where}: name: {shown(values['name'])} is not the name of the model's directory, '{name}'")
    try:
        return ModelConfig.model_validate({**values, "name": name})
    except ValidationError as error:
        details = error.errors()[0]
    location = details["loc"]
    path = place(location)
    if details["type"] == "extra_forbidden":
        raise ConfigError(f"{where}: {_unknown(path)}{_suggestion(location)}")
    raise ConfigError(f"{where}: {path[:120]}{': ' if path else ''}{reason(details)}")


def _check_size(values: dict[str, Any], where: str) -> None:
    """Bounds the number of values, because the schema checks each list entry before it counts them. ConfigError."""
    count = 0
    left: list[tuple[str, dict[str, Any] | list[Any]]] = [("", values)]
    while left:
        at, inner = left.pop()
        if len(inner) > _MAX_ENTRIES:
            most = f"has {len(inner)} entries, at most {_MAX_ENTRIES} are allowed"
            raise ConfigError(f"{where}: {f'{at[:120]}: ' if at else ''}{most}")
        count += len(inner)
        if count > _MAX_VALUES:
            raise ConfigError(f"{where}: has more than {_MAX_VALUES} values")
        parts = inner.items() if isinstance(inner, dict) else enumerate(inner)
        left += [(place((at, key)) if at else str(key), each) for key, each in parts if isinstance(each, dict | list)]


def _unknown(path: str) -> str:
    if path.rsplit(".", 1)[-1] in NOT_SUPPORTED:
        return f"field '{path[:120]}' is not supported"
    return f"unknown field '{path[:120]}'"


def _suggestion(location: Sequence[int | str]) -> str:
    """Suggest a field of the same table with a similar name."""
    *path, unknown = location
    table = _table_at(path)
    if table is None or unknown in NOT_SUPPORTED:
        return ""
    return suggestion(
        str(unknown), [alias for name, field in table.model_fields.items() for alias in names_of(name, field)]
    )


def _table_at(path: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the schema of the table at a place of the configuration; None if there is none."""
    kind: Any = ModelConfig
    for part in path:
        if get_origin(kind) in (tuple, dict):  # a list's elements, or a map's values
            kind = pbtxt.bare(get_args(kind)[get_origin(kind) is dict])
            continue
        fields = kind.model_fields.items() if _is_table(kind) else ()
        field = next((field for name, field in fields if part in names_of(name, field)), None)
        if field is None:
            return None
        kind = pbtxt.bare(field.annotation)
    return kind if _is_table(kind) else None


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


# --- The effective configuration --------------------------------------------------------------------------------------


def _dims(spec: Spec, batched: bool) -> tuple[int, ...]:
    return tuple(spec.row_shape if batched else spec.shape)


def _batch_axis(spec: Spec, batched: bool) -> int | None:
    """Return the dimension of rows if it is not the first, where a reader expects it."""
    return (spec.batch_axis or None) if batched else None


# --- Triton's JSON ----------------------------------------------------------------------------------------------------


def _tensor_json(tensor: TensorConfig) -> dict[str, Any]:
    body = {"name": tensor.name, "data_type": triton_datatype(tensor.datatype), "dims": tensor.dims}
    rest = tensor.model_dump(exclude={"name", "datatype", "dims", "reshape"}, exclude_none=True)
    return body | rest | ({} if tensor.reshape is None else {"reshape": {"shape": tensor.reshape.shape}})


def _warmup_json(sample: Warmup) -> dict[str, Any]:
    inputs = {}
    for name, given in sample.inputs.items():
        values = given.model_dump(include={"zero_data", "random_data", "input_data_file"}, exclude_defaults=True)
        inputs[name] = {"data_type": triton_datatype(given.datatype), "dims": given.dims} | values
    return {"name": sample.name, "batch_size": sample.batch_size, "inputs": inputs, "count": sample.count}


def _as_text(value: Parameter) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
