"""How large control requests may be, and how many endpoints they may make."""

from __future__ import annotations

import json

import pytest
from support import REPOSITORY, serving

CONTROL = [
    "/v2/repository/index",
    "/v2/hardware",
    "/v2/models/m/unload",
    "/v2/repository/models/m/unload",
    "/v2/models/m/versions/1/unload",
    "/v2/workers/echo/load",
    "/v2/workers/echo/unload",
]
LOADS = ["/v2/models/simple/load", "/v2/repository/models/simple/load", "/v2/models/simple/versions/1/load"]


@pytest.fixture(scope="module")
def server():
    with serving("--load", "simple") as server:
        yield server


def padded(size: int) -> bytes:
    return b'{"ready": true' + b" " * (size - 15) + b"}"


@pytest.mark.parametrize("path", CONTROL)
def test_64_kib(server, path):
    assert server.post(path, padded(64 * 1024)).status != 413
    assert server.post(path, padded(64 * 1024 + 1)).status == 413


@pytest.mark.parametrize("path", LOADS)
def test_a_load_may_bring_a_configuration_of_1_mib(server, path):
    config = json.dumps({"max_batch_size": 4}) + " " * 900_000
    assert server.post(path, {"parameters": {"config": config}}).status == 200
    assert server.post(path, {"config": config}).status == 200
    assert server.post(path, padded((1 << 20) + 1)).status == 413


@pytest.mark.parametrize("path", LOADS)
def test_what_a_load_gives_besides_is_64_kib(server, path):
    refused = server.post(path, {"parameters": {"config": "{}", "note": "x" * (64 << 10)}})
    assert (refused.status, refused.error) == (413, "the parameters beside 'config' are larger than 65536 bytes")


@pytest.mark.parametrize("body", ["[" + "[]," * 5000 + "1]", '{"a":[' + "1," * 10_000 + "1]}", "{" + '"":{},' * 5000])
@pytest.mark.parametrize("path", [*LOADS, *CONTROL])
def test_10_000_values(server, path, body):
    answer = server.post(path, body)
    assert (answer.status, answer.error) == (400, "the body has more than 10000 values")


def test_what_is_in_texts_are_no_values(server):
    assert server.post("/v2/repository/index", {"note": "[,{" * 10_000}).status == 200
    assert server.post("/v2/repository/index", '{"note": "' + '\\",' * 10_001 + '"}').status == 200


@pytest.mark.parametrize("processes", ["0", "2"])
def test_so_many_endpoints(processes):
    options = ("--processes", processes, "--load", "simple", "--max-endpoints", "3")
    with serving(*options, repository=REPOSITORY) as server:
        assert [server.post("/v2/workers/fake/load", {"delay_ms": n}).body for n in range(2)] == [b"fake", b"fake-0"]
        refused = server.post("/v2/workers/fake/load", {"delay_ms": 2})
        assert (refused.status, refused.error) == (
            503,
            "3 models and workers are loaded, which is the limit (--max-endpoints)",
        )
        assert server.post("/v2/models/digits/load").status == 503
        assert server.post("/v2/models/simple/load").status == 200  # is loaded already
        assert server.post("/v2/workers/fake-0/unload").status == 200
        assert server.post("/v2/models/digits/load").status == 200
