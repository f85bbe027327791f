"""The server's configuration: each option is defined here once, with its default, its bounds and its help.

Each field of :class:`ServerConfig` is an option of the command line (``--max-body-bytes``), a variable of the
environment (``FASTINFER_MAX_BODY_BYTES``) and a key of the configuration file (``max_body_bytes``). Precedence: command
line, environment, file, default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from fastinfer.base import limits
from fastinfer.base.machine import memory_bytes, usable_cores
from fastinfer.base.near import Near, as_question, suggestion
from fastinfer.base.validation import place, reason, shown
from fastinfer.config.model_paths import NAME, Layout, PathError, Root, read_roots, split_option

ENV_PREFIX = "FASTINFER_"
_MAX_FILE_BYTES = limits.MIB
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "kb": 10**3, "mb": 10**6}
_UNITS |= {"gb": 10**9, "tb": 10**12, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", re.IGNORECASE)
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")  # Kubernetes sets FASTINFER_PORT so for a service called "fastinfer"
_OF_SERVICE_LINKS = re.compile(r".*_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
_OTHER_VARIABLES = {"ORT_TELEMETRY", "DEBUG", "SANITIZE", "COVERAGE", "GUIDED"}  # the last four: of the build
_MAX_VARIABLES = 16  # unknown ones that are named


class OptionError(Exception):
    """The configuration is invalid; each line of the text is one sentence that names the option and its source."""


# --- Values -----------------------------------------------------------------------------------------------------------


def parse_size(value: Any) -> Any:
    """Parse bytes from ``65536``, ``"64KiB"`` or ``"1.5 GiB"``; other types are left to the next check."""
    if not isinstance(value, str):
        return _no_bool(value)
    found = _SIZE.fullmatch(value.strip())
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(f"must be a size such as 65536, 64KiB or 1.5GiB, got {shown(value)}")
    unit = _UNITS[found[2].lower()]
    return int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def format_size(size: int) -> str:
    """Format ``67108864`` as ``64MiB``; a size that is not a multiple of a unit stays in bytes."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit.lower()] == 0:
            return f"{size // _UNITS[unit.lower()]}{unit}"
    return str(size)


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {shown(value)}")
    return value


def _share_of_memory(value: Any) -> Any:
    if isinstance(value, str) and (percent := re.fullmatch(r"(\d{1,3})\s*%", value.strip())):
        if not 1 <= int(percent[1]) <= 100:
            raise ValueError(f"must be from 1% to 100% of the memory, got {shown(value)}")
        return memory_bytes() * int(percent[1]) // 100
    return parse_size(value)


def _size_or_off(value: Any) -> Any:
    return None if value in ("off", None) else parse_size(value)


def _list(value: Any) -> Any:
    """Convert one value, or text with commas, to a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, Path) else value


def _lower_list(value: Any) -> Any:
    """As :func:`_list`, in lower case."""
    value = _list(value)
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(each.lower() if isinstance(each, str) else each for each in value)


def _names(value: Any) -> Any:
    value = _list(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        return value
    names = tuple(dict.fromkeys(part for name in value for part in _list(name)))
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{shown(name)} is not a model's name")
    if len(names) > 1 and (word := next((word for word in ("all", "none") if word in names), None)):
        raise ValueError(f"'{word}' cannot be combined with anything else")
    return names


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=1_000_000_000)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1, le=1 << 50)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=86_400, allow_inf_nan=False)]


def _option(default: Any, help: str, group: str, *, shown_default: str | None = None, metavar: str = "") -> Any:
    """Define a field that is an option.

    Args:
        default: the value, or a callable that makes it.
        help: what it does; ``--help`` adds the default.
        group: its heading in the help.
        shown_default: the default in words, if the value depends on the machine.
        metavar: the name of the value in the help.
    """
    extra: dict[str, Any] = {"group": group, "shown_default": shown_default, "metavar": metavar}
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=extra)
    return Field(default, description=help, json_schema_extra=extra)


# --- The options ------------------------------------------------------------------------------------------------------

_MODELS, _NETWORK, _COMPUTE, _INFERENCE = "models", "network", "compute", "inference"
_LOGGING, _HTTP, _TIMES = "logging and the rest", "limits of requests and connections", "times of connections"


class ServerConfig(BaseSettings):
    """All options of the server. Immutable; made by :func:`load_config`, or directly with keyword arguments."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_ignore_empty=True, validate_default=False
    )

    # Models
    model_repository: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_list), Field(min_length=1)] = _option(
        (Path("model-repository"),),
        "A directory of models. May be repeated. The default counts only if no model is given by its path.",
        _MODELS,
        metavar="DIR",
    )
    model: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_list)] = _option(
        (),
        "A model by its path: an .onnx file, a directory with one, or a model's directory; without a name also a "
        "repository. The argument PATH means the same as --model PATH. May be repeated.",
        _MODELS,
        shown_default="none",
        metavar="[NAME=]PATH",
    )
    model_name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")] | None = _option(
        None, "The name of the model of --model-path.", _MODELS, metavar="NAME"
    )
    model_path: Path | None = _option(
        None, "A model by its path, as KServe's storage initializer downloads it.", _MODELS, metavar="PATH"
    )
    layout: Layout = _option(
        "auto",
        "What the directories given as models are: directories of models (repository), one model's directory with a "
        "directory for each version (model), or a directory with a model file (flat). auto: decided by their content.",
        _MODELS,
    )
    load: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names), Field(min_length=1)] = _option(
        ("all",),
        "The models to load at start: all, none, or some names. With --model-control poll, models that appear later "
        "are loaded, too, unless names are given: then only these.",
        _MODELS,
        metavar="NAME",
    )
    allow_empty: bool = _option(
        False,
        "Let the server be ready without any model. With --load none it always is.",
        _MODELS,
    )
    strict_readiness: bool = _option(
        True,
        "Whether a model that is to be loaded at start and fails keeps the server from being ready. Without it the "
        "server is ready when each of them has been tried and one is served.",
        _MODELS,
    )
    model_control: Literal["explicit", "none", "poll"] = _option(
        "explicit",
        "Whether models may be loaded and unloaded while serving: on request (explicit), not at all (none: such "
        "requests are answered with 403), or on request and whenever the repository changes (poll).",
        _MODELS,
    )
    poll_interval_s: Annotated[Seconds, Field(ge=0.1)] = _option(
        2.0, "Seconds between two scans of the repository, with --model-control poll.", _MODELS
    )
    poll_unload_all: bool = _option(
        False,
        "With --model-control poll: unload the models even if all of several vanish from the repository at once. By "
        "default the disk is then assumed to be missing, and nothing is unloaded.",
        _MODELS,
    )
    default_max_batch_size: Count = _option(
        limits.DEFAULT_MAX_BATCH_SIZE, "Rows in a batch of a model that does not configure max_batch_size.", _MODELS
    )
    allow_python_models: bool = _option(
        False,
        "Serve models whose version is a model.py. It is code, which may do whatever the server may. Without this "
        "option such models are refused.",
        _MODELS,
    )
    allow_library: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_list)] = _option(
        (),
        "A library of operators or of an execution provider, or a directory, that models may name in their "
        "configuration although it is not in their own directory; into such a directory models may also write. "
        "Libraries are code, which may do whatever the server may. May be repeated.",
        _MODELS,
        shown_default="none",
        metavar="PATH",
    )
    allow_linked_weights: bool = _option(
        False,
        "Read the external data of models through links, also hard links, that lead out of the model repositories and "
        "the directory of the model file.",
        _MODELS,
    )
    batching: Literal["auto", "exact"] = _option(
        "auto",
        "When requests share a batch. auto: if the model's graph proves that rows do not depend on each other, or "
        "max_batch_size is configured; the last digits may differ, because the number of rows selects the kernels. "
        "exact: only if the graph also proves that no bit of an answer changes.",
        _MODELS,
    )
    load_run_timeout_s: Seconds = _option(
        limits.LOAD_RUN_TIMEOUT_S, "Seconds that one trial or warm-up run may take while a model is loaded.", _MODELS
    )
    load_timeout_s: Seconds = _option(
        limits.LOAD_TIMEOUT_S,
        "Seconds that each step of a load (finding the files, loading one version) may take once its turn has come; "
        "then the load fails with 504. Raise it for large models or a slow disk.",
        _MODELS,
    )
    max_endpoints: Count = _option(
        limits.MAX_ENDPOINTS, "Models and workers that may be loaded at the same time; further loads get 503.", _MODELS
    )

    # Network
    host: Annotated[str, Field(min_length=1, max_length=253)] = _option(
        "127.0.0.1",
        "The address to listen on. Every client that can reach it can load and unload models, unless --model-control "
        "is none.",
        _NETWORK,
        metavar="ADDRESS",
    )
    port: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=65_535)] = _option(
        8000, "The TCP port to listen on; 0: a free one, which the log names.", _NETWORK
    )
    allowed_host: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_lower_list)] = _option(
        (),
        "A host name of this server: its web pages may load and unload models under this name, besides localhost and "
        "IP addresses. May be repeated.",
        _NETWORK,
        shown_default="none",
        metavar="NAME",
    )
    allowed_origin: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_lower_list)] = _option(
        (),
        "An origin (https://console.example) whose web pages may load and unload models. May be repeated.",
        _NETWORK,
        shown_default="none",
        metavar="ORIGIN",
    )
    server_name: Annotated[str, Field(pattern=r"^[ -~]{1,128}$")] = _option(
        "fastinfer", "The name in the answer to GET /v2.", _NETWORK, metavar="TEXT"
    )

    # Compute
    processes: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=256)] = _option(
        1,
        "Serving processes; each loads all models. One that crashes is replaced while the others continue. 0: no "
        "supervisor, one process, for debuggers and profilers.",
        _COMPUTE,
    )
    hang_timeout_s: Seconds = _option(
        limits.HANG_TIMEOUT_S, "Seconds that a process may hang; then it is killed and replaced.", _COMPUTE
    )
    threads: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=4096)] = _option(
        lambda: 2 * usable_cores(),
        "Native threads of a process. They run batches and long conversions, for all models.",
        _COMPUTE,
        shown_default="twice the usable cores, divided among the processes",
    )
    intra_op_threads: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=4096)] = _option(
        usable_cores,
        "Threads of ONNX Runtime's pool in a process, for parallelism within a run; shared by all models.",
        _COMPUTE,
        shown_default="the usable cores, divided among the processes",
    )
    off_loop_bytes: Size = _option(
        limits.OFF_LOOP_BYTES,
        "Requests and answers above this size are decoded and encoded on native threads instead of the event loop's "
        "thread.",
        _COMPUTE,
    )
    inline_run_us: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=1_000_000)] = _option(
        limits.INLINE_RUN_US,
        "Batches with a predicted run time below this many microseconds run on the event loop's thread; 0: none.",
        _COMPUTE,
    )
    busy_poll_us: Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=10_000)] = _option(
        limits.BUSY_POLL_US,
        "Microseconds that the event loop polls for the next request before it sleeps, while requests come that close "
        "together: lower latency for a busier core; 0: no polling.",
        _COMPUTE,
        shown_default=f"{limits.BUSY_POLL_US}; 0 if several processes share cores",
    )

    # Inference
    max_queue_size: Count = _option(
        limits.MAX_QUEUE_SIZE, "Requests that may wait for one model; further ones get 503.", _INFERENCE
    )
    request_timeout_s: Seconds = _option(
        limits.REQUEST_TIMEOUT_S,
        "Seconds from a request's first byte until it gets 504, if it has no timeout of its own.",
        _INFERENCE,
    )
    drain_timeout_s: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=86_400, allow_inf_nan=False)] = _option(
        limits.DRAIN_TIMEOUT_S,
        "Seconds that requests in flight get to finish after SIGTERM; then they get 503.",
        _INFERENCE,
    )
    shutdown_delay_s: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=86_400, allow_inf_nan=False)] = (
        _option(
            0.0,
            "Seconds from SIGTERM to the drain. The server is not ready and still accepts connections, so that a load "
            "balancer can notice.",
            _INFERENCE,
        )
    )
    compress_answers: Annotated[int | None, BeforeValidator(_size_or_off), Field(ge=1, le=1 << 50)] = _option(
        None,
        "Compress inference answers from this size on, for clients that accept gzip or deflate; off: never. Many "
        "clients accept it by default, and compression takes several times as long as the rest of a request.",
        _INFERENCE,
        shown_default="off",
        metavar="SIZE",
    )
    json_nonfinite: Literal["literal", "null", "error"] = _option(
        "literal",
        "How JSON answers write NaN and infinities: as the words NaN, Infinity and -Infinity (literal), as null (null "
        "in requests is then NaN), or as an error with status 500 (error).",
        _INFERENCE,
    )

    # Requests and connections
    max_body_bytes: Size = _option(
        limits.MAX_BODY_BYTES, "The largest body of a request, also after decompression; larger ones get 413.", _HTTP
    )
    max_control_body_bytes: Size = _option(
        limits.MAX_CONTROL_BODY_BYTES,
        "The largest body of a request that is not an inference. A model configuration in a load does not count; such "
        "a body may have 1 MiB in all.",
        _HTTP,
    )
    max_head_bytes: Size = _option(
        limits.MAX_HEAD_BYTES, "The largest head (request line and header fields); larger ones get 431.", _HTTP
    )
    max_headers: Count = _option(limits.MAX_HEADERS, "Header fields of one request; more get 431.", _HTTP)
    max_target_bytes: Size = _option(
        limits.MAX_TARGET_BYTES, "The longest request target (path and query); longer ones get 414.", _HTTP
    )
    max_chunks: Count = _option(limits.MAX_CHUNKS, "Chunks of one chunked body; more get 400.", _HTTP)
    max_inflation: Count = _option(
        limits.MAX_INFLATION,
        "Beyond 1 MiB, a compressed body may inflate to this many times its size; more gets 413.",
        _HTTP,
    )
    max_connections: Count = _option(
        limits.MAX_CONNECTIONS, "Open connections of a process; further ones wait, or are refused with 503.", _HTTP
    )
    max_pipelined: Count = _option(
        limits.MAX_PIPELINED, "Requests of one connection that may wait for answers before reading pauses.", _HTTP
    )
    in_flight_bytes: Annotated[int, BeforeValidator(_share_of_memory), Field(ge=limits.MIB, le=1 << 50)] = _option(
        lambda: int(memory_bytes() * limits.IN_FLIGHT_MEMORY_SHARE),
        "Memory budget of a process for unanswered requests (bodies, tensors, outputs, answers), as a size or as a "
        "share of the memory (25%); further requests get 503.",
        _HTTP,
        shown_default=f"{limits.IN_FLIGHT_MEMORY_SHARE:.0%}, divided among the processes",
    )

    # Times
    head_timeout_s: Seconds = _option(
        limits.HEAD_TIMEOUT_S, "Seconds that a request's head may take to arrive; then 408.", _TIMES
    )
    body_idle_timeout_s: Seconds = _option(
        limits.BODY_IDLE_TIMEOUT_S, "Seconds without progress of a body; then 408.", _TIMES
    )
    body_min_bytes_per_s: Size = _option(
        limits.BODY_MIN_BYTES_PER_S, "The slowest rate of a body that counts as progress, in bytes per second.", _TIMES
    )
    upload_timeout_s: Seconds = _option(
        limits.UPLOAD_TIMEOUT_S, "Seconds that a whole body may take to arrive; then 408.", _TIMES
    )
    keep_alive_timeout_s: Seconds = _option(
        limits.KEEP_ALIVE_TIMEOUT_S, "Seconds that an idle connection is kept open.", _TIMES
    )
    write_timeout_s: Seconds = _option(
        limits.WRITE_TIMEOUT_S,
        "Seconds that a client may read nothing of its answer; then the connection is closed.",
        _TIMES,
    )
    linger_s: Seconds = _option(
        limits.LINGER_S,
        "Seconds that a connection is kept open after an error, so that the client can read it; longer while the "
        "client sends.",
        _TIMES,
    )

    # Logging and the rest
    config: Path | None = _option(
        None,
        "Read options from this TOML file; its keys are the options' names with underscores.",
        _LOGGING,
        metavar="FILE",
    )
    log_format: Literal["text", "json"] = _option(
        "text", "The format of log lines, which go to standard error.", _LOGGING
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", "The lowest level that is logged.", _LOGGING
    )
    telemetry: bool = _option(False, "Let ONNX Runtime send telemetry, on platforms that support it.", _LOGGING)

    _given_roots: tuple[Root, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _find_models(self) -> Self:
        if self.model_name is not None and self.model_path is None:
            raise PathError("--model-name needs --model-path, the model's file or directory")
        given = [split_option(option) for option in self.model]
        if self.model_path is not None:
            given.append((self.model_name, self.model_path))
        self._given_roots = read_roots(given, self.layout)
        return self

    @property
    def given_roots(self) -> tuple[Root, ...]:
        """The models and repositories that are given by their path (``--model``, ``--model-path``)."""
        return self._given_roots

    @property
    def roots(self) -> tuple[Root, ...]:
        """The places of all models; the first that has a name wins."""
        only_given = self.given_roots and "model_repository" not in self.model_fields_set
        return self.given_roots if only_given else (*self.given_roots, *self.model_repository)

    @property
    def load_all(self) -> bool:
        """Whether all models of the repository are loaded at start."""
        return self.load == ("all",)

    @property
    def load_names(self) -> tuple[str, ...]:
        """The models to load at start; empty for ``none`` and ``all``."""
        return () if self.load in (("all",), ("none",)) else self.load

    def why_not_servable(self) -> str | None:
        """Return what is missing on this machine, or None."""
        missing = [root for root in self.roots if isinstance(root, Path) and not root.is_dir()]
        if not missing:
            return None
        return f"there is no directory '{missing[0]}'; give a model's path, or a repository: --model-repository DIR"

    def share(self) -> ServerConfig:
        """Return the configuration of one process: defaults are divided, so that all processes share the machine."""
        cores, processes = usable_cores(), max(self.processes, 1)
        share = max(cores // processes, 1)
        ours: dict[str, Any] = {
            "threads": 2 * share,
            "intra_op_threads": share,
            "in_flight_bytes": self.in_flight_bytes // processes,
        }
        if processes > 1 and processes >= cores:
            ours["busy_poll_us"] = 0  # polling would take the core from another process
        return self.model_copy(update={key: ours[key] for key in ours.keys() - self.model_fields_set})

    @property
    def http_limits(self) -> limits.HttpLimits:
        """The limits of the HTTP server."""
        return limits.HttpLimits(**{field.name: getattr(self, field.name) for field in fields(limits.HttpLimits)})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given, environment = init_settings(), env_settings()
        if _SERVICE_LINK.match(str(environment.get("port", ""))):
            del environment["port"]
        file = given.get("config") or environment.get("config")
        sources = [InitSettingsSource(settings_cls, given), InitSettingsSource(settings_cls, environment)]
        if file:
            sources.append(InitSettingsSource(settings_cls, _read_file(Path(file))))
        return tuple(sources)


def _read_file(path: Path) -> dict[str, Any]:
    name = path.name
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise OptionError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    if len(text) > _MAX_FILE_BYTES:
        raise OptionError(f"{name}: is larger than {format_size(_MAX_FILE_BYTES)}")
    try:
        values = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise OptionError(f"{name}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{name}: {error}") from None
    except RecursionError:
        raise OptionError(f"{name}: is nested too deeply") from None
    for key in values:
        if key not in ServerConfig.model_fields or key == "config":
            raise OptionError(f"{name}: there is no option '{key[:60]}'{suggestion(key, ServerConfig.model_fields)}")
    return values


def load_config(arguments: Mapping[str, Any] | None = None) -> ServerConfig:
    """Make the configuration from the command line's options, the environment, the file and the defaults.

    Args:
        arguments: the options that were given on the command line, by field name.

    Raises:
        OptionError: with one sentence for each error.
    """
    given = dict(arguments or {})
    try:
        return ServerConfig(**given)
    except ValidationError as error:
        found: dict[str, str] = {}
        for details in error.errors():
            if not details["loc"]:  # of several options together
                found[""] = reason(details)
                continue
            name = str(details["loc"][0])
            found.setdefault(name, f"{_source(name, given)}{place(details['loc'][1:])}: {reason(details)}")
        raise OptionError("\n".join(found.values())) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable of an environment that looks like an option but is none."""
    names = {name: name.upper().removeprefix(ENV_PREFIX) for name in environment if name.upper().startswith(ENV_PREFIX)}
    options = {option.upper() for option in ServerConfig.model_fields}
    unknown = [
        (name, option)
        for name, option in sorted(names.items())
        if option not in options | _OTHER_VARIABLES and not _OF_SERVICE_LINKS.fullmatch(name.upper())
    ]
    near = Near(options)
    return [
        f"there is no option for the environment variable {name[:60]}"
        + as_question(None if (meant := near.to(option)) is None else ENV_PREFIX + meant)
        for name, option in unknown[:_MAX_VARIABLES]
    ]


def _source(name: str, given: Mapping[str, Any]) -> str:
    """Return the option's name, as it is written in the source of its value."""
    if name in given:
        return f"--{name.replace('_', '-')}"
    variable = f"{ENV_PREFIX}{name.upper()}"
    environment = {key.upper(): value for key, value in os.environ.items()}
    if environment.get(variable):
        return f"environment variable {variable}"
    file = given.get("config") or environment.get(f"{ENV_PREFIX}CONFIG") or "configuration file"
    return f"{Path(file).name}: {name}"


def default_text(field: FieldInfo) -> str:
    """Format the default of an option as on the command line; in words if it depends on the machine."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("shown_default"):
        return str(extra["shown_default"])
    value = field.default
    match value:
        case None:
            return "none"
        case bool():
            return "on" if value else "off"
        case tuple():
            return ", ".join(str(part) for part in value)
        case float():
            return f"{value:g}"
        case int() if is_size(field):
            return format_size(value)
        case _:
            return str(value)


def is_size(field: FieldInfo) -> bool:
    """Whether an option's value is a size in bytes, which may have a unit."""
    readers = [item.func for item in field.metadata if isinstance(item, BeforeValidator)]
    return parse_size in readers or _share_of_memory in readers


def is_list(field: FieldInfo) -> bool:
    """Whether an option takes several values."""
    return get_origin(field.annotation) is tuple


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the possible values of an option; empty if any value is allowed."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
