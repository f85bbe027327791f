"""Decides whether a browser's request may change the server: if its page is the server's own or the operator allows it.

A browser sends any page's POST to any address, the loopback included, and an attacker's host name can resolve to it
(DNS rebinding). Such requests carry ``Origin`` or ``Sec-Fetch-Site`` (Fetch Standard, Fetch Metadata). Clients other
than browsers send neither field, and may do everything.

Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

_ORIGIN = re.compile(rb"(https?)://(\[[0-9a-f:.]+\]|[^:/\[\]@]+)(?::(\d{1,5}))?")
_AUTHORITY = re.compile(rb"(\[[0-9a-f:.]+\]|[^:/\[\]@]+)(?::(\d{1,5}))?")
_PORTS = {b"http": b"80", b"https": b"443"}


def why_foreign(
    headers: Mapping[bytes, bytes], allowed_hosts: Collection[str], allowed_origins: Collection[str]
) -> str | None:
    """Return why a request comes from a page that must not change anything, as a sentence; None if it may.

    Args:
        headers: the request's fields, by lower-case name.
        allowed_hosts: names of this server, besides ``localhost`` and IP addresses.
        allowed_origins: further origins whose pages may change the server, such as ``https://console.example``.
    """
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if origin is None and site in (None, b"none"):
        return None
    if origin is not None and origin.decode("latin-1").lower() in allowed_origins:
        return None
    host = headers.get(b"host", b"").lower()
    if not _is_own(origin, site, host):
        return "a page of another origin may not do this (--allowed-origin names those that may)"
    authority = _AUTHORITY.fullmatch(host)
    if authority is None or not _is_known(authority[1].decode("latin-1"), allowed_hosts):
        return "the request's host is not known as a name of this server (--allowed-host names it)"
    return None


def _is_own(origin: bytes | None, site: bytes | None, host: bytes) -> bool:
    """Whether the page is the server's own, under the name in ``Host``."""
    if origin is None:
        return site == b"same-origin"
    page, server = _ORIGIN.fullmatch(origin.lower()), _AUTHORITY.fullmatch(host)
    if page is None or server is None:
        return False
    default = _PORTS[page[1]]
    return (page[2], page[3] or default) == (server[1], server[2] or default)


def _is_known(name: str, allowed_hosts: Collection[str]) -> bool:
    """Whether no attacker can make this name resolve to this machine."""
    if name == "localhost" or name.endswith(".localhost") or name in allowed_hosts:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
