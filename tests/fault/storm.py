"""Clients that connect without pause, each for one request; a process of its own: `python -m tests.fault.storm`.

Python's standard library alone, so that it starts quickly. Arguments: host, port, connections at once, the longest that
it may last in seconds. Ends a moment after connects are refused, and prints what was counted as JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW_CONNECT_S = 0.5  # the system asks again after a second if a request for a connection was dropped
REFUSED = 200  # connects one after the other, then it ends
_RESET = struct.pack("ii", 1, 0)


class Storm:
    """Connections and counts."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.poll = select.epoll()
        self.open: dict[int, tuple[socket.socket, float, bool]] = {}  # when it was begun; whether it is connected
        self.counts = {"connected": 0, "answered": 0, "refused": 0, "reset": 0, "unanswered": 0, "slow": 0, "other": 0}
        self.refusal_s: list[float] = []
        self.refused_in_a_row = 0

    def run(self, at_once: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (self.refused_in_a_row >= REFUSED and not self.open):
            if self.refused_in_a_row < REFUSED:
                for _ in range(min(at_once - len(self.open), 64)):
                    self.connect()
            for number, _ in self.poll.poll(0.01):
                self.happened(number)
        self.counts["unanswered"] += sum(connected for _, _, connected in self.open.values())
        self.counts["slow"] += sum(not connected for _, _, connected in self.open.values())

    def connect(self) -> None:
        sock = socket.socket(self.family)
        sock.setblocking(False)
        began = time.monotonic()
        error = sock.connect_ex(self.address)
        if error not in (0, errno.EINPROGRESS):
            self.failed_to_connect(sock, error, began)
            return
        self.open[sock.fileno()] = (sock, began, False)
        self.poll.register(sock, select.EPOLLOUT)

    def failed_to_connect(self, sock: socket.socket, error: int, began: float) -> None:
        sock.close()
        if error == errno.ECONNREFUSED:
            self.refusal_s.append(time.monotonic() - began)
            self.refused_in_a_row += 1
            self.counts["refused"] += 1
        else:  # reset before the handshake was over
            self.counts["reset" if error == errno.ECONNRESET else "other"] += 1

    def happened(self, number: int) -> None:
        sock, began, connected = self.open[number]
        if not connected:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.forget(number)
                self.failed_to_connect(sock, error, began)
                return
            self.refused_in_a_row = 0
            self.counts["connected"] += 1
            self.counts["slow"] += time.monotonic() - began > SLOW_CONNECT_S
            self.open[number] = (sock, began, True)
            self.poll.modify(number, select.EPOLLIN)
            with contextlib.suppress(OSError):  # the next event says it
                sock.send(REQUEST)
            return
        try:
            answer = sock.recv(4096)
        except ConnectionResetError:
            what = "reset"
        except OSError:
            what = "other"
        else:
            what = "answered" if answer.startswith(b"HTTP/1.1 200") else "unanswered"
        self.counts[what] += 1
        self.forget(number)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # leaves no port in TIME_WAIT
        sock.close()

    def forget(self, number: int) -> None:
        del self.open[number]
        self.poll.unregister(number)


@contextlib.contextmanager
def storm(
    port: int, host: str = "127.0.0.1", at_once: int = 500, seconds: float = 20
) -> Iterator[list[dict[str, Any]]]:
    """Two such processes during a block; afterwards the list has what each has counted."""
    words = [sys.executable, "-m", "tests.fault.storm", host, str(port), str(at_once), str(seconds)]
    clients = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counted: list[dict[str, Any]] = []
    try:
        yield counted
        counted += [json.loads(client.communicate(timeout=seconds + 30)[0]) for client in clients]
    finally:
        for client in clients:
            client.kill()
            client.wait()


if __name__ == "__main__":
    storms = Storm(sys.argv[1], int(sys.argv[2]))
    storms.run(int(sys.argv[3]), float(sys.argv[4]))
    times = sorted(storms.refusal_s) or [0.0]
    print(json.dumps(storms.counts | {"refusal_s": times[len(times) // 2], "slowest_refusal_s": times[-1]}))
