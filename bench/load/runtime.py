"""ONNX Runtime's own best: `InferenceSession.run` again and again in a bare loop (bare.py), no server around it.

For each batch size, with one loop on one thread, one loop on as many threads as there are cores, and as many loops as
cores; nobody spins. It is measured in the rounds of the scenario, twice:

- *alone*: all cores are the loop's. No server can be judged by this: while one is measured, the client that asks it
  and the kernel's work on its sockets take their share of the same cores.
- *beside the traffic*: meanwhile the load generator asks the floor, which does nothing, at the rate that fastinfer
  reached in the same round. The same requests arrive and as many answers leave through the same cores; what is left
  is what any server could spend on the model. This is the fair one, so goal 4 is judged by it; the other is shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("bare.py")
BATCHES = (1, 4, 8, 16, 32, 64)
SLOT_S = 0.1  # of each way to run
BESIDE = 4  # how many of the ways are measured beside the traffic: the best ones alone, in the first round
ANSWER_TIMEOUT_S = 60.0

Way = dict[str, int]  # loops, threads of each, batch


def ways(cores: int) -> list[Way]:
    spread = {(1, 1), (1, cores), (cores, 1)}
    return [{"loops": loops, "threads": threads, "batch": b} for loops, threads in sorted(spread) for b in BATCHES]


def planned_s(rounds: int) -> float:
    return rounds * (3 * len(BATCHES) + BESIDE + 3) * SLOT_S


class Runtime(contextlib.AbstractContextManager["Runtime"]):
    """The process with the loop; it sleeps but in its turn."""

    def __init__(self, model: Path, cores: set[int] | None) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.ways = ways(len(cores or os.sched_getaffinity(0)))
        self.beside: list[Way] = []
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=partial(os.sched_setaffinity, 0, cores) if cores else None,
        )

    def round(self, load: Callable[..., dict[str, Any]] | None, rate: float) -> None:
        """One round; `load` asks the floor: load(seconds=..., rate=...)."""
        alone = self._measure(self.ways)
        made: dict[str, Any] = {"alone": alone}
        if load and rate:
            if not self.beside:
                fastest = sorted(alone, key=lambda each: -each["items_per_s"])[:BESIDE]
                self.beside = [{key: each[key] for key in self.ways[0]} for each in fastest]
            traffic: dict[str, Any] = {}
            asking = threading.Thread(target=lambda: traffic.update(load(seconds=(BESIDE + 2) * SLOT_S, rate=rate)))
            asking.start()
            time.sleep(2 * SLOT_S)  # until the traffic flows
            made["beside"] = self._measure(self.beside)
            asking.join()
            made |= {"asked_per_s": rate, "answered_per_s": traffic.get("requests_per_s")}
        self.rounds.append(made)

    def _measure(self, which: Sequence[Way]) -> list[dict[str, Any]]:
        assert self._process.stdin and self._process.stdout
        timer = threading.Timer(ANSWER_TIMEOUT_S, self._process.kill)
        timer.start()
        print(json.dumps({"ways": which, "seconds": SLOT_S}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        timer.cancel()
        got: list[dict[str, Any]] = json.loads(line)
        return got

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def best(rounds: Sequence[dict[str, Any]], kind: str) -> tuple[Way, list[float]] | None:
    """The way with the best median of items/s, and its items/s in each round; `kind` is alone or beside.

    One way for all rounds: the best of each round would be the luckiest of them.
    """
    found: dict[tuple[int, int, int], list[float]] = {}
    for each in rounds:
        for run in each.get(kind, ()):
            found.setdefault((run["loops"], run["threads"], run["batch"]), []).append(run["items_per_s"])
    if not found:
        return None
    (loops, threads, batch), rates = max(found.items(), key=lambda item: statistics.median(item[1]))
    return {"loops": loops, "threads": threads, "batch": batch}, rates


def describe(way: Way) -> str:
    loops = "one loop" if way["loops"] == 1 else f"{way['loops']} loops"
    threads = "one thread" if way["threads"] == 1 else f"{way['threads']} threads"
    return f"batches of {way['batch']}, {loops} of {threads}"
