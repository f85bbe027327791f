"""Tries the faults and judges the figures: `python -m tests.fault.run [--quick] [NAME ...]`.

Each fault gets servers of its own. The full form takes about half an hour, the quick one (small counts; what
depends on how busy the machine is, is shown but not judged) seven minutes. Writes bench/results/<time>-faults.json and
.md; ends with 1 if a figure is not what is required.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from bench.load import loadgen
from bench.load.machine import surroundings
from bench.load.progress import Progress
from bench.load.run import RESULTS
from bench.load.tables import table
from tests.fault.table import FAULTS
from tests.fault.trial import Trial, outcome

METHOD = (
    "each fault with servers of its own on the loopback; load by bench/load/loadgen.cpp at a constant rate, half of "
    "what the same server reached just before; values of all distinct answers checked; a fault that fails by what is "
    "timed alone is tried again, twice at most, and the last attempt is shown"
)
MILLION = 1_000_000
QUICK_REQUESTS = 10_000
ATTEMPTS = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tries what may happen to a server, and shows a figure for each.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of a fault: {', '.join(f.name for f in FAULTS)}")
    parser.add_argument("--quick", action="store_true", help="small counts; timed figures are not judged")
    parser.add_argument("--requests", type=int, help="of the fault 'mixed'; default: a million, or 10,000")
    parser.add_argument("--output", type=Path, help="the JSON file; default: a new one in bench/results/")
    options = parser.parse_args()
    if unknown := set(options.names) - {fault.name for fault in FAULTS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    options.requests = options.requests or (QUICK_REQUESTS if options.quick else MILLION)
    return options


def attempt(fault: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One fault: what it is, what came out.

    A machine that stands still now and then fails what is timed: where nothing else has failed it is tried again.
    """
    began = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        late_ms = machine_late_ms()
        trial = Trial(options.quick, options.requests)
        with outcome(trial) as result:
            fault.run(trial)
        if attempts == ATTEMPTS or not failed_by_time_alone(result):
            break
    return {
        "name": fault.name,
        "what": fault.what,
        "passes": fault.passes,
        **result,
        "attempts": attempts,
        "machine_late_ms": late_ms,
        "took_s": round(time.monotonic() - began, 1),
    }


def failed_by_time_alone(result: dict[str, Any]) -> bool:
    """Whether all figures that are not what is required are timed ones."""
    unmet = [figure for figure in result["figures"] if figure["met"] is False]
    return "reason" not in result and bool(unmet) and all(figure["timed"] for figure in unmet)


def machine_late_ms() -> float:
    """How late a process that sleeps for a millisecond is woken, with nothing else to do; the 99th percentile."""
    late = []
    for _ in range(500):
        began = time.monotonic()
        time.sleep(0.001)
        late.append(time.monotonic() - began - 0.001)
    return round(1000 * sorted(late)[-5], 2)


# --- The report -------------------------------------------------------------------------------------------------------


def shown(figure: dict[str, Any]) -> str:
    text = f"{figure['what']}: {figure['value']:,.6g}"
    if figure["required"]:
        text += f" ({figure['required'].replace('<=', '≤').replace('>=', '≥')})"
    return f"**{text}**" if figure["met"] is False else text


def report(result: dict[str, Any]) -> str:
    """Markdown."""
    faults = result["faults"]
    counts = {
        verdict: sum(each["verdict"] == verdict for each in faults) for verdict in ("passed", "failed", "not tried")
    }
    rows = []
    for each in faults:
        verdict = each["verdict"] if each["verdict"] == "passed" else f"**{each['verdict']}**"
        told = [*map(shown, each["figures"]), *filter(None, [each.get("reason")])]
        told.append(f"attempt {each['attempts']}, the machine before it {each['machine_late_ms']:.2g} ms late")
        text = "; ".join(told).replace("|", "/").replace("\n", " ")
        rows.append([each["name"], each["what"], each["passes"], verdict, text])
    form = (
        "Quick form: small counts, and what depends on how busy the machine is, is shown but not judged."
        * (result["method"]["quick"])
    )
    machine = result["machine"]
    facts = [
        f"{result['time']}, commit {result['commit'] or 'unknown'}, took {result['took_s']} s.",
        f"{machine['cores']} cores of {machine['cpu']}, kernel {machine['kernel']}, load before "
        f"{machine['load_before']:.1f}, {result['open_files']:,} open files at most.",
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()) + ".",
        f"Method: {result['method']['summary']}.",
    ]
    return "\n\n".join(
        [
            "# Faults",
            f"{counts['passed']} passed, {counts['failed']} failed, {counts['not tried']} not tried. {form}".strip(),
            table(["fault", "what happens", "required", "", "figures (what is required of them)"], rows),
            "\n".join(f"- {line}" for line in facts),
        ]
    )


def main() -> int:
    options = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loadgen.build()
    options.rounds, options.seconds, options.pin, options.client = 1, 0, False, "loadgen"
    result = surroundings(options)
    result["method"] = {"summary": METHOD, "quick": options.quick, "requests": options.requests}
    result["open_files"] = hard
    chosen = [fault for fault in FAULTS if not options.names or fault.name in options.names]
    costs = {fault.name: fault.quick_s if options.quick else fault.full_s for fault in chosen}
    say = Progress(sum(costs.values()))
    result["faults"] = []
    for fault in chosen:
        say(fault.name, costs[fault.name])
        result["faults"].append(attempt(fault, options))
    say.end()
    result["took_s"] = round(time.monotonic() - say.start)
    stamp = result["time"].replace(":", "").split("+")[0] + "-faults" + ("-quick" if options.quick else "")
    output = options.output or RESULTS / f"{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    text = report(result)
    output.with_suffix(".md").write_text(text + "\n")
    print(text)
    print(f"\n{output}", file=sys.stderr)
    return int(any(each["verdict"] == "failed" for each in result["faults"]))


if __name__ == "__main__":
    sys.exit(main())
