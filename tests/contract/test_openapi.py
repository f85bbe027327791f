"""The description's examples, tried on the bundled models."""

import re

import pytest
from openapi_schema_validator import OAS30Validator
from support import serving

from fastinfer.api import openapi

DESCRIPTION = openapi.describe()
VALUES = {"model": "simple", "worker": "echo", "version": "1", "asset": "swagger-ui.css"}
EXPECTED = {"simple": list(range(1, 17)), "digits": [7], "echo": [42]}


def bodies(operation):
    """The examples of a request's body in JSON, by name."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return {name: example["value"] for name, example in content.get("examples", {}).items()}


def check_described(answer, operation):
    """The answer has a type that the operation has, and, as JSON, the shape."""
    content = operation["responses"]["200"]["content"]
    content_type = answer.headers["content-type"].split(";")[0]
    assert content_type in content or "*/*" in content
    if content_type == "application/json":
        schema = content[content_type]["schema"]
        OAS30Validator({**schema, "components": DESCRIPTION["components"]}).validate(answer.json)


@pytest.fixture(scope="module")
def described():
    with serving("--load", "simple", "--load", "digits") as running:
        assert running.post("/v2/workers/echo/load").status == 200
        yield running


@pytest.mark.parametrize("model", openapi.REQUESTS)
def test_the_examples_of_inference(described, model):
    answer = described.infer(model, openapi.REQUESTS[model])
    assert answer.status == 200, answer.body
    outputs = {output["name"]: output["data"] for output in answer.json["outputs"]}
    assert next(iter(outputs.values())) == EXPECTED[model]


@pytest.mark.parametrize("path", [path for path, item in DESCRIPTION["paths"].items() if "get" in item])
def test_every_get_works(described, path):
    answer = described.get(re.sub(r"\{(\w+)\}", lambda found: VALUES[found[1]], path))
    assert answer.status == 200, answer.body
    check_described(answer, DESCRIPTION["paths"][path]["get"])


@pytest.mark.parametrize("path", [path for path, item in DESCRIPTION["paths"].items() if "post" in item])
def test_every_post_works(described, path):
    if path.endswith("/unload"):  # of what is loaded once more for it
        values = {**VALUES, "model": "digits"}
        assert described.post("/v2/models/digits/load", {"share": False}).status == 200
    else:
        values = VALUES
    filled = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)
    examples = bodies(DESCRIPTION["paths"][path]["post"])
    if path.endswith("/infer"):
        examples = {"simple": examples["simple"]}
    assert examples
    for name, body in examples.items():
        answer = described.post(filled, body)
        assert answer.status == 200, (name, answer.body)
        check_described(answer, DESCRIPTION["paths"][path]["post"])
