"""Start, drain and end; signals; running out of files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastinfer.base import limits as constants
from fastinfer.http.server import Server

HOLD = b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"
ECHO = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok"

PROGRAM = """
import resource, sys, time
from types import SimpleNamespace
from fastinfer.base.errors import ApiError
from fastinfer.base.limits import HttpLimits
from fastinfer.http.server import Server, run

def resolve(method, path):
    handler = {b"/cpu": cpu, b"/hold": hold}.get(path, echo)
    return SimpleNamespace(handler=handler, max_body_bytes=100, arguments=(), compress_from=1024)

def echo(exchange):
    exchange.respond(200, bytes(exchange.body))

def cpu(exchange):
    exchange.respond(200, str(time.process_time()).encode())

held = []
def hold(exchange):
    held.append(exchange)

async def main():
    server = Server(SimpleNamespace(resolve=resolve), port=int(sys.argv[2]), limits=HttpLimits())
    await server.start()
    print(server.port, resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
    return await server.serve()

limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit // 2, limit))
sys.exit(0 if run(main()) else 3)
"""


@contextlib.contextmanager
def process(files: int = 1024, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], int]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(files), str(port)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            assert child.stdout is not None
            bound, limit = map(int, child.stdout.readline().split())
            assert limit == files, "the limit was not raised to the hard one"
            yield child, bound
        finally:
            child.kill()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def ask(sock: socket.socket, message: bytes = ECHO) -> bytes:
    sock.sendall(message)
    return sock.recv(65536)


def test_drain_without_connections(start):
    wire = start()
    assert wire.drain().result(5) is True
    with pytest.raises(ConnectionRefusedError):
        connect(wire.port)


def test_drain_lets_requests_finish(start):
    wire = start()
    holding, uploading, idle = wire.known_client(), wire.client(), wire.client()
    holding.send(HOLD * 3)
    uploading.send(ECHO[:-1])
    assert idle.send(ECHO).answer().body == b"ok"
    wire.until(lambda: len(wire.handlers.held) == 3)
    drained = wire.drain()
    wire.until(lambda: wire.server.draining)
    uploading.send(b"k" + ECHO)
    first, second = uploading.answer(), uploading.answer()
    assert (first.body, first.headers.get("connection")) == (b"ok", None)
    assert (second.body, second.headers["connection"]) == (b"ok", "close")
    assert uploading.closed()
    assert idle.closed()
    assert not drained.done()
    for number in (2, 0, 1):
        wire.call(wire.handlers.held[number].respond, 200, b"%d" % number)
    answers = holding.answers()
    assert [(answer.body, answer.headers.get("connection")) for answer in answers] == [
        (b"0", None),
        (b"1", None),
        (b"2", "close"),
    ]
    for client in (holding, uploading, idle):
        client.sock.close()
    assert drained.result(5) is True


def test_drain_answers_one_more_request_on_an_idle_connection(start):
    wire = start()
    client = wire.client()
    assert client.send(ECHO).answer().body == b"ok"
    drained = wire.drain()
    wire.until(lambda: wire.server.draining)
    answer = client.send(ECHO).answer()
    assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
    assert client.closed()
    client.sock.close()
    assert drained.result(5) is True


def test_drain_gives_a_moment_to_a_connection_that_was_idle_for_long(start, monkeypatch):
    monkeypatch.setattr(constants, "DRAIN_IDLE_S", 3.0)
    wire = start()
    client = wire.client()
    assert client.send(ECHO).answer().body == b"ok"
    time.sleep(3.2)
    drained = wire.drain(20)
    wire.until(lambda: wire.server.draining)
    time.sleep(0.5)  # two ticks of the clock that ends connections
    assert client.send(ECHO).answer().headers["connection"] == "close"
    client.sock.close()
    assert drained.result(10) is True


def test_drain_answers_what_is_in_the_accept_queue(start):
    wire = start()
    clients = []

    def connect_and_drain() -> asyncio.Task[bool]:
        # On the loop's thread: nothing is accepted before draining begins.
        clients.extend(wire.client().send(ECHO) for _ in range(100))
        return wire.loop.create_task(wire.server.drain(5))

    wire.call(connect_and_drain)
    for client in clients:
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
        client.sock.close()
    wire.until(lambda: wire.server.hub.connections == 0)


def test_a_drain_answers_503_to_what_it_gives_up(start):
    """Requests that run, that wait for others of their connection, and whose heads or bodies are on their way."""
    wire = start(linger_s=0.1)
    holding, sized, chunked, starting, behind = (wire.known_client() for _ in range(5))
    holding.send(HOLD * 3)
    sized.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 70_000)
    chunked.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
    starting.send(b"GET /echo HT")
    behind.send(HOLD + b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
    wire.until(lambda: len(wire.handlers.held) == 4)
    drained = wire.drain(0.3)
    for client, count in ((holding, 3), (sized, 1), (chunked, 1), (starting, 1), (behind, 2)):
        answers = [client.answer() for _ in range(count)]
        assert [answer.status for answer in answers] == [503] * count
        assert [answer.headers["retry-after"] for answer in answers] == ["1"] * count
        assert [answer.headers.get("connection") for answer in answers] == [None] * (count - 1) + ["close"]
        assert client.closed()
        client.sock.close()
    assert drained.result(5) is False
    assert wire.handlers.abandoned == 4
    for exchange in wire.handlers.held:
        wire.call(exchange.respond, 200, b"too late")  # does nothing


def test_an_upload_that_is_given_up_is_read_until_its_client_has_the_answer(start):
    """A connection that is closed with bytes unread is reset, and the answer may be lost with it."""
    wire = start()
    client = wire.client()
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
    drained = wire.drain(0.2)
    wire.until(lambda: wire.server.draining)
    for _ in range(20):
        client.send(b"x" * 50_000)
        time.sleep(0.02)
    assert client.answer().status == 503
    assert client.closed()
    client.sock.close()
    assert drained.result(5) is False


def test_a_drain_ends_though_a_client_does_not_read(start):
    wire = start()
    deaf = wire.client()
    body = b"x" * 4_000_000
    deaf.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    wire.until(lambda: wire.handlers.calls == 1)
    assert wire.drain(0.2).result(10) is False
    wire.until(lambda: wire.server.hub.connections == 0)


def test_an_announced_end_goes_on_accepting(start):
    wire = start()
    idle, asking = wire.client(), wire.client()
    for client in (idle, asking):
        assert client.send(ECHO).answer().headers.get("connection") is None
    wire.call(wire.server.announce)
    assert not wire.server.draining
    answer = asking.send(ECHO).answer()
    assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
    assert asking.closed()
    late = wire.client()
    first, second = late.send(ECHO * 2).answer(), late.answer()
    assert (first.headers.get("connection"), second.headers["connection"]) == (None, "close")
    time.sleep(constants.DRAIN_IDLE_S + 0.5)  # nobody is closed for being idle
    assert idle.send(ECHO).answer().headers["connection"] == "close"
    for client in (idle, asking, late):
        client.sock.close()
    assert wire.drain().result(5) is True


def test_given_sockets(start):
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [listener.getsockname()[1] for listener in listeners]
    wire = start(sockets=listeners)
    assert wire.port == ports[0]
    for port in ports:
        with connect(port) as sock:
            assert ask(sock).endswith(b"ok")


def test_an_address_that_is_taken(start):
    wire = start()

    async def start_another() -> None:
        await Server(wire.handlers, port=wire.port).start()

    with pytest.raises(OSError, match="in use"):
        asyncio.run(start_another())


def test_sigterm_drains():
    with process() as (child, port), connect(port) as idle, connect(port) as other:
        assert ask(idle).endswith(b"ok") and ask(other).endswith(b"ok")
        child.send_signal(signal.SIGTERM)
        assert idle.recv(100) == b""
        idle.close()
        other.close()
        assert child.wait(10) == 0


def test_second_signal_ends_at_once():
    with process() as (child, port), connect(port) as sock, connect(port) as idle:
        sock.sendall(HOLD)
        assert ask(idle).endswith(b"ok")
        child.send_signal(signal.SIGINT)
        assert idle.recv(100) == b""  # it drains
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert sock.recv(1000).startswith(b"HTTP/1.1 503 ")
        sock.close()
        assert child.wait(10) == 3


def test_the_port_is_free_again_at_once():
    with process() as (child, port), connect(port) as sock:
        assert ask(sock).endswith(b"ok")
        child.terminate()
        sock.recv(100)
        sock.close()
        assert child.wait(10) == 0
        with process(port=port) as (_, again), connect(again) as sock:
            assert ask(sock).endswith(b"ok")


def test_out_of_files():
    with process(files=40) as (_, port):
        first = connect(port)
        assert ask(first).endswith(b"ok")
        others = [connect(port) for _ in range(100)]
        for sock in others:
            sock.sendall(ECHO)
        # Existing connections are unharmed, and nothing spins.
        assert others[0].recv(100).endswith(b"ok")
        before = float(ask(first, b"GET /cpu HTTP/1.1\r\nHost: a\r\n\r\n").rpartition(b"\n")[2])
        with pytest.raises(TimeoutError):
            others[-1].settimeout(1)
            others[-1].recv(100)
        used = float(ask(first, b"GET /cpu HTTP/1.1\r\nHost: a\r\n\r\n").rpartition(b"\n")[2]) - before
        assert used < 0.3
        # Those that wait get their turn as others go.
        others[0].close()
        for sock in others[1:]:
            sock.settimeout(10)
            assert sock.recv(100).endswith(b"ok")
            sock.close()
        assert ask(first).endswith(b"ok")
        first.close()


def test_a_client_that_goes_on_sending_does_not_hold_up_the_drain(start):
    wire = start(linger_s=0.1)
    client = wire.known_client().send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.until(lambda: len(wire.handlers.held) == 1)
    drained = wire.drain(0.6)
    wire.until(lambda: wire.server.hub.ending)
    wire.call(wire.handlers.held[0].respond, 200, b"")
    assert client.answer().headers["connection"] == "close"
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            if drained.done():
                break
            client.send(b"x" * 100)
            time.sleep(0.02)
    assert drained.result(5) is True
