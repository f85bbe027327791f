"""The page for Prometheus: right while it is asked for by many, and while models come and go."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import Answer, Server, exchange, inference, serving, tensor

PAIR = inference(tensor("INPUT0", [1, 16], "INT32", [1] * 16), tensor("INPUT1", [1, 16], "INT32", [2] * 16))
MANY = 120  # endpoints: a page of more than a megabyte, which leaves in pieces


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    families = list(text_string_to_metric_families(text.decode()))
    found = [((s.name, *map("=".join, sorted(s.labels.items()))), s.value) for f in families for s in f.samples]
    assert len(dict(found)) == len(found), "a sample is there twice"
    return dict(found)


def shape(page: bytes) -> set[tuple[str, ...]]:
    """Which lines a page has, without their values."""
    return set(samples(page))


@pytest.fixture(scope="module")
def many() -> Iterator[Server]:
    with serving("--load", "simple") as server:
        for number in range(MANY):
            server.load("workers/echo", {"n": number})
        yield server


def test_each_who_asks_sees_what_was_counted_before(own_server):
    """However many ask at a time: nobody gets a page that was begun before."""
    done = 0
    stop = threading.Event()
    failures = []

    def scrape() -> None:
        connection = own_server.connect()
        while not stop.is_set():
            before = done
            page = samples(exchange(connection, "GET", "/metrics").body)
            answer = exchange(connection, "GET", "/v2/models/stats").json
            counted = page["fastinfer_requests_total", "model=simple", "version=1"]
            (entry,) = answer["model_stats"]
            if counted < before or entry["inference_stats"]["success"]["count"] < before:
                failures.append((before, counted))
        connection.close()

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        assert own_server.infer("simple", PAIR).status == 200
        done += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_models_come_and_go_while_they_are_scraped(own_server):
    """A page has each model whole or not at all, and those that were there the whole time."""
    stop = threading.Event()
    pages: list[bytes] = []

    def scrape() -> None:
        connection = own_server.connect()
        while not stop.is_set():
            pages.append(exchange(connection, "GET", "/metrics").body)
        connection.close()

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for number in range(20):
            own_server.load("workers/echo", {"n": number})
        for number in range(20):
            name = "echo" if number == 0 else f"echo-{number - 1}"
            assert own_server.post(f"/v2/workers/{name}/unload").status == 200
    stop.set()
    for thread in threads:
        thread.join()
    lines = {}
    for page in pages:
        found: dict[str, list[str]] = {}
        for name, *labels in samples(page):
            model = next((label for label in labels if label.startswith("model=")), "")
            found.setdefault(model, []).append(" ".join([name, *(each for each in labels if each != model)]))
        assert "model=simple" in found
        for model, names in found.items():
            assert names == lines.setdefault(bool(model), names)
    last = samples(own_server.get("/metrics").body)
    assert {label for key in last for label in key if label.startswith("model=")} == {"model=simple"}


def test_a_compressed_page_is_the_same(many):
    plain = many.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert len(plain.body) > 1 << 20
    for coding, inflate in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        answer = many.request("GET", "/metrics", None, {"Accept-Encoding": coding})
        assert answer.headers["content-encoding"] == coding
        assert answer.headers["vary"] == "Accept-Encoding"
        assert len(answer.body) < len(plain.body) // 4
        assert shape(inflate(answer.body)) == shape(plain.body)


def test_statistics_of_many_models(many):
    entries = many.get("/v2/models/stats").json["model_stats"]
    assert len(entries) == MANY + 1
    assert entries == sorted(entries, key=lambda entry: entry["name"])


def test_answers_that_leave_in_pieces_keep_their_order(many):
    """Pages among other answers on one connection, whatever their sizes."""
    paths = ["/metrics", "/v2", "/metrics", "/v2/models/stats", "/v2/models/echo/stats", "/metrics", "/v2/health/live"]
    bodies = [many.get(path).body for path in paths]
    with socket.create_connection(("127.0.0.1", many.port), timeout=30) as connection:
        connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
        stream = connection.makefile("rb")
        for path, expected in zip(paths, bodies, strict=True):
            answer = read_answer(stream)
            if path == "/metrics":
                assert shape(answer.body) == shape(expected)
            elif path.endswith("stats"):
                assert len(answer.json["model_stats"]) == len(json.loads(expected)["model_stats"])
            else:
                assert answer.body == expected


def test_a_page_for_a_client_that_reads_slowly_and_closes_its_side(many):
    expected = shape(many.get("/metrics").body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", many.port))
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        stream = connection.makefile("rb", buffering=4096)
        for _ in range(2):
            assert shape(read_answer(stream).body) == expected
        assert stream.read() == b""


def test_clients_that_leave_within_a_page(many):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", many.port), timeout=30) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
            connection.recv(1000)
    assert many.infer("simple", PAIR).status == 200
    page = samples(many.get("/metrics").body)
    assert page["fastinfer_in_flight_bytes",] == 0


def test_a_page_without_its_body(many):
    with socket.create_connection(("127.0.0.1", many.port), timeout=30) as connection:
        connection.sendall(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        stream = connection.makefile("rb")
        head = read_answer(stream, body=False)
        assert head.status == 200
        assert int(head.headers["content-length"]) > 1 << 20
        assert read_answer(stream).status == 200


def test_a_server_that_ends_finishes_its_pages():
    with serving("--load", "none") as server:
        for number in range(MANY):
            server.load("workers/echo", {"n": number})
        expected = shape(server.get("/metrics").body)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            connection.settimeout(30)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            stream = connection.makefile("rb", buffering=4096)
            begun = stream.read(1000)
            server.process.terminate()
            head, _, start = begun.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert shape(start + stream.read(size - len(start))) == expected
        assert server.process.wait(30) == 0


def read_answer(stream, *, body: bool = True) -> Answer:
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return Answer(status, stream.read(int(headers["content-length"])) if body else b"", headers)
