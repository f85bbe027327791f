"""Clients that ask a server without pause, each on connections of its own, and count what went wrong."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from support import Server, exchange, inference, tensor

SIMPLE = inference(tensor("INPUT0", [1, 16], "INT32", list(range(16))), tensor("INPUT1", [1, 16], "INT32", [1] * 16))


@dataclass
class Load:
    """What the clients have seen so far.

    Attributes:
        answered: requests with the right answer, by client.
        failures: what else happened to a request that was sent, by client.
    """

    answered: dict[int, int] = field(default_factory=dict)
    failures: dict[int, list[str]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def failed(self) -> list[str]:
        return [failure for failures in self.failures.values() for failure in failures]

    def goes_on(self) -> None:
        """Returns when every client has got further answers."""
        before = dict(self.answered)
        wait_until(lambda: all(self.answered[client] > before[client] + 5 for client in before))

    def client(self, number: int, server: Server) -> None:
        """Every other client opens a connection for each request."""
        connection = None
        while not self.stop.is_set():
            if connection is None:
                connection = server.connect()
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    connection.close()
                    return  # the server has ended
            try:
                answer = exchange(connection, "POST", "/v2/models/simple/infer", SIMPLE)
                assert answer.status == 200, answer.body
                assert answer.json["outputs"][0]["data"] == list(range(1, 17))
                self.answered[number] += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures[number].append(repr(error))
                connection.close()
                connection = None
                continue
            if number % 2 or answer.headers.get("connection") == "close":
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


@contextmanager
def load(server: Server, clients: int = 4) -> Iterator[Load]:
    """Clients that ask until the end of the ``with`` block."""
    running = Load(dict.fromkeys(range(clients), 0), {number: [] for number in range(clients)})
    threads = [threading.Thread(target=running.client, args=(number, server)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(count > 5 for count in running.answered.values()))
        yield running
    finally:
        running.stop.set()
        for thread in threads:
            thread.join()


def wait_until(condition: Callable[[], object]) -> None:
    """Waits for something to become true; fails after a time that only a hanging server needs."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
