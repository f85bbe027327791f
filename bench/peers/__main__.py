"""`python -m bench.peers`: see the package."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.environments import ROOT, AbsentError
from bench.peers import PEERS


def show(names: list[str]) -> int:
    for name in names:
        try:
            PEERS[name].require()
            print(f"{name:10} there: {PEERS[name].note or 'this project'}")
        except AbsentError as reason:
            print(f"{name:10} absent: {reason}")
    return 0


def install(names: list[str]) -> int:
    failed = 0
    for name in names:
        print(f"{name}: {', '.join(PEERS[name].requirements) or 'runs in our own environment'}", file=sys.stderr)
        try:
            PEERS[name].install()
        except AbsentError as reason:
            failed += 1
            print(f"{name}: absent: {reason}", file=sys.stderr)
    return failed


def serve(name: str, port: int) -> int:
    from bench.load.scenarios import SCENARIOS
    from bench.load.servers import environment, models

    PEERS[name].require()
    served = models({part.model for scenario in SCENARIOS for part in scenario.parts})
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory:
        Path(directory, "answer").write_bytes(b"{}")
        process = subprocess.Popen(PEERS[name].command(port, served, Path(directory)), cwd=ROOT, env=environment(name))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: process.send_signal(number))
        return process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="The servers that are measured.")
    verbs = parser.add_subparsers(dest="verb")
    installs = verbs.add_parser("install", help="into environments of their own below .venv/peers")
    installs.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(PEERS)}")
    serves = verbs.add_parser("serve", help="start one with the models of the bench")
    serves.add_argument("name", choices=PEERS)
    serves.add_argument("port", type=int)
    given = parser.parse_args()
    match given.verb:
        case "install":
            if unknown := set(given.names) - set(PEERS):
                parser.error(f"unknown: {', '.join(sorted(unknown))}")
            return install(given.names or list(PEERS))
        case "serve":
            return serve(given.name, given.port)
    return show(list(PEERS))


if __name__ == "__main__":
    sys.exit(main())
