"""What the routes see of HTTP: the exchange, and the types of what it is answered with."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Buffer

from fastinfer._ext.exchange import JSON, Exchange

__all__ = ["JSON", "Body", "Exchange", "Fields"]

Fields = Sequence[tuple[bytes, bytes]]
Body = Buffer | Sequence[Buffer]
