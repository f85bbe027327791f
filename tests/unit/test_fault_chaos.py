"""What the chaos is made of: bombs are what they say, and a healthy client notices whatever is not right."""

from __future__ import annotations

import asyncio
import io
import json
import math
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("hdrh")
sys.path.append(str(Path(__file__).parents[2]))

from tests.fault import actors, bombs, healthy
from tests.fault.trial import KIB

OTHER = b'{"outputs":[{"name":"OUTPUT0","data":[1,2,3]},{"name":"OUTPUT1","data":[4]}]}'


@pytest.mark.parametrize("encoding", bombs.ENCODINGS)
@pytest.mark.parametrize("kind", bombs.KINDS)
def test_bombs_are_small_on_the_wire_and_as_large_as_said_inflated(kind, encoding):
    made = bombs.bomb(kind, encoding, 256 * KIB)
    body = made.message.partition(b"\r\n\r\n")[2]
    assert len(body) == made.received
    window = {"gzip": zlib.MAX_WBITS + 16, "deflate": -zlib.MAX_WBITS, "deflate of zlib": zlib.MAX_WBITS}
    text = zlib.decompress(body, window[encoding]) if encoding else body
    assert len(text) == made.inflated
    assert 0.9 * 256 * KIB <= len(text) <= 256 * KIB
    if kind in ("wrong datatype", "data before its datatype", "classes", "classes of rows", "empty strings"):
        [tensor] = json.loads(text)["inputs"]
        assert len(tensor["data"]) == math.prod(tensor["shape"])


def test_a_jpeg_with_more_scans_is_still_read():
    few, many = bombs.jpeg(64), bombs.jpeg(64, 50)
    assert 50 * 8 < len(many) - len(few) < 50 * 16
    with Image.open(io.BytesIO(many)) as image:
        assert abs(image.convert("L").getpixel((9, 9)) - 99) <= 4


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "a wrong answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(OTHER), OTHER), "a wrong answer"),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "503"),
        (b"", "closed without an answer"),
    ],
)
def test_a_healthy_client_takes_nothing_for_an_answer_but_the_right_one(answer, failure):
    async def serve(reader, writer):
        while await reader.read(1 << 20):
            writer.write(answer)
            if not answer:
                break
        writer.close()

    async def ask():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            client = healthy.Client(server.sockets[0].getsockname()[1], 1)
            await client.run(0.2)
            return client.report()

    seen = asyncio.run(ask())
    small = [kind for kind in healthy.KINDS if kind not in ("large", "gzip")]  # one read each
    for kind in small:
        figures = seen["kinds"][kind]
        assert figures["failed"] >= 0.2 * healthy.KINDS[kind][1] - 1 > 0
        assert all(failure in text for text in figures["failures"]), figures
    assert seen["all"]["failed"] >= len(small)


def test_actors_have_names_of_their_own():
    assert len(actors.BY_NAME) == len(actors.ACTORS) + len(actors.OPTIONAL)
    assert actors.Diagnostics not in actors.ACTORS  # deadly to a server without handlers for these signals
