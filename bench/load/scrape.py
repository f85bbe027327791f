"""What a scrape costs the requests beside it: `python bench/load/scrape.py [--models 300] [--rounds 5] [--seconds 8]`.

One server has many small models. One of them is asked in an open loop, with nobody else, and with a client that asks
for a report once a second: `/metrics` as it is, `/metrics` compressed as Prometheus asks for it, `/v2/models/stats`,
and as a control `/v2`, a small answer. The ways take turns in every round, and the ratio of their p99.9 is taken
within the round.

Beside it, how long the event loop stalls: one connection asks `/v2/health/live` again and again, and its longest wait
during each report, less its median, is a stall.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.load import loadgen
from bench.load.compare import apart
from bench.load.growth import copies, named
from bench.load.machine import surroundings
from bench.load.run import RESULTS
from bench.load.scenarios import SIMPLE, cases
from bench.load.servers import Server, models, serving

PERIOD_S = 1.0  # between scrapes
STALLS = 20  # measured for each way
WAYS = {  # a path and fields of the request
    "control": ("/v2", {}),
    "metrics": ("/metrics", {}),
    "metrics, gzip": ("/metrics", {"Accept-Encoding": "gzip"}),
    "statistics": ("/v2/models/stats", {}),
}
GOAL = 1.1  # of the median ratio of p99.9


class Scraper:
    """A client that reads answers on a connection of its own and throws them away."""

    def __init__(self, port: int, path: str, fields: dict[str, str]) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._request = "\r\n".join([*lines, "", ""]).encode()
        self._buffer = bytearray(1 << 20)

    def scrape(self) -> int:
        """Asks once; returns the size of the answer's body."""
        self._connection.sendall(self._request)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._some()
        head, _, begun = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        left = size - len(begun)
        while left:
            left -= len(self._some())
        return size

    def _some(self) -> memoryview:
        count = self._connection.recv_into(self._buffer)
        assert count, "the server has closed the connection"
        return memoryview(self._buffer)[:count]

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def scraping(port: int, way: str | None) -> Iterator[list[float]]:
    """Once a second meanwhile; yields how long each answer took, in milliseconds."""
    took: list[float] = []
    if way is None:
        yield took
        return
    end = threading.Event()
    scraper = Scraper(port, *WAYS[way])

    def scrape() -> None:
        while not end.wait(PERIOD_S):
            began = time.perf_counter()
            scraper.scrape()
            took.append((time.perf_counter() - began) * 1e3)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield took
    finally:
        end.set()
        thread.join()
        scraper.close()


def stalls(port: int, way: str) -> dict[str, float]:
    """How long the loop stalls for a report, in milliseconds."""
    waits: list[tuple[float, float]] = []  # when, and how long
    end = threading.Event()

    def ask() -> None:
        probe = Scraper(port, "/v2/health/live", {})
        while not end.is_set():
            began = time.perf_counter()
            probe.scrape()
            waits.append((began, time.perf_counter() - began))
            time.sleep(0.0002)
        probe.close()

    thread = threading.Thread(target=ask)
    thread.start()
    scraper = Scraper(port, *WAYS[way])
    longest, size = [], 0
    try:
        for _ in range(STALLS):
            time.sleep(0.25)
            began = time.perf_counter()
            size = scraper.scrape()
            ended = time.perf_counter()
            usual = statistics.median(wait for _, wait in waits)
            during = [wait for at, wait in list(waits) if at + wait >= began and at <= ended]
            longest.append((max(during, default=usual) - usual) * 1e3)
    finally:
        end.set()
        thread.join()
        scraper.close()
    return {"bytes": size, "median_ms": statistics.median(longest), "max_ms": max(longest)}


def measure(server: Server, ask: Callable[[], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        ways = [None, *options.ways]
        done = {}
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            with scraping(server.port, way) as took:
                got = ask()
            done[way or "alone"] = {name: got[name] for name in (*loadgen.PERCENTILES, "requests_per_s", "client_late")}
            done[way or "alone"]["scrapes_ms"] = took
            print(
                f"{number + 1}/{options.rounds}  {way or 'alone':15} p99.9 {got['p99_9_us']:9.1f} us", file=sys.stderr
            )
        rounds.append(done)
    return {"rounds": rounds}


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each way: medians over rounds of the ratios within them."""
    made = []
    for way in result["options"]["ways"]:
        ratios = {
            name: [each[way][name] / each["alone"][name] for each in result["rounds"]]
            for name in ("p50_us", "p99_us", "p99_9_us")
        }
        made.append(
            {
                "way": way,
                **{f"{name}_ratio": statistics.median(values) for name, values in ratios.items()},
                "p99_9_ratios": ratios["p99_9_us"],
                "p99_9_us": statistics.median(each[way]["p99_9_us"] for each in result["rounds"]),
                "alone_p99_9_us": statistics.median(each["alone"]["p99_9_us"] for each in result["rounds"]),
                "answer_ms": statistics.median(ms for each in result["rounds"] for ms in each[way]["scrapes_ms"]),
                "stall": result["stalls"][way],
            }
        )
    return made


def report(result: dict[str, Any]) -> str:
    lines = [
        f"# Scrapes of {result['options']['models']} models",
        "",
        f"{result['options']['rate']} requests a second of `simple`, {result['options']['connections']} connections; "
        f"one report a second. Commit {result['commit']}, {result['machine']['cores']} cores.",
        "",
        "| report | bytes | p99.9 alone, µs | p99.9 beside it, µs | ratio (least to largest) | p99 ratio "
        "| answer, ms | stall, median ms | stall, largest ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["summary"]:
        spread = f"{min(row['p99_9_ratios']):.2f} to {max(row['p99_9_ratios']):.2f}"
        stall = row["stall"]
        lines.append(
            f"| {row['way']} | {stall['bytes']:,} | {row['alone_p99_9_us']:,.0f} | {row['p99_9_us']:,.0f} "
            f"| **{row['p99_9_us_ratio']:.2f}** ({spread}) | {row['p99_us_ratio']:.2f} | {row['answer_ms']:.1f} "
            f"| {stall['median_ms']:.2f} | {stall['max_ms']:.2f} |"
        )
    worst = max(row["p99_9_us_ratio"] for row in result["summary"] if row["way"] != "control")
    lines += ["", f"Required: at most {GOAL}. Measured: {worst:.2f}, the least favourable of the medians.", ""]
    control = [row["p99_9_ratios"] for row in result["summary"] if row["way"] == "control"]
    for ratios in control:
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines += [f"The control, which costs nothing, differs by {spread}: no smaller difference can be told here.", ""]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--rate", type=int, default=2000, help="requests a second")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--pin", action="store_true", help="the client has the last core to itself")
    parser.add_argument("--output", type=Path, help="a .json file, beside which the report is written")
    options = parser.parse_args()
    options.client, options.quick = "loadgen", False
    return options


def main() -> int:
    options = arguments()
    served = models({"simple"})
    loadgen.build()
    result = surroundings(options)
    server_cores, cores = apart(options.pin)
    with tempfile.TemporaryDirectory(prefix="bench-models-") as directory:
        copied = copies(served, Path(directory), options.models)
        with serving("fastinfer", copied, server_cores) as server:
            asked = [(SIMPLE, named(cases(SIMPLE, served.files), 1))]

            def ask() -> dict[str, Any]:
                return loadgen.run(
                    server.port, asked, options.connections, options.seconds, rate=options.rate, cores=cores
                )

            ask()
            result["memory_bytes"] = server.memory_bytes()
            result["options"] = {
                name: getattr(options, name)
                for name in ("models", "rounds", "seconds", "rate", "connections", "ways", "pin")
            }
            result["stalls"] = {way: stalls(server.port, way) for way in options.ways}
            result |= measure(server, ask, options)
            result["memory_after_bytes"] = server.memory_bytes()
    result["summary"] = rows(result)
    text = report(result)
    stamp = result["time"].replace(":", "").split("+")[0]
    output = options.output or RESULTS / f"{stamp}-scrape.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    output.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
