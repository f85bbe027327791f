"""Triton's stock client: what surrounds the tensors of a request, and many requests at once."""

from __future__ import annotations

import asyncio
import copy
import gzip
import re
import signal
import socket
import zlib
from contextlib import closing

import numpy as np
import pytest
from clients.triton import (
    CLIENTS,
    InferenceServerException,
    SyncClient,
    address,
    aio,
    assert_same,
    idle,
    refusal,
    sent,
    texts,
    wanted,
)
from support import serving, stock_client

CODINGS = [None, "gzip", "deflate"]
ROW = np.arange(16, dtype=np.int32)[None]
SUMS = {"OUTPUT0": ROW + 1, "OUTPUT1": ROW - 1}


def pair(binary=True):
    """The inputs of ``simple``."""
    return [sent("INPUT0", ROW, binary), sent("INPUT1", np.ones_like(ROW), binary)]


def assert_sums(result):
    for name, expected in SUMS.items():
        assert_same(result.as_numpy(name), expected)


def test_the_answer_names_model_version_and_request(client):
    answer = client.infer("simple", pair(), request_id="größe 🎉").get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("simple", "1", "größe 🎉")
    assert "id" not in client.infer("simple", pair()).get_response()


def test_versions(client):
    number = [sent("number", np.full((1, 1), 2, np.int32))]
    answers = {each: client.infer("two_versions", number, each).get_response() for each in ("1", "2", "")}
    assert [answers[each]["model_version"] for each in ("1", "2", "")] == ["1", "2", "2"]


@pytest.mark.parametrize(
    "options",
    [
        {"query_params": {"key": ["a", "b"], "größe": 1}},
        {"headers": {"X-Anything": "at all", "Authorization": "Bearer x"}},
        {"sequence_id": 0, "sequence_start": True, "sequence_end": True},
        {"sequence_id": ""},
        {"priority": 0},
        {"priority": 1},
        {"priority": 7},
        {"timeout": 20_000_000},
        {"timeout": 0},
        {"parameters": {"text": "größe", "number": 7, "real": 1.5, "flag": True, "\0": "NUL"}},
        {"parameters": {}},
        {"outputs": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_what_a_request_may_carry(client, options, binary):
    assert_sums(client.infer("simple", pair(binary), **copy.deepcopy(options)))  # the client writes into the headers


@pytest.mark.parametrize("name", ["timeout", "binary_data_output", "triton_anything"])
def test_reserved_parameters_are_refused_by_the_client(client, name):
    assert "is a reserved parameter" in refusal(client.infer, "simple", pair(), parameters={name: 1})[1]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("response", CODINGS)
@pytest.mark.parametrize("request_coding", CODINGS)
def test_compression(client, request_coding, response, binary):
    array = np.tile(np.arange(512, dtype=np.float32), (8, 1))
    result = client.infer(
        "rows_fp32",
        [sent("x", array, binary)],
        outputs=[wanted("y", binary)],
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response,
    )
    assert_same(result.as_numpy("y"), array)


@pytest.mark.parametrize("form", ["sync", "aio"])
@pytest.mark.parametrize(("rows", "compressed"), [(100, True), (1, False)])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_are_compressed_where_it_pays(server, capsys, form, coding, rows, compressed):
    array = np.zeros((rows, 16), np.float32)
    with closing(CLIENTS[form](address(server), verbose=True)) as client:  # prints the fields of the answer
        result = client.infer("rows_fp32", [sent("x", array)], response_compression_algorithm=coding)
    assert_same(result.as_numpy("y"), array)
    assert bool(re.search(rf"content-encoding\W+{coding}", capsys.readouterr().out.lower())) == compressed


def test_a_plugin_may_add_a_header(client):
    client.register_plugin(stock_client("tritonclient.http.auth").BasicAuth("user", "secret"))
    assert_sums(client.infer("simple", pair()))


@pytest.mark.parametrize("form", ["sync", "aio"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_bodies_made_and_read_without_a_connection(server, form, coding, binary):
    maker = SyncClient if form == "sync" else aio.InferenceServerClient
    array = texts(b"any\0thing" if binary else "größe", "x" * 2000)[None]
    outputs = [wanted("y", binary)]
    body, json_size = maker.generate_request_body(
        [sent("x", array, binary)], outputs=outputs, request_id="7", priority=1, timeout=9_000_000, parameters={"a": 1}
    )
    assert (json_size is None) == (not binary)
    compress = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress}[coding]
    headers = {"Inference-Header-Content-Length": str(json_size)} if binary else {}
    headers |= {"Content-Encoding": coding, "Accept-Encoding": coding} if coding else {}
    answer = server.request("POST", "/v2/models/rows_bytes/infer", compress(body), headers)
    assert answer.status == 200
    assert answer.headers.get("content-encoding") == coding
    header_length = answer.headers.get("inference-header-content-length")
    result = maker.parse_response_body(
        answer.body, header_length=header_length and int(header_length), content_encoding=coding
    )
    assert result.get_response()["id"] == "7"
    assert_same(result.as_numpy("y"), array)


# --- Many requests ---------------------------------------------------------------------------------------------------

REQUESTS = 200


def numbered(number):
    """An input of one to three rows that no other request has."""
    return np.full((number % 3 + 1, 5), number, np.float32)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_many_requests_in_greenlets(server, concurrency):
    with SyncClient(address(server), concurrency=concurrency, max_greenlets=16) as client:
        requests = [
            client.async_infer("rows_fp32", [sent("x", numbered(number))], request_id=str(number))
            for number in range(REQUESTS)
        ]
        for number, request in enumerate(requests):
            result = request.get_result()
            assert result.get_response()["id"] == str(number)
            assert_same(result.as_numpy("y"), numbered(number))


@pytest.mark.parametrize("conn_limit", [1, 8, 100])
def test_many_requests_in_coroutines(server, conn_limit):
    async def ask(client, number):
        result = await client.infer("rows_fp32", [sent("x", numbered(number))], request_id=str(number))
        assert result.get_response()["id"] == str(number)
        assert_same(result.as_numpy("y"), numbered(number))

    async def ask_all():
        async with aio.InferenceServerClient(address(server), conn_limit=conn_limit) as client:
            await asyncio.gather(*(ask(client, number) for number in range(REQUESTS)))

    asyncio.run(ask_all())


def test_one_connection_takes_one_request_after_the_other(client):
    for number in range(50):
        assert_same(client.infer("rows_fp32", [sent("x", numbered(number))]).as_numpy("y"), numbered(number))
        assert client.is_server_live()


# --- Time ------------------------------------------------------------------------------------------------------------

ONE = np.ones((1, 1), np.float32)


def test_a_timeout_is_kept_by_the_server(client):
    endless = [sent("x", ONE)]
    assert refusal(client.infer, "endless", endless, timeout=100_000) == ("504", "Request timeout expired")
    assert_sums(client.infer("simple", pair()))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("sync", {"network_timeout": 0.2, "connection_timeout": 10.0}),
        ("async_infer", {"network_timeout": 0.2, "connection_timeout": 10.0}),
        ("aio", {"conn_timeout": 0.2}),
    ],
)
def test_a_client_that_waits_no_longer_takes_nothing_with_it(server, client, form, options):
    with closing(CLIENTS[form](address(server), **options)) as impatient, pytest.raises(TimeoutError):
        impatient.infer("endless", [sent("x", ONE)])
    assert client.is_server_ready()
    assert_sums(client.infer("simple", pair()))


def test_a_result_may_be_asked_for_before_it_is_there(server):
    with SyncClient(address(server)) as client:
        request = client.async_infer("endless", [sent("x", ONE)], timeout=2_000_000)
        for options in ({"timeout": 0.01}, {"block": False}):
            with pytest.raises(InferenceServerException, match="failed to obtain inference response"):
                request.get_result(**options)
        assert refusal(request.get_result) == ("504", "Request timeout expired")


@pytest.mark.parametrize("form", ["sync", "aio"])
def test_a_connection_that_was_idle_for_too_long(form):
    with (
        serving("--load", "simple", "--keep-alive-timeout-s", "0.3") as server,
        closing(CLIENTS[form](address(server))) as client,
    ):
        for _ in range(3):
            assert_sums(client.infer("simple", pair()))
            idle(client, 0.9)  # the server closes it meanwhile


@pytest.mark.parametrize("form", ["sync", "aio"])
def test_a_server_that_was_started_again(form):
    with serving("--load", "simple") as server, closing(CLIENTS[form](f"localhost:{server.port}")) as client:
        assert_sums(client.infer("simple", pair()))
        server.stop()
        idle(client, 0.01)
        with serving("--load", "simple", "--port", str(server.port)):
            assert_sums(client.infer("simple", pair()))


def test_a_server_that_drains_answers_what_it_has():
    with serving("--load", "none") as server, SyncClient(address(server), concurrency=4) as client:
        server.post("/v2/workers/fake/load", {"delay_ms": 500})
        requests = [client.async_infer("fake", pair(binary=False)) for _ in range(4)]
        server.process.send_signal(signal.SIGTERM)
        for request in requests:
            assert_same(request.get_result().as_numpy("INPUT0"), ROW)


@pytest.mark.parametrize("form", ["sync", "aio"])
def test_nobody_listens(form):
    refused = pytest.raises(OSError, match=r"refused|Connect call failed")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with closing(CLIENTS[form](f"127.0.0.1:{bound.getsockname()[1]}")) as client, refused:
            client.is_server_live()
