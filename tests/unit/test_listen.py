"""Listeners for several processes, and for none any more."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastinfer.http import listen


@contextlib.contextmanager
def bound(host: str, port: int, count: int) -> Iterator[list[list[socket.socket]]]:
    groups = listen.bind(host, port, count)
    try:
        yield groups
    finally:
        listen.close(groups)


def accepted(listener: socket.socket) -> int:
    """How many connections wait; they are closed."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


def test_connections_are_spread_over_the_processes() -> None:
    with bound("127.0.0.1", 0, 3) as groups, contextlib.ExitStack() as stack:
        ports = {listener.getsockname()[1] for group in groups for listener in group}
        assert len(ports) == 1
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", *ports)))
        counts = [accepted(group[0]) for group in groups]
        assert sum(counts) == 60
        assert min(counts) > 0


@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_an_address_is_one_servers(count: int, others: int) -> None:
    with bound("127.0.0.1", 0, count) as groups:
        port = groups[0][0].getsockname()[1]
        with pytest.raises(OSError) as caught:
            listen.bind("127.0.0.1", port, others)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("count", [1, 3])
def test_who_comes_too_late_is_refused(host: str, count: int) -> None:
    """What waits is still accepted; nobody is let in only to be cut off, and nobody waits in vain."""
    with bound(host, 0, count) as groups, contextlib.ExitStack() as stack:
        listeners = [listener for group in groups for listener in group]
        address = listeners[0].getsockname()
        early = [stack.enter_context(socket.create_connection(address[:2])) for _ in range(8)]
        assert sum(map(listen.waiting, listeners)) == 8
        for _ in range(2):  # each process that has them may do it
            refused = [listen.refuse_connects(listener) for listener in listeners]
            assert all(refused)
        for _ in range(8):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address[:2], timeout=5)
        for client in early:
            client.sendall(b"x")
        for listener in listeners:
            while listen.waiting(listener):
                connection = stack.enter_context(listener.accept()[0])
                assert connection.recv(1) == b"x"
                connection.sendall(b"y")
        assert [client.recv(1) for client in early] == [b"y"] * 8


def test_a_process_without_privileges_may_refuse_too() -> None:
    code = (
        "import os\n"
        "from fastinfer.http import listen\n"
        "((listener,),) = listen.bind('127.0.0.1', 0)\n"
        "if not os.getuid(): os.setuid(65534)\n"
        "print(listen.refuse_connects(listener), listen.refuse_connects(listener))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_where_connects_cannot_be_refused_they_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_SO_BINDTOIFINDEX", 9999)
    with bound("127.0.0.1", 0, 1) as ((listener,),):
        address = listener.getsockname()
        with socket.create_connection(address) as early:
            assert not listen.refuse_connects(listener)
            early.sendall(b"x")
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1) == b"x"
                early.sendall(b"y")
                assert connection.recv(1) == b"y"


def test_a_name_of_no_host() -> None:
    with pytest.raises(OSError):
        listen.bind("no such host", 0)
