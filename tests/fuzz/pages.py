"""Builds and runs pages.cpp, which reads numbers between pages that may not be touched. Needs g++.

    python -m tests.fuzz.pages --count 1000000 --seed 1 [--emulated]

``--emulated`` reads with registers of all widths on any CPU; needs SIMDe (Debian: libsimde-dev).

Prints how many texts were read; exits 1 where two widths of registers differ, and with a signal where memory was
touched that is not the reader's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("pages.cpp")
HEADERS = Path(__file__).parents[2] / "ext"


def run(count: int, seed: int, emulated: bool = False) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "pages"
        switch = ["-DFASTINFER_EMULATED", "-Wno-psabi"] if emulated else []
        subprocess.run(["g++", "-std=c++17", "-O0", "-w", *switch, f"-I{HEADERS}", SOURCE, "-o", program], check=True)
        return subprocess.run([program, str(count), str(seed)], capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000_000, help="texts")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--emulated", action="store_true", help="emulate the CPU's vector instructions")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    ended = run(arguments.count, arguments.seed, arguments.emulated)
    print(ended.stdout, end="")
    if ended.returncode:
        sys.exit(f"it ended with {ended.returncode}")


if __name__ == "__main__":
    main()
