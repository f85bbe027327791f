"""Part A: health, server and model metadata, the list of models, wrong paths and methods."""

import json

import pytest

SIMPLE = {
    "name": "simple",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [
        {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]},
        {"name": "INPUT1", "datatype": "INT32", "shape": [-1, 16]},
    ],
    "outputs": [
        {"name": "OUTPUT0", "datatype": "INT32", "shape": [-1, 16]},
        {"name": "OUTPUT1", "datatype": "INT32", "shape": [-1, 16]},
    ],
}


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2?x=1"])
def test_server_metadata(server, path):
    answer = server.get(path)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["name", "version", "extensions"]
    assert answer.json["name"] == "fastinfer"


def test_health(server):
    assert server.get("/v2/health/live").body == b'{"live":true}'
    assert server.get("/v2/health/ready").body == b'{"ready":true}'
    assert server.get("/v2/models/simple/ready").json == {"name": "simple", "ready": True}
    assert server.get("/v2/models/two_versions/versions/1/ready").status == 200


def test_the_list_of_models_is_sorted(server):
    models = server.get("/v2/models").json["models"]
    assert models == sorted(models)
    assert {"digits", "simple", "identity_fp32", "identity_bytes", "convnet", "two_versions"} <= set(models)


@pytest.mark.parametrize("path", ["/v2/models/simple", "/v2/models/simple/versions/1", "/v2/models/s%69mple/"])
def test_model_metadata(server, path):
    assert server.get(path).json == SIMPLE


def test_versions(server):
    assert server.get("/v2/models/two_versions").json["versions"] == ["1", "2"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/v2/models/nope", "Request for unknown model: 'nope' is not found"),
        ("/v2/models/nope/ready", "Request for unknown model: 'nope' is not found"),
        ("/v2/models/nope/versions/1", "Request for unknown model: 'nope' is not found"),
        ("/v2/models/simple/versions/7", "Request for unknown model: 'simple' version 7 is not found"),
        ("/v2/models/simple/versions/7/ready", "Request for unknown model: 'simple' version 7 is not found"),
        ("/v2/models/Simple", "Request for unknown model: 'Simple' is not found; did you mean 'simple'?"),
    ],
)
def test_unknown_models(server, path, sentence):
    answer = server.get(path)
    assert (answer.status, answer.error) == (404, sentence)


@pytest.mark.parametrize("path", ["/", "/v1", "/V2", "//v2", "/v2/models/..%2f..%2fetc/ready", "/v2/models/simple/x"])
def test_unknown_paths(server, path):
    for method in ("GET", "POST"):
        assert server.request(method, path).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("GET", "/v2/models/simple/infer", "POST"),
        ("DELETE", "/v2/models/simple", "GET, HEAD"),
        ("PUT", "/v2/models/simple/load", "POST"),
        ("OPTIONS", "/v2/hardware", "GET, HEAD, POST"),
    ],
)
def test_wrong_methods(server, method, path, allow):
    answer = server.request(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allow
    assert answer.error


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models", "/v2/models/simple", "/metrics", "/docs"])
def test_head_is_get_without_the_body(server, path):
    got, head = server.get(path), server.request("HEAD", path)
    assert head.status == got.status == 200
    assert head.body == b""
    assert head.headers["content-type"] == got.headers["content-type"]


def test_hardware(server):
    everything = server.get("/v2/hardware").json
    assert json.dumps(everything)
    answer = server.post("/v2/hardware", {"name": "CPU", "num": 1})
    assert answer.status == 200
    assert answer.json["name"] == "CPU"
    assert answer.json["num"] == 1
    assert answer.json["available"] >= 1
    assert server.post("/v2/hardware", {"name": "CPUExecutionProvider"}).status == 200
    too_many = server.post("/v2/hardware", {"name": "CPU", "num": 10_000})
    assert too_many.status == 404
    assert str(answer.json["available"]) in too_many.error
    for body in (None, "{", "[]", {"num": 1}, {"name": 1}, {"name": "CPU", "num": "x"}):
        assert server.post("/v2/hardware", body).status == 400


def test_openapi_and_the_page(server):
    description = server.get("/openapi.json")
    assert description.json["openapi"].startswith("3.0")
    page = server.get("/docs")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert b"http://" not in page.body.replace(b"http://127.0.0.1", b"")
    assert b"https://" not in page.body
