"""How far a run is and how long it will take: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time


class Progress:
    """Counts planned seconds; what was planned and what it really took tell when the run will end."""

    def __init__(self, planned_s: float) -> None:
        self.planned_s, self.done_s, self.start = planned_s, 0.0, time.monotonic()

    def __call__(self, text: str, planned_s: float = 0) -> None:
        """Says what begins now, and that it is planned to take so long."""
        took = time.monotonic() - self.start
        share = min(1.0, self.done_s / self.planned_s)
        pace = took / self.done_s if self.done_s > 10 else 1.0  # the start says little
        left = max(0.0, self.planned_s - self.done_s) * pace
        self.done_s += planned_s
        if not sys.stderr.isatty():
            print(f"{took:6.0f} s {share:4.0%}, {left:4.0f} s left  {text}", file=sys.stderr, flush=True)
            return
        bar = ("#" * round(24 * share)).ljust(24, "-")
        width = max(0, shutil.get_terminal_size().columns - 52)
        line = f"\r[{bar}] {share:4.0%} {took:5.0f} s, {left:4.0f} s left  {text[:width]:{width}}"
        print(line, end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)
