"""``content_type`` of an input, and null for what is not there, as clients of MLServer, Jackson and pydantic write."""

import base64
import io
import json
import struct
from itertools import permutations

import numpy as np
import onnx_models
import pytest
from PIL import Image
from support import inference, serving, tensor

ELEMENTS = [b"", b"\x00\xff", b"abc", b"x" * 1000]
BASE64 = {"content_type": "base64"}


def text_of(element):
    return base64.b64encode(element).decode()


def binary(datatype, shape, size, **parameters):
    return {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size, **parameters}}


def elements_of(answer):
    """The elements of a BYTES output that was asked for as bytes."""
    assert answer.status == 200, answer.body
    raw = answer.body[int(answer.headers["inference-header-content-length"]) :]
    found = []
    while raw:
        (size,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return found


@pytest.fixture(scope="module", params=["literal", "null"])
def server(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    models = {
        name.lower(): onnx_models.identity(name, ("batch",)) for name in ("BYTES", "FP16", "BF16", "FP32", "FP64")
    }
    for name, model in {**models, "int8": onnx_models.identity("INT8", ("batch",))}.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
    options = ("--json-nonfinite", request.param, "--off-loop-bytes", "4096")
    with serving(*options, repository=directory) as running:
        running.nonfinite = request.param
        yield running


@pytest.mark.parametrize("keys", [*permutations(["datatype", "parameters", "data"])])
@pytest.mark.parametrize("count", [1, 20])  # on the loop's thread, and on a native one
def test_base64_is_decoded(server, keys, count):
    elements = ELEMENTS[:3] if count == 1 else ELEMENTS * count
    data = [text_of(each) for each in elements]
    members = {"datatype": "BYTES", "parameters": BASE64, "data": data}
    entry = {"name": "x", **{key: members[key] for key in keys}, "shape": [len(elements)]}
    assert elements_of(server.infer("bytes", inference(entry, parameters={"binary_data_output": True}))) == elements


@pytest.mark.parametrize("size", [8, 8192])
def test_text_that_is_not_base64_is_refused_by_place(server, size):
    data = ["QUJD", "A" * size, "QUJD!", "QUJD"]
    answer = server.infer("bytes", inference(tensor("x", [4], "BYTES", data, parameters=BASE64)))
    assert (answer.status, answer.error) == (400, 'inputs[0].data[2]: "QUJD!" is not base64 text')
    answer = server.infer("bytes", inference(tensor("x", [4], "BYTES", data)))
    assert answer.json["outputs"][0]["data"] == data


def test_a_content_type_matters_to_bytes_in_json_only(server):
    for content_type in ("np", "str", "hg_str", "pd", "datetime"):
        entry = tensor("x", [1], "BYTES", ["QUJD"], parameters={"content_type": content_type})
        assert server.infer("bytes", inference(entry)).json["outputs"][0]["data"] == ["QUJD"]
    entry = tensor("x", [1], "BYTES", ["QUJD"], parameters={"content_type": "text/plain"})
    answer = server.infer("bytes", inference(entry))
    assert (answer.status, '"text/plain" is not a content type' in answer.error) == (400, True)
    entry = tensor("x", [2], "INT8", [1, 2], parameters={"content_type": "text/plain"})
    assert server.infer("int8", inference(entry)).json["outputs"][0]["data"] == [1, 2]
    head = json.dumps(inference(binary("BYTES", [1], 8, **BASE64))).encode()
    header = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.post("/v2/models/bytes/infer", head + b"\4\0\0\0QUJD", **header)
    assert (answer.status, "content_type" in answer.error) == (400, True)


def test_null_is_absent(server):
    entry = tensor("x", [1], "INT8", [5], parameters=None)
    body = inference(entry, id=None, parameters=None, outputs=None)
    assert server.infer("int8", body).body == server.infer("int8", inference(tensor("x", [1], "INT8", [5]))).body
    names = "timeout priority sequence_id sequence_start sequence_end binary_data_output shared_memory_region"
    body["parameters"] = dict.fromkeys(names.split())
    body["outputs"] = [{"name": "y", "parameters": {"binary_data": None, "classification": None}}]
    entry["parameters"] = {"binary_data_size": None, "content_type": None}
    assert server.infer("int8", body).json["outputs"][0]["data"] == [5]
    head = json.dumps({"inputs": [{**binary("INT8", [2], 2), "data": None}]}).encode()
    answer = server.post("/v2/models/int8/infer", head + b"\1\2", **{"Inference-Header-Content-Length": str(len(head))})
    assert answer.json["outputs"][0]["data"] == [1, 2]


@pytest.mark.parametrize("key", ["name", "shape", "datatype", "data"])
def test_what_may_not_be_null(server, key):
    answer = server.infer("int8", inference({**tensor("x", [1], "INT8", [5]), key: None}))
    assert (answer.status, answer.error.startswith("inputs[0]")) == (400, True)
    answer = server.infer("int8", {"inputs": None})
    assert (answer.status, answer.error) == (400, "'inputs' must be an array")


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("count", [3, 5000])
def test_an_answer_can_be_sent_back_as_it_was_written(server, datatype, count):
    written = inference(tensor("x", [count], datatype, ([1.5, float("nan"), -0.0] * count)[:count]))
    first = server.infer(datatype.lower(), written)
    assert (b"null" in first.body) == (server.nonfinite == "null")
    (output,) = first.json["outputs"]
    again = server.infer(datatype.lower(), inference({**output, "name": "x"}))
    assert again.body == first.body
    nulls = server.infer(datatype.lower(), inference(tensor("x", [count], datatype, [None] * count)))
    if server.nonfinite == "literal":
        assert (nulls.status, nulls.error) == (400, "inputs[0].data[0]: null is not a number")
    else:
        assert nulls.json["outputs"][0]["data"] == [None] * count


def test_the_worker_that_takes_base64_text_gets_it_either_way(own_server):
    own_server.load("workers/base64_decode")
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    text = text_of(file.getvalue())
    for parameters in ({}, BASE64, {"content_type": "str"}):
        for shape in ([1], [len(text)]):
            entry = tensor("input", shape, "BYTES", [text], parameters=parameters)
            (output,) = own_server.infer("base64_decode", inference(entry)).json["outputs"]
            assert output["data"] == image.reshape(-1).tolist()
    entry = tensor("input", [1], "BYTES", ["no text"], parameters=BASE64)
    answer = own_server.infer("base64_decode", inference(entry))
    assert (answer.status, answer.error) == (400, "inputs[0].data[0] is not base64 text")


def test_null_is_absent_in_control_requests(own_server):
    for body in (
        None,
        "null",
        {"parameters": None},
        {"share": None},
        {"parameters": {"batch_size": None, "any": None}},
    ):
        assert own_server.post("/v2/models/simple/load", body).json == {"name": "simple", "load": True}
        assert own_server.post("/v2/repository/models/simple/load", body).json == {"name": "simple", "load": True}
    for body in (None, "null", {"ready": None}, {"ready": None, "else": None}):
        index = own_server.post("/v2/repository/index", body).json
        assert "UNAVAILABLE" in [each["state"] for each in index]
    for body in ({"parameters": {"unload_dependents": None}}, {"parameters": None}, "null"):
        assert own_server.post("/v2/models/simple/unload", body).status == 200
    for body in ({"parameters": {"share": []}}, {"parameters": {"share": [None]}}, "[null]"):
        assert own_server.post("/v2/models/simple/load", body).status == 400
