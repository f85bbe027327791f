"""A small closed-loop HTTP client that checks every answer's values.

It is much slower than wrk, so it measures only where wrk is missing, and then mostly itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import uvloop
from scenarios import Case


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes) -> bytes:
    """The body of the answer; raises ValueError if the status is not 200."""
    writer.write(f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    writer.write(body)
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    answer = await reader.readexactly(length)
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"{head.splitlines()[0].decode()}: {answer[:200].decode(errors='replace')}")
    return answer


async def closed_loop(port: int, path: str, cases: Sequence[Case], connections: int, seconds: float) -> list[float]:
    """Every connection asks one case after the other. Returns the latencies in seconds; all answers were right."""
    latencies: list[float] = []
    right: list[set[bytes]] = [set() for _ in cases]  # answers already checked; the servers repeat theirs
    end = time.perf_counter() + seconds

    async def connection(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        try:
            turn = first
            while (start := time.perf_counter()) < end or turn < first + len(cases):
                case = turn % len(cases)
                answer = await ask(reader, writer, path, cases[case].body)
                latencies.append(time.perf_counter() - start)
                if answer not in right[case]:
                    cases[case].check(answer)
                    right[case].add(answer)
                turn += 1
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for i in range(connections):
            group.create_task(connection(i))
    return latencies


def run(port: int, path: str, cases: Sequence[Case], connections: int, seconds: float) -> list[float]:
    """`closed_loop`, from outside a loop; the first failure is raised by itself."""
    try:
        return uvloop.run(closed_loop(port, path, cases, connections, seconds))
    except* Exception as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
