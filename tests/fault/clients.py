"""Clients that go away, are slow, say too much at once, or close one side."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from onnx import helper, numpy_helper

from tests import onnx_models
from tests.fault.load import half_of_peak, load, neighbours
from tests.fault.subject import Subject, repository_of, seconds_until, subject, wait_for
from tests.fault.trial import MIB, Trial
from tests.support import REPOSITORY, inference, tensor

SIMPLE_BODY = json.dumps(
    inference(*(tensor(name, [1, 16], "INT32", list(range(16))) for name in ("INPUT0", "INPUT1")))
).encode()
GREEDY = 10
LARGE_BODY = b'{"inputs":[{"name":"INPUT0","shape":[1,200000],"datatype":"FP32","data":[' + b"0.5," * 199_999 + b"1]}]}"


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def head(path: str, size: int, *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {size}", *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(model: str, body: bytes) -> bytes:
    """A whole inference request."""
    return head(f"/v2/models/{model}/infer", len(body)) + body


def reset(sock: socket.socket) -> None:
    """Goes away without a word: the server's system learns it at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def answers(sock: socket.socket) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """Each answer until the server closes: status, fields, body. AssertionError for bytes that are none."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = sock.recv(1 << 16)
            if not more:
                assert not data, data[:200]
                return
            data += more
        text, _, data = data.partition(b"\r\n\r\n")
        line, *lines = text.decode().split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        size = int(fields.get("content-length", "0"))
        body, data = bytearray(data[:size]), data[size:]
        while len(body) < size:
            more = sock.recv(min(size - len(body), 1 << 20))
            assert more, "closed inside an answer"
            body += more
        yield int(line.split()[1]), fields, bytes(body)


def each_second(socks: Sequence[socket.socket]) -> Iterator[socket.socket]:
    """Each of them in its turn, spread over a second: clients that know nothing of each other."""
    began = time.monotonic()
    for place, sock in enumerate(socks):
        time.sleep(max(0.0, began + place / len(socks) - time.monotonic()))
        yield sock
    time.sleep(max(0.0, began + 1 - time.monotonic()))


def is_quiet(server: Subject, fds: int) -> bool:
    """Nothing is in flight, and the open files are those of before."""
    return server.metric("fastinfer_in_flight_bytes") == 0 and server.fds() <= fds


# --- Gone -------------------------------------------------------------------------------------------------------------


def cut_uploads(trial: Trial) -> None:
    """Bodies that end in the middle: after the head, in the text, before the last byte; by FIN and by RST."""
    source = random.Random(1)
    count, settling_s = trial.count(10_000, 300), trial.count(3, 2)
    with subject("--load", "simple", "--load", "identity_fp32") as server:
        _cut(server, source, trial.count(400, 100))
        time.sleep(settling_s)  # memory that is kept for the next bodies goes back
        rate = half_of_peak(server.port)
        before, fds = server.rss(), server.fds()
        with neighbours(server.port, rate) as beside:
            _cut(server, source, count)
        trial.most("seconds until no byte is in flight and all files are closed", seconds_until(
            lambda: is_quiet(server, fds)), 1, timed=True)  # fmt: skip
        trial.equal("bytes in flight at the end", server.metric("fastinfer_in_flight_bytes"), 0)
        trial.most("open files more than before", server.fds_above(fds), 0)
        time.sleep(settling_s)
        trial.most("MiB more than before", (server.rss() - before) / MIB, 5)
        trial.equal("failed requests of others", beside["failed"], 0)
        trial.tell("exact answers to others", beside["answered"])


def _cut(server: Subject, source: random.Random, count: int) -> None:
    for _ in range(0, count, 50):
        socks = [connect(server.port) for _ in range(50)]
        for sock in socks:
            body = source.choice((SIMPLE_BODY, LARGE_BODY))
            size = source.choice((0, 1, len(body) // 2, len(body) - 1))
            with contextlib.suppress(OSError):
                sock.sendall(head("/v2/models/identity_fp32/infer", len(body)) + body[:size])
        for sock in socks:
            source.choice((reset, socket.socket.close))(sock)


def gone(trial: Trial) -> None:
    """Clients that leave while their requests wait, and while they run."""
    body = json.dumps(inference(tensor("x", [1, 1], "FP32", [0.0]))).encode()
    config = {"endless": "max_batch_size = 0\n"}  # taken at its word: no trial runs
    with (
        repository_of({"endless": onnx_models.endless()}, config) as repository,
        subject("--load", "endless", "--load", "simple", "--model-repository", str(REPOSITORY),
                repository=repository) as server,
    ):  # fmt: skip
        rate = half_of_peak(server.port)
        fds = server.fds()
        with neighbours(server.port, rate) as beside:
            running = connect(server.port)
            running.sendall(post("endless", body))
            wait_for(lambda: server.metric("fastinfer_batches_running", model="endless") == 1, "a run")
            waiting = [connect(server.port) for _ in range(100)]
            for sock in waiting:
                sock.sendall(post("endless", body))
            wait_for(lambda: server.metric("fastinfer_queue_depth", model="endless") == 100, "a queue")
            for place, sock in enumerate(waiting):
                (reset if place % 2 else socket.socket.close)(sock)
            trial.most("seconds until those that waited are forgotten", seconds_until(
                lambda: server.metric("fastinfer_queue_depth", model="endless") == 0), 1, timed=True)  # fmt: skip
            running.close()
            took = seconds_until(lambda: server.metric("fastinfer_requests_in_flight", model="endless") == 0)
            trial.most("seconds until the run is ended", took, 1, timed=True)
            trial.equal("requests in flight", server.metric("fastinfer_requests_in_flight", model="endless"), 0)
        trial.most("runs", server.runs("endless"), 1)
        trial.most("open files more than before", server.fds_above(fds), 0)
        trial.equal("failed requests of others", beside["failed"], 0)


# --- Slow -------------------------------------------------------------------------------------------------------------


def large_answer(elements: int) -> bytes:
    """``y`` repeats ``x`` so many times."""
    shape = numpy_helper.from_array(np.array([1, elements]), "shape")
    return onnx_models.model(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        [onnx_models.value("x", "FP32", [1, 1])],
        [onnx_models.value("y", "FP32", [1, elements])],
        [shape],
    )


def slow_readers(trial: Trial) -> None:
    """Clients that ask for a large answer and read 1 KiB a second of it."""
    clients, size = trial.count(200, 20), trial.count(16, 8) * MIB  # the system takes 4 MiB of each
    body = json.dumps({**inference(tensor("x", [1, 1], "FP32", [1.0])), "parameters": {"binary_data_output": True}})
    with (
        repository_of({"large": large_answer(size // 4)}) as repository,
        subject("--load", "large", "--load", "simple", "--model-repository", str(REPOSITORY),
                repository=repository) as server,
    ):  # fmt: skip
        rate = half_of_peak(server.port) / 2
        with load(server.port, trial.count(2, 1), rate) as running:
            alone = running.result()
        request = post("large", body.encode())
        before = server.rss()
        socks = [connect(server.port) for _ in range(clients)]
        for sock in socks:
            sock.sendall(request)
        wait_for(lambda: server.metric("fastinfer_requests_total", model="large") == clients, "an answer for each")
        with load(server.port, trial.count(5, 2), rate) as running:
            while not running.done():
                for sock in each_second(socks):
                    sock.recv(1024)
            beside = running.result()
        trial.most("answers held for each reader", (server.rss() - before) / clients / size, 1.1)
        trial.equal("failed requests of others", beside["errors"], 0)
        trial.most("p99 of others, times without", beside["p99_us"] / alone["p99_us"], 1.5, timed=True)
        for sock in socks:
            reset(sock)
        _greedy(trial, server, request, size)


def _greedy(trial: Trial, server: Subject, request: bytes, size: int) -> None:
    """Some that pipeline 16 requests and read nothing: the next is run when the answer before has gone."""
    assert server.post("/v2/models/large/unload").status == 200  # with the memory that the runtime has kept for it
    assert server.post("/v2/models/large/load").status == 200
    time.sleep(1)
    before = server.rss()
    with contextlib.ExitStack() as stack:
        for _ in range(GREEDY):
            stack.enter_context(connect(server.port)).sendall(16 * request)
        wait_for(lambda: server.metric("fastinfer_requests_total", model="large") >= GREEDY, "an answer for each")
        time.sleep(1)
        trial.most("answers held for each that pipelines 16", (server.rss() - before) / GREEDY / size, 1.1)


def slow_writers(trial: Trial) -> None:
    """Clients that send a byte of their head or body every second."""
    clients = trial.count(4000, 200)
    with subject("--load", "simple") as server:
        rate = half_of_peak(server.port) / 2
        with load(server.port, trial.count(2, 1), rate) as running:
            alone = running.result()
        message = post("simple", SIMPLE_BODY)
        socks = [connect(server.port) for _ in range(clients)]
        for place, sock in enumerate(socks):
            sock.sendall(message[: 20 if place % 2 else -40])
        at = [20 if place % 2 else len(message) - 40 for place in range(clients)]
        with load(server.port, trial.count(6, 2), rate) as running:
            while not running.done():
                for place, sock in enumerate(each_second(socks)):
                    sock.sendall(message[at[place] : at[place] + 1])
                    at[place] += 1
            beside = running.result()
        trial.equal("failed requests of others", beside["errors"], 0)
        trial.most("p99 of others, times without", beside["p99_us"] / alone["p99_us"], 1.5, timed=True)
        for place, sock in enumerate(socks):
            sock.sendall(message[at[place] :])
        right = sum(next(answers(sock))[0] == 200 for sock in socks)
        trial.equal("slow requests that were not answered", clients - right, 0)
        for sock in socks:
            sock.close()


# --- Half-closed and pipelined ----------------------------------------------------------------------------------------


def half_close(trial: Trial) -> None:
    """Clients that end their side behind their requests, quick and slow ones, and wait."""
    rounds = trial.count(200, 20)
    with subject("--load", "simple") as server:
        server.load("fake", delay_ms=600)
        wrong = interim = 0
        for number in range(rounds):
            with connect(server.port) as sock:
                slow = post("fake", SIMPLE_BODY) if number % 20 == 0 else b""
                sock.sendall(slow + 3 * post("simple", SIMPLE_BODY))
                sock.shutdown(socket.SHUT_WR)
                got = [status for status, _, _ in answers(sock)]
                interim += got.count(100)
                wrong += [status for status in got if status != 100] != [200] * (4 if slow else 3)
        trial.equal("clients that did not get all answers, then the end", wrong, 0)
        trial.tell("`100 Continue` to clients that waited longer than 0.25 s", interim)


def pipelining(trial: Trial) -> None:
    """A thousand requests at once, one of them malformed."""
    many, bad_at = 1000, 500
    with subject("--load", "simple") as server:
        bad_heads = [
            b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n{}",
            b"\x00\x01\x02\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ]
        for bad in bad_heads:
            requests = [post("simple", SIMPLE_BODY[:-1] + f',"id":"{number}"}}'.encode()) for number in range(many)]
            requests[bad_at] = bad
            with connect(server.port) as sock:
                writer = threading.Thread(target=_send_all, args=(sock, b"".join(requests)))
                writer.start()
                got = list(answers(sock))
                writer.join()
            ids = [json.loads(body)["id"] for status, _, body in got if status == 200]
            trial.equal("right answers, in order", sum(a == str(b) for b, a in enumerate(ids)), bad_at)
            trial.equal("answers in all", len(got), bad_at + 1)
            last, fields, _ = got[-1]
            trial.equal("status of the last one", last, 400)
            trial.equal("`Connection: close` in it", float(fields.get("connection") == "close"), 1)


def _send_all(sock: socket.socket, data: bytes) -> None:
    """The server may close before it has read everything."""
    with contextlib.suppress(OSError):
        sock.sendall(data)
