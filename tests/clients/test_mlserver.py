"""`mlserver infer`: a file of requests, one a line, sent by several workers; a file of answers."""

from __future__ import annotations

import json

import onnx_models
import pytest
from clients.support import DATATYPES, MLSERVER, add_model
from support import inference, serving, tensor

ROW = list(range(16))
NUMPY_DATATYPES = [each for each in DATATYPES if each != "BF16"]  # MLServer's protocol does not have it


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    add_model(repository, "identities", onnx_models.identities({each.lower(): each for each in NUMPY_DATATYPES}))
    add_model(repository, "simple", onnx_models.simple(), "max_batch_size = 8")
    with serving(repository=repository) as running:
        yield running


@pytest.fixture
def infer(server, tmp_path):
    """Sends requests to a model; answers by the place of their request in the file."""

    def infer(model, requests, *options):
        asked, answered = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
        asked.write_text("".join(json.dumps(each) + "\n" for each in requests))
        files = ("-i", str(asked), "-o", str(answered))
        done = MLSERVER.run("mlserver", "infer", "-u", f"127.0.0.1:{server.port}", "-m", model, *files, *options)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in answered.read_text().splitlines()]
        by_place = {each["parameters"]["batch_index"]: each for each in answers}
        assert len(by_place) == len(answers) == len(requests), done.stdout
        return [by_place[place] for place in range(len(requests))]

    return infer


def pair(number):
    return inference(
        tensor("INPUT0", [1, 16], "INT32", ROW),
        tensor("INPUT1", [1, 16], "INT32", [number] * 16),
        id=f"request {number}",
    )


def outputs(answer):
    assert "outputs" in answer, answer
    return {each["name"]: each["data"] for each in answer["outputs"]}


@pytest.mark.parametrize("options", [(), ("-w", "4", "-s", "8"), ("-b",), ("-b", "-s", "3")], ids=" ".join)
def test_a_file_of_requests(infer, options):
    answers = infer("simple", [pair(number) for number in range(50)], *options)
    for number, answer in enumerate(answers):
        assert (answer["id"], answer["model_name"]) == (f"request {number}", "simple")
        assert outputs(answer) == {"OUTPUT0": [n + number for n in ROW], "OUTPUT1": [n - number for n in ROW]}


@pytest.mark.parametrize("options", [(), ("-b",)], ids=["json", "binary"])
def test_every_datatype(infer, options):
    data = {datatype: [1, 100] for datatype in NUMPY_DATATYPES} | {"BOOL": [True, False], "BYTES": ["a", "zwölf"]}
    asked = inference(*(tensor(each.lower(), [1, 2], each, data[each]) for each in NUMPY_DATATYPES))
    (answer,) = infer("identities", [asked], *options)
    for datatype, output in zip(NUMPY_DATATYPES, answer["outputs"], strict=True):
        assert (output["name"], output["datatype"]) == (f"same {datatype.lower()}", datatype)
        assert (output["shape"], output["data"]) == ([1, 2], data[datatype])


def test_header_fields_of_ones_own(infer):
    (answer,) = infer("simple", [pair(3)], "-H", "x-tenant: nobody", "-H", "accept: */*")
    assert outputs(answer)["OUTPUT1"][3] == 0


def test_a_refused_request_leaves_the_others_alone(infer):
    refused = inference(tensor("INPUT0", [1, 16], "FP32", ROW), tensor("INPUT1", [1, 16], "INT32", ROW))
    first, second, third = infer("simple", [pair(1), refused, pair(2)], "-r", "1")
    assert outputs(first)["OUTPUT0"] == [n + 1 for n in ROW]
    assert "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'" in second["error"]["msg"]
    assert outputs(third)["OUTPUT0"] == [n + 2 for n in ROW]


def test_an_unknown_model(infer):
    (answer,) = infer("nobody", [pair(1)], "-r", "1")
    assert "Request for unknown model: 'nobody' is not found" in answer["error"]["msg"]
