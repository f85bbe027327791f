"""How large fastinfer's batches were, by its own /metrics."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from typing import Any

SAMPLE = re.compile(r'fastinfer_batch_size_bucket\{le="([^"]+)",model="[^"]+",version="[^"]+"\} ([0-9.e+]+)')
Sizes = dict[int, int]  # the largest number of rows of a class, and batches in it


def so_far(port: int) -> Sizes:
    """Of all models together, since the server began."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return on_page(answer.read().decode())


def on_page(page: str) -> Sizes:
    """What the text of /metrics says: its counts are cumulated."""
    sizes: Counter[int] = Counter()
    below = 0
    for bound, count in SAMPLE.findall(page):
        cumulated = int(float(count))
        if bound == "+Inf":
            below = 0  # the next model begins
            continue
        sizes[int(float(bound))] += cumulated - below
        below = cumulated
    return dict(sizes)


def between(before: Sizes, after: Sizes) -> Sizes:
    return {bound: count - before.get(bound, 0) for bound, count in after.items() if count > before.get(bound, 0)}


def of_result(result: dict[str, Any]) -> dict[str, Sizes]:
    """For each scenario, of fastinfer's measurements with the most connections up to 64."""
    found: dict[str, tuple[int, Sizes]] = {}
    for cell in result["results"]:
        rounds = [each["batches"] for each in cell.get("rounds", ()) if "batches" in each]
        if cell["server"] != "fastinfer" or cell["load"] or not rounds or cell["connections"] > 64:
            continue
        if cell["connections"] < found.get(cell["scenario"], (0,))[0]:
            continue
        sizes: Counter[int] = Counter()
        for each in rounds:
            sizes.update({int(bound): count for bound, count in each.items()})  # keys of JSON are texts
        found[cell["scenario"]] = (cell["connections"], dict(sorted(sizes.items())))
    return {
        f"{scenario}, {connections:,} connections": sizes
        for scenario, (connections, sizes) in found.items()
        if set(sizes) != {1}
    }


def class_text(bound: int) -> str:
    """The classes are 1, 2, 3-4, 5-8 ..."""
    return str(bound) if bound <= 2 else f"{bound // 2 + 1}–{bound}"
