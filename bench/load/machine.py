"""What the figures of a run depend on: machine, versions, commit, flags, method."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.environments import ROOT
from bench.load.servers import environment
from fastinfer import __version__

METHOD = (
    "one process per server (Triton: its own), servers in turn in every round, medians over rounds; values checked "
    "under load before; closed loop by wrk if installed, mix and open loop by bench/load/loadgen.cpp; open loop at "
    "constant rates, latency counted from the moment a request was due; in the mix the client has the last core to "
    "itself and the servers the others"
)


def output_of(*words: str) -> str:
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if "model name" in line]
    tool = " ".join(output_of("wrk", "-v").split()[1:2]) or "not installed"
    packages = ["numpy", "onnxruntime", "uvloop", "httptools", "orjson", "cython"]
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": (cpu or [platform.processor()])[0],
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {"fastinfer": __version__, "python": platform.python_version(), "wrk": tool}
        | {name: installed.get(name, "not installed") for name in packages},
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "flags": {name: value for name, value in environment("fastinfer").items() if name.startswith("FASTINFER_")}
        | {name: os.environ[name] for name in ("CFLAGS", "CXXFLAGS") if name in os.environ},
        "method": {"summary": METHOD}
        | {name: getattr(options, name) for name in ("rounds", "seconds", "pin", "client", "quick")},
    }
