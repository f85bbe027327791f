"""Requests of web pages: which of them may change the server."""

import pytest

from fastinfer.http.origin import why_foreign

HOSTS, ORIGINS = frozenset({"models.example"}), frozenset({"https://console.example"})


def judged(host="localhost:8000", **fields):
    headers = {b"host": host.encode(), **{k.replace("_", "-").encode(): v.encode() for k, v in fields.items()}}
    return why_foreign(headers, HOSTS, ORIGINS)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"host": "anything.at.all"},
        {"origin": "http://localhost:8000"},
        {"origin": "http://LOCALHOST:8000", "sec_fetch_site": "same-origin"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"},
        {"host": "[::1]:9", "origin": "http://[::1]:9"},
        {"host": "10.0.0.7", "origin": "http://10.0.0.7:80"},
        {"host": "models.example", "origin": "https://models.example"},
        {"host": "app.localhost", "origin": "http://app.localhost"},
        {"origin": "https://console.example", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
    ids=str,
)
def test_clients_the_servers_own_pages_and_allowed_origins_may(fields):
    assert judged(**fields) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:8001"},
        {"origin": "https://localhost:8000, http://localhost:8000"},
        {"origin": "http://user@localhost:8000"},
        {"origin": "file://localhost:8000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": ""},
        {"host": "console.example", "origin": "http://console.example"},
        {"host": "[::1]:9", "origin": "http://[::1]:10"},
    ],
    ids=str,
)
def test_pages_of_other_origins_may_not(fields):
    assert judged(**fields) is not None


@pytest.mark.parametrize("host", ["evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3.4.5"])
def test_a_name_that_somebody_made_point_here_is_not_the_servers(host):
    assert "--allowed-host" in judged(host=host, origin=f"http://{host}")
    assert "--allowed-host" in judged(host=host, sec_fetch_site="same-origin")
