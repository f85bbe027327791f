"""The OpenAPI 3.0 description of everything that the server serves, made of a few shared pieces.

``python -m fastinfer.openapi > docs/openapi.json`` writes it down. Pure: it imports nothing of the server. Tests keep
it equal to the file, to the routes, and its examples to what the bundled models answer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import orjson

from fastinfer import openapi_extensions
from fastinfer.openapi_parts import (
    ERRORS,
    Schema,
    answer,
    array,
    body,
    media,
    operation,
    record,
    ref,
    schema,
    text,
    versioned,
)

VERSION = "2"
"""Of the protocol, not of the server: the description changes with the wire alone."""

ELEMENTS: Mapping[str, Schema] = {
    "BOOL": {"type": "boolean"},
    **{f"UINT{bits}": {"type": "integer", "minimum": 0, "maximum": 2**bits - 1} for bits in (8, 16, 32, 64)},
    **{
        f"INT{bits}": {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
        for bits in (8, 16, 32, 64)
    },
    "FP16": {"type": "number", "minimum": -65504, "maximum": 65504},
    "BF16": {"type": "number"},
    "FP32": {"type": "number", "format": "float"},
    "FP64": {"type": "number", "format": "double"},
    "BYTES": {"type": "string"},
}
"""Each datatype, and an element of it in JSON."""

DATATYPES = list(ELEMENTS)
ALPHABET = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"

TAGS = {
    "Server": "Who it is, and whether it is well.",
    "Models": "What is loaded, and what it takes and gives.",
    "Inference": "From tensors to tensors.",
    "Control": "What is there to load; loading and unloading.",
    "Observation": "Hardware, statistics and metrics.",
    "Description": "This description, and the page that shows it.",
}

INTRODUCTION = """\
fastinfer serves ONNX models over the KServe v2 protocol (Open Inference Protocol), with the endpoints of the AMD
Inference Server.

Every answer that is not 2xx is `{"error": "<one sentence>"}`; the sentence names the place. `GET` also answers `HEAD`,
one trailing slash is accepted, and a query string is ignored. Bodies are read as JSON whatever their `Content-Type`.

To try it: load the worker `echo` under *Control*, then send it a tensor under *Inference*.
"""


# --- Schemas ----------------------------------------------------------------------------------------------------------


def tensor(datatype: str) -> Schema:
    """A tensor of one datatype: flat or nested data, or none where the values come in binary."""
    nested = array({}, description="A row of a nested array.")
    data = array({"oneOf": [ELEMENTS[datatype], nested]}, description="Row-major; flat, or nested as the shape is.")
    parts = {
        "name": text(example="INPUT0"),
        "datatype": {"type": "string", "enum": [datatype]},
        "shape": schema("Shape"),
        "parameters": schema("Parameters"),
        "data": data,
    }
    return record(parts, "parameters", "data", title=datatype)


def tensors() -> dict[str, Schema]:
    """The schema of each datatype, and the one that is any of them."""
    by_datatype = {f"Tensor{datatype}": tensor(datatype) for datatype in DATATYPES}
    references = {datatype: schema(f"Tensor{datatype}") for datatype in DATATYPES}
    discriminator = {
        "propertyName": "datatype",
        "mapping": {datatype: reference["$ref"] for datatype, reference in references.items()},
    }
    text_of_any = (
        "A tensor. In place of `data` there may be `parameters.binary_data_size`: the values then follow the JSON. "
        "Floating-point data may hold the literals NaN, Infinity and -Infinity; BYTES are one string an element."
    )
    return {
        "Tensor": {"description": text_of_any, "oneOf": list(references.values()), "discriminator": discriminator},
        **by_datatype,
    }


def schemas() -> dict[str, Schema]:
    """All schemas by name."""
    value = {"oneOf": [{"type": "string"}, {"type": "boolean"}, {"type": "number"}]}
    signature = record(
        {
            "name": text(),
            "datatype": {"type": "string", "enum": DATATYPES},
            "shape": array({"type": "integer"}, description="-1: any size.", example=[-1, 16]),
        }
    )
    wanted = record({"name": text(), "parameters": schema("Parameters")}, "parameters")
    listed = record({"name": text(example="CPU"), "available": {"type": "integer", "minimum": 0}})
    return {
        "Error": record({"error": text("One sentence; at most 512 bytes.", example="no such path")}),
        "Shape": array({"type": "integer", "format": "int64", "minimum": 0}, maxItems=16, example=[1, 16]),
        "Parameters": {
            "type": "object",
            "description": "Of a request: `timeout` (µs), `priority` (1 is first), `binary_data_output`. Of an input: "
            "`binary_data_size`. Of an output: `binary_data`, and `classification`: how many of its largest elements "
            "are answered, as BYTES `value:index` or `value:index:label`. `sequence_id`, `sequence_start` and "
            "`sequence_end` other than 0, false or empty, and `shared_memory_…`, are refused with 400; others are "
            "ignored.",
            "additionalProperties": True,
        },
        "LoadParameters": {
            "type": "object",
            "description": "A flat object, or the same under the key `parameters`. All of it but `share` tells one "
            "endpoint from another; unknown ones count.",
            "properties": {
                "share": {"type": "boolean", "default": True, "description": "false: counts as one more load."},
                "batch_size": {"type": "integer", "minimum": 1, "description": "Rows of a batch at most."},
                "timeout": {"type": "number", "minimum": 0, "description": "ms that a batch may wait for company."},
                "instances": {"type": "integer", "minimum": 1, "description": "Batches that may run at once."},
                "next": text("A loaded endpoint that gets the outputs."),
                "config": text("Of a model: a JSON text that replaces its configuration; not part of the identity."),
                "model": text("Of the worker `onnx`: the model; of `cplusplus`: the built-in worker."),
                "intra_op_threads": {"type": "integer", "minimum": 1},
                "inter_op_threads": {"type": "integer", "minimum": 1},
                "execution_providers": text("Separated by commas."),
                "graph_optimization_level": text(enum=["none", "basic", "extended", "layout", "all"]),
                "allow_spinning": {"type": "boolean"},
                "format": text("Of `base64_encode`.", enum=["png", "jpeg"]),
                "delay_ms": {**value, "description": "Of `fake`: a number, or `lognormal(median,p99)`."},
                "error_rate": {"type": "number", "minimum": 0, "maximum": 1, "description": "Of `fake`."},
                "seed": {"type": "integer", "description": "Of `fake`."},
            },
            "additionalProperties": True,
            "example": {},
        },
        "ServerMetadata": record(
            {
                "name": text(example="fastinfer"),
                "version": text(),
                "extensions": array(text(), description="Those of Triton's that work.", example=["statistics"]),
            }
        ),
        "ModelMetadata": record(
            {
                "name": text(example="simple"),
                "versions": array(text(), example=["1"]),
                "platform": text(example="onnxruntime_onnx"),
                "inputs": array(schema("TensorMetadata")),
                "outputs": array(schema("TensorMetadata")),
            }
        ),
        "TensorMetadata": signature,
        **tensors(),
        "InferenceRequest": record(
            {
                "id": text("Given back in the answer."),
                "parameters": schema("Parameters"),
                "inputs": array(schema("Tensor"), maxItems=1024),
                "outputs": array(wanted, maxItems=1024, description="What is wanted, in that order; default: all."),
            },
            "id",
            "parameters",
            "outputs",
            example=REQUESTS["simple"],
        ),
        "InferenceResponse": record(
            {
                "model_name": text(),
                "model_version": text(),
                "id": text(),
                "outputs": array(schema("Tensor")),
            },
            "id",
        ),
        **openapi_extensions.schemas(DATATYPES),
        "HardwareRequest": record(
            {"name": text(example="CPU"), "num": {"type": "integer", "minimum": 1, "default": 1}}, "num"
        ),
        "HardwareAnswer": record(
            {"name": text(example="CPU"), "num": {"type": "integer"}, "available": {"type": "integer"}}
        ),
        "HardwareList": record({"hardware": array(listed)}),
    }


# --- Paths ------------------------------------------------------------------------------------------------------------


def example(datatype: str, *inputs: tuple[str, list[int], list[Any]]) -> Schema:
    """An inference request."""
    return {
        "inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data} for name, shape, data in inputs]
    }


SEVEN = """
     0  0  2 13 16  9  0  0
     0  0 12 12  7 16  3  0
     0  1 14  3  0 16  4  0
     0  0  0  4 10 16  6  0
     0  0  0 13 16 16  9  0
     0  0  0  5 13  1  0  0
     0  0  0 11  9  0  0  0
     0  0  1 16  4  0  0  0
"""

REQUESTS: Mapping[str, Schema] = {
    "simple": example("INT32", ("INPUT0", [1, 16], list(range(16))), ("INPUT1", [1, 16], [1] * 16)),
    "digits": {"id": "a seven", **example("FP32", ("pixels", [1, 64], [int(ink) for ink in SEVEN.split()]))},
    "echo": example("UINT32", ("input", [1], [41])),
}
"""What works on the bundled models, and on the worker ``echo`` once it is loaded."""


def server_paths() -> dict[str, Schema]:
    """Metadata and health of the server."""
    live = media(record({"live": {"type": "boolean"}}), ready={"live": True})
    ready = media(record({"ready": {"type": "boolean"}}), ready={"ready": True})
    reason = record({"ready": {"type": "boolean", "enum": [False]}, "error": text("What it waits for.")})
    not_ready = media(reason, loading={"ready": False, "error": "models are not ready: 'digits' is loading"})
    ready_operation = operation("serverReady", "Server", "Is it ready?", answer("It is.", ready))
    why = "It is not: models are loading or have failed, or it drains."
    ready_operation["responses"]["503"] = answer(why, not_ready)
    metadata = answer("Name, version and extensions.", media(schema("ServerMetadata")))
    return {
        "/v2": {"get": operation("serverMetadata", "Server", "What is it?", metadata)},
        "/v2/health/live": {"get": operation("serverLive", "Server", "Is it there?", answer("It is.", live))},
        "/v2/health/ready": {"get": ready_operation},
    }


def model_paths() -> dict[str, Schema]:
    """The list of models, their signatures and readiness, inference."""
    listed = media(record({"models": array(text())}), bundled={"models": ["digits", "simple"]})
    metadata = operation(
        "modelMetadata", "Models", "What does it take and give?",
        answer("Signature and versions.", media(schema("ModelMetadata"))), 404, 503,
    )  # fmt: skip
    is_ready = media(record({"name": text(), "ready": {"type": "boolean"}}), simple={"name": "simple", "ready": True})
    ready = operation("modelReady", "Models", "Is it ready?", answer("It is.", is_ready), 404, 503)
    outputs = {
        "model_name": "echo",
        "model_version": "1",
        "outputs": [{"name": "output", "datatype": "UINT32", "shape": [1], "data": [42]}],
    }
    infer = operation(
        "infer", "Inference", "Infer",
        answer("All outputs, or those that were asked for.", {
            **media(schema("InferenceResponse"), echo=outputs),
            **media(text(format="binary"), "application/octet-stream"),
        }),
        400, 404, 413, 415, 500, 503, 504,
        body=body({
            **media(schema("InferenceRequest"), "application/json", **REQUESTS),
            **media(text(format="binary"), "application/octet-stream"),
        }),
        description="The shape holds the batch dimension. With the header `Inference-Header-Content-Length: N` the "
        "first N bytes of the body are JSON and the rest are the values of the tensors that have "
        "`binary_data_size`; an answer with binary outputs has the same header.",
    )  # fmt: skip
    infer["parameters"] = [ref("parameters", "headerLength")]
    return {
        "/v2/models": {"get": operation("models", "Models", "What is loaded?", answer("Names, sorted.", listed))},
        **versioned("/v2/models/{model}", "get", metadata),
        **versioned("/v2/models/{model}/ready", "get", ready),
        **versioned("/v2/models/{model}/infer", "post", infer),
        **openapi_extensions.model_paths(),
    }


def control_paths() -> dict[str, Schema]:
    """Loading and unloading: models under two families of paths, and workers."""
    paths: dict[str, Schema] = {}
    done = {verb: media(record({"name": text(), verb: {"type": "boolean"}})) for verb in ("load", "unload")}
    parameters = media(schema("LoadParameters"), nothing={}, smaller_batches={"batch_size": 4})

    def control(identifier: str, verb: str, what: str, ok: Schema, accepted: Schema = parameters) -> Schema:
        summary, errors = f"{verb.capitalize()} a {what}", (400, 403, 503) if verb == "load" else (400, 403)
        description = "" if verb == "load" else "Takes one load away; a name that is not loaded is no error."
        optional = body(accepted, required=False)
        return operation(identifier, "Control", summary, ok, *errors, body=optional, description=description)

    to_unload = media(schema("UnloadParameters"), nothing={}, a_whole_chain=openapi_extensions.WHOLE_CHAIN)
    loaded, unloaded = answer("It is ready, under this name.", done["load"]), answer("It is gone.", done["unload"])
    for family, suffix in (("/v2/models/{model}", ""), ("/v2/repository/models/{model}", "InRepository")):
        paths |= versioned(f"{family}/load", "post", control(f"loadModel{suffix}", "load", "model", loaded))
        made = control(f"unloadModel{suffix}", "unload", "model", unloaded, to_unload)
        paths |= versioned(f"{family}/unload", "post", made)
    paths |= openapi_extensions.index_paths()
    bare = answer("It is ready; the body is the endpoint's bare name.", media(text(example="echo"), "text/html"))
    given = media(schema("LoadParameters"), nothing={}, another_endpoint={"max_buffer_num": 100})
    for verb, made in (
        ("load", control("loadWorker", "load", "worker", bare, given)),
        ("unload", control("unloadWorker", "unload", "worker", unloaded, to_unload)),
    ):
        paths[f"/v2/workers/{{worker}}/{verb}"] = {"parameters": [ref("parameters", "worker")], "post": made}
    return paths


def other_paths() -> dict[str, Schema]:
    """Hardware, metrics, and the description itself."""
    enough = operation(
        "hasHardware", "Observation", "Is there enough hardware?",
        answer("There is.", media(schema("HardwareAnswer"))), 400, 404,
        body=body(media(schema("HardwareRequest"), one_core={"name": "CPU", "num": 1},
                        a_provider={"name": "CPUExecutionProvider"})),
        description="404 tells how many there are.",
    )  # fmt: skip
    listed = operation(
        "hardware", "Observation", "What hardware is there?",
        answer("Cores, GPUs, GPU models and execution providers.", media(schema("HardwareList"))),
    )  # fmt: skip

    def page(identifier: str, tag: str, summary: str, content_type: str, *errors: int) -> Schema:
        of: Schema = {"type": "object"} if content_type == "application/json" else text()
        return operation(identifier, tag, summary, answer("The text.", media(of, content_type)), *errors)

    return {
        "/v2/hardware": {"get": listed, "post": enough},
        "/metrics": {"get": page("metrics", "Observation", "Counters for Prometheus", "text/plain")},
        "/openapi.json": {"get": page("description", "Description", "This description", "application/json")},
        "/docs": {"get": page("docs", "Description", "A page to read and try it", "text/html")},
        "/docs/{asset}": {
            "parameters": [ref("parameters", "asset")],
            "get": page("docsAsset", "Description", "What the page is made of", "*/*", 404),
        },
    }


def parameters() -> dict[str, Schema]:
    """The parameters of paths and headers by name."""

    def in_path(name: str, description: str, example: str, pattern: str = ALPHABET) -> Schema:
        of = text(pattern=f"^{pattern}$", example=example)
        return {"name": name, "in": "path", "required": True, "description": description, "schema": of}

    return {
        "model": in_path("model", "An endpoint's name, or, to load, a model of the repository.", "simple"),
        "worker": in_path("worker", "A worker's name, in any case; to unload, an endpoint's.", "echo"),
        "version": in_path("version", "A version.", "1", "[1-9][0-9]{0,18}"),
        "asset": in_path("asset", "The name of a file of the page.", "swagger-ui.css"),
        "headerLength": {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Bytes of JSON before the binary values; 0: the body is the only input's bytes.",
            "schema": {"type": "integer", "minimum": 0},
        },
    }


def responses() -> dict[str, Schema]:
    """The failures by name."""
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    error = schema("Error")
    named = {
        name: answer(meaning, {"application/json": {"schema": error, "example": {"error": sentence}}})
        for name, meaning, sentence in ERRORS.values()
    }
    named["Unavailable"]["headers"] = retry
    http = "Failures of HTTP itself: 405, 408, 411, 413, 414, 415, 417, 431, 501, 503 and 505."
    return {**named, "HttpError": answer(http, media(error))}


def describe() -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "fastinfer",
            "version": VERSION,
            "description": INTRODUCTION,
            "license": {"name": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": {**server_paths(), **model_paths(), **control_paths(), **other_paths()},
        "components": {"schemas": schemas(), "parameters": parameters(), "responses": responses()},
    }


def written() -> bytes:
    """The description as it is committed."""
    return orjson.dumps(describe(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    sys.stdout.buffer.write(written())
