"""Part B9: an output's classes instead of its elements, over the socket."""

from __future__ import annotations

import json
import os
import time

import onnx_models
import pytest
from support import inference, serving, tensor

LABELS = "zero\none\n\nthree, with a comma\n"
OUTPUT = "max_batch_size = {rows}\n[[output]]\nname = 'y'\ndata_type = '{datatype}'\ndims = {dims}\n"
LABELLED = OUTPUT.format(rows=4, datatype="FP32", dims=[-1]) + "label_filename = 'labels.txt'\n"


def put_model(repository, name, model, config="", **files):
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(model)
    for file, text in {"config.toml": config, **files}.items():
        (repository / name / file).write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Identities: ``plain`` and ``labelled`` FP32 [-1,-1], ``bool``, ``bytes``, ``whole`` without batches."""
    repository = tmp_path_factory.mktemp("models")
    put_model(repository, "plain", onnx_models.identity("FP32", ("batch", "classes")))
    put_model(repository, "labelled", onnx_models.identity("FP32"), LABELLED, **{"labels.txt": LABELS})
    put_model(repository, "whole", onnx_models.identity("FP32"), "max_batch_size = 0\n")
    for datatype in ("BOOL", "BYTES", "INT32"):
        put_model(repository, datatype.lower(), onnx_models.identity(datatype))
    put_model(repository, "simple", onnx_models.simple())
    with serving(repository=repository) as running:
        yield running


def ask(server, model, shape, data, wanted=3, datatype="FP32", binary=None, **more):
    parameters = {"classification": wanted} | ({} if binary is None else {"binary_data": binary})
    wanted_outputs = [{"name": "y", "parameters": parameters}]
    return server.infer(model, inference(tensor("x", shape, datatype, data), outputs=wanted_outputs, **more))


def only_output(answer):
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    return output


def test_the_answer_to_the_letter(server):
    answer = ask(server, "plain", [2, 4], [0.125, 1, -7, 1, 2, 3, 4, 5], 2, id="7")
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == (
        b'{"model_name":"plain","model_version":"1","id":"7","outputs":[{"name":"y","datatype":"BYTES","shape":[2,2],'
        b'"data":["1.000000:1","1.000000:3","5.000000:3","4.000000:2"]}]}'
    )


def test_labels(server):
    output = only_output(ask(server, "labelled", [1, 5], [0.5, 0.1, 0.2, 0.4, 0.3], 99))
    assert output["shape"] == [1, 5]
    assert output["data"] == [
        "0.500000:0:zero", "0.400000:3:three, with a comma", "0.300000:4", "0.200000:2", "0.100000:1:one",
    ]  # fmt: skip


def test_binary_answers(server):
    data = b"".join(len(text).to_bytes(4, "little") + text for text in (b"0.200000:1:one", b"0.100000:0:zero"))
    for answer in (
        ask(server, "labelled", [1, 2], [0.1, 0.2], 2, binary=True),
        ask(server, "labelled", [1, 2], [0.1, 0.2], 2, parameters={"binary_data_output": True}),
    ):
        size = int(answer.headers["inference-header-content-length"])
        output = json.loads(answer.body[:size])["outputs"][0]
        assert output == {
            "name": "y", "datatype": "BYTES", "shape": [1, 2], "parameters": {"binary_data_size": len(data)},
        }  # fmt: skip
        assert answer.body[size:] == data


def test_shapes(server):
    assert only_output(ask(server, "plain", [3], [1, 2, 3], 2))["shape"] == [2]  # without the batch dimension
    assert only_output(ask(server, "plain", [0, 4], [], 2))["shape"] == [0, 2]
    assert only_output(ask(server, "plain", [2, 0], [], 2))["shape"] == [2, 0]
    rows = only_output(ask(server, "plain", [150, 2], [0, 1] * 150, 1))  # more than a batch
    assert (rows["shape"], rows["data"]) == ([150, 1], ["1.000000:1"] * 150)
    whole = only_output(ask(server, "whole", [2, 3], [1, 2, 3, 9, 5, 8], 2))  # as Triton: all elements are one row
    assert (whole["shape"], whole["data"]) == ([2], ["9.000000:3", "8.000000:5"])


def test_a_large_answer_is_the_same(server):
    values = [(n * 7919) % 100_003 for n in range(100_003)]
    output = only_output(ask(server, "plain", [1, len(values)], values, 10_000))
    order = sorted(range(len(values)), key=lambda i: -values[i])[:10_000]
    assert output["data"] == [f"{values[i]:.6f}:{i}" for i in order]


def test_classes_beside_elements(server):
    pair = [tensor(f"INPUT{i}", [1, 16], "INT32", list(range(16))) for i in (0, 1)]
    wanted = [{"name": "OUTPUT1", "parameters": {"classification": 3}}, {"name": "OUTPUT0"}]
    first, second = server.infer("simple", inference(*pair, outputs=wanted)).json["outputs"]
    assert (first["name"], first["data"]) == ("OUTPUT1", ["0:0", "0:1", "0:2"])
    assert (second["name"], second["datatype"], second["data"]) == ("OUTPUT0", "INT32", list(range(0, 32, 2)))


@pytest.mark.parametrize("wanted", [0, -1, 1.5, "3", True, {}, [3]])
def test_the_number_of_classes_is_positive(server, wanted):
    answer = ask(server, "plain", [1, 2], [1, 2], wanted)
    assert answer.status == 400
    assert answer.error.startswith("outputs[0].parameters.classification: ")
    assert answer.error.endswith("is not a positive integer")


@pytest.mark.parametrize(("model", "data"), [("bool", [True]), ("bytes", ["x"])])
def test_what_has_no_order_is_refused(server, model, data):
    answer = ask(server, model, [1, 1], data, 1, datatype=model.upper())
    assert (answer.status, answer.error) == (
        400,
        f"class result not available for output 'y' due to unsupported type '{model.upper()}'",
    )


def test_chains_answer_with_the_last_stages_labels(server):
    assert server.post("/v2/models/plain/load", {"next": "labelled"}).status == 200
    assert only_output(ask(server, "plain-0", [2], [1, 2], 1)) == {
        "name": "y", "datatype": "BYTES", "shape": [1], "data": ["2.000000:1:one"],
    }  # fmt: skip
    assert only_output(ask(server, "plain-0", [2, 2], [1, 2, 4, 3], 1))["data"] == ["2.000000:1:one", "4.000000:0:zero"]
    # A stage without batches makes one row of everything.
    assert server.post("/v2/models/labelled/load", {"next": "whole"}).status == 200
    assert only_output(ask(server, "labelled-0", [2, 2], [1, 2, 4, 3], 1))["data"] == ["4.000000:2"]
    assert server.post("/v2/models/plain/load", {"next": "labelled-0"}).json["name"] == "plain-1"
    assert only_output(ask(server, "plain-1", [2, 2], [1, 2, 4, 3], 1))["data"] == ["4.000000:2"]
    # Its answers have no batch dimension that could be left out.
    item = inference(tensor("x", [2], "FP32", [1, 2]))
    assert only_output(server.infer("plain-1", item))["shape"] == only_output(server.infer("labelled-0", item))["shape"]


def test_a_worker_that_takes_anything(server):
    assert server.post("/v2/workers/fake/load").status == 200
    wanted = [{"name": "x", "parameters": {"classification": 1}}]
    output = only_output(server.infer("fake", inference(tensor("x", [2, 2], "UINT8", [1, 2, 4, 3]), outputs=wanted)))
    assert (output["shape"], output["data"]) == ([1], ["4:2"])
    refused = server.infer("fake", inference(tensor("x", [1], "BOOL", [True]), outputs=wanted))
    assert (refused.status, "unsupported type 'BOOL'" in refused.error) == (400, True)


# --- Label files ------------------------------------------------------------------------------------------------------


def refusal(server, name="m"):
    answer = server.post(f"/v2/models/{name}/load")
    assert answer.status == 400
    return answer.error


def test_a_label_file_that_will_not_do_fails_the_load(tmp_path):
    repository = tmp_path / "models"
    put_model(repository, "m", onnx_models.identity("FP32"), LABELLED)
    labels = repository / "m" / "labels.txt"
    start = "model 'm': the labels of output 'y': labels.txt"
    with serving("--load", "none", repository=repository) as server:
        assert refusal(server) == f"{start}: cannot be read: No such file or directory"
        labels.write_bytes(b"cat\n\xff\n")
        assert refusal(server) == f"{start}, line 2: is not UTF-8 text"
        with labels.open("wb") as file:
            file.truncate(16 * 1024 * 1024 + 1)
        assert refusal(server) == f"{start}: is larger than 16 MiB"
        for line in (b"x" * 1025, b"x" * 1025 + b"\n", b"x" * (10 << 20)):
            labels.write_bytes(b"cat\n" + line)
            assert refusal(server) == f"{start}, line 2: is longer than 1 KiB"
        labels.write_bytes(b"\n" * 1_000_001)
        assert refusal(server) == f"{start}, line 1000001: is one more than there may be"
        labels.unlink()
        labels.mkdir()
        assert refusal(server) == f"{start}: is not a regular file"
        labels.rmdir()
        os.mkfifo(labels)
        assert refusal(server) == f"{start}: is not a regular file"
        labels.unlink()
        (tmp_path / "secret.txt").write_text("secret\n")
        labels.symlink_to(tmp_path / "secret.txt")
        assert refusal(server) == f"{start}: leads out of the model's directory"
        labels.unlink()
        labels.symlink_to("labels.txt")
        assert refusal(server) == f"{start}: cannot be read: Too many levels of symbolic links"
        labels.unlink()
        (repository / "m" / "names").mkdir()
        (repository / "m" / "names" / "en.txt").write_text("cat\r\ndog\r\n")
        labels.symlink_to("names/en.txt")
        assert server.post("/v2/models/m/load").status == 200
        assert only_output(ask(server, "m", [1, 2], [1, 2], 2))["data"] == ["2.000000:1:dog", "1.000000:0:cat"]
        config = {
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1], "label_filename": "../m/labels.txt"}]
        }
        answer = server.post("/v2/models/m/load", {"parameters": {"config": json.dumps(config)}})
        assert (answer.status, "without a directory" in answer.error) == (400, True)


def test_changed_labels_are_swapped_in_and_broken_ones_are_not(tmp_path):
    put_model(tmp_path, "m", onnx_models.identity("FP32"), LABELLED, **{"labels.txt": "cat"})
    labels = tmp_path / "m" / "labels.txt"
    with serving(repository=tmp_path) as server:

        def best():
            return only_output(ask(server, "m", [1, 1], [1], 1))["data"]

        labels.write_text("dog")
        assert best() == ["1.000000:0:cat"]
        assert server.post("/v2/models/m/load").status == 200
        assert best() == ["1.000000:0:dog"]
        labels.write_bytes(b"\xff")
        assert "is not UTF-8 text" in refusal(server)
        assert best() == ["1.000000:0:dog"]


def test_a_poll_follows_label_files(tmp_path):
    put_model(tmp_path, "m", onnx_models.identity("FP32"), LABELLED, **{"labels.txt": "cat"})
    with serving("--model-control", "poll", "--poll-interval-s", "0.1", repository=tmp_path) as server:
        (tmp_path / "m" / "labels.txt").write_text("a dog")
        deadline = time.monotonic() + 20
        while only_output(ask(server, "m", [1, 1], [1], 1))["data"] != ["1.000000:0:a dog"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
