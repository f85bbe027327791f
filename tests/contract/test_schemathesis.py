"""The description against a running server: requests that it allows and that it forbids, and whether what comes back is
what it says.

Every day a few examples an operation, always the same ones; `make fuzz` takes many more, and others each time.
"""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import assume, given, settings
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig
from support import serving

from fastinfer.api import openapi

LOADED = {"models": ("simple", "digits", "two_versions"), "workers": ("echo", "fake")}
HEADER_LENGTH = "Inference-Header-Content-Length"
FUZZING = settings.get_current_profile_name() == "fuzz"

CONFIG: dict[str, Any] = {
    "dictionaries": {
        "endpoints": {"values": [name for names in LOADED.values() for name in names]},
        "workers": {"values": ["echo", "echo_multi", "invert_image", "base64_decode", "base64_encode", "fake", "onnx"]},
        "versions": {"values": ["1", "2"]},
    },
    "parameters": {
        "path.model": {"dictionary": "endpoints", "probability": 0.7},
        "path.worker": {"dictionary": "workers", "probability": 0.7},
        "path.version": {"dictionary": "versions", "probability": 0.7},
    },
    # QUERY is left out of the methods that a path does not have: the server does not know it, and says 501.
    "phases": {"coverage": {"unexpected-methods": ["get", "put", "post", "delete", "options", "patch", "trace"]}},
    "operations": [
        {
            "include-operation-id-regex": "^infer",
            # What takes any tensors, so that a refusal is one of the request and not of its fit to the model.
            "parameters": {"path.model": "fake"},
            "checks": {
                # No schema says that shape and data, or header and body, fit together: `test_inference` does.
                "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "504"]},
                # A deadline of a few microseconds passes.
                "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "504"]},
            },
        },
        {
            "include-operation-id-regex": "^(infer|loadModel).*(Version|InRepository)$",
            # Every kind of body once a day is enough: other paths lead to the same handler. Examples are still made.
            "phases": {"coverage": {"enabled": FUZZING}},
        },
        {
            "include-operation-id-regex": "^load",
            # There may be no such model, worker or `next`, and a number given as text may be none.
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400"]}},
        },
    ],
    "generation": {"max-examples": 2000 if FUZZING else 25, "deterministic": not FUZZING, "database": "none"},
}


def described_one_by_one() -> dict[str, Any]:
    """The description without what it says of all operations: they have to tell all the statuses that are met."""
    description = orjson.loads(orjson.dumps(openapi.describe()))
    for item in description["paths"].values():
        for method in item.keys() & {"get", "post"}:
            del item[method]["responses"]["default"]
    return description


SCHEMA = schemathesis.openapi.from_dict(described_one_by_one(), config=SchemathesisConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def running():
    with serving("--load", "none") as server:
        yield server


@pytest.fixture(autouse=True)
def loaded(running):
    """Whatever the test before has loaded and unloaded, this is there."""
    for family, names in LOADED.items():
        for name in names:
            running.load(f"{family}/{name}")


@pytest.fixture(scope="module")
def call(running):
    """Sends a case on a connection that stays, and checks what comes back."""
    with requests.Session() as session:

        def send(case):
            length = str(case.headers.get(HEADER_LENGTH, ""))
            if case.media_type == "application/json" and length.isdecimal():
                del case.headers[HEADER_LENGTH]  # the body is all JSON: a length would be wrong, or make it raw bytes
            # After the length 0 everything is raw bytes, of which there may be none: also where there is no body.
            raw = length == "0" and case.media_type != "application/json"
            answer = case.call_and_validate(
                base_url=f"http://127.0.0.1:{running.port}",
                session=session,
                excluded_checks=CHECKS.get_by_names(["negative_data_rejection"]) if raw else [],
            )
            if answer.status_code >= 400:  # in the one shape, also where the description has nothing of its own
                assert answer.headers["content-type"] == ["application/json"]
                assert list(answer.json()) == ["error"]
            return answer

        yield send


@SCHEMA.parametrize()
def test_operation(case, call):
    call(case)


def fitted(tensor: dict[str, Any], number: int) -> dict[str, Any]:
    """A described tensor, made to fit as no schema can say: flat, of the size of its shape, with a name of its own."""
    flat = [element for element in tensor.get("data") or [] if not isinstance(element, list)]
    return {**tensor, "name": f"{number}{tensor['name']}", "shape": [len(flat)], "data": flat, "parameters": {}}


@given(case=SCHEMA["/v2/models/{model}/infer"]["POST"].as_strategy())
@settings(max_examples=CONFIG["generation"]["max-examples"])
def test_inference(case, call):
    """A request that fits is answered, with the tensors that were sent."""
    assume(case.media_type == "application/json")
    case.headers.clear()
    case.path_parameters["model"] = "fake"
    case.body["inputs"] = [fitted(tensor, number) for number, tensor in enumerate(case.body["inputs"])]
    case.body.pop("outputs", None)
    case.body.pop("parameters", None)
    answer = call(case)
    assert answer.status_code == 200, answer.text
    assert [output["name"] for output in answer.json()["outputs"]] == [given["name"] for given in case.body["inputs"]]
