"""The report of a result: `python bench/load/report.py bench/results/RUN.json` writes it again, with its goals.

The goals first, then ratios: they hold within a run; the absolute figures belong to the machine and its minute.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.load import batches, goals, plots, runtime
from bench.load.tables import Cells, Result, cpu, grid, latencies, rate_and_spread, ratio, rounds_text, table

HOW_TO_READ = (
    "Each figure is the median of the rounds, ± half of their spread. Where ± is as large as a difference, there is no "
    "difference. bench/README.md says what each scenario is and how the goals are computed."
)


# --- The goals --------------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def goals_table(rows: Sequence[Result]) -> str:
    """A row for each goal; what is missed or was not measured stands out."""
    shown = []
    for row in rows:
        measured = "–"
        if "ratio" in row:
            measured = figure(row["ratio"])
            if row["rounds"] > 1:
                measured += f" ({figure(row['spread'][0])} to {figure(row['spread'][1])})"
        verdict = row["verdict"] if row["verdict"] == "met" else f"**{row['verdict']}**"
        shown.append([str(row["goal"]), row["what"], row["required"], measured, verdict, row["note"].replace("|", "/")])
    return table(["goal", "measured in this run", "required", "ratio (rounds)", "", "told by the run"], shown)


def goals_summary(rows: Sequence[Result]) -> str:
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("met", "missed", "not measured")}
    return (
        f"Of {len(rows)} requirements {counts['met']} are met, {counts['missed']} are missed and "
        f"{counts['not measured']} were not measured. Each is a ratio within this run; the median of the rounds is "
        "judged, and the least and the largest stand behind it."
    )


# --- The sections -----------------------------------------------------------------------------------------------------


def facts(result: Result) -> str:
    machine, method = result["machine"], result["method"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['time']}, commit {result['commit'] or 'unknown'}, took {result['took_s']} s.",
        f"{machine['cores']} cores of {machine['cpu']}, kernel {machine['kernel']}, "
        f"load before {machine['load_before']:.1f}.",
        f"{versions}.",
        f"{method['rounds']} rounds of {method['seconds']} s, closed loop by {method['client']}, "
        + ("the client on the last core, servers on the others." if method["pin"] else "all share the cores."),
        *([f"Method: {method['summary']}."] if "summary" in method else []),
    ]
    lines += [f"{name}: {note}." for name, note in result["servers"].items() if note]
    return "\n".join(f"- {line}" for line in lines)


def absent(result: Result) -> list[str]:
    missing = [(name, "all", reason) for name, reason in result["absent"].items()]
    missing += [(cell["server"], cell["scenario"], cell["failed"]) for cell in result["results"] if "failed" in cell]
    if not missing:
        return []
    rows = [[*names, " ".join(reason.split())[:300]] for *names, reason in dict.fromkeys(missing)]
    return ["## Absent", table(["server", "scenario", "reason"], rows)]


def open_loop(cells: Cells) -> list[str]:
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
    if not rows:
        return []
    heads = "requests, server, share of its peak: req/s, p50 µs, p99 µs, p99.9 µs, p99 / p50, p99.9 / p50"
    shown = table([*heads.split(", "), "client late: p99 µs", "unanswered"], rows)
    return ["## Open loop: constant rate, latency from the moment a request was due", shown]


def runtime_table(measured: Cells) -> list[str]:
    """ONNX Runtime in a bare loop: the best of each batch size."""
    rows = []
    for each in measured:
        for kind, where in (("alone", "alone on the cores"), ("beside", "beside the same traffic")):
            found = runtime.best(each["rounds"], kind)
            if found:
                way, rates = found
                rows.append([each["scenario"], where, rounds_text(rates, 0), runtime.describe(way)])
    if not rows:
        return []
    return ["## ONNX Runtime in a bare loop", table(["model of", "where", "items/s (rounds)", "its best way"], rows)]


def codec_table(passes: Sequence[Cells]) -> list[str]:
    """Decoder and encoder: the median of the passes."""
    if not passes:
        return []
    rows = []
    for number, case in enumerate(passes[0]):
        mine = statistics.median(each[number]["us"] for each in passes)
        row = [case["case"], f"{case['bytes']:,}", f"{mine:,.1f}"]
        for other in ("orjson_us", "simdjson_us"):
            took = [each[number][other] / each[number]["us"] for each in passes if each[number].get(other)]
            row.append(f"{statistics.median(took):.2f}" if took else "–")
        rows.append(row)
    heads = ["case", "bytes of text", "µs", "orjson + numpy takes, times", "simdjson takes, times"]
    return ["## Decoder and encoder without a server, one core", table(heads, rows)]


def growth_tables(grown: Result) -> list[str]:
    """What grows with connections, models and bytes; memory has a row in the goals."""
    rows = []
    for key, servers in grown["connections"].items():
        asking, among = map(int, key.split("/"))
        what = f"{asking:,} of {among:,} connections ask"
        rows += [[what, name, rounds_text(rounds, 1)] for name, rounds in servers.items()]
    rows += [[name, "fastinfer", rounds_text(rounds, 1)] for name, rounds in grown["models"].items()]
    heads = ["simple", "server", "µs a request: p50 of 1 connection, 1/rate of several (rounds)"]
    parts = ["## Growth with connections and models", table(heads, rows)]
    rows = []
    for number, size in enumerate(grown["bytes"][0]):
        rounds = [each[number] for each in grown["bytes"]]
        figures = [f"{statistics.median(each[key] for each in rounds):.2f}" for key in ("decode_ns", "encode_ns")]
        rows.append([goals.size_text(size["bytes"]), *figures])
    heads = ["FP32 text", "decoder: ns a byte", "encoder: ns a byte"]
    return [*parts, "## Growth with bytes, without a server", table(heads, rows)]


def batches_table(counted: dict[str, batches.Sizes]) -> list[str]:
    classes = sorted({bound for sizes in counted.values() for bound in sizes})
    if not classes:
        return []
    rows = [
        [name, *(f"{100 * sizes.get(bound, 0) / sum(sizes.values()):.0f} %" for bound in classes)]
        for name, sizes in counted.items()
    ]
    return ["## Batches of fastinfer by rows", table(["scenario", *map(batches.class_text, classes)], rows)]


def markdown(result: Result, plotted: Sequence[str]) -> str:
    others = [name for name in result["servers"] if name != "fastinfer"]
    order = others + [name for name in result["servers"] if name == "fastinfer"]
    closed = [cell for cell in result["results"] if cell["load"] is None]
    opened = [cell for cell in result["results"] if cell["load"] is not None]
    rows = result["goals"]
    quick = " (quick: one noisy round, not a result)" if result["method"]["quick"] else ""
    parts = [f"# Benchmark{quick}", "## Goals", goals_summary(rows), goals_table(rows)]
    parts += ["## The run", facts(result), HOW_TO_READ, *absent(result)]
    if "fastinfer" in order and others and closed:
        parts += ["## fastinfer's rate as a multiple of the others'", grid(closed, others, ratio, "scenario")]
    if closed:
        parts += ["## Requests per second, closed loop", grid(closed, order, rate_and_spread, "scenario")]
        parts += ["## Latency p50 / p99 in µs, closed loop", grid(closed, order, latencies, "scenario")]
        parts += ["## CPU of the server in µs a request, its own + the system's", grid(closed, order, cpu, "scenario")]
    parts += open_loop(opened)
    parts += runtime_table(result.get("onnxruntime", []))
    parts += codec_table(result.get("codec", []))
    parts += growth_tables(result["growth"]) if "growth" in result else []
    parts += batches_table(batches.of_result(result))
    parts += ["## Plots"] if plotted else []
    parts += [f"![{name}]({name})" for name in plotted]
    return "\n\n".join(parts) + "\n"


def write(result: Result, directory: Path) -> str:
    """Writes report.md and the plots; returns the former."""
    directory.mkdir(parents=True, exist_ok=True)
    text = markdown(result, plots.write(result, directory))
    (directory / "report.md").write_text(text)
    return text


if __name__ == "__main__":
    source = Path(sys.argv[1])
    read = json.loads(source.read_text())
    read["goals"] = goals.rows(read)  # by the goals of today
    source.write_text(json.dumps(read, indent=1) + "\n")
    print(write(read, source.with_suffix("")))
