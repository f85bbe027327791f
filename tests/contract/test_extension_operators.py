"""Models with operators of onnxruntime-extensions: a text or a JPEG file goes in, an embedding or a class comes out."""

import io
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from native_libraries import custom
from PIL import Image
from support import inference, serving, tensor

from bench.make_models import EXTENDED, make

pytestmark = pytest.mark.skipif(find_spec("onnxruntime_extensions") is None, reason="needs onnxruntime-extensions")

TEXTS = ["Hello, unaffable world", "the cat sat on the mat " * 20, "", "ganz fremde Wörter \u4f60\u597d"]


def jpeg(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("extended")
    make(root, list(EXTENDED))
    return root


@pytest.fixture(scope="module")
def server(repository):
    with serving(repository=repository) as running:
        yield running


@pytest.fixture(scope="module")
def engine(repository):
    """Runs a model with ONNX Runtime's own package."""
    import onnxruntime
    import onnxruntime_extensions

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())

    def run(name, feed):
        path = repository / name / "1" / "model.onnx"
        return onnxruntime.InferenceSession(str(path), options).run(None, feed)

    return run


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_becomes_an_embedding(server, engine, text):
    answer = server.infer("text_embedding", inference(tensor("text", [1], "BYTES", [text]))).json["outputs"][0]
    assert answer["shape"] == [1, 256]
    (expected,) = engine("text_embedding", {"text": np.array([text], object)})
    assert np.array_equal(np.array(answer["data"], np.float32), expected[0])


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (33, 9)])
def test_a_jpeg_file_becomes_a_class(server, engine, size):
    content = jpeg(*size)
    body = '{"inputs":[{"name":"image","shape":[%d],"datatype":"UINT8","parameters":{"binary_data_size":%d}}]}'
    head = (body % (len(content), len(content))).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.request("POST", "/v2/models/jpeg_classifier/infer", head + content, headers)
    outputs = {each["name"]: each["data"] for each in answer.json["outputs"]}
    kind, scores = engine("jpeg_classifier", {"image": np.frombuffer(content, np.uint8)})
    assert outputs["class"] == kind.tolist()
    assert np.array_equal(np.array(outputs["scores"], np.float32), scores[0])


@pytest.mark.parametrize("content", [b"", b"no image", jpeg(64, 48)[:400], jpeg(64, 48)[:20]])
def test_what_is_no_jpeg_file_is_one_failed_request(server, content):
    body = inference(tensor("image", [len(content)], "UINT8", list(content)))
    assert server.infer("jpeg_classifier", body).status in (200, 400, 500)  # libjpeg fills what is cut off
    good = list(jpeg(64, 48))
    assert server.infer("jpeg_classifier", inference(tensor("image", [len(good)], "UINT8", good))).status == 200


def test_they_are_not_batched_and_the_package_is_not_imported(server):
    assert server.get("/v2/models/text_embedding/config").json["max_batch_size"] == 0
    maps = subprocess.check_output(["cat", f"/proc/{server.serving_pids()[0]}/maps"], text=True)
    assert "_extensions_pydll" in maps
    assert "onnxruntime_pybind11_state" not in maps


def test_protobuf_text_has_the_parameter(tmp_path):
    make(tmp_path, ["text_embedding"])
    (tmp_path / "text_embedding" / "config.toml").unlink()
    config = 'parameters { key: "extensions" value { string_value: "true" } }'
    (tmp_path / "text_embedding" / "config.pbtxt").write_text(config)
    with serving(repository=tmp_path) as server:
        assert server.infer("text_embedding", inference(tensor("text", [1], "BYTES", ["hello"]))).status == 200


def test_an_operator_that_the_package_does_not_have(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(custom("Nothing", "ai.onnx.contrib"))
    (tmp_path / "m" / "config.toml").write_text("extensions = true")
    command = [sys.executable, "-m", "fastinfer", "check", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert "the installed version of onnxruntime-extensions does not have it" in result.stdout
