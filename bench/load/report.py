"""Tables and plots of a result: `python bench/load/report.py bench/results/RUN.json` writes them again.

Ratios first: they hold within a run, the absolute figures belong to the machine and its minute.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Cells = list[dict[str, Any]]
SAMPLE = re.compile(r'fastinfer_batch_size_bucket\{le="([^"]+)",model="([^"]+)",version="[^"]+"\} ([0-9.e+]+)')


def batch_sizes(port: int) -> dict[str, list[tuple[str, int]]]:
    """For each model that ran: (largest size of a class, batches of that class), from the server's /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    cumulated: dict[str, list[tuple[str, float]]] = {}
    for bound, model, count in SAMPLE.findall(page):
        cumulated.setdefault(model, []).append((bound.removesuffix(".0"), float(count)))
    sizes = {}
    for model, counts in cumulated.items():
        below = [0.0, *(count for _, count in counts)]
        single = [int(count - less) for (_, count), less in zip(counts, below, strict=False)]
        if any(single):
            sizes[model] = [(bound, count) for (bound, _), count in zip(counts, single, strict=True) if count]
    return sizes


# --- Tables -----------------------------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grid(
    cells: Cells, servers: Sequence[str], shown: Callable[[dict[str, Any], dict[str, dict[str, Any]]], str], first: str
) -> str:
    """A row for each scenario, connections and load; a column for each server. `shown` gets a cell and its row."""
    rows: dict[tuple[str, int, float | None], dict[str, dict[str, Any]]] = {}
    for cell in cells:
        rows.setdefault((cell["scenario"], cell["connections"], cell["load"]), {})[cell["server"]] = cell
    made = []
    for (scenario, connections, load), row in rows.items():
        head = [scenario, f"{connections:,}"] + ([f"{load:.0%}"] if load else [])
        made.append(head + [shown(row[name], row) if "median" in row.get(name, {}) else "–" for name in servers])
    heads = [first, "connections", *(["load"] if cells and cells[0]["load"] else []), *servers]
    return table(heads, made)


def rate(cell: dict[str, Any]) -> float:
    return float(cell["median"]["requests_per_s"])


def ratio(cell: dict[str, Any], row: dict[str, dict[str, Any]]) -> str:
    ours = row.get("fastinfer", {})
    return f"{rate(ours) / rate(cell):.2f}" if "median" in ours and rate(cell) else "–"


def rate_and_spread(cell: dict[str, Any], _: object) -> str:
    low, high = cell["spread"]
    half = (high - low) / 2 / rate(cell) if rate(cell) else 0.0
    return f"{rate(cell):,.0f}" + (f" ±{half:.0%}" if len(cell["rounds"]) > 1 else "")


def latencies(cell: dict[str, Any], _: object) -> str:
    return f"{cell['median']['p50_us']:,.0f} / {cell['median']['p99_us']:,.0f}"


def cpu(cell: dict[str, Any], _: object) -> str:
    return f"{cell['median']['server_user_us']:,.1f} + {cell['median']['server_sys_us']:,.1f}"


def open_loop(cells: Cells) -> str:
    """A row for each kind of request, server and load."""
    rows = []
    for cell in cells:
        if "median" not in cell:
            continue
        for name, kind in cell["classes"].items():
            tail = [f"{kind[key]:,.0f}" for key in ("p50_us", "p99_us", "p99_9_us")]
            tail += [f"{kind[key] / kind['p50_us']:.1f}" for key in ("p99_us", "p99_9_us")]
            late = f"{max(each['client_late']['p99_us'] for each in cell['rounds']):,.0f}"
            left = f"{sum(each['unfinished'] for each in cell['rounds']):,}"
            asked = f"{cell['load']:.0%}: {cell['median']['rate']:,.0f}"
            what = cell["scenario"] if name == cell["scenario"] else f"{cell['scenario']}: {name}"
            rows.append([what, cell["server"], asked, *tail, late, left])
    heads = "requests, server, share of its peak: req/s, p50 µs, p99 µs, p99.9 µs, p99 / p50, p99.9 / p50"
    return table([*heads.split(", "), "client late: p99 µs", "unanswered"], rows)


def facts(result: Result) -> str:
    machine, method = result["machine"], result["method"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['time']}, commit {result['commit'] or 'unknown'}, took {result['took_s']} s.",
        f"{machine['cores']} cores of {machine['cpu']}, kernel {machine['kernel']}, "
        f"load before {machine['load_before']:.1f}.",
        f"{versions}.",
        f"{method['rounds']} rounds of {method['seconds']} s, closed loop by {method['client']}, "
        + ("servers on core 0, client on core 1." if method["pin"] else "servers and client share the cores."),
    ]
    lines += [f"{name}: {note}." for name, note in result["servers"].items() if note]
    return "\n".join(f"- {line}" for line in lines)


def markdown(result: Result, plots: Sequence[str]) -> str:
    others = [name for name in result["servers"] if name != "fastinfer"]
    order = others + [name for name in result["servers"] if name == "fastinfer"]
    closed = [cell for cell in result["results"] if cell["load"] is None]
    opened = [cell for cell in result["results"] if cell["load"] is not None]
    quick = " (quick: one noisy round, not a result)" if result["method"]["quick"] else ""
    parts = [f"# Benchmark{quick}", facts(result)]
    missing = [(name, "all", reason) for name, reason in result["absent"].items()]
    missing += [(cell["server"], cell["scenario"], cell["failed"]) for cell in closed + opened if "failed" in cell]
    if missing:
        rows = [[*names, " ".join(reason.split())[:300]] for *names, reason in dict.fromkeys(missing)]
        parts += ["## Absent", table(["server", "scenario", "reason"], rows)]
    if "fastinfer" in order:
        parts += ["## fastinfer's rate as a multiple of the others'", grid(closed, others, ratio, "scenario")]
    parts += ["## Requests per second, closed loop", grid(closed, order, rate_and_spread, "scenario")]
    parts += ["## Latency p50 / p99 in µs, closed loop", grid(closed, order, latencies, "scenario")]
    parts += ["## CPU of the server in µs a request, its own + the system's", grid(closed, order, cpu, "scenario")]
    if opened:
        parts += ["## Open loop: constant rate, latency from the moment a request was due", open_loop(opened)]
    for model, sizes in result["batch_sizes"].items():
        if sizes != [["1", sizes[0][1]]]:
            text = ", ".join(f"≤ {bound}: {count:,}" for bound, count in sizes)
            parts.append(f"Batches of {model} by rows, whole run: {text}.")
    parts += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(parts) + "\n"


# --- Plots ------------------------------------------------------------------------------------------------------------


def plot(result: Result, directory: Path) -> list[str]:
    """The files' names; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [cell for cell in result["results"] if "median" in cell]
    servers = list(result["servers"])
    made = []

    def figure(name: str, title: str, x: str, y: str, lines: dict[str, list[tuple[float, float]]], scale: str) -> None:
        lines = {label: sorted(points) for label, points in lines.items() if len(points) > 1}
        if not lines:
            return
        drawn, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        for label, points in lines.items():
            style = "--" if label.endswith("p50") else "-"
            colour = f"C{servers.index(label.split()[0])}"
            axes.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label)
        axes.set(title=title, xlabel=x, ylabel=y, xscale=scale, yscale="log")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize="small")
        drawn.savefig(directory / name, dpi=110)
        pyplot.close(drawn)
        made.append(name)

    load: dict[str, list[tuple[float, float]]] = {}
    payload: dict[str, list[tuple[float, float]]] = {}
    connections: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        if cell["scenario"] == "simple" and cell["load"]:
            for key in ("p50", "p99"):
                points = load.setdefault(f"{cell['server']} {key}", [])
                points.append((cell["median"]["rate"], cell["median"][f"{key}_us"]))
        if cell["scenario"] == "simple" and not cell["load"]:
            connections.setdefault(cell["server"], []).append((cell["connections"], rate(cell)))
        if cell["scenario"].startswith("payload "):
            payload.setdefault(cell["server"], []).append((int(cell["scenario"].split()[1]), rate(cell)))
    figure("latency.png", "Latency against load: simple, open loop", "requests/s", "µs", load, "log")
    figure("connections.png", "Throughput against connections: simple", "connections", "requests/s", connections, "log")
    figure("payload.png", "Throughput against payload: identity FP32, JSON", "elements", "requests/s", payload, "log")
    sizes = {model: counts for model, counts in result["batch_sizes"].items() if len(counts) > 1}
    if sizes:
        size = (8, 2 * len(sizes) + 1)
        drawn, all_axes = pyplot.subplots(len(sizes), figsize=size, layout="constrained", squeeze=False)
        for axes, (model, counts) in zip(all_axes[:, 0], sizes.items(), strict=True):
            axes.bar([bound for bound, _ in counts], [count for _, count in counts])
            axes.set(title=model, xlabel="rows, at most", ylabel="batches", yscale="log")
        drawn.suptitle("Batch sizes of fastinfer, whole run")
        drawn.savefig(directory / "batches.png", dpi=110)
        pyplot.close(drawn)
        made.append("batches.png")
    return made


def write(result: Result, directory: Path) -> str:
    """Writes report.md and the plots; returns the former."""
    directory.mkdir(parents=True, exist_ok=True)
    text = markdown(result, plot(result, directory))
    (directory / "report.md").write_text(text)
    return text


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(write(json.loads(source.read_text()), source.with_suffix("")))
