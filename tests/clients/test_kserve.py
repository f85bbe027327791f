"""KServe's InferenceRESTClient: everything that it can call, in JSON and binary, and what its errors say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import onnx_models
import pytest
from clients.support import DATATYPES, KSERVE, add_identities, add_model
from support import serving

HERE = Path(__file__).parent
VALUES = {"BOOL": [True, False, True, True], "BYTES": ["", "a", "zwölf", "\0 \n"]}
NUMPY_DATATYPES = [each for each in DATATYPES if each != "BF16"]  # the client knows no dtype for it


class RestClient:
    """The client, in a process of its own: the methods are its methods."""

    def __init__(self, server):
        self._url = f"http://127.0.0.1:{server.port}"
        command = [KSERVE.require("python"), HERE / "kserve_calls.py"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def outcome(self, method, **arguments):
        arguments.setdefault("base_url", self._url)
        self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __getattr__(self, method):
        def call(**arguments):
            outcome = self.outcome(method, **arguments)
            assert "result" in outcome, outcome
            return outcome["result"]

        return call

    def error(self, method, **arguments):
        """The sentence of the exception that the client raises."""
        outcome = self.outcome(method, **arguments)
        assert outcome.get("raised") == "HTTPStatusError", outcome
        return outcome["text"]

    def close(self):
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    add_identities(repository)
    add_model(repository, "simple", onnx_models.simple(), "max_batch_size = 8")
    with serving(repository=repository) as running:
        assert running.post("/v2/workers/fake/load", {"delay_ms": 60_000}).body == b"fake"
        yield running


@pytest.fixture(scope="module")
def client(server):
    started = RestClient(server)
    yield started
    started.close()


def values(datatype):
    if datatype in VALUES:
        return VALUES[datatype]
    return [0.5, 0.0, -1.0, 2.0] if datatype.startswith(("FP", "BF")) else [0, 1, 2, 127]


def request(model, *inputs, **more):
    return {"model": model, "inputs": list(inputs), **more}


def tensor(name, shape, datatype, data, form="binary"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, "form": form}


def identity(datatype, form, **more):
    return request(f"identity_{datatype.lower()}", tensor("x", [2, 2], datatype, values(datatype), form), **more)


def pair(form="binary", **changes):
    return [tensor(name, [1, 16], "INT32", list(range(16)), form) | changes for name in ("INPUT0", "INPUT1")]


def test_health(client):
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready(model_name="simple") is True
    assert client.is_model_ready(model_name="nobody") is False


def test_a_server_that_is_not_ready_says_why(client, tmp_path):
    add_model(tmp_path, "broken", b"not a model")
    with serving(repository=tmp_path, wait=False) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert client.is_server_live(base_url=url) is True
        assert client.is_model_ready(base_url=url, model_name="broken") is False
        assert "broken" in client.error("is_server_ready", base_url=url)


@pytest.mark.parametrize("binary_outputs", [False, True])
@pytest.mark.parametrize("form", ["list", "json", "binary"])
@pytest.mark.parametrize("datatype", NUMPY_DATATYPES)
def test_every_datatype(client, datatype, form, binary_outputs):
    if datatype == "FP16" and form != "binary":
        pytest.skip("the client itself refuses FP16 in JSON")
    asked = identity(datatype, form, parameters={"binary_data_output": binary_outputs}, id="7")
    answer = client.infer(request=asked)
    assert (answer["model"], answer["id"]) == (asked["model"], "7")
    assert answer["type"] == ("application/octet-stream" if binary_outputs else "application/json")
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", datatype, [2, 2])
    assert output["data"] == values(datatype)


def test_a_datatype_that_only_the_server_knows(client):
    (output,) = client.infer(request=identity("BF16", "list"))["outputs"]
    assert (output["datatype"], output["data"]) == ("BF16", values("BF16"))


def test_without_an_id_the_client_makes_one(client):
    assert len(client.infer(request=identity("FP32", "json"))["id"]) == 36


def test_a_body_of_ones_own(client):
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT8", "data": [-3]}]}
    (output,) = client.infer(request={"model": "identity_int8", "body": body})["outputs"]
    assert output["data"] == [-3]


def test_wanted_outputs_each_in_its_own_form(client):
    wanted = [{"name": "OUTPUT1", "parameters": {"binary_data": True}}, {"name": "OUTPUT0"}]
    outputs = client.infer(request=request("simple", *pair(), outputs=wanted))["outputs"]
    assert [each["name"] for each in outputs] == ["OUTPUT1", "OUTPUT0"]
    assert [each["data"] for each in outputs] == [[0] * 16, [2 * n for n in range(16)]]


def test_inputs_each_in_its_own_form(client):
    first, second = pair()
    outputs = client.infer(request=request("simple", first, second | {"form": "json"}))["outputs"]
    assert [each["data"] for each in outputs] == [[2 * n for n in range(16)], [0] * 16]


def test_many_at_once(client):
    (output,) = client.infer(request=identity("INT64", "binary"), times=200)["outputs"]
    assert output["data"] == values("INT64")


def test_several_megabytes(client):
    data = [n / 2 for n in range(1 << 19)]
    for form, binary in (("json", False), ("binary", True)):
        asked = request(
            "identity_fp32", tensor("x", [1, 1 << 19], "FP32", data, form), parameters={"binary_data_output": binary}
        )
        assert client.infer(request=asked)["outputs"][0]["data"] == data


def test_header_fields_of_ones_own(client):
    assert client.infer(request=identity("FP32", "json"), headers={"x-request-id": "1"})
    assert client.is_server_live(headers={"authorization": "Bearer nothing"})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "nobody"}, "Request for unknown model: 'nobody' is not found, '404 Not Found'"),
        ({"inputs": pair()[:1]}, "expected 2 inputs but got 1 inputs for model 'simple'"),
        ({"inputs": pair(datatype="FP32")}, "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects"),
        ({"inputs": pair(shape=[2, 8])}, "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16]"),
        ({"inputs": pair(shape=[9, 16], data=[0] * 144)}, "inference request batch-size must be <= 8 for 'simple'"),
        ({"inputs": pair("list", data=[1])}, "inputs[0].data"),
        ({"inputs": pair("list", data=[2**31] * 16)}, "inputs[0].data[0]: 2147483648 is out of range for INT32"),
        ({"outputs": [{"name": "OUTPUT9"}]}, "unexpected inference output 'OUTPUT9' for model 'simple'"),
        ({"parameters": {"sequence_id": 5}}, "sequence"),
    ],
)
def test_an_error_is_the_clients_own_with_our_sentence(client, changed, sentence):
    assert sentence in client.error("infer", request={**request("simple", *pair()), **changed})


def test_a_timeout_of_the_request(client):
    """In the parameters it is the server's to keep, in microseconds; one of the client is kept by the client."""
    asked = request("fake", tensor("x", [1], "INT32", [1]))
    assert "Request timeout expired, '504" in client.error("infer", request={**asked, "parameters": {"timeout": 1000}})
    assert client.outcome("infer", request=asked, timeout=0.05)["raised"] == "ReadTimeout"
