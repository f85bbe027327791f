"""The entries of ONNX Runtime's session and run options by name, as its public header and 1.32's library have them.

The runtime accepts any name and nearly any value without a word, so both are checked here. A name that is not here is
refused; one that has no meaning in a server is here with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from fastinfer.base.validation import shown

Value = str | bool | int | float
_MAX_VALUE = 8192  # characters, the runtime's own limit
_AFFINITIES = re.compile(r"\d{1,5}([-,]\d{1,5})*(;\d{1,5}([-,]\d{1,5})*)*")
_SHRINKAGE = re.compile(r"(cpu|gpu):\d{1,3}(;(cpu|gpu):\d{1,3})*")

PathUse = Literal["file", "folder", "output", "output name"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        read: converts a value to the runtime's text. ValueError with the reason as a predicate.
        path: the value is a path that is read (``file``, ``folder``) or written (``output``), or the name of a file
            beside one that is written; None: it is no path.
        own_pool: has an effect only on a session with threads of its own.
        from_files: may be given only in the model's directory, because it makes the runtime open files, or write its
            own lines to the server's standard error.
    """

    read: Callable[[Value], str]
    path: PathUse | None = None
    own_pool: bool = False
    from_files: bool = False


def _text(value: Value) -> str:
    if isinstance(value, bool):
        value = int(value)
    text = str(value)
    if len(text) > _MAX_VALUE or not text.isprintable():
        raise ValueError(f"must be printable text of at most {_MAX_VALUE} characters")
    return text


def _flag(value: Value) -> str:
    text = str(value).lower()
    if text not in ("0", "1", "false", "true"):
        raise ValueError(f"must be 0 or 1, got {shown(value)}")
    return {"false": "0", "true": "1"}.get(text, text)


def _whole(least: int, most: int) -> Callable[[Value], str]:
    def read(value: Value) -> str:
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,19}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}, got {shown(value)}")
        return text

    return read


def _one_of(*choices: str) -> Callable[[Value], str]:
    def read(value: Value) -> str:
        if str(value) not in choices:
            raise ValueError(f"must be {' or '.join(repr(each) for each in choices)}, got {shown(value)}")
        return str(value)

    return read


def _matching(pattern: re.Pattern[str], example: str) -> Callable[[Value], str]:
    def read(value: Value) -> str:
        text = _text(value)
        if not pattern.fullmatch(text):
            raise ValueError(f"must be like {example}, got {shown(value)}")
        return text

    return read


def _not_here(reason: str) -> Entry:
    def read(_value: Value) -> str:
        raise ValueError(f"is not supported: {reason}")

    return Entry(read)


_FLAG, _TEXT = Entry(_flag), Entry(_text)
_BYTES = Entry(_whole(0, 2**62))
_FILE, _FOLDER = Entry(_text, "file", from_files=True), Entry(_text, "folder", from_files=True)
_OUTPUT, _OUTPUT_NAME = Entry(_text, "output", from_files=True), Entry(_text, "output name", from_files=True)
_MODEL_BYTES = _not_here("the server reads the model file itself, in ONNX's format")
_COMPILER = _not_here("it is for programs that compile models")

SESSION_ENTRIES: Mapping[str, Entry] = {
    "session.disable_prepacking": _FLAG,
    "session.use_env_allocators": _not_here("sessions share no allocators here"),
    "session.load_model_format": _MODEL_BYTES,
    "session.save_model_format": Entry(_one_of("ONNX", "ORT")),
    "session.set_denormal_as_zero": _FLAG,
    "session.disable_quant_qdq": _FLAG,
    "session.disable_qdq_constant_folding": _FLAG,
    "session.disable_double_qdq_remover": _FLAG,
    "session.enable_quant_qdq_cleanup": _FLAG,
    "session.disable_aot_function_inlining": _FLAG,
    "session.graph_optimizations_loop_level": Entry(_one_of("0", "1", "2")),
    "session.use_device_allocator_for_initializers": _FLAG,
    "session.inter_op.allow_spinning": Entry(_flag, own_pool=True),
    "session.intra_op.allow_spinning": Entry(_flag, own_pool=True),
    "session.inter_op.spin_duration_us": Entry(_whole(0, 1_000_000), own_pool=True),
    "session.intra_op.spin_duration_us": Entry(_whole(0, 1_000_000), own_pool=True),
    "session.inter_op.spin_backoff_max": Entry(_whole(1, 64), own_pool=True),
    "session.intra_op.spin_backoff_max": Entry(_whole(1, 64), own_pool=True),
    "session.use_ort_model_bytes_directly": _MODEL_BYTES,
    "session.use_ort_model_bytes_for_initializers": _MODEL_BYTES,
    "session.use_memory_mapped_ort_model": _MODEL_BYTES,
    "session.qdqisint8allowed": _FLAG,
    "session.x64quantprecision": _FLAG,
    "session.dynamic_block_base": Entry(_whole(0, 1024), own_pool=True),
    "session.force_spinning_stop": Entry(_flag, own_pool=True),
    "session.strict_shape_type_inference": _FLAG,
    "session.allow_released_opsets_only": _FLAG,
    "session.node_partition_config_file": _FILE,
    "session.intra_op_thread_affinities": Entry(_matching(_AFFINITIES, "1,2;3-4"), own_pool=True),
    "session.debug_layout_transformation": _not_here("the runtime writes into the working directory"),
    "session.disable_cpu_ep_fallback": _FLAG,
    "session.optimized_model_external_initializers_file_name": _OUTPUT_NAME,
    "session.optimized_model_external_initializers_min_size_in_bytes": _BYTES,
    "session.model_external_initializers_file_folder_path": _FOLDER,
    "session.save_external_prepacked_constant_initializers": _FLAG,
    "session.collect_node_memory_stats_to_file": _OUTPUT,
    "session.resource_cuda_partitioning_settings": Entry(_matching(re.compile(r"\d{0,18},"), "'1000000,'")),
    "session.layer_assignment_settings": _TEXT,
    "session.name_based_layer_assignment": _TEXT,
    "session.compile_only": _COMPILER,
    "session.qdq_matmulnbits_accuracy_level": Entry(_whole(0, 4)),
    "session.qdq_matmulnbits_block_size": Entry(_whole(-1, 65_536)),
    "session.enable_dq_matmulnbits_fusion": _FLAG,
    "session.enable_matmul_fp8_fusion": _FLAG,
    "session.disable_model_compile": _FLAG,
    "session.fail_on_suboptimal_compiled_model": _FLAG,
    "session.record_ep_graph_assignment_info": _not_here("nothing here asks for what it records"),
    "session.enable_profiling": _OUTPUT,
    "session.optimized_model_filepath": _OUTPUT,
    "session.log_id": Entry(_text, from_files=True),
    "session.log_severity_level": Entry(_whole(0, 4), from_files=True),
    "session.log_verbosity_level": Entry(_whole(0, 1000), from_files=True),
    "session.use_deterministic_compute": _not_here("no kernel of a CPU is affected"),
    "optimization.enable_gelu_approximation": _FLAG,
    "optimization.enable_cast_chain_elimination": _FLAG,
    "optimization.disable_specified_optimizers": _TEXT,
    "optimization.constant_folding_max_output_size_in_bytes": _BYTES,
    "optimization.minimal_build_optimizations": Entry(_one_of("", "save", "apply")),
    "mlas.enable_gemm_fastmath_arm64_bfloat16": _FLAG,
    "mlas.use_lut_gemm": _FLAG,
    "mlas.disable_kleidiai": _FLAG,
    "mlas.kleidiai.conv_igemm_max_work": _BYTES,
    "ep.nnapi.partitioning_stop_ops": _TEXT,
    "ep.context_enable": Entry(_flag, from_files=True),
    "ep.context_file_path": _OUTPUT,
    "ep.context_embed_mode": _FLAG,
    "ep.context_node_name_prefix": _TEXT,
    "ep.share_ep_contexts": _FLAG,
    "ep.stop_share_ep_contexts": _FLAG,
    "ep.context_model_external_initializers_file_name": _OUTPUT_NAME,
    "ep.enable_weightless_ep_context_nodes": _FLAG,
}  # fmt: skip
"""Entries of the session's options. Those that are parameters under other names are in :data:`ALIASES`."""

ALIASES: Mapping[str, str] = {
    "session.intra_op_num_threads": "intra_op_threads",
    "session.inter_op_num_threads": "inter_op_threads",
    "session.enable_cpu_mem_arena": "enable_mem_arena",
    "session.enable_mem_pattern": "enable_mem_pattern",
    "session.execution_mode": "execution_mode",
    "session.graph_optimization_level": "graph_optimization_level",
    "session.use_per_session_threads": "use_per_session_threads",
}
"""Parameters by the runtime's name for them; the runtime does not act upon these entries."""

RUN_ENTRIES: Mapping[str, Entry] = {
    "memory.enable_memory_arena_shrinkage": Entry(_matching(_SHRINKAGE, "cpu:0")),
    "disable_synchronize_execution_providers": _FLAG,
    "gpu_graph_id": Entry(_whole(-1, 2**31 - 1)),
    "qnn.htp_perf_mode": _TEXT,
    "qnn.htp_perf_mode_post_run": _TEXT,
    "qnn.rpc_control_latency": Entry(_whole(0, 2**31 - 1)),
}
"""Entries of the options of each run."""

PREFIXES = tuple(sorted({f"{name.split('.')[0]}." for name in (*SESSION_ENTRIES, *RUN_ENTRIES) if "." in name}))
"""The beginnings of the runtime's names: ``session.``, ``ep.``, ..."""


def affinity_sets(text: str, processors: int) -> list[set[int]]:
    """The processors of each thread in ``session.intra_op_thread_affinities``, numbered from 1.

    Args:
        text: the entry's value.
        processors: how many there are; bounds the size of the sets.

    Raises:
        ValueError: an interval is empty, or has a processor that is not there.
    """
    sets = []
    for group in text.split(";"):
        members: set[int] = set()
        for part in group.split(","):
            ends = [int(each) for each in part.split("-")]
            if len(ends) > 2 or not 1 <= ends[0] <= ends[-1] <= processors:
                raise ValueError(f"has {shown(part)}, which is not among the processors 1 to {processors}")
            members |= set(range(ends[0], ends[-1] + 1))
        sets.append(members)
    return sets
