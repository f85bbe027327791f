"""``/openapi.json``, and ``/docs``: Swagger UI, served completely from here, so that it works without the internet.

Only a fixed set of files is served; no client chooses a path. The page runs nothing but these scripts: its
Content-Security-Policy forbids everything else.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from swagger_ui_bundle import swagger_ui_path

from fastinfer.api import openapi
from fastinfer.api.routes.router import Route
from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.http.exchange import JSON, Exchange

if TYPE_CHECKING:
    from fastinfer.api.service import Service

PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fastinfer</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="stylesheet" href="/docs/page.css">
</head>
<body>
<div id="page"></div>
<noscript>This page needs JavaScript; the description itself is at <a href="/openapi.json">/openapi.json</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/page.js"></script>
</body>
</html>
"""
SCRIPT = b"""SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""
STYLE = b"body { margin: 0 }\n.swagger-ui .scheme-container { display: none } /* there is one server: this one */\n"

_TYPES = {".css": b"text/css; charset=utf-8", ".js": b"text/javascript; charset=utf-8", ".png": b"image/png"}
_OWN = {"page.css": STYLE, "page.js": SCRIPT}
_BUNDLED = ("favicon-32x32.png", "swagger-ui.css", "swagger-ui-bundle.js")

ASSETS = (*_OWN, *_BUNDLED)
"""The files of the page."""

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PLAIN = ((b"X-Content-Type-Options", b"nosniff"), (b"Cache-Control", b"no-cache"))
_GUARDED = (*_PLAIN, (b"Content-Security-Policy", _POLICY), (b"Referrer-Policy", b"no-referrer"))
_KEPT = ((b"X-Content-Type-Options", b"nosniff"), (b"Cache-Control", b"public, max-age=3600"))


def routes(service: Service) -> list[Route]:  # noqa: ARG001
    """Routes of the description, the page and its files."""
    description = orjson.dumps(openapi.describe())

    def describe(exchange: Exchange) -> None:
        exchange.respond(200, description, JSON, _PLAIN)

    def page(exchange: Exchange) -> None:
        exchange.respond(200, PAGE, b"text/html; charset=utf-8", _GUARDED)

    def asset(exchange: Exchange) -> None:
        name = exchange.arguments[0]
        if name not in ASSETS:
            raise ApiError(404, "no such path")
        exchange.respond(200, contents(name), _TYPES[Path(name).suffix], _KEPT)

    return [
        Route(("GET",), "/openapi.json", describe, compress_from=limits.MIN_COMPRESSED_BYTES),
        Route(("GET",), "/docs", page, compress_from=limits.MIN_COMPRESSED_BYTES),
        Route(("GET",), "/docs/{asset}", asset, compress_from=limits.MIN_COMPRESSED_BYTES),
    ]


@cache
def contents(name: str) -> bytes:
    """Return a file of the page; ``name`` is one of :data:`ASSETS`."""
    return _OWN[name] if name in _OWN else (swagger_ui_path / name).read_bytes()
