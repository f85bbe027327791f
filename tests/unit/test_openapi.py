"""The description: valid, equal to the committed file and to the routes; and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import orjson
import pytest
import yaml
from openapi_spec_validator import validate

from fastinfer.api import openapi, routes
from fastinfer.api.routes import docs
from fastinfer.api.routes.router import Router
from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import Exchange
from fastinfer.tensor.datatype import numpy_dtype

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.yaml"
DESCRIPTION = openapi.describe()
METHODS = ("get", "post")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DESCRIPTION["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_it_is_valid() -> None:
    assert DESCRIPTION["openapi"] == "3.0.3"
    validate(orjson.loads(orjson.dumps(DESCRIPTION)))


def test_the_committed_file_is_equal() -> None:
    assert COMMITTED.read_text() == openapi.written(), "run: python -m fastinfer.api.openapi > docs/openapi.yaml"


def router() -> Router:
    """That of a service which is not there."""
    with patch("fastinfer.api.routes.infer.InferHandler"):  # wants a real executor
        return routes.build(Mock())


def test_it_describes_every_route_and_nothing_else() -> None:
    served = {(route.template, method.lower()) for route in router().routes for method in route.methods}
    assert {(path, method) for path, method, _ in operations()} == served


def test_every_operation_has_a_name_of_its_own_a_known_tag_and_a_way_to_fail() -> None:
    identifiers = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(identifiers)) == len(identifiers)
    for path, _, operation in operations():
        assert set(operation["tags"]) <= openapi.TAGS.keys(), path
        assert {"200", "default"} <= operation["responses"].keys(), path


def test_the_parameters_of_a_path_are_described() -> None:
    for path, item in DESCRIPTION["paths"].items():
        described = [reference.rsplit("/", 1)[1] for reference in references(item.get("parameters", []))]
        assert described == re.findall(r"\{(\w+)\}", path)


def test_every_component_is_used() -> None:
    used = set(references(DESCRIPTION))
    for kind, components in DESCRIPTION["components"].items():
        for name in components:
            assert f"#/components/{kind}/{name}" in used, name


def test_every_datatype_has_a_schema() -> None:
    for datatype in openapi.DATATYPES:
        numpy_dtype(datatype)  # it is one
        assert DESCRIPTION["components"]["schemas"][f"Tensor{datatype}"]["title"] == datatype
    assert len(openapi.DATATYPES) == 14 == len(DESCRIPTION["components"]["schemas"]["Tensor"]["oneOf"])


# --- The page ---------------------------------------------------------------------------------------------------------


def get(path: str) -> tuple[int, bytes, bytes, dict[bytes, bytes]]:
    """Status, content type, body and other fields of the answer."""
    answers: list[Any] = []
    connection: Any = SimpleNamespace(
        answer=lambda _, status, content_type, body, fields: answers.append((status, content_type, body, dict(fields)))
    )
    match = router().resolve("GET", path.encode())
    match.handler(Exchange(connection, "GET", match.arguments, {}, b"", True))
    (given,) = answers
    return given  # type: ignore[no-any-return]


def test_the_description_is_served() -> None:
    status, content_type, body, _ = get("/openapi.json")
    assert (status, content_type) == (200, b"application/json")
    assert orjson.loads(body) == yaml.safe_load(COMMITTED.read_text())


def test_the_page_is_made_of_files_of_this_server_alone() -> None:
    status, content_type, body, fields = get("/docs")
    assert (status, content_type) == (200, b"text/html; charset=utf-8")
    assert not re.search(rb"https?:|//", body)
    for address in re.findall(rb'(?:src|href)="([^"]+)"', body):
        assert get(address.decode())[0] == 200
    # What the policy forbids is not there: scripts in the page, or handlers in its tags.
    assert b"script-src 'self';" in fields[b"Content-Security-Policy"]
    assert not re.search(rb"<script>|\son\w+=", body)
    assert b"http" not in docs.SCRIPT


@pytest.mark.parametrize("name", docs.ASSETS)
def test_assets(name: str) -> None:
    status, content_type, body, fields = get(f"/docs/{name}")
    assert status == 200
    assert body
    assert content_type.split(b";")[0] in (b"text/css", b"text/javascript", b"image/png")
    assert fields[b"X-Content-Type-Options"] == b"nosniff"
    assert b"max-age" in fields[b"Cache-Control"]


@pytest.mark.parametrize("name", ["index.html", "swagger-ui.js.map", "..%2f__init__.py", "%2fetc%2fpasswd", "page.JS"])
def test_no_other_file_is_served(name: str) -> None:
    with pytest.raises(ApiError) as raised:
        get(f"/docs/{name}")
    assert raised.value.status == 404
