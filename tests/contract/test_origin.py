"""Web pages that want to change the server's models."""

import pytest
from support import serving

FOREIGN = {"Origin": "http://evil.example"}
PATHS = [
    "/v2/models/digits/load",
    "/v2/models/digits/versions/1/load",
    "/v2/repository/models/digits/load",
    "/v2/repository/models/simple/unload",
    "/v2/models/simple/unload",
    "/v2/workers/echo/load",
    "/v2/workers/simple/unload",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fields",
    [
        FOREIGN,
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://a.example", "Host": "a.example"},
    ],
    ids=["foreign", "null", "fetch metadata", "rebinding"],
)
def test_a_foreign_page_changes_nothing(server, path, fields):
    before = server.get("/v2/models").json
    answer = server.request("POST", path, b"{}", {"Content-Type": "text/plain", **fields})
    assert answer.status == 403
    assert "origin" in answer.error or "--allowed-host" in answer.error
    assert server.get("/v2/models").json == before


def test_reading_and_inference_are_open_to_it(server):
    rows = [{"name": name, "datatype": "INT32", "shape": [1, 16], "data": [1] * 16} for name in ("INPUT0", "INPUT1")]
    assert server.request("POST", "/v2/models/simple/infer", {"inputs": rows}, FOREIGN).status == 200
    assert server.request("POST", "/v2/repository/index", b"", FOREIGN).status == 200
    assert server.request("GET", "/v2/models", None, FOREIGN).status == 200


def test_the_servers_own_page_and_allowed_ones_may():
    options = ("--load", "none", "--allowed-host", "models.example", "--allowed-origin", "https://console.example")
    with serving(*options) as server:
        for fields in (
            {"Origin": f"http://127.0.0.1:{server.port}", "Sec-Fetch-Site": "same-origin"},
            {"Host": "Models.Example", "Origin": "https://models.example"},
            {"Origin": "https://console.example", "Sec-Fetch-Site": "cross-site"},
        ):
            assert server.request("POST", "/v2/models/simple/load", b"", fields).status == 200
        assert server.request("POST", "/v2/models/simple/load", b"", FOREIGN).status == 403
