"""The settings of a session, checked and with paths resolved: what :mod:`fastinfer.backends.onnx.ort` acts upon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The keyword arguments of :class:`fastinfer.backends.onnx.ort.Session`.

    Attributes:
        intra_op_threads: gives the session a pool of its own; None: the process's.
        inter_op_threads: more than 1 also runs independent operators in parallel.
        parallel: whether independent operators run in parallel; None: if ``inter_op_threads`` is more than 1. Only for
            a session with pools of its own.
        execution_providers: in the order of preference; the CPU's is always the last.
        provider_options: options of providers, by the provider's full name.
        graph_optimization_level: ``none``, ``basic``, ``extended``, ``layout``, ``all`` or the runtime's number.
        allow_spinning: threads of the session's own pool spin.
        free_dimension_overrides: values for symbolic dimensions.
        mem_arena: whether the CPU's memory comes from an arena of the session.
        mem_pattern: whether the runtime plans the memory of a run from earlier runs of the same shapes.
        config: further entries, by the runtime's names (``session.dynamic_block_base``).
        run_config: entries of the options of every run.
        operator_libraries: paths of libraries of custom operators. They stay loaded as long as the process lives.
        provider_libraries: paths of libraries of execution providers, by the name under which they are registered.
        external_data: the directory of the model's external data; None: that of the model file.
        optimized_model: a path to which the optimized model is written.
        profile_prefix: the beginning of the path of a profile that is written when the session ends.
        log_id: the name of the session in the runtime's own log lines.
        log_severity: 0 verbose, 1 info, 2 warnings, 3 errors, 4 fatal errors.
        log_verbosity: the verbosity of the log at severity 0.
    """

    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    parallel: bool | None = None
    execution_providers: Sequence[str] = ("CPUExecutionProvider",)
    provider_options: Mapping[str, dict[str, str]] = field(default_factory=dict)
    graph_optimization_level: str | int | None = None
    allow_spinning: bool | None = None
    free_dimension_overrides: Mapping[str, int] | None = None
    mem_arena: bool = True
    mem_pattern: bool = False
    config: Mapping[str, str] = field(default_factory=dict)
    run_config: dict[str, str] = field(default_factory=dict)
    operator_libraries: Sequence[str] = ()
    provider_libraries: Mapping[str, str] = field(default_factory=dict)
    external_data: str | None = None
    optimized_model: str | None = None
    profile_prefix: str | None = None
    log_id: str | None = None
    log_severity: int | None = None
    log_verbosity: int | None = None
