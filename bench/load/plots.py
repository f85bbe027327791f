"""Plots of a result: latency against load, rate against connections and payload, sizes of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.load import batches
from bench.load.tables import Result, rate

Points = list[tuple[float, float]]

# One colour for each server in every plot and run.
COLOURS = {
    "floor": "#9a9a9a",
    "naive": "#e08a1e",
    "fastapi": "#b04fb0",
    "mlserver": "#c0392b",
    "triton": "#4d9221",
    "fastinfer": "#1f5fbf",
}


def write(result: Result, directory: Path) -> list[str]:
    """Draws what the run has figures for; the files' names. Nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    p50: dict[str, Points] = {}
    p99: dict[str, Points] = {}
    payload: dict[str, Points] = {}
    connections: dict[str, Points] = {}
    for cell in result["results"]:
        if "median" not in cell or cell["server"] not in COLOURS:
            continue
        name, median = cell["server"], cell["median"]
        if cell["scenario"] == "simple" and cell["load"]:
            p50.setdefault(name, []).append((median["rate"], median["p50_us"]))
            p99.setdefault(name, []).append((median["rate"], median["p99_us"]))
        elif cell["scenario"] == "simple":
            connections.setdefault(name, []).append((cell["connections"], rate(cell)))
        elif cell["scenario"].startswith("payload "):
            payload.setdefault(name, []).append((int(cell["scenario"].split()[1]), rate(cell)))
    made = [
        lines(
            directory / "latency.png",
            "Latency against load: simple, open loop\nsolid: p99, dashed: p50",
            ("requests/s", "latency, µs"),
            {"-": p99, "--": p50},
        ),
        lines(
            directory / "connections.png",
            "Rate against connections: simple, closed loop",
            ("connections", "requests/s"),
            {"-": connections},
            measured_only=True,
        ),
        lines(
            directory / "payload.png",
            "Rate against payload: identity of FP32, JSON, 8 connections",
            ("elements of a request", "requests/s"),
            {"-": payload},
            measured_only=True,
        ),
        bars(
            directory / "batches.png",
            {name: sizes for name, sizes in batches.of_result(result).items() if not name.startswith("payload")},
        ),
    ]
    return [name for name in made if name]


def lines(
    file: Path,
    title: str,
    labels: tuple[str, str],
    styles: dict[str, dict[str, Points]],
    *,
    measured_only: bool = False,
) -> str:
    """Both axes are logarithmic. `measured_only`: the horizontal one is marked only where something was measured."""
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not any(len(points) > 1 for drawn in styles.values() for points in drawn.values()):
        return ""
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for style, drawn in styles.items():
        for name, points in drawn.items():
            width = 2.6 if name == "fastinfer" else 1.4
            label = name if style == "-" else None
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, style, marker="o", markersize=4, color=COLOURS[name], linewidth=width, label=label)
    axes.set(xlabel=labels[0], ylabel=labels[1], xscale="log", yscale="log")
    axes.set_title(title, fontsize="medium")
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.set_minor_locator(NullLocator())
    if measured_only:
        axes.set_xticks(sorted({x for drawn in styles.values() for points in drawn.values() for x, _ in points}))
    decorate(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file.name


def bars(file: Path, counted: dict[str, batches.Sizes]) -> str:
    """What share of the batches had so many rows."""
    from matplotlib import pyplot

    if not counted:
        return ""
    columns = min(3, len(counted))
    count = -(-len(counted) // columns)
    classes = sorted({bound for sizes in counted.values() for bound in sizes})
    figure, every = pyplot.subplots(
        count, columns, figsize=(3.6 * columns, 2 * count + 0.6), layout="constrained", squeeze=False, sharey=True
    )
    for axes in every.flat[len(counted) :]:
        axes.set_visible(False)
    for axes, (name, sizes) in zip(every.flat, counted.items(), strict=False):
        shares = [100 * sizes.get(bound, 0) / sum(sizes.values()) for bound in classes]
        axes.bar([batches.class_text(bound) for bound in classes], shares, color=COLOURS["fastinfer"])
        axes.set_title(name, fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.set_ylim(0, 100)
        decorate(axes)
    figure.suptitle("Batches of fastinfer by rows", fontsize="medium")
    figure.supxlabel("rows of a batch", fontsize="small")
    figure.supylabel("% of the batches", fontsize="small")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file.name


def decorate(axes: Any) -> None:
    axes.grid(True, which="major", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
