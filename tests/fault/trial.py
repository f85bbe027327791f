"""A fault as it is tried: how much of it, and the figures that it shows."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

CORES = len(os.sched_getaffinity(0))
KIB = 1024
MIB = 1024 * KIB


class AbsentError(Exception):
    """The fault cannot be tried here, or what it needs is not there yet; the text says why."""


@dataclass
class Figure:
    """One figure and what is required of it.

    Attributes:
        what: what was measured.
        value: the figure.
        required: "= 0", "<= 5.0": the condition; empty for what is only told.
        met: whether it holds; None where it is not judged.
        timed: it depends on how busy the machine is. A quick run tells such figures without judging them.
    """

    what: str
    value: float
    required: str
    met: bool | None
    timed: bool


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        name: one word or two, for the command line.
        what: what happens to the server.
        passes: what is required, in words.
        run: tries it.
        full_s, quick_s: about how long that takes.
    """

    name: str
    what: str
    passes: str
    run: Callable[[Trial], None]
    full_s: float
    quick_s: float


@dataclass
class Trial:
    """One fault, tried once.

    Attributes:
        quick: small counts, and timed figures are not judged.
        requests: of the fault that is about very many requests.
        figures: what was shown so far.
    """

    quick: bool
    requests: int
    figures: list[Figure] = field(default_factory=list)
    say: Callable[[str], None] = print

    def count(self, full: int, quick: int) -> int:
        """So many in this form of the run."""
        return quick if self.quick else full

    def tell(self, what: str, value: float, *, timed: bool = False) -> None:
        """A figure without a condition."""
        self.figures.append(Figure(what, value, "", None, timed))

    def equal(self, what: str, value: float, required: float) -> None:
        self._judge(what, value, "=", operator.eq, required, timed=False)

    def most(self, what: str, value: float, required: float, *, timed: bool = False) -> None:
        self._judge(what, value, "<=", operator.le, required, timed=timed)

    def least(self, what: str, value: float, required: float, *, timed: bool = False) -> None:
        self._judge(what, value, ">=", operator.ge, required, timed=timed)

    def _judge(
        self, what: str, value: float, sign: str, holds: Callable[[Any, Any], bool], required: float, *, timed: bool
    ) -> None:
        met = None if timed and self.quick else bool(holds(value, required))
        self.figures.append(Figure(what, value, f"{sign} {required:,.6g}", met, timed))


@contextmanager
def outcome(trial: Trial) -> Iterator[dict[str, Any]]:
    """What becomes of a trial: filled in when the block ends, however it does."""
    result: dict[str, Any] = {}
    try:
        yield result
        result["verdict"] = "failed" if any(figure.met is False for figure in trial.figures) else "passed"
    except AbsentError as absent:
        result |= {"verdict": "not tried", "reason": str(absent)}
    except Exception as error:  # one fault that cannot be shown must not cost the report of the others
        result |= {"verdict": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}
    result["figures"] = [asdict(figure) for figure in trial.figures]
