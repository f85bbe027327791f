"""The floor: uvloop and httptools with a fixed answer, no work at all. `python floor.py PORT [ANSWER_FILE]`

What is left between this and a server is that server's own cost. It joins the pieces of a body, as most servers do.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import httptools
import uvloop


class Floor(asyncio.Protocol):
    """One connection: every request gets the same bytes."""

    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        b"".join(self.pieces)
        self.pieces.clear()
        self.transport.write(self.answer)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    body = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 2 else b"{}"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    Floor.answer = head.encode() + body
    uvloop.run(main(int(sys.argv[1])))
