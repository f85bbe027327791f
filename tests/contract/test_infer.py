"""Part A2: inference over the socket, with the bundled models."""

import itertools
import json
import random
import socket

import onnx_models
import pytest
from onnx import helper
from support import REPOSITORY, exchange, inference, serving, tensor

ROW = list(range(16))
ONES = [1] * 16
PAIR = (tensor("INPUT0", [1, 16], "INT32", ROW), tensor("INPUT1", [1, 16], "INT32", ONES))
DEEP = b"[" * 100_000 + b"]" * 100_000
SUMS, DIFFERENCES = [n + 1 for n in ROW], [n - 1 for n in ROW]


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def test_the_answer_to_the_letter(server):
    answer = server.infer("simple", inference(*PAIR, id="42"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert (
        answer.body
        == (
            '{"model_name":"simple","model_version":"1","id":"42","outputs":['
            f'{{"name":"OUTPUT0","datatype":"INT32","shape":[1,16],"data":{compact(SUMS)}}},'
            f'{{"name":"OUTPUT1","datatype":"INT32","shape":[1,16],"data":{compact(DIFFERENCES)}}}'
            "]}"
        ).encode()
    )


def test_the_sample_digit(server):
    sample = (REPOSITORY / "digits" / "sample.json").read_bytes()
    outputs = {output["name"]: output for output in server.infer("digits", sample).json["outputs"]}
    scores = outputs["probabilities"]["data"]
    assert scores.index(max(scores)) == outputs["label"]["data"][0]
    assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_keys_may_come_in_any_order(server):
    for order in itertools.permutations(["name", "shape", "datatype", "data"]):
        inputs = [{key: each[key] for key in order} for each in PAIR]
        assert server.infer("simple", inference(*inputs)).json["outputs"][0]["data"] == SUMS
    for order in itertools.permutations(["id", "inputs", "outputs", "parameters"]):
        whole = {"id": "x", "inputs": list(PAIR), "outputs": [], "parameters": {}}
        answer = server.infer("simple", {key: whole[key] for key in order}).json
        assert (answer["id"], answer["outputs"][1]["data"]) == ("x", DIFFERENCES)


def test_inputs_may_come_in_any_order(server):
    assert server.infer("simple", inference(*reversed(PAIR))).json["outputs"][1]["data"] == DIFFERENCES


def test_nested_and_flat_are_the_same(server):
    nested = inference(tensor("INPUT0", [2, 16], "INT32", [ROW, ROW]), tensor("INPUT1", [2, 16], "INT32", ONES + ONES))
    answer = server.infer("simple", nested).json
    assert answer["outputs"][0]["shape"] == [2, 16]
    assert answer["outputs"][0]["data"] == SUMS + SUMS


def test_the_batch_dimension_may_be_left_out(server):
    flat = inference(tensor("INPUT0", [16], "INT32", ROW), tensor("INPUT1", [16], "INT32", ONES))
    answer = server.infer("simple", flat).json
    assert [output["shape"] for output in answer["outputs"]] == [[16], [16]]
    assert answer["outputs"][0]["data"] == SUMS


def test_zero_rows(server):
    empty = inference(tensor("INPUT0", [0, 16], "INT32", []), tensor("INPUT1", [0, 16], "INT32", []))
    answer = server.infer("simple", empty).json
    assert [(output["shape"], output["data"]) for output in answer["outputs"]] == [([0, 16], []), ([0, 16], [])]
    answer = server.infer("identity_fp32", inference(tensor("INPUT0", [0, 3], "FP32", []))).json
    assert (answer["outputs"][0]["shape"], answer["outputs"][0]["data"]) == ([0, 3], [])


def test_a_row_without_elements(server):
    answer = server.infer("identity_fp32", inference(tensor("INPUT0", [2, 0], "FP32", []))).json
    assert (answer["outputs"][0]["shape"], answer["outputs"][0]["data"]) == ([2, 0], [])


def test_more_rows_than_a_batch_holds_are_run_in_slices(server):
    rows = 150
    data = [[n + 16 * row for n in ROW] for row in range(rows)]
    big = inference(tensor("INPUT0", [rows, 16], "INT32", data), tensor("INPUT1", [rows, 16], "INT32", [ONES] * rows))
    answer = server.infer("simple", big).json
    assert answer["outputs"][0]["shape"] == [rows, 16]
    assert answer["outputs"][0]["data"] == [n + 1 for row in data for n in row]


def test_wanted_outputs(server):
    answer = server.infer("simple", inference(*PAIR, outputs=[{"name": "OUTPUT1"}])).json
    assert [output["name"] for output in answer["outputs"]] == ["OUTPUT1"]
    answer = server.infer("simple", inference(*PAIR, outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0"}])).json
    assert [output["data"] for output in answer["outputs"]] == [DIFFERENCES, SUMS]


def test_versions(server):
    body = json.dumps(inference(tensor(*two_versions_input(server))))
    first, second = (server.infer("two_versions", body, version).json for version in ("1", "2"))
    assert (first["model_version"], second["model_version"]) == ("1", "2")
    assert first["outputs"] != second["outputs"]
    assert server.infer("two_versions", body).json == second


def two_versions_input(server):
    spec = server.get("/v2/models/two_versions").json["inputs"][0]
    shape = [1 if dim < 0 else dim for dim in spec["shape"]]
    count = 1
    for dim in shape:
        count *= dim
    return spec["name"], shape, spec["datatype"], [2] * count


@pytest.mark.parametrize(
    "texts",
    [["a", "é", ""], ['"\\\n\u0000', "\U0001f600"], ["x" * 100_000], [""] * 300],
    ids=["few", "odd", "long", "many"],
)
def test_text(server, texts):
    name = server.get("/v2/models/identity_bytes").json["inputs"][0]["name"]
    answer = server.infer("identity_bytes", inference(tensor(name, [1, len(texts)], "BYTES", texts))).json
    assert answer["outputs"][0]["data"] == texts


def test_one_string_with_its_length_as_the_shape(server):
    name = server.get("/v2/models/identity_bytes").json["inputs"][0]["name"]
    answer = server.infer("identity_bytes", inference(tensor(name, [5], "BYTES", ["hello"]))).json
    assert answer["outputs"][0]["data"] == ["hello"]


def test_nonfinite_numbers_travel_as_literals(server):
    body = '{"inputs":[{"name":"INPUT0","shape":[1,4],"datatype":"FP32","data":[NaN,Infinity,-Infinity,-0.0]}]}'
    assert b'"data":[NaN,Infinity,-Infinity,-0.0]' in server.infer("identity_fp32", body).body


def test_numbers_are_printed_with_the_fewest_digits(server):
    body = inference(tensor("INPUT0", [1, 6], "FP32", [0.1, 1, 1e-7, 16777216, 3.4028235e38, 1e16]))
    assert b'"data":[0.1,1.0,1e-07,16777216.0,3.4028235e+38,1e+16]' in server.infer("identity_fp32", body).body


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (inference(PAIR[0]), "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], but "
                             "missing required input(s) ['INPUT1']. Please provide all required input(s)."),
        (inference(*PAIR, tensor("X", [1], "INT32", [1])), "unexpected inference input 'X' for model 'simple'"),
        (inference(*PAIR, outputs=[{"name": "X"}]), "unexpected inference output 'X' for model 'simple'"),
        (inference(tensor("INPUT0", [1, 16], "FP32", ROW), PAIR[1]),
         "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'"),
        (inference(tensor("INPUT0", [1, 8], "INT32", ROW[:8]), PAIR[1]),
         "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,8]"),
        (inference(tensor("INPUT0", [2, 16], "INT32", ROW * 2), PAIR[1]),
         "input 'INPUT1' batch size does not match other inputs for 'simple'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model(server, body, sentence):
    answer = server.infer("simple", body)
    assert (answer.status, answer.error) == (400, sentence)


def test_inputs_whose_first_dimensions_have_other_names_may_have_other_numbers_of_rows(tmp_path):
    """That the model is batched is the server's choice: its graph adds one row to each of two."""
    infos = [onnx_models.value(name, "FP32", [first, 2]) for name, first in (("x", "a"), ("z", "b"), ("y", "a"))]
    path = tmp_path / "sum" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(onnx_models.model([helper.make_node("Add", ["x", "z"], ["y"])], infos[:2], infos[2:]))
    with serving(repository=tmp_path) as server:
        assert server.get("/v2/models/sum/config").json["max_batch_size"] == 64
        for x, z, y in (([[1, 2], [3, 4]], [[5, 6]], [6, 8, 8, 10]), ([[1, 2]], [[5, 6], [7, 8]], [6, 8, 8, 10])):
            answer = server.infer(
                "sum", inference(tensor("x", [len(x), 2], "FP32", x), tensor("z", [len(z), 2], "FP32", z))
            )
            assert answer.status == 200
            assert (answer.json["outputs"][0]["shape"], answer.json["outputs"][0]["data"]) == ([2, 2], y)


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"[]", b"null", b"{}", b'{"inputs":null}', b'{"inputs":{}}', b'{"inputs":[1]}',
        b'\xef\xbb\xbf{"inputs":[]}', b'{"inputs":[],}', b'{"inputs":[]} x', b'{"inputs":[],"inputs":[]}',
        b'{"inputs":[{"name":"INPUT0","shape":[1,4611686018427387904],"datatype":"INT32","data":[1]}]}',
        b'{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"INT32","data":' + DEEP + b"}]}",
        b'{"x":' + DEEP + b"}",
        b'{"inputs":[{"name":"INPUT0","shape":[-1,16],"datatype":"INT32","data":[1]}]}',
        b'{"inputs":[{"name":"INPUT0","shape":[1,16],"datatype":"INT33","data":[1]}]}',
        b'{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"INT32","data":[2147483648]}]}',
        b'{"inputs":[{"name":"INPUT0","shape":[1,1],"datatype":"INT32","data":[1.0]}]}',
        b'{"inputs":[],"id":"\xff"}', b'{"inputs":[],"id":"\\ud800"}', b'{"inputs":[],"id":7}',
        b'{"inputs":[],"parameters":{"sequence_id":5}}',
    ],
)  # fmt: skip
def test_wrong_bodies_are_400_and_the_connection_stays(server, body):
    connection = server.connect()
    for _ in range(2):
        answer = exchange(connection, "POST", "/v2/models/simple/infer", body)
        assert answer.status == 400
        assert answer.error
    assert exchange(connection, "GET", "/v2/health/live").status == 200
    connection.close()


def test_the_message_names_the_element(server):
    data = [*ROW]
    data[7] = 1 << 40
    answer = server.infer("simple", inference(tensor("INPUT0", [1, 16], "INT32", data), PAIR[1]))
    assert answer.error == "inputs[0].data[7]: 1099511627776 is out of range for INT32"


def test_unknown_models(server):
    answer = server.infer("nope", inference(*PAIR))
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'nope' is not found")
    answer = server.infer("simple", inference(*PAIR), "9")
    assert (answer.status, answer.error) == (404, "Request for unknown model: 'simple' version 9 is not found")


def split_at(data, places):
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_a_request_may_be_split_anywhere(server):
    body = json.dumps(inference(*PAIR, id="split")).encode()
    request = (b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)) + body
    rng = random.Random(7)
    cuts = [[place] for place in range(1, len(request), 7)] + [rng.sample(range(1, len(request)), 5) for _ in range(40)]
    cuts.append(list(range(1, len(request))))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb")
        for places in cuts:
            for piece in split_at(request, places):
                connection.sendall(piece)
            status = stream.readline()
            fields = dict(line.strip().lower().split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
            answer = json.loads(stream.read(int(fields[b"content-length"])))
            assert status == b"HTTP/1.1 200 OK\r\n"
            assert answer["outputs"][0]["data"] == SUMS


def test_pipelined_requests_are_answered_in_order(server):
    requests = b""
    for number in range(50):
        body = json.dumps(inference(*PAIR, id=str(number))).encode()
        requests += b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(requests)
        stream = connection.makefile("rb")
        for number in range(50):
            assert stream.readline().startswith(b"HTTP/1.1 200")
            fields = dict(line.strip().lower().split(b": ", 1) for line in iter(stream.readline, b"\r\n"))
            assert json.loads(stream.read(int(fields[b"content-length"])))["id"] == str(number)


def test_a_great_many_tiny_rows_do_not_hold_up_the_others(server):
    """Rows of BYTES are found by walking over them; that must stay linear, and the loop must turn meanwhile."""
    rows = 20_000
    element = b"\x01\x00\x00\x00x"
    head = json.dumps(
        {"inputs": [{"name": "INPUT0", "shape": [rows, 1], "datatype": "BYTES",
                     "parameters": {"binary_data_size": rows * 5}}]}
    ).encode()  # fmt: skip
    fields = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.request("POST", "/v2/models/identity_bytes/infer", head + element * rows, fields)
    assert answer.status == 200
    assert answer.json["outputs"][0]["data"] == ["x"] * rows


def test_rows_without_elements_are_bounded(server):
    """They cost nothing to send: what 16 batches hold is run, as it was sent."""

    def runs():
        return server.get("/v2/models/identity_fp32/stats").json["model_stats"][0]["execution_count"]

    before = runs()
    for rows in (1_000_000_000, 640_000, 1025):
        answer = server.infer("identity_fp32", inference(tensor("INPUT0", [rows, 0], "FP32", [])))
        assert answer.status == 400
        assert answer.error == "inference request batch-size must be <= 1024 for 'identity_fp32'"
    assert runs() == before
    answer = server.infer("identity_fp32", inference(tensor("INPUT0", [1024, 0], "FP32", [])))
    assert (answer.status, answer.json["outputs"][0]["shape"]) == (200, [1024, 0])
    assert runs() == before + 1


@pytest.mark.parametrize("options", [(), ("--compress-answers", "2KiB")], ids=["off", "2KiB"])
def test_answers_are_compressed_only_if_the_operator_asks(options):
    with serving("--load", "identity_fp32", *options) as server:
        for count in (100, 1000):
            body = json.dumps(inference(tensor("INPUT0", [1, count], "FP32", [0.5] * count)))
            fields = {"Accept-Encoding": "gzip, deflate"}
            answer = server.request("POST", "/v2/models/identity_fp32/infer", body, fields)
            assert answer.status == 200
            assert answer.headers.get("content-encoding") == ("gzip" if options and count == 1000 else None)
            page = server.request("GET", "/openapi.json", None, fields)
            assert page.headers.get("content-encoding") == "gzip"
