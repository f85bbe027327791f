"""Markdown tables of what was measured: a row for each scenario, a column for each server."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Result = dict[str, Any]
Cells = list[dict[str, Any]]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grid(
    cells: Cells, servers: Sequence[str], shown: Callable[[dict[str, Any], dict[str, dict[str, Any]]], str], first: str
) -> str:
    """`shown` gets a cell and its row."""
    rows: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((cell["scenario"], cell["connections"]), {})[cell["server"]] = cell
    made = []
    for (scenario, connections), row in rows.items():
        cells_of = [shown(row[name], row) if "median" in row.get(name, {}) else "–" for name in servers]
        made.append([scenario, f"{connections:,}", *cells_of])
    return table([first, "connections", *servers], made)


def rounds_text(rounds: Sequence[float], digits: int) -> str:
    """The median, and behind it the least and the largest of several."""
    text = f"{statistics.median(rounds):,.{digits}f}"
    return text + (f" ({min(rounds):,.{digits}f} to {max(rounds):,.{digits}f})" if len(rounds) > 1 else "")


# --- What a cell may show ---------------------------------------------------------------------------------------------


def rate(cell: dict[str, Any]) -> float:
    return float(cell["median"]["requests_per_s"])


def ratio(cell: dict[str, Any], row: dict[str, dict[str, Any]]) -> str:
    """fastinfer's rate as a multiple of the cell's: the median of the rounds' ratios, as for the goals."""
    ours = row.get("fastinfer", {})
    if "median" not in ours or not rate(cell):
        return "–"
    pairs = zip(ours["rounds"], cell["rounds"], strict=False)
    return f"{statistics.median(a['requests_per_s'] / b['requests_per_s'] for a, b in pairs):.2f}"


def rate_and_spread(cell: dict[str, Any], _: object) -> str:
    low, high = cell["spread"]
    half = (high - low) / 2 / rate(cell) if rate(cell) else 0.0
    return f"{rate(cell):,.0f}" + (f" ±{half:.0%}" if len(cell["rounds"]) > 1 else "")


def latencies(cell: dict[str, Any], _: object) -> str:
    return f"{cell['median']['p50_us']:,.0f} / {cell['median']['p99_us']:,.0f}"


def cpu(cell: dict[str, Any], _: object) -> str:
    return f"{cell['median']['server_user_us']:,.1f} + {cell['median']['server_sys_us']:,.1f}"
