"""curl: the ways in which people send requests by hand, and in which scripts do."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass

import pytest
from clients.support import RUN_TIMEOUT_S
from support import REPOSITORY, Answer, absent_client, inference, serving, tensor

ROW = list(range(16))
ASKED = json.dumps(inference(tensor("INPUT0", [1, 16], "INT32", ROW), tensor("INPUT1", [1, 16], "INT32", ROW)))
INFER = "/v2/models/simple/infer"
IDENTITY = "/v2/models/identity_fp32/infer"
MANY = 100_000
WRITTEN = "%{http_code} %{num_connects} %{http_version} %{size_download}"


@pytest.fixture(scope="module")
def server():
    if not shutil.which("curl"):
        absent_client("curl is not installed")
    with serving("--compress-answers", "1KiB") as running:
        yield running


@pytest.fixture
def curl(server, tmp_path):
    """Runs curl on paths of the server; the answer is the last one's."""

    def curl(*words, stdin=b"", exit_status=0):
        heads, body = tmp_path / "heads", tmp_path / "body"
        command = ["curl", "-sS", "--max-time", str(RUN_TIMEOUT_S / 2), "-D", heads, "-w", f"{WRITTEN}\n"]
        for word in words:
            path = word.startswith("/v2")
            command += ["-o", body, f"http://127.0.0.1:{server.port}{word}"] if path else [word]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=RUN_TIMEOUT_S, check=False)
        assert done.returncode == exit_status, done.stderr.decode()
        transfers = [line.split() for line in done.stdout.decode().splitlines()]
        fields = [line.partition(":") for line in heads.read_text().strip().split("\n\n")[-1].splitlines()[1:]]
        status, _, version, size = transfers[-1]
        assert body.stat().st_size == int(size) or "-I" in words or "--compressed" in words
        answer = Answer(int(status), body.read_bytes(), {name.lower(): value.strip() for name, _, value in fields})
        return Transfer(answer, int(size), heads.read_text(), sum(int(made) for _, made, *_ in transfers), version)

    return curl


@dataclass
class Transfer:
    """What curl has got.

    Attributes:
        answer: the last one; its body is unpacked.
        size: the bytes of its body, as they came.
        heads: of all answers.
        connections: how many were made.
        version: of HTTP, in the last answer.
    """

    answer: Answer
    size: int
    heads: str
    connections: int
    version: str

    @property
    def sums(self):
        assert self.answer.status == 200, self.answer.body
        return self.answer.json["outputs"][0]["data"]


@pytest.fixture
def file(tmp_path):
    """Makes a file and says its name as curl takes it."""

    def file(content):
        (tmp_path / "sent").write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"@{tmp_path / 'sent'}"

    return file


def identity(count):
    return json.dumps(inference(tensor("x", [1, count], "FP32", [0.25] * count))).replace('"x"', '"INPUT0"')


DOUBLED = [2 * n for n in ROW]


def test_json(curl, file):
    assert curl(INFER, "-d", ASKED).sums == DOUBLED
    assert curl(INFER, "-d", file(ASKED), "-H", "Content-Type: application/json").sums == DOUBLED


def test_the_command_of_the_readme(curl):
    sample = REPOSITORY / "digits" / "sample.json"
    assert curl("/v2/models/digits/infer", "-d", f"@{sample}").sums == [7]


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", lambda body: body)]
)
def test_a_packed_request(curl, file, coding, pack):
    words = (INFER, "--data-binary", file(pack(ASKED.encode())), "-H", f"Content-Encoding: {coding}")
    assert curl(*words).sums == DOUBLED
    assert curl(*words, "-H", "Transfer-Encoding: chunked").sums == DOUBLED


def test_a_coding_that_is_not_known(curl, file):
    answer = curl(INFER, "-d", file(ASKED), "-H", "Content-Encoding: br").answer
    assert answer.status == 415
    assert answer.error == "the content codings understood are gzip and deflate"


def test_a_packed_answer(curl, file):
    """curl unpacks what it has asked for."""
    transfer = curl(IDENTITY, "--compressed", "-d", file(identity(MANY)))
    assert transfer.answer.headers["content-encoding"] in ("gzip", "deflate")
    assert transfer.size < len(transfer.answer.body) / 10
    assert transfer.sums == [0.25] * MANY


def test_a_small_answer_is_not_packed(curl):
    transfer = curl(INFER, "--compressed", "-d", ASKED)
    assert "content-encoding" not in transfer.answer.headers
    assert transfer.sums == DOUBLED


def test_chunks(curl):
    assert curl(INFER, "-H", "Transfer-Encoding: chunked", "-d", ASKED).sums == DOUBLED


def test_an_upload_of_unknown_length(curl):
    transfer = curl(IDENTITY, "-X", "POST", "-T", "-", stdin=identity(MANY).encode())
    assert transfer.sums == [0.25] * MANY


def test_an_upload_is_a_put_unless_told_otherwise(curl):
    answer = curl(INFER, "-T", "-", stdin=ASKED.encode()).answer
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_expect_continue(curl, file):
    """Asked for, and as curl does by itself with more than a megabyte."""
    asked = curl(INFER, "-H", "Expect: 100-continue", "-d", ASKED)
    assert asked.heads.startswith("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK")
    assert asked.sums == DOUBLED
    count = 300_000
    large = curl(IDENTITY, "-d", file(identity(count)))
    assert large.heads.startswith("HTTP/1.1 100 Continue\n\n")
    assert large.sums == [0.25] * count


@pytest.mark.parametrize(("path", "status"), [("/v2/nowhere", 404), ("/v2/models", 405)])
def test_no_body_is_asked_for_that_would_be_refused(curl, path, status):
    transfer = curl(path, "-H", "Expect: 100-continue", "-d", ASKED)
    assert "100 Continue" not in transfer.heads
    assert transfer.answer.status == status
    assert transfer.answer.error


def test_http_1_0(curl, file):
    transfer = curl(INFER, "-0", "-d", ASKED)
    assert transfer.sums == DOUBLED
    assert curl(INFER, INFER, "-0", "-d", ASKED).connections == 2
    assert curl(IDENTITY, "-0", "--compressed", "-d", file(identity(MANY))).sums == [0.25] * MANY


def test_an_upgrade_to_http_2_is_left_alone(curl):
    transfer = curl("/v2/models", "--http2")
    assert (transfer.answer.status, transfer.version) == (200, "1.1")


def test_a_raw_request(curl, file):
    """The whole body is the only input; the outputs come the same way."""
    values = struct.pack("<3f", 1.5, -2.0, 0.0)
    head = ("-H", "Inference-Header-Content-Length: 0", "-H", "Content-Type: application/octet-stream")
    transfer = curl(IDENTITY, *head, "--data-binary", file(values))
    assert transfer.answer.status == 200, transfer.answer.body
    size = int(transfer.answer.headers["inference-header-content-length"])
    assert transfer.answer.headers["content-type"] == "application/octet-stream"
    (output,) = json.loads(transfer.answer.body[:size])["outputs"]
    assert (output["shape"], output["parameters"]) == ([1, 3], {"binary_data_size": 12})
    assert transfer.answer.body[size:] == values


def test_binary_tensors_behind_the_json(curl, file):
    values = struct.pack("<2f", 1.5, -2.0)
    described = {"name": "INPUT0", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    text = json.dumps({"inputs": [described]}).encode()
    words = (IDENTITY, "-H", f"Inference-Header-Content-Length: {len(text)}", "--data-binary", file(text + values))
    assert curl(*words).sums == [1.5, -2.0]
    assert curl(*words, "-H", "Transfer-Encoding: chunked").sums == [1.5, -2.0]


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/simple"])
def test_head(curl, path):
    whole = curl(path).answer
    head = curl("-I", path, path)
    assert (head.answer.status, head.size) == (200, 0)
    assert head.answer.headers["content-length"] == whole.headers["content-length"] == str(len(whole.body))
    assert head.connections == 1


def test_head_of_what_is_not_there(curl):
    assert curl("-I", "/v2/models/nobody").answer.status == 404
    assert curl("-I", INFER).answer.status == 405


def test_one_connection_for_many_requests(curl):
    assert curl(INFER, INFER, INFER, "-d", ASKED).connections == 1


def test_a_refusal_does_not_cost_the_connection(curl):
    transfer = curl(INFER, "/v2/models/nobody/infer", INFER, "-d", ASKED)
    assert (transfer.connections, transfer.sums) == (1, DOUBLED)


def test_many_in_parallel(curl):
    transfer = curl("-Z", "--parallel-max", "20", "/v2/health/live?number=[1-100]")
    assert transfer.heads.count("HTTP/1.1 200 OK") == 100


def test_a_query_is_ignored(curl):
    assert curl("/v2/models", "-G", "-d", "all=yes").answer.json["models"]


def test_scripts_see_an_error_in_the_exit_status(curl):
    answer = curl("--fail-with-body", INFER, "-d", "{", exit_status=22).answer
    assert answer.status == 400
    assert answer.error


def test_a_form_is_no_request(curl):
    answer = curl(INFER, "-F", "data=1").answer
    assert answer.status == 400
    assert answer.error


@pytest.mark.parametrize("model", ["simple", "convnet", "identity_bytes"])
def test_the_request_that_check_proposes(server, model):
    check = [sys.executable, "-m", "fastinfer", "check", REPOSITORY / model]
    command = subprocess.run(check, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    command = command.replace("localhost:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=RUN_TIMEOUT_S, check=True)
    assert json.loads(done.stdout)["model_name"] == model
