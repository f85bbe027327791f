"""The description of Triton's extensions: index, configuration, statistics. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from fastinfer.api.openapi_parts import (
    Schema,
    answer,
    array,
    body,
    flat_or_wrapped,
    media,
    nullable,
    operation,
    record,
    schema,
    text,
    versioned,
)

WHOLE_CHAIN: Schema = {"parameters": {"unload_dependents": True}}
"""An unload of an endpoint and its successors."""

_COUNT: Schema = {"type": "integer", "format": "int64", "minimum": 0}
_NOTHING: Schema = array({}, maxItems=0)
_ANYTHING: Schema = {"type": "object", "additionalProperties": True}


def schemas(datatypes: Iterable[str]) -> dict[str, Schema]:
    """The schemas by name."""
    types = [f"TYPE_{name}" if name != "BYTES" else "TYPE_STRING" for name in datatypes]
    tensor = {
        "name": text(),
        "data_type": text(enum=types),
        "dims": array({"type": "integer"}, description="Without the batch dimension if max_batch_size is above 0."),
    }
    group = {"name": text(), "kind": text(example="KIND_CPU"), "count": {"type": "integer", "minimum": 1}}
    batch = {"batch_size": _COUNT, **{f"compute_{part}": schema("Duration") for part in ("input", "infer", "output")}}
    durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    unload_dependents = {
        "type": "boolean",
        "default": False,
        "description": "If this removes the endpoint, also remove one load of its successor (`next`) or of the models "
        "of its steps, and so on.",
    }
    return {
        "UnloadParameters": {
            "type": "object",
            "description": "Others are ignored.",
            "properties": {"unload_dependents": nullable(unload_dependents)},
            "additionalProperties": True,
        },
        "UnloadBody": flat_or_wrapped("UnloadParameters"),
        "RepositoryIndexRequest": record(
            {"ready": nullable({"type": "boolean", "default": False, "description": "true: only ready versions."})},
            "ready",
            nullable=True,
        ),
        "RepositoryIndexEntry": record(
            {
                "name": text("The name of an endpoint, or of a model of the repository.", example="simple"),
                "version": text("Empty if there is none, or it is not known yet.", example="1"),
                "state": text(enum=["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]),
                "reason": text("If it is unavailable: `unloaded`, or why it does not load; else empty."),
            }
        ),
        "ModelConfiguration": record(
            {
                "name": text(example="simple"),
                "platform": text(example="onnxruntime_onnx"),
                "backend": text(example="onnxruntime"),
                "runtime": text(),
                "version_policy": _ANYTHING,
                "max_batch_size": {"type": "integer", "minimum": 0, "description": "0: the model is not batched."},
                "input": array(record(tensor, additionalProperties=True)),
                "output": array(record({**tensor, "label_filename": text()}, additionalProperties=True)),
                "batch_input": _NOTHING,
                "batch_output": _NOTHING,
                "optimization": _ANYTHING,
                "dynamic_batching": _ANYTHING,
                "ensemble_scheduling": _ANYTHING,
                "instance_group": array(record(group, additionalProperties=True)),
                "default_model_filename": text(example="model.onnx"),
                "cc_model_filenames": _ANYTHING,
                "metric_tags": _ANYTHING,
                "parameters": {"type": "object", "additionalProperties": record({"string_value": text()})},
                "model_warmup": array(_ANYTHING),
                "model_transaction_policy": record({"decoupled": {"type": "boolean", "enum": [False]}}),
            },
            "dynamic_batching",
            "ensemble_scheduling",
            description="Triton's ModelConfig as JSON, completed with the values found at load.",
        ),
        "Duration": record({"count": _COUNT, "ns": _COUNT}),
        "ModelStatistics": record(
            {
                "name": text(example="simple"),
                "version": text(example="1"),
                "last_inference": {**_COUNT, "description": "Milliseconds since 1970; 0: none yet."},
                "inference_count": {**_COUNT, "description": "Rows of successful requests."},
                "execution_count": {**_COUNT, "description": "Batches that ran."},
                "inference_stats": record(
                    {name: schema("Duration") for name in (*durations, "cache_hit", "cache_miss")},
                    description="Durations of requests; `fail` includes malformed and unfitting requests.",
                ),
                "batch_stats": array(record(batch), description="Batches by size; the durations are per batch."),
                "memory_usage": _NOTHING,
            }
        ),
    }


def model_paths() -> dict[str, Schema]:
    """The configuration and the statistics of models."""
    config = operation(
        "modelConfig", "Models", "Model Configuration",
        answer("The effective configuration.", media(schema("ModelConfiguration"))), 404, 503,
    )  # fmt: skip
    counted = media(record({"model_stats": array(schema("ModelStatistics"))}))
    one = answer("An entry for each ready version, or for the requested one.", counted)
    statistics = operation("modelStatistics", "Observation", "Model Statistics", one, 404, 503, 504)
    every = answer("An entry for each ready version of each model.", counted)
    return {
        **versioned("/v2/models/{model}/config", "get", config),
        "/v2/models/stats": {
            "get": operation("statistics", "Observation", "Statistics of All Models", every, 503, 504)
        },
        **versioned("/v2/models/{model}/stats", "get", statistics),
    }


def index_paths() -> dict[str, Schema]:
    """The index of the repository."""
    entries = [
        {"name": "digits", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "simple", "version": "1", "state": "READY", "reason": ""},
    ]
    listed = answer("By name and version.", media(array(schema("RepositoryIndexEntry")), bundled=entries))
    asked = body(media(schema("RepositoryIndexRequest"), everything={}, only_ready={"ready": True}), required=False)
    made = operation(
        "repositoryIndex", "Control", "Repository Index", listed, 400, 503, 504, body=asked,
        description="Each version that is served, loading or unloading, and each model of the repository that is not "
        "served.",
    )  # fmt: skip
    return {"/v2/repository/index": {"post": made}}
