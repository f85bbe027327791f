"""What the guided fuzz feeds its inputs to, and what must hold for every one.

Each target takes bytes, and raises AssertionError where something is wrong; a crash speaks for itself. ``seeds`` are
sound inputs to begin with, ``tokens`` what its grammar is made of.
"""

from __future__ import annotations

import asyncio
import random
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import uvloop

from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.codec import decode as codec
from fastinfer.http.connection import Connection
from fastinfer.http.exchange import Exchange
from fastinfer.http.hub import Hub
from tests.unit.test_decode_hostile import VALID, agree

WIDTHS = (0, 256, 512)


class Target(ABC):
    """Something that reads bytes from strangers."""

    name: ClassVar[str]
    seeds: ClassVar[Sequence[bytes]]
    tokens: ClassVar[Sequence[bytes]]

    @abstractmethod
    def check(self, data: bytes) -> None:
        """Reads ``data``; AssertionError where that goes wrong."""

    def close(self) -> None:  # noqa: B027
        """Lets go of what it holds."""


def told(body: bytes, **arguments: Any) -> Any:
    """What the decoder makes of a body: its tensors, or its sentence."""
    try:
        request = codec.decode(body, **arguments)
    except ApiError as error:
        assert error.status == 400
        assert len(error.message.encode()) < 512
        return error.message
    tensors = [(t.name, t.datatype, t.shape, bytes(memoryview(t))) for t in request.inputs]
    outputs = [(o.name, o.binary, o.classification) for o in request.outputs]
    return request.id, request.raw, request.timeout_us, request.priority, request.binary_output, tensors, outputs


class JsonBodies(Target):
    """The decoder, beside Python's json and exact numbers."""

    name = "json"
    seeds = (
        VALID,
        b'{"inputs":[{"name":"x","shape":[1,16],"datatype":"INT32","data":[0,-1,2,-3,4,5,6,7,8,9,10,11,12,13,14,150]}]}',
        b'{"inputs":[{"name":"x","shape":[2,9],"datatype":"FP32","data":['
        + b"[0.1,-1e-7,2.5,1234567,3e38,NaN,0,1,2]," * 2
        + b"]}]}",
        b'{"inputs":[{"name":"x","shape":[70],"datatype":"UINT8","data":['
        + b"1,25,255,0,17,99,100," * 9
        + b"1,2,3,4,5,6,7]}]}",
        b'{"inputs":[{"name":"x","shape":[3],"datatype":"FP64","data":[1.7976931348623157e308,5e-324,0.1]}]}',
        b'{"id":null,"outputs":null,"inputs":[{"name":"x","shape":[2,2],"datatype":"FP16","data":[[null,1],[2,null]]}]}',
        b'{"inputs":[{"name":"x","shape":[3],"datatype":"BYTES","parameters":{"content_type":"base64"},'
        b'"data":["QUJD","","QQ=="]}]}',
    )
    tokens = (
        *b'{ } [ ] , : " \\ -1 e308 E-45 1e5 0.1 NaN Infinity true false null'.split(),
        *(b'"%s"' % word for word in b"inputs outputs name shape datatype data parameters id timeout priority".split()),
        *(b'"%s"' % word for word in b"BOOL UINT8 INT64 UINT64 FP16 BF16 FP32 FP64 BYTES binary_data_size".split()),
        *(b'"%s"' % word for word in b"content_type base64 np QUJD QUI= /+== binary_data".split()),
        b"\\ud83d", b"\\u0000", b"\xff", b"9223372036854775808", b"0." + b"0" * 40 + b"1", b"1" * 70, b" " * 70,
    )  # fmt: skip

    def check(self, data: bytes) -> None:
        agree(data)
        nulls = told(data, nullable=True)
        whole = told(data)
        for width in WIDTHS:
            assert told(data, width=width) == whole
            assert told(data, width=width, nullable=True) == nulls
        job = codec.DecodeJob(data)
        job.run()
        try:
            job.result()
        except ApiError as error:
            assert error.message == whole


class BinaryBodies(Target):
    """The reader of binary tensors. The first two bytes are the JSON's length."""

    name = "binary"
    seeds = tuple(
        struct.pack("<H", len(text)) + text + tail
        for text, tail in (
            (
                b'{"inputs":[{"name":"a","shape":[2],"datatype":"FP32","parameters":{"binary_data_size":8}},'
                b'{"name":"b","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":11}}]}',
                bytes(8) + b"\1\0\0\0x\2\0\0\0yz",
            ),
            (
                b'{"parameters":{"binary_data_output":true},"inputs":[{"name":"a","shape":[3],"datatype":"BOOL",'
                b'"parameters":{"binary_data_size":3}},{"name":"b","shape":[1],"datatype":"INT64","data":[7]}]}',
                b"\1\2\0",
            ),
            (b"", b"raw"),
        )
    )
    tokens = (
        *b'{ } [ ] , : -1 0 1 2 4 8 "BYTES" "BOOL" "FP64" "data" "parameters" "shape"'.split(),
        b'"binary_data_size"', b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\xff", b"4294967296", b"9223372036854775807",
    )  # fmt: skip

    def check(self, data: bytes) -> None:
        size, body = struct.unpack("<H", data[:2].ljust(2, b"\0"))[0], data[2:]
        copied = told(body, json_size=size)
        assert told(body, json_size=size, stable=True) == copied


class HttpMessages(Target):
    """A connection: the same bytes in one piece, in single bytes and cut somewhere have the same answers."""

    name = "http"
    seeds = (
        b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"GET /b?c=d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n",
        b"POST /a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx",
        b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
        b"Accept-Encoding: gzip;q=0.5\r\nContent-Length: 3\r\n\r\nabc",
        b"HEAD /%41/../x HTTP/1.1\r\nHost: [::1]:8000\r\nInference-Header-Content-Length: 5\r\n\r\n",
    )
    tokens = (
        *b"\r\n \r\n\r\n : ; , HTTP/1.1 HTTP/1.0 HTTP/2.0 GET POST HEAD OPTIONS / * chunked gzip identity".split(b" "),
        *(b"%s: " % name for name in b"Host Content-Length Transfer-Encoding Connection Expect Upgrade TE".split()),
        *b"close keep-alive 100-continue 0 1 3 +1 -1 0x1 99999999999999999999 \0 \x80 \t \r".split(b" "),
        b"0\r\n\r\n", b"Content_Length: 3\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"a" * 300, b"\n",
    )  # fmt: skip

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._hub = self._loop.run_until_complete(self._make_hub())

    async def _make_hub(self) -> Hub:
        return Hub(_Echo(), HttpLimits(max_head_bytes=512, max_headers=8, max_chunks=16, linger_s=1e-3), self._loop)

    def check(self, data: bytes) -> None:
        source = random.Random(data)
        places = sorted(source.sample(range(len(data) + 1), min(4, len(data))))
        whole = self._told([data])
        assert self._told([data[i : i + 1] for i in range(len(data))]) == whole
        assert self._told([data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]) == whole
        assert self._hub.in_flight_bytes == 0
        assert self._hub.connections == 0

    def _told(self, pieces: Sequence[bytes]) -> list[bytes]:
        return self._loop.run_until_complete(self._talk(pieces))

    async def _talk(self, pieces: Sequence[bytes]) -> list[bytes]:
        protocol, transport = Connection(self._hub), _Transport()
        self._hub.opening += 1
        protocol.connection_made(transport)
        for piece in pieces:
            while piece and not transport.closed:
                for _ in range(100):
                    if not transport.paused:
                        break
                    await asyncio.sleep(0)
                assert not transport.paused, "reading is never resumed"
                with memoryview(protocol.get_buffer(-1)) as room:
                    size = min(len(room), len(piece))
                    room[:size] = piece[:size]
                piece = piece[size:]
                protocol.buffer_updated(size)
        for _ in range(8):
            await asyncio.sleep(0)
        found = answers(bytes(transport.written))
        if not transport.closed:
            protocol.eof_received()
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        return found

    def close(self) -> None:
        self._hub.close()
        self._loop.close()


class _Echo:
    max_body_bytes = 1024
    compress_from = 1024

    def resolve(self, method: str, path: bytes) -> Any:  # noqa: ARG002
        if len(path) > 40:
            raise ApiError(404, "no such path")
        return self

    arguments = ()

    def handler(self, exchange: Exchange) -> None:
        exchange.respond(200, exchange.method.encode() + b" " + bytes(exchange.body))


class _Transport(asyncio.Transport):
    """A socket's place: keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closed, "written after the end"
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return not self.paused

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def write_eof(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        return default

    def abort(self) -> None:
        self.closed = True

    close = abort


def answers(written: bytes) -> list[bytes]:
    """The answers in what a connection has sent, but for interim ones; nothing follows one that closes."""
    found: list[bytes] = []
    last = False
    while written:
        assert not last, "an answer after the last one"
        head, end, written = written.partition(b"\r\n\r\n")
        assert end, "half an answer"
        status, *lines = head.split(b"\r\n")
        assert status.startswith(b"HTTP/1.1 "), status
        if status.startswith(b"HTTP/1.1 100"):
            continue
        fields = dict(line.lower().split(b": ", 1) for line in lines)
        size = int(fields[b"content-length"])
        sent = 0 if found_head(written, size) else size
        assert len(written) >= sent, "half a body"
        found.append(status + b" " + written[:sent])
        written = written[sent:]
        last = fields.get(b"connection") == b"close"
    return found


def found_head(written: bytes, size: int) -> bool:
    """Whether the answer is one to HEAD: it tells a size, and the next answer or nothing follows."""
    return size > 0 and (not written or written.startswith(b"HTTP/1.1 "))


TARGETS: dict[str, type[Target]] = {target.name: target for target in (JsonBodies, BinaryBodies, HttpMessages)}
