"""What the load of an ONNX model can be told: its parameters, and the session's settings that follow from them.

Parameters come from the model's configuration and from clients. Some make the runtime load code, or read and write
files (:func:`only_from_files`): these are taken only from the configuration in the model's directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fastinfer.backends.onnx.config_keys import ALIASES, PREFIXES, RUN_ENTRIES, SESSION_ENTRIES, Entry, affinity_sets
from fastinfer.backends.onnx.places import Places, extensions_library
from fastinfer.backends.onnx.settings import SessionSettings
from fastinfer.backends.parameters import Integer, Name, Parameters
from fastinfer.base.errors import ApiError
from fastinfer.base.machine import usable_cores
from fastinfer.base.near import suggestion

_PROVIDER, _PROVIDER_LIBRARY = "provider.", "provider_library."
_CPU, _SUFFIX = "CPUExecutionProvider", "ExecutionProvider"
_PATH_LIKE = re.compile(r"file|path|dir|folder|root|prefix|lib|plugin|location|cache|backend")
_LEVELS = {"disable_all": "none", **{f"enable_{name}": name for name in ("basic", "extended", "layout", "all")}}
_MODES = {"0": "sequential", "1": "parallel", "ort_sequential": "sequential", "ort_parallel": "parallel"}
_AFFINITIES, _SHRINKAGE = "session.intra_op_thread_affinities", "memory.enable_memory_arena_shrinkage"
_OPTIMIZED, _FOLDER = "session.optimized_model_filepath", "session.model_external_initializers_file_folder_path"
_PROFILE, _CONTEXT_FILE = "session.enable_profiling", "ep.context_file_path"
# Entries without effect if another one is missing.
_NEEDS = {
    "session.optimized_model_external_initializers_file_name": _OPTIMIZED,
    "session.optimized_model_external_initializers_min_size_in_bytes": _OPTIMIZED,
    "session.save_external_prepacked_constant_initializers": _OPTIMIZED,
    "session.save_model_format": _OPTIMIZED,
    "ep.context_enable": _CONTEXT_FILE,
    "ep.context_model_external_initializers_file_name": _CONTEXT_FILE,
}


def _translated(names: Mapping[str, str]) -> BeforeValidator:
    """Translates the runtime's and Triton's words."""
    return BeforeValidator(lambda value: names.get(str(value).lower(), value))


ThreadCount = Annotated[Integer, Field(ge=0, le=1024)]


class OnnxParameters(Parameters):
    """The parameters of an ONNX model's load; besides them the entries of :mod:`fastinfer.backends.onnx.config_keys`.

    Attributes:
        model: the model of the repository, for a load of the worker ``onnx``.
        intra_op_threads: threads of the model's own pool; by default, and if 0, all models share the process's pool.
        inter_op_threads: more than 1 also runs independent operators in parallel.
        use_per_session_threads: whether the model has pools of its own; by default if it has a number of threads.
        execution_mode: ``sequential`` or ``parallel`` (Triton's 0 or 1): whether independent operators run in parallel.
        execution_providers: names separated by commas, the preferred one first.
        graph_optimization_level: ``none``, ``basic``, ``extended``, ``layout`` or ``all``.
        allow_spinning: idle threads of the model's own pool spin for a while, for a lower latency.
        enable_mem_arena: whether memory comes from an arena of the model; by default it does.
        enable_mem_pattern: whether memory is planned from earlier runs of the same shapes; by default it is not.
        extensions: load the operators of the package onnxruntime-extensions.
    """

    model: Name | None = None
    intra_op_threads: ThreadCount | None = None
    inter_op_threads: ThreadCount | None = None
    use_per_session_threads: bool | None = None
    execution_mode: Annotated[Literal["sequential", "parallel"], _translated(_MODES)] | None = None
    execution_providers: str | None = None
    graph_optimization_level: (
        Annotated[Literal["none", "basic", "extended", "layout", "all"], _translated(_LEVELS)] | None
    ) = None
    allow_spinning: bool | None = None
    enable_mem_arena: bool | None = None
    enable_mem_pattern: bool | None = None
    extensions: bool = False

    @classmethod
    def known(cls, name: str) -> bool:
        """Whether a parameter has an effect, or another check refuses it with more to say."""
        return super().known(name) or is_parameter(name) or name.startswith(PREFIXES)

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        given = dict(values)
        for alias, name in ALIASES.items():
            if alias in given:
                value = given.pop(alias)
                if given.setdefault(name, value) != value:
                    raise ValueError(f"'{alias}' and '{name}' are two names of one parameter, but have other values")
        return given

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        entries = self.entries
        for name in self.model_extra or ():
            if name.startswith(PREFIXES) and name not in entries:
                known = (*SESSION_ENTRIES, *RUN_ENTRIES, *ALIASES)
                raise ValueError(f"parameter '{name[:120]}' is not one of ONNX Runtime{suggestion(name, known)}")
        for name, text in entries.items():
            entry = _entry(name)
            if entry is not None and entry.own_pool and not self.has_own_pool:
                raise ValueError(f"parameter '{name}' needs threads of the model's own: set intra_op_threads")
            if (needed := _NEEDS.get(name)) is not None and needed not in entries and text != "0":
                raise ValueError(f"parameter '{name}' needs the parameter '{needed}'")
        self._check_affinities(entries.get(_AFFINITIES))
        if "cpu" in entries.get(_SHRINKAGE, "") and self.enable_mem_arena is False:
            raise ValueError(f"parameter '{_SHRINKAGE}' shrinks the CPU's arena, but enable_mem_arena is off")
        self._check_providers()
        return self

    def _check_affinities(self, text: str | None) -> None:
        if text is None:
            return
        try:
            groups = len(affinity_sets(text, os.cpu_count() or 1))
        except ValueError as error:
            raise ValueError(f"parameter '{_AFFINITIES}' {error}") from None
        threads = self.intra_op_threads or 1
        if groups != threads - 1:  # the calling thread is the first of the pool, and belongs to the server
            raise ValueError(
                f"parameter '{_AFFINITIES}' has {groups} sets of processors; with intra_op_threads {threads} it needs "
                f"{threads - 1}, one for each thread but the calling one"
            )

    def _check_providers(self) -> None:
        providers = self.providers
        for name in (*self.provider_options, *self.provider_libraries):
            if name not in providers:
                raise ValueError(
                    f"the parameters have options or a library of '{name}', which execution_providers lacks"
                )
        if _CPU in self.provider_options:
            raise ValueError(f"the provider '{_CPU}' has no options; see enable_mem_arena and intra_op_threads")

    # --- Derived values ---

    @property
    def entries(self) -> dict[str, str]:
        """The entries of the session's and the runs' options, by name. ValueError names a wrong value."""
        found = {}
        for name, value in (self.model_extra or {}).items():
            entry = _entry(name)
            if entry is None:
                continue
            try:
                found[name] = entry.read(value)
            except ValueError as error:
                raise ValueError(f"parameter '{name}' {error}") from None
        return found

    @property
    def has_own_pool(self) -> bool:
        """Whether the session has threads of its own."""
        if self.use_per_session_threads is not None:
            return self.use_per_session_threads
        return bool(self.intra_op_threads or self.inter_op_threads or self.execution_mode == "parallel")

    @property
    def providers(self) -> list[str]:
        """The execution providers, the preferred one first."""
        return [name.strip() for name in (self.execution_providers or _CPU).split(",")]

    @property
    def provider_options(self) -> dict[str, dict[str, str]]:
        """The options of providers, by the provider's name as in :attr:`providers` or, if it is not there, as given."""
        found: dict[str, dict[str, str]] = {}
        for name, value in self._with_prefix(_PROVIDER).items():
            provider, _, option = name.partition(".")
            if not option:
                raise ValueError(f"parameter '{_PROVIDER}{name}' should be {_PROVIDER}NAME.OPTION")
            full = provider if provider in self.providers or provider.endswith(_SUFFIX) else provider + _SUFFIX
            found.setdefault(full, {})[option] = value
        return found

    @property
    def provider_libraries(self) -> dict[str, str]:
        """The libraries of execution providers, by the provider's name."""
        return self._with_prefix(_PROVIDER_LIBRARY)

    def _with_prefix(self, prefix: str) -> dict[str, str]:
        extra = self.model_extra or {}
        return {key.removeprefix(prefix): _plain(value) for key, value in extra.items() if key.startswith(prefix)}


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _entry(name: str) -> Entry | None:
    return SESSION_ENTRIES.get(name) or RUN_ENTRIES.get(name)


# --- Names ------------------------------------------------------------------------------------------------------------


def is_parameter(name: str) -> bool:
    """Whether the name of a parameter means something to this backend."""
    fields = OnnxParameters.model_fields
    return (
        name in fields or name in ALIASES or _entry(name) is not None or name.startswith((_PROVIDER, _PROVIDER_LIBRARY))
    )


def only_from_files(name: str) -> bool:
    """Whether a parameter may be given only in the model's directory: it loads code, or names what is opened."""
    if name in ("extensions", "model_operations") or name.startswith((_PROVIDER, _PROVIDER_LIBRARY)):
        return True
    entry = _entry(name)
    if entry is not None and (entry.from_files or entry.path is not None):
        return True
    return name.startswith(PREFIXES) and _PATH_LIKE.search(name.rsplit(".", 1)[-1]) is not None


def check_given(names: Iterable[str], place: str) -> None:
    """ApiError 400 if a client gives a parameter that is taken only from the model's directory.

    Args:
        names: the parameters.
        place: where they are given, for the error: ``parameters`` or ``config``.
    """
    for name in names:
        if only_from_files(name):
            raise ApiError(
                400, f"{place}: '{name[:120]}' is taken only from the configuration in the model's directory"
            )


# --- Settings ---------------------------------------------------------------------------------------------------------


def session_settings(parameters: OnnxParameters, operator_files: Sequence[str], places: Places) -> SessionSettings:
    """Make a session's settings, with all paths resolved.

    Args:
        parameters: those of the configuration and of the load.
        operator_files: the libraries that ``model_operations`` names.
        places: where files may be.

    Raises:
        ApiError: 400 if a path is not allowed, or missing.
    """
    entries = {name: _resolved(name, text, places) for name, text in parameters.entries.items()}
    run_config = {name: entries.pop(name) for name in list(entries) if name in RUN_ENTRIES}
    operators = [places.library("model_operations.op_library_filename", name) for name in operator_files]
    if parameters.extensions:
        operators.append(extensions_library())
    profile = entries.pop(_PROFILE, None)
    severity, verbosity = (
        entries.pop("session.log_severity_level", None),
        entries.pop("session.log_verbosity_level", None),
    )
    intra, inter = _threads(parameters)
    return SessionSettings(
        intra_op_threads=intra,
        inter_op_threads=inter,
        parallel=None if parameters.execution_mode is None else parameters.execution_mode == "parallel",
        execution_providers=parameters.providers,
        provider_options={
            provider: {option: _option(provider, option, text, places) for option, text in given.items()}
            for provider, given in parameters.provider_options.items()
        },
        graph_optimization_level=parameters.graph_optimization_level,
        allow_spinning=parameters.allow_spinning,
        mem_arena=parameters.enable_mem_arena is not False,
        mem_pattern=bool(parameters.enable_mem_pattern),
        run_config=run_config,
        operator_libraries=operators,
        provider_libraries={
            name: places.library(f"{_PROVIDER_LIBRARY}{name}", given)
            for name, given in parameters.provider_libraries.items()
        },
        external_data=entries.pop(_FOLDER, None),
        optimized_model=entries.pop(_OPTIMIZED, None),
        profile_prefix=None if profile is None else f"{profile}_{os.getpid()}",  # several processes serve a model
        log_id=entries.pop("session.log_id", None),
        log_severity=None if severity is None else int(severity),
        log_verbosity=None if verbosity is None else int(verbosity),
        config=entries,
    )


def _threads(parameters: OnnxParameters) -> tuple[int | None, int | None]:
    """The sizes of the session's own pools; None: it has none."""
    if not parameters.has_own_pool:
        return None, None
    inter = parameters.inter_op_threads or None
    if parameters.execution_mode == "parallel":
        inter = inter or usable_cores()
    intra = parameters.intra_op_threads or None
    return intra or (usable_cores() if parameters.use_per_session_threads else None), inter


def _resolved(name: str, text: str, places: Places) -> str:
    """The value of an entry; a path is resolved. ApiError 400."""
    entry = _entry(name)
    match None if entry is None else entry.path:
        case "file":
            return places.file(name, text)
        case "folder":
            return places.folder(name, text)
        case "output":
            return places.output(name, text)
        case "output name" if Path(text).name != text or text in ("", ".", ".."):
            raise ApiError(400, f"{name}: must be the name of a file, without a directory")
    return text


def _option(provider: str, option: str, text: str, places: Places) -> str:
    """The value of a provider's option; what looks like a path is resolved, because it may name code. ApiError 400."""
    if "/" in text or _PATH_LIKE.search(option.lower()):
        return places.path(f"{_PROVIDER}{provider}.{option}", text)
    return text
