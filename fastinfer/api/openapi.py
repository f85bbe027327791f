"""The OpenAPI 3.0 description of all endpoints, built from a few shared parts.

``python -m fastinfer.api.openapi > docs/openapi.yaml`` writes it. Pure: it imports nothing of the server. Tests compare
it with the file and the routes, and its examples with the answers of the bundled models.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fastinfer.api import openapi_extensions
from fastinfer.api.openapi_parts import (
    ERRORS,
    Schema,
    answer,
    array,
    body,
    flat_or_wrapped,
    media,
    nullable,
    operation,
    record,
    ref,
    schema,
    text,
    versioned,
)

VERSION = "2"
"""The protocol's version, not the server's: the description changes only if the API does."""


def _rounded(beyond: float, **more: str) -> Schema:
    """A number that its type can hold; magnitudes from ``beyond`` on would round to infinity."""
    bounds = {"minimum": -beyond, "exclusiveMinimum": True, "maximum": beyond, "exclusiveMaximum": True}
    return {"type": "number", **more, **bounds}


ELEMENTS: Mapping[str, Schema] = {
    "BOOL": {"type": "boolean"},
    **{f"UINT{bits}": {"type": "integer", "minimum": 0, "maximum": 2**bits - 1} for bits in (8, 16, 32, 64)},
    **{
        f"INT{bits}": {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
        for bits in (8, 16, 32, 64)
    },
    "FP16": _rounded(65520.0),
    "BF16": _rounded((2 - 2**-8) * 2.0**127),
    "FP32": _rounded((2 - 2**-24) * 2.0**127, format="float"),
    "FP64": {"type": "number", "format": "double"},
    "BYTES": {"type": "string"},
}
"""Each datatype with the schema of an element in JSON."""

DATATYPES = list(ELEMENTS)
ALPHABET = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"

TAGS = {
    "Server": "Metadata and health of the server.",
    "Models": "Metadata, readiness and configuration of models.",
    "Inference": "Inference: tensors in, tensors out.",
    "Control": "The repository index, loading and unloading.",
    "Observation": "Hardware, statistics and metrics.",
    "Description": "This API description, and the page that shows it.",
}

INTRODUCTION = """\
fastinfer serves ONNX models over the KServe v2 protocol (Open Inference Protocol), with the endpoints of the AMD
Inference Server.

Every answer that is not 2xx is `{"error": "<one sentence>"}`; the sentence names the field. `GET` also answers `HEAD`,
one trailing slash is accepted, and a query string is ignored. Bodies are read as JSON whatever their `Content-Type`.

To try the API, load the worker `echo` under *Control*, then send it a tensor under *Inference*.
"""


# --- Schemas ----------------------------------------------------------------------------------------------------------


CONTENT_TYPES = (
    "base64 str np nplist pd pd_json datetime raw dict hf hg_str hg_json hg_jsonlist hg_conversation pillow_image"
)
"""The known values of an input's ``content_type``, separated by spaces."""


def tensor(datatype: str) -> Schema:
    """A tensor of one datatype, with flat or nested data, or without data if the values are binary."""
    nested = array({}, description="A row of a nested array.")
    order = "Row-major; flat, or nested as the shape is. A tensor of one element may have its value without an array."
    data = array({"oneOf": [ELEMENTS[datatype], nested]}, description=order)
    parts = {
        "name": text(example="INPUT0"),
        "datatype": {"type": "string", "enum": [datatype]},
        "shape": schema("Shape"),
        "parameters": nullable(schema("BytesParameters" if datatype == "BYTES" else "TensorParameters")),
        "data": nullable(data),
    }
    return record(parts, "parameters", "data", title=datatype)


def tensors() -> dict[str, Schema]:
    """The schema of a tensor of each datatype, and of a tensor of any."""
    by_datatype = {f"Tensor{datatype}": tensor(datatype) for datatype in DATATYPES}
    references = {datatype: schema(f"Tensor{datatype}") for datatype in DATATYPES}
    discriminator = {
        "propertyName": "datatype",
        "mapping": {datatype: reference["$ref"] for datatype, reference in references.items()},
    }
    text_of_any = (
        "A tensor. Instead of `data` it may have `parameters.binary_data_size`: its values then follow the JSON. "
        "Floating-point data may hold the literals NaN, Infinity and -Infinity (and null for NaN, if "
        "`--json-nonfinite` is `null`); each BYTES element is a string."
    )
    return {
        "Tensor": {"description": text_of_any, "oneOf": list(references.values()), "discriminator": discriminator},
        **by_datatype,
    }


def inference_parameters() -> dict[str, Schema]:
    """The schemas of ``parameters`` at each place of an inference request or its answer."""

    def known(properties: Mapping[str, Schema], description: str) -> Schema:
        given = {name: nullable(value) for name, value in properties.items()}
        return {"type": "object", "description": description, "properties": given, "additionalProperties": True}

    count: Schema = {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**63 - 1}
    flag: Schema = {"type": "boolean"}
    of_request = {
        "timeout": {**count, "description": "µs from the request's first byte until 504; 0: the server's default."},
        "priority": {**count, "description": "1 is served first; 0: the model's default."},
        "binary_data_output": {**flag, "description": "The default of the outputs' `binary_data`."},
    }
    of_output = {
        "binary_data": {**flag, "description": "The values are binary and follow the JSON."},
        "classification": {
            **count,
            "minimum": 1,
            "description": "Return this many of the largest elements, as BYTES `value:index[:label]`.",
        },
    }
    of_tensor = {"binary_data_size": {**count, "description": "Bytes of the values after the JSON, instead of data."}}
    content_type = text(
        "`base64`: each element of `data` is the base64 text of the bytes (standard alphabet, padded, no white space); "
        "not allowed with binary data. The others, MLServer's, have no effect.",
        enum=["", *CONTENT_TYPES.split()],
    )
    return {
        "RequestParameters": known(
            of_request,
            "`sequence_id`, `sequence_start` and `sequence_end` other than 0, false or empty, and `shared_memory_…`, "
            "also of inputs and outputs, are refused with 400. Others are ignored.",
        ),
        "TensorParameters": known(of_tensor, "Others are ignored."),
        "BytesParameters": known({**of_tensor, "content_type": content_type}, "Others are ignored."),
        "OutputParameters": known(of_output, "Others are ignored."),
    }


def load_parameters() -> dict[str, Schema]:
    """The bodies of loads of models and of workers."""
    value: Schema = {"oneOf": [{"type": "string"}, {"type": "boolean"}, {"type": "number"}], "nullable": True}
    as_text = text("The same as text.")

    def number(description: str, kind: str = "integer", /, **bounds: int) -> Schema:
        return {"oneOf": [{"type": kind, **bounds}, as_text], "description": description}

    def switch(description: str) -> Schema:
        either = {"type": "integer", "enum": [0, 1]}
        return {"oneOf": [{"type": "boolean"}, either, as_text], "description": description}

    def own(worker: str, description: str) -> Schema:
        return {**value, "description": f"Of `{worker}`: {description}"}

    rows = {"minimum": 1, "maximum": 1 << 20}
    common = {
        "share": switch("Default: true. false: loading a loaded endpoint counts as one more load."),
        "batch_size": number("Maximum rows of a batch.", **rows),
        "batch": number("Another name of `batch_size`.", **rows),
        "timeout": number("ms that a request may wait for a fuller batch.", "number", minimum=0, maximum=60_000),
        "instances": number("Batches that may run concurrently.", minimum=1, maximum=1024),
        "next": text("A loaded endpoint that gets the outputs as its inputs.", pattern=f"^{ALPHABET}$"),
    }
    of_models = {
        "config": text("A JSON text that replaces the model's configuration; not part of the identity."),
        "model": text("Only part of the endpoint's identity.", pattern=f"^{ALPHABET}$"),
        "intra_op_threads": number("Threads of the model's own pool.", minimum=1, maximum=1024),
        "inter_op_threads": number("More than 1: independent operators run in parallel.", minimum=1, maximum=1024),
        "execution_providers": text("Names separated by commas, the preferred one first."),
        "graph_optimization_level": text(enum=["none", "basic", "extended", "layout", "all"]),
        "allow_spinning": switch("Idle threads of the model's own pool spin for a while."),
    }
    of_workers = {
        **{name: own("onnx", "as for loading a model.") for name in of_models if name not in ("config", "model")},
        "model": own("onnx", "the model (required); of `cplusplus`: the built-in worker."),
        "format": own("base64_encode", "`png` or `jpeg`."),
        "delay_ms": own("fake", "a number up to 60,000, or `lognormal(median,p99)`."),
        "error_rate": own("fake", "the fraction of requests that fail, from 0 to 1."),
        "seed": own("fake", "an integer that makes delays and failures repeatable."),
    }
    description = "All but `share` are part of the endpoint's identity, unknown ones included."

    def flat(properties: Schema) -> Schema:
        given = {name: nullable(of) for name, of in properties.items()}
        return {"type": "object", "description": description, "properties": given, "additionalProperties": value}

    return {
        "LoadParameters": flat({**common, **of_models}),
        "LoadBody": flat_or_wrapped("LoadParameters"),
        "WorkerParameters": flat({**common, **of_workers}),
        "WorkerBody": flat_or_wrapped("WorkerParameters"),
    }


def schemas() -> dict[str, Schema]:
    """All schemas by name."""
    signature = record(
        {
            "name": text(),
            "datatype": {"type": "string", "enum": DATATYPES},
            "shape": array({"type": "integer"}, description="-1: any size.", example=[-1, 16]),
            "parameters": record(
                {
                    "open_rank": {
                        "type": "boolean",
                        "enum": [True],
                        "description": "The model declares no shape: `shape` is `[-1]`, and any number of dimensions "
                        "is accepted.",
                    },
                    "optional": {
                        "type": "boolean",
                        "enum": [True],
                        "description": "A request may leave this input out.",
                    },
                },
                "open_rank",
                "optional",
            ),
        },
        "parameters",
    )
    requested = record({"name": text(), "parameters": nullable(schema("OutputParameters"))}, "parameters")
    listed = record({"name": text(example="CPU"), "available": {"type": "integer", "minimum": 0}})
    return {
        "Error": record({"error": text("One sentence; at most 512 bytes.", example="no such path")}),
        "Shape": array({"type": "integer", "format": "int64", "minimum": 0}, maxItems=16, example=[1, 16]),
        **inference_parameters(),
        **load_parameters(),
        "ServerMetadata": record(
            {
                "name": text(example="fastinfer"),
                "version": text(),
                "extensions": array(text(), description="Triton's extensions that work.", example=["statistics"]),
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
                "id": nullable(text("Returned in the answer.")),
                "parameters": nullable(schema("RequestParameters")),
                "inputs": array(schema("Tensor"), maxItems=1024),
                "outputs": nullable(
                    array(requested, maxItems=1024, description="The outputs to return, in this order; default: all.")
                ),
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
            {
                "name": text(example="CPU"),
                "num": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1, "default": 1},
            },
            "num",
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
"""Requests that work with the bundled models, and with the worker ``echo`` once it is loaded."""


def server_paths() -> dict[str, Schema]:
    """Metadata and health of the server."""
    live = media(record({"live": {"type": "boolean"}}), ready={"live": True})
    ready = media(record({"ready": {"type": "boolean"}}), ready={"ready": True})
    reason = record({"ready": {"type": "boolean", "enum": [False]}, "error": text("Why it is not ready.")})
    not_ready = media(reason, loading={"ready": False, "error": "models are not ready: 'digits' is loading"})
    ready_operation = operation("serverReady", "Server", "Server Ready", answer("The server is ready.", ready))
    why = "The server is not ready: models are loading or have failed, no model is loaded, or it is draining."
    ready_operation["responses"]["503"] = answer(why, not_ready)
    metadata = answer("Name, version and extensions.", media(schema("ServerMetadata")))
    return {
        "/v2": {"get": operation("serverMetadata", "Server", "Server Metadata", metadata)},
        "/v2/health/live": {
            "get": operation("serverLive", "Server", "Server Live", answer("The server is live.", live))
        },
        "/v2/health/ready": {"get": ready_operation},
    }


def model_paths() -> dict[str, Schema]:
    """The list of models, their signatures and readiness, inference."""
    listed = media(record({"models": array(text())}), bundled={"models": ["digits", "simple"]})
    metadata = operation(
        "modelMetadata", "Models", "Model Metadata",
        answer("Signature and versions.", media(schema("ModelMetadata"))), 404, 503,
    )  # fmt: skip
    is_ready = media(record({"name": text(), "ready": {"type": "boolean"}}), simple={"name": "simple", "ready": True})
    ready = operation("modelReady", "Models", "Model Ready", answer("The model is ready.", is_ready), 404, 503)
    outputs = {
        "model_name": "echo",
        "model_version": "1",
        "outputs": [{"name": "output", "datatype": "UINT32", "shape": [1], "data": [42]}],
    }
    infer = operation(
        "infer", "Inference", "Inference",
        answer("All outputs, or the requested ones.", {
            **media(schema("InferenceResponse"), echo=outputs),
            **media(text(format="binary"), "application/octet-stream"),
        }),
        400, 404, 500, 503, 504,
        body=body({
            **media(schema("InferenceRequest"), "application/json", **REQUESTS),
            **media(text(format="binary"), "application/octet-stream"),
        }),
        description="The shape includes the batch dimension. With the header `Inference-Header-Content-Length: N` the "
        "first N bytes of the body are JSON, followed by the values of the tensors that have "
        "`binary_data_size`; an answer with binary outputs has the same header.",
    )  # fmt: skip
    infer["parameters"] = [ref("parameters", "headerLength")]
    length = {"description": "Bytes of JSON before the binary values.", "schema": {"type": "integer", "minimum": 0}}
    infer["responses"]["200"]["headers"] = {"Inference-Header-Content-Length": length}
    return {
        "/v2/models": {"get": operation("models", "Models", "Loaded Models", answer("Names, sorted.", listed), 503)},
        **versioned("/v2/models/{model}", "get", metadata),
        **versioned("/v2/models/{model}/ready", "get", ready),
        **versioned("/v2/models/{model}/infer", "post", infer),
        **openapi_extensions.model_paths(),
    }


def control_paths() -> dict[str, Schema]:
    """Loading and unloading: models under two families of paths, and workers."""
    paths: dict[str, Schema] = {}
    done = {verb: media(record({"name": text(), verb: {"type": "boolean"}})) for verb in ("load", "unload")}
    parameters = media(schema("LoadBody"), nothing={}, smaller_batches={"batch_size": 4})

    def control(identifier: str, verb: str, what: str, ok: Schema, accepted: Schema = parameters) -> Schema:
        summary, errors = (
            f"{what.capitalize()} {verb.capitalize()}",
            (400, 403, 404, 503, 504) if verb == "load" else (400, 403, 404),
        )
        description = "" if verb == "load" else "Removes one load; a name that is not loaded is not an error."
        optional = body(accepted, required=False)
        return operation(identifier, "Control", summary, ok, *errors, body=optional, description=description)

    to_unload = media(schema("UnloadBody"), nothing={}, a_whole_chain=openapi_extensions.WHOLE_CHAIN)
    loaded, unloaded = answer("Loaded and ready under this name.", done["load"]), answer("Unloaded.", done["unload"])
    for family, suffix in (("/v2/models/{model}", ""), ("/v2/repository/models/{model}", "InRepository")):
        paths |= versioned(f"{family}/load", "post", control(f"loadModel{suffix}", "load", "model", loaded))
        made = control(f"unloadModel{suffix}", "unload", "model", unloaded, to_unload)
        paths |= versioned(f"{family}/unload", "post", made)
    paths |= openapi_extensions.index_paths()
    bare = answer("Loaded and ready; the body is the endpoint's bare name.", media(text(example="echo"), "text/html"))
    given = media(schema("WorkerBody"), nothing={}, another_endpoint={"max_buffer_num": 100})
    for verb, made in (
        ("load", control("loadWorker", "load", "worker", bare, given)),
        ("unload", control("unloadWorker", "unload", "worker", unloaded, to_unload)),
    ):
        paths[f"/v2/workers/{{worker}}/{verb}"] = {"parameters": [ref("parameters", "worker")], "post": made}
    return paths


def other_paths() -> dict[str, Schema]:
    """Hardware, metrics, and the description itself."""
    enough = operation(
        "hasHardware", "Observation", "Hardware Check",
        answer("The hardware is available.", media(schema("HardwareAnswer"))), 400, 404, 504,
        body=body(media(schema("HardwareRequest"), one_core={"name": "CPU", "num": 1},
                        a_provider={"name": "CPUExecutionProvider"})),
        description="404 says how many there are.",
    )  # fmt: skip
    listed = operation(
        "hardware", "Observation", "Hardware List",
        answer("Cores, GPUs, GPU models and execution providers.", media(schema("HardwareList"))), 504,
    )  # fmt: skip

    def page(identifier: str, tag: str, summary: str, *content_types: str, errors: Sequence[int] = ()) -> Schema:
        content: Schema = {}
        for content_type in content_types:
            content |= media({"type": "object"} if content_type == "application/json" else text(), content_type)
        return operation(identifier, tag, summary, answer("The text.", content), *errors)

    asset = page("docsAsset", "Description", "Page Asset", "text/css", "text/javascript")
    asset["responses"]["200"]["content"] |= media(text(format="binary"), "image/png")
    asset["responses"]["404"] = ref("responses", "NotFound")
    return {
        "/v2/hardware": {"get": listed, "post": enough},
        "/metrics": {"get": page("metrics", "Observation", "Metrics", "text/plain", errors=(504,))},
        "/openapi.json": {"get": page("description", "Description", "OpenAPI Description", "application/json")},
        "/docs": {"get": page("docs", "Description", "API Page", "text/html")},
        "/docs/{asset}": {
            "parameters": [ref("parameters", "asset")],
            "get": asset,
        },
    }


def parameters() -> dict[str, Schema]:
    """The parameters of paths and headers by name."""

    def in_path(name: str, description: str, example: str, pattern: str = ALPHABET) -> Schema:
        of = text(pattern=f"^{pattern}$", example=example)
        return {"name": name, "in": "path", "required": True, "description": description, "schema": of}

    return {
        "model": in_path("model", "An endpoint's name; for a load: a model of the repository.", "simple"),
        "worker": in_path("worker", "A worker's name, case-insensitive; for an unload: an endpoint's name.", "echo"),
        "version": in_path("version", "A version.", "1", "[1-9][0-9]{0,18}"),
        "asset": in_path("asset", "A file of the page.", "swagger-ui.css"),
        "headerLength": {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Bytes of JSON before the binary values; 0: the body is the bytes of the only input.",
            "schema": {"type": "integer", "minimum": 0},
        },
    }


def responses() -> dict[str, Schema]:
    """The error responses by name."""
    retry = {"Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 0}}}
    error = schema("Error")
    named = {
        name: answer(meaning, {"application/json": {"schema": error, "example": {"error": sentence}}})
        for name, meaning, sentence in ERRORS.values()
    }
    named["Unavailable"]["headers"] = retry
    http = "Errors of HTTP itself: 400, 405, 408, 411, 413, 414, 415, 417, 431, 501, 503 and 505."
    return {**named, "HttpError": answer(http, media(error))}


def describe() -> dict[str, Any]:
    """Return the whole description."""
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


def written() -> str:
    """Return the text of docs/openapi.yaml. Needs PyYAML, which the server does not."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes text of several lines as it is, and repeats what is used twice."""

        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    written: str = yaml.dump(describe(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=118)
    return written


if __name__ == "__main__":
    sys.stdout.write(written())
