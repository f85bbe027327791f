"""The harness of the faults: what it judges, what it only tells, and that its report says so."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("hdrh")
sys.path.append(str(Path(__file__).parents[2]))

from tests.fault import run
from tests.fault.table import FAULTS
from tests.fault.trial import AbsentError, Fault, Trial, outcome

QUICK = Namespace(quick=True, requests=100)


def fault(function):
    return Fault("a fault", "something happens", "nothing breaks", function, 1, 1)


def test_names_are_distinct():
    assert len({each.name for each in FAULTS}) == len({each.run for each in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(("quick", "verdict"), [(True, "passed"), (False, "failed")])
def test_timed_figures_are_judged_in_the_full_form_only(quick, verdict):
    trial = Trial(quick, 1)
    with outcome(trial) as result:
        trial.most("seconds", 5, 1, timed=True)
        trial.equal("failed", 0, 0)
    assert result["verdict"] == verdict


@pytest.mark.parametrize(
    ("method", "value", "met"),
    [("equal", 1, False), ("equal", 2, True), ("most", 3, False), ("most", 2, True), ("least", 1, False),
     ("least", 2, True), ("most", float("inf"), False), ("most", float("nan"), False), ("least", float("nan"), False)],
)  # fmt: skip
def test_a_figure_is_held_against_what_is_required(method, value, met):
    trial = Trial(True, 1)
    getattr(trial, method)("figure", value, 2)
    assert trial.figures[0].met is met


def test_figures_without_a_condition_fail_nobody():
    trial = Trial(False, 1)
    with outcome(trial) as result:
        trial.tell("seconds", 1e9)
    assert result["verdict"] == "passed"


def test_what_cannot_be_tried_is_told_with_the_reason():
    def absent(_):
        raise AbsentError("not there")

    result = run.attempt(fault(absent), QUICK)
    assert (result["verdict"], result["reason"]) == ("not tried", "not there")


def test_a_fault_that_breaks_its_trial_has_failed_and_keeps_its_figures():
    def broken(trial):
        trial.tell("before", 1)
        raise ValueError("why")

    result = run.attempt(fault(broken), QUICK)
    assert (result["verdict"], result["reason"]) == ("failed", "ValueError: why")
    assert [figure["what"] for figure in result["figures"]] == ["before"]


def test_the_report_shows_what_is_missed():
    def missed(trial):
        trial.equal("failed requests", 3, 0)

    facts = {"machine": {"cores": 2, "cpu": "some", "kernel": "6", "load_before": 0.0}, "versions": {"python": "3"}}
    result = {
        "faults": [run.attempt(fault(missed), QUICK)], "time": "now", "commit": "", "took_s": 1, "open_files": 20_000,
        "method": {"summary": "tried", "quick": True}, **facts,
    }  # fmt: skip
    text = run.report(result)
    assert "0 passed, 1 failed, 0 not tried" in text
    assert "**failed requests: 3 (= 0)**" in text


def test_a_real_one():
    (bad_item,) = [each for each in FAULTS if each.name == "bad item"]
    result = run.attempt(bad_item, QUICK)
    assert result["verdict"] == "passed", result
