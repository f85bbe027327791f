"""Small bodies that make much of themselves, and work that nobody waits for, over the socket."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import onnx_models
import pytest
from support import Server, inference, serving, tensor, wait_for

MIB = 1 << 20
LIMIT = 64 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("models")
    models = {
        "numbers": onnx_models.identity("FP32", ("batch", "n")),
        "doubles": onnx_models.identity("FP64", ("batch", "n")),
        "texts": onnx_models.identity("BYTES", ("batch", "n")),
        "endless": onnx_models.endless(),
    }
    for name, model in models.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
    options = ("--in-flight-bytes", f"{LIMIT}", "--request-timeout-s", "5", "--load-run-timeout-s", "1")
    with serving(*options, repository=directory) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Any:
    yield
    wait_for(lambda: metric(server, "in_flight_bytes") == 0)


def metric(server: Server, name: str) -> float:
    found = re.search(rf"^fastinfer_{name} (\S+)$", server.metrics(), re.M)
    assert found, name
    return float(found[1])


def text(datatype: str, shape: list[int], data: str, more: str = "") -> bytes:
    return f'{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]{more}}}'.encode()


def ask(server: Server, model: str, body: bytes, coding: str = "") -> tuple[int, bytes]:
    headers = {"Content-Encoding": coding} if coding else {}
    answer = server.request("POST", f"/v2/models/{model}/infer", body, headers)
    return answer.status, answer.body


ZEROS = "[" + "0," * (4 * MIB) + "0]"
STRINGS = "[" + '"",' * (2 * MIB) + '""]'
HUGE = "[" + "1e308," * 99_999 + "1e308]"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("data", [ZEROS, STRINGS, " " * (8 * MIB) + "[1]"], ids=["zeros", "strings", "spaces"])
def test_what_inflates_too_far_is_413(server: Server, coding: str, data: str) -> None:
    body = text("FP32", [1, 4 * MIB + 1], data)
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    status, answer = ask(server, "numbers", packed, coding)
    assert (status, json.loads(answer)["error"]) == (413, "the body inflates to more than 100 times its size")


@pytest.mark.parametrize(
    ("model", "body", "status", "sentence"),
    [
        ("numbers", text("FP64", [1, 4 * MIB + 1], ZEROS), 400, "data-type is 'FP64'"),
        ("numbers", text("FP32", [1, 1, 4 * MIB + 1], ZEROS), 400, "unexpected shape"),
        ("texts", text("BYTES", [1, 2 * MIB + 1], STRINGS), 413, "too many short ones"),
        ("numbers", text("FP32", [1, 1], "[1]", ',"outputs":[{"name":"y","parameters":{"classification":10001}}]'), 400,
         "is larger than 10000"),
        ("doubles", text("FP64", [10, 10_000], HUGE, ',"outputs":[{"name":"y","parameters":{"classification":10000}}]'),
         400, "its classes have more than 4194304 bytes of text"),
    ],
    ids=["datatype", "shape", "strings", "classes", "texts of classes"],
)  # fmt: skip
def test_what_would_take_many_times_its_size_is_refused(
    server: Server, model: str, body: bytes, status: int, sentence: str
) -> None:
    answered, answer = ask(server, model, body)
    assert (answered, sentence in json.loads(answer)["error"]) == (status, True), answer[:200]


def test_a_request_that_is_larger_than_the_budget_is_503_and_others_are_served(server: Server) -> None:
    # 28 MiB of text that are 112 MiB of numbers
    count = 14 * MIB
    status, answer = ask(server, "doubles", text("FP64", [1, count], "[" + "0," * (count - 1) + "0]"))
    assert status == 503
    assert "memory" in json.loads(answer)["error"] or "in flight" in json.loads(answer)["error"]
    assert ask(server, "numbers", json.dumps(inference(tensor("x", [1, 1], "FP32", [1]))).encode())[0] == 200


def test_what_is_inflated_and_decoded_has_a_deadline_and_ends_with_its_client(server: Server) -> None:
    # Numbers that compress about three times: each takes tens of milliseconds to inflate, and again to decode.
    count = 700_000
    values = ",".join([f"{i * 7919 % 1_000_003 / 1000:.4f}" for i in range(count)])
    body = gzip.compress(text("FP32", [1, count], f"[{values}]", ',"parameters":{"timeout":60000}'), 1)
    head = (
        f"POST /v2/models/numbers/infer HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for _ in range(2):
        gone = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
        for sock in gone:
            sock.sendall(head + body)
        statuses: Counter[int] = Counter()

        def honest(found: Counter[int] = statuses) -> None:
            found.update([ask(server, "numbers", body, "gzip")[0]])

        clients = [threading.Thread(target=honest) for _ in range(6)]
        for client in clients:
            client.start()
        for sock in gone:
            sock.close()
        for client in clients:
            client.join(60)
        assert sum(statuses.values()) == 6
        assert set(statuses) <= {200, 503, 504}, statuses
        wait_for(lambda: metric(server, "in_flight_bytes") == 0)


def test_clients_that_do_not_read_have_to_go_when_memory_is_short(server: Server) -> None:
    count = 700_000  # 7.6 MB of text each
    body = text("FP32", [1, count], "[" + ",".join([f"{i}.123" for i in range(count)]) + "]")
    head = f"POST /v2/models/numbers/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    held, held_bytes = [], 0.0
    for _ in range(12):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(head + body)
        held.append(sock)
        held_bytes = max(
            held_bytes, metric(server, "in_flight_bytes")
        )  # the first may have to go before the last comes
    wait_for(lambda: max(held_bytes, metric(server, "in_flight_bytes")) > 0.75 * LIMIT, 20)
    wait_for(lambda: metric(server, "in_flight_bytes") <= 0.75 * LIMIT, 20)
    wait_for(lambda: ask(server, "numbers", body)[0] == 200, 20)
    for sock in held:
        sock.close()


def test_an_answer_needs_memory_for_its_text_and_not_for_the_longest_possible_one() -> None:
    count = 200_000  # the longest text of so many FP32 alone has 4.2 MB
    with serving("--load", "identity_fp32", "--in-flight-bytes", "3MiB") as running:
        for number in ("0.5", "12", "-0.125"):
            body = text("FP32", [1, count], f"[{','.join([number] * count)}]").replace(b'"x"', b'"INPUT0"')
            status, answer = ask(running, "identity_fp32", body)
            assert status == 200
            assert answer.count(number.encode()) == count
            wait_for(lambda: metric(running, "in_flight_bytes") == 0)


def test_endless_runs_of_as_many_models_as_threads_leave_a_thread(tmp_path: Path) -> None:
    names = [f"endless{number}" for number in range(4)]
    for name in names:
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").write_bytes(onnx_models.endless())
    (tmp_path / "native" / "1").mkdir(parents=True)
    (tmp_path / "native" / "1" / "model.onnx").write_bytes(onnx_models.endless(1000))  # a loop: never inline
    options = ("--threads", "3", "--load-run-timeout-s", "0.2", "--request-timeout-s", "60")
    with serving(*options, repository=tmp_path) as running:
        body = json.dumps(inference(tensor("x", [1, 1], "FP32", [1]))).encode()
        stuck = [socket.create_connection(("127.0.0.1", running.port)) for _ in names]
        for sock, name in zip(stuck, names, strict=True):
            sock.sendall(
                f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
        wait_for(lambda: metric(running, "displaced_runs") >= 1)
        for _ in range(5):
            assert ask(running, "native", body)[0] == 200
        for sock in stuck:
            sock.close()
        wait_for(lambda: metric(running, "displaced_runs") == 0)


def test_outputs_are_expected_before_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "wide" / "1").mkdir(parents=True)
    (tmp_path / "wide" / "1" / "model.onnx").write_bytes(onnx_models.expand())
    with serving("--in-flight-bytes", "32MiB", repository=tmp_path) as running:
        body = json.dumps(inference(tensor("x", [1, 1], "FP32", [1]))).encode()
        many: Counter[int] = Counter()

        def client() -> None:
            many.update([ask(running, "wide", body)[0]])

        assert ask(running, "wide", body)[0] in (200, 503)  # 16 MiB of numbers, as text 64 MiB
        clients = [threading.Thread(target=client) for _ in range(8)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(60)
        assert sum(many.values()) == 8
        assert set(many) <= {200, 503}
        wait_for(lambda: metric(running, "in_flight_bytes") == 0)
