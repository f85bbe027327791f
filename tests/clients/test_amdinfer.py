"""The HttpClient of the AMD Inference Server, replayed: its library cannot be installed by pip.

What it writes is written here as it does: the heads of its HTTP library (drogon: names in lower case, one connection
for all) and the texts of its JSON library (jsoncpp: keys in the order of the alphabet, so ``data`` before ``datatype``
and ``shape``; a float as the double that it is; ``null`` where nothing was put in).
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
from http.client import HTTPResponse

import numpy as np
import onnx_models
import pytest
from clients.support import DATATYPES, add_identities, add_model
from PIL import Image
from support import serving

OWN_DATATYPES = [each for each in DATATYPES if each != "BF16"]  # it knows no other


class BadStatus(Exception):
    """What its methods throw for every status but 200: the text is the body."""


class HttpClient:
    """Its methods, under their names."""

    def __init__(self, server):
        self._host = f"127.0.0.1:{server.port}"
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)

    def close(self):
        self._socket.close()

    def exchange(self, method, path, content=None):
        head = f"{method} {path} HTTP/1.1\r\n"
        if content is not None:
            head += f"content-length: {len(content)}\r\ncontent-type: application/json; charset=utf-8\r\n"
        head += f"connection: Keep-Alive\r\nhost: {self._host}\r\nuser-agent: DrogonClient\r\n\r\n"
        self._socket.sendall(head.encode() + (content or b""))
        with HTTPResponse(self._socket, method=method) as response:
            response.begin()
            assert not response.will_close
            return response.status, response.getheader("content-type"), response.read()

    def get(self, path):
        return self.exchange("GET", path)

    def post(self, path, value):
        status, _, body = self.exchange("POST", path, as_jsoncpp_writes(value))
        if status != 200:
            raise BadStatus(body.decode())
        return body.decode()

    def is_ok(self, path):
        return self.get(path)[0] == 200

    def json_of(self, path):
        status, content_type, body = self.get(path)
        if status != 200:
            raise BadStatus(body.decode())
        assert content_type == "application/json"
        return json.loads(body)

    def server_metadata(self):
        return self.json_of("/v2")

    def server_live(self):
        return self.is_ok("/v2/health/live")

    def server_ready(self):
        return self.is_ok("/v2/health/ready")

    def model_ready(self, model):
        return self.is_ok(f"/v2/models/{model}/ready")

    def model_metadata(self, model):
        return self.json_of(f"/v2/models/{model}")

    def model_list(self):
        return self.json_of("/v2/models")["models"]

    def model_load(self, model, parameters=None, family="/v2/repository/models"):
        self.post(f"{family}/{model}/load", parameters or {})

    def model_unload(self, model, family="/v2/repository/models"):
        self.post(f"{family}/{model}/unload", None)

    def worker_load(self, worker, parameters=None):
        return self.post(f"/v2/workers/{worker}/load", parameters or {})

    def worker_unload(self, worker):
        self.post(f"/v2/workers/{worker}/unload", None)

    def has_hardware(self, name, num):
        return self.exchange("POST", "/v2/hardware", as_jsoncpp_writes({"name": name, "num": num}))[0] == 200

    def model_infer(self, model, *inputs, id="", parameters=None):
        """Inputs are ``(name, datatype, shape, values)``; a text of BYTES is one value of one element for each byte."""
        parameters = parameters or {}
        asked = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters, "data": values}
            for name, datatype, shape, values in inputs
        ]
        request = {"id": id, "parameters": parameters, "inputs": asked}
        answer = json.loads(self.post(f"/v2/models/{model}/infer", request))
        for output in answer["outputs"]:
            assert isinstance(output["data"], list)
            assert all(size >= 0 for size in output["shape"])
            if output["datatype"] == "BYTES":
                assert len(output["data"]) == 1
        return answer


def as_jsoncpp_writes(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    add_identities(repository)
    add_model(repository, "simple", onnx_models.simple())
    return repository


@pytest.fixture
def client(repository):
    """On a server of its own, since its calls load and unload; nothing is loaded, as AMD's is started."""
    with serving("--load", "none", repository=repository) as server, contextlib.closing(HttpClient(server)) as client:
        yield client


def first(answer):
    return answer["outputs"][0]["data"]


def test_the_server(client):
    assert client.server_live()
    assert client.server_ready()
    metadata = client.server_metadata()
    assert (metadata["name"], type(metadata["version"])) == ("fastinfer", str)
    assert all(type(extension) is str for extension in metadata["extensions"])
    assert client.model_list() == []


def test_hardware(client):
    assert client.has_hardware("CPU", 1)
    assert not client.has_hardware("CPU", 100_000)
    assert not client.has_hardware("DPUCADF8H", 1)


def test_loads_of_workers(client):
    """The client's own test of loads, step by step."""
    parameters = {"model": "echo"}
    assert client.worker_load("cplusplus", parameters) == "cplusplus"
    assert client.worker_load("cplusplus", parameters) == "cplusplus"
    parameters["max_buffer_num"] = 100
    assert client.worker_load("cplusplus", parameters) == "cplusplus-0"
    parameters["share"] = False
    assert client.worker_load("cplusplus", parameters) == "cplusplus-0"
    assert client.model_ready("cplusplus")
    assert client.model_ready("cplusplus-0")
    assert client.model_list() == ["cplusplus", "cplusplus-0"]
    for endpoint in ("cplusplus", "cplusplus", "cplusplus-0", "cplusplus-0"):
        client.model_unload(endpoint)
    assert not client.model_ready("cplusplus")
    assert not client.model_ready("cplusplus-0")
    assert client.model_list() == []


def test_a_worker_is_loaded_in_plain_text(client):
    _, content_type, body = client.exchange("POST", "/v2/workers/echo/load", b"{}")
    assert (content_type.partition(";")[0], body) == ("text/html", b"echo")
    client.worker_unload("echo")
    client.worker_unload("echo")
    assert not client.model_ready("echo")


@pytest.mark.parametrize("family", ["/v2/models", "/v2/repository/models"])
def test_loads_of_models(client, family):
    assert not client.model_ready("simple")
    client.model_load("simple", family=family)
    client.model_load("simple", {"timeout": 5, "batch_size": 4, "share": True}, family=family)
    assert client.model_list() == ["simple", "simple-0"]
    for endpoint in ("simple", "simple-0", "simple-0", "nobody"):
        client.model_unload(endpoint, family=family)
    assert client.model_list() == []


@pytest.mark.parametrize("family", ["/v2/models", "/v2/repository/models", "/v2/workers"])
def test_a_load_that_fails(client, family):
    with pytest.raises(BadStatus, match=r'^\{"error":".*nobody'):
        client.model_load("nobody", family=family)
    with pytest.raises(BadStatus, match=r'^\{"error":".*batch_size'):
        client.model_load("echo" if family == "/v2/workers" else "simple", {"batch_size": 0}, family=family)


def test_metadata(client):
    client.model_load("simple")
    metadata = client.model_metadata("simple")
    assert (metadata["name"], metadata["platform"]) == ("simple", "onnxruntime_onnx")
    for tensor in metadata["inputs"] + metadata["outputs"]:
        assert (tensor["datatype"], tensor["shape"]) == ("INT32", [-1, 16])


def test_echo(client):
    """The client's own test of an inference: the input has no name."""
    endpoint = client.worker_load("echo")
    answer = client.model_infer(endpoint, ("", "UINT32", [1], [1]))
    (output,) = answer["outputs"]
    assert (output["datatype"], output["shape"], output["data"]) == ("UINT32", [1], [2])
    assert (answer["model_name"], "id" in answer) == ("echo", False)


def test_an_id_and_parameters(client):
    endpoint = client.worker_load("echo")
    parameters = {"key": "value", "key2": 1, "key3": True, "key4": 1.2}
    answer = client.model_infer(endpoint, ("echo", "UINT32", [1], [3]), id="hello_world", parameters=parameters)
    assert (answer["id"], first(answer)) == ("hello_world", [4])


def test_echo_multi(client):
    """The client's own test: two inputs of the same name."""
    endpoint = client.worker_load("cplusplus", {"model": "echo_multi", "batch_size": 2, "timeout": 1000})
    inputs = [("echoMulti0", "UINT32", [len(values)], values) for values in ([3], [2, 7])]
    outputs = client.model_infer(endpoint, *inputs)["outputs"]
    assert [each["data"] for each in outputs] == [[3], [2, 7, 3, 2], [7, 3, 2]]


@pytest.mark.parametrize("datatype", OWN_DATATYPES)
def test_items_without_the_batch_dimension(client, datatype):
    model = f"identity_{datatype.lower()}"
    client.model_load(model)
    if datatype == "BYTES":
        shape, values = [11], ["hello world"]
    elif datatype == "BOOL":
        shape, values = [2], [True, False]
    elif datatype.startswith("FP"):
        dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[datatype]
        shape, values = [3], [float(dtype(text)) for text in ("0.1", "-2.5", "1e-7")]
    else:
        largest = np.iinfo(datatype.lower()).max
        shape, values = [3], [0, 1, int(largest)]
    (output,) = client.model_infer(model, ("x", datatype, shape, values))["outputs"]
    assert output["shape"] == ([1] if datatype == "BYTES" else shape)
    if datatype.startswith("FP"):
        assert [float(dtype(each)) for each in output["data"]] == values
    else:
        assert output["data"] == values


def test_an_image_as_a_tensor(client):
    endpoint = client.worker_load("invert_image")
    pixels = list(range(2 * 3 * 3))
    (output,) = client.model_infer(endpoint, ("image", "UINT8", [2, 3, 3], pixels))["outputs"]
    assert (output["shape"], output["data"]) == ([2, 3, 3], [255 - each for each in pixels])


def test_an_ensemble_of_workers(client):
    """Loaded from the last to the first, each with its successor; the picture travels as base64 text."""
    last = client.worker_load("base64_encode")
    inner = client.worker_load("invert_image", {"next": last})
    endpoint = client.worker_load("base64_decode", {"next": inner})
    picture = io.BytesIO()
    Image.new("RGB", (2, 1), (1, 2, 3)).save(picture, "PNG")
    text = base64.b64encode(picture.getvalue()).decode()
    (output,) = client.model_infer(endpoint, ("", "BYTES", [len(text)], [text]))["outputs"]
    answered = Image.open(io.BytesIO(base64.b64decode(output["data"][0])))
    assert (answered.size, answered.getpixel((1, 0))) == ((2, 1), (254, 253, 252))


@pytest.mark.parametrize(
    ("model", "values", "sentence"),
    [
        ("nobody", [("x", "FP32", [1], [1.0])], "Request for unknown model: 'nobody' is not found"),
        ("simple", [("INPUT0", "INT32", [16], [0] * 16)], "expected 2 inputs but got 1 inputs for model 'simple'"),
        ("simple", [("INPUT0", "INT32", [16], [0] * 15)], "inputs[0].data"),
    ],
)
def test_an_inference_that_fails(client, model, values, sentence):
    client.model_load("simple")
    with pytest.raises(BadStatus) as raised:
        client.model_infer(model, *values)
    assert sentence in json.loads(str(raised.value))["error"]
