"""The parts of the OpenAPI description: schemas, bodies, answers, operations. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

ERRORS: Mapping[int, tuple[str, str, str]] = {
    400: (
        "BadRequest",
        "The request is malformed, or does not fit the model.",
        "inputs[0].data[17]: 300 is out of range for UINT8",
    ),
    403: (
        "Forbidden",
        "Model control is off.",
        "model control is off: the server was started with --model-control none",
    ),
    404: ("NotFound", "The path, model or version does not exist.", "Request for unknown model: 'M' is not found"),
    413: ("TooLarge", "The body is larger than the limit.", "the body is larger than 67108864 bytes"),
    415: (
        "UnsupportedCoding",
        "The body's coding is neither gzip nor deflate.",
        "the content codings understood are gzip and deflate",
    ),
    500: ("ModelFailed", "The model failed.", "the model failed: division by zero"),
    503: (
        "Unavailable",
        "The queue is full, the model is loading, the repository has not been read yet, or the server is draining or "
        "out of memory.",
        "Exceeds maximum queue size",
    ),
    504: (
        "DeadlinePassed",
        "The request's deadline has passed, or a load has timed out.",
        "Request timeout expired",
    ),
}
"""The documented errors by status: name of the response, meaning, an example of a sentence."""


def ref(kind: str, name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def schema(name: str) -> Schema:
    """A reference to a schema."""
    return ref("schemas", name)


def record(properties: Mapping[str, Schema], *optional: str, **more: Any) -> Schema:
    """The schema of an object; its properties are required, except the ``optional`` ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", **({"required": required} if required else {}), "properties": dict(properties), **more}


def nullable(of: Schema) -> Schema:
    """The schema of a value or null; null means that the key is absent."""
    return {"allOf": [of], "nullable": True} if "$ref" in of else {**of, "nullable": True}


def array(items: Schema, **more: Any) -> Schema:
    """The schema of an array."""
    return {"type": "array", "items": items, **more}


def text(description: str = "", **more: Any) -> Schema:
    """The schema of a string."""
    return {"type": "string", **({"description": description} if description else {}), **more}


def flat_or_wrapped(name: str) -> Schema:
    """The schema of a body with parameters, either flat or under the key ``parameters``, or without any."""
    flat = {"allOf": [schema(name)], "not": {"required": ["parameters"]}}
    wrapped = record({"parameters": nullable(schema(name))}, additionalProperties=False)
    nothing = {"type": "object", "nullable": True, "enum": [None]}
    description = "The parameters as a flat object, or under the key `parameters`; null: none."
    return {"description": description, "oneOf": [flat, wrapped, nothing]}


def media(of: Schema, content_type: str = "application/json", /, **examples: Any) -> Schema:
    """A body, with examples by name; underscores in a name are shown as spaces."""
    named = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    return {content_type: {"schema": of, **({"examples": named} if named else {})}}


def answer(description: str, content: Schema) -> Schema:
    """A response."""
    return {"description": description, "content": content}


def operation(
    identifier: str, tag: str, summary: str, ok: Schema, *errors: int, body: Schema | None = None, description: str = ""
) -> Schema:
    """An operation; ``errors`` are its own statuses, besides those of its body and of HTTP itself."""
    statuses = sorted({*errors, *((413, 415) if body else ())})
    responses = {"200": ok, **{str(status): ref("responses", ERRORS[status][0]) for status in statuses}}
    return {
        "operationId": identifier,
        "tags": [tag],
        "summary": summary,
        **({"description": description} if description else {}),
        **({"requestBody": body} if body else {}),
        "responses": {**responses, "default": ref("responses", "HttpError")},
    }


def body(content: Schema, *, required: bool = True) -> Schema:
    """A request's body."""
    return {"required": required, "content": content}


def versioned(template: str, method: str, made: Schema) -> dict[str, Schema]:
    """The paths of an operation, without and with ``/versions/{version}``."""
    model, tail = template.split("{model}")
    identifier, summary = made["operationId"], made["summary"]
    of_version = {**made, "operationId": f"{identifier}Version", "summary": f"{summary} (one version)"}
    return {
        template: {"parameters": [ref("parameters", "model")], method: made},
        f"{model}{{model}}/versions/{{version}}{tail}": {
            "parameters": [ref("parameters", "model"), ref("parameters", "version")],
            method: of_version,
        },
    }
