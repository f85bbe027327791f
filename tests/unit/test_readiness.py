"""What keeps a server from being ready, by what was asked for and what has become of it."""

from __future__ import annotations

import json

import pytest

from fastinfer.repository.readiness import NO_MODEL, NONE_LOADED, NOT_READ, Readiness, Rules


def test_before_the_repository_was_read_nobody_knows_its_models() -> None:
    readiness = Readiness()
    assert readiness.why_not_ready() == readiness.why_unknown() == NOT_READ
    readiness.expect(["m"], None)
    assert readiness.why_unknown() is None
    assert readiness.why_not_ready() == "models are not ready: model 'm' is loading"


def test_a_server_that_looks_for_none_knows_them_at_once() -> None:
    readiness = Readiness(Rules(allow_empty=True, scan=False))
    assert readiness.why_unknown() is readiness.why_not_ready() is None
    readiness.expect([], "Permission denied")
    assert readiness.why_unknown() is readiness.why_not_ready() is None


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("allow_empty", [True, False])
def test_without_any_model(strict: bool, allow_empty: bool) -> None:
    readiness = Readiness(Rules(strict, allow_empty))
    readiness.expect([], None)
    assert readiness.why_not_ready() == (None if allow_empty else NO_MODEL)
    readiness.ready_once("m")  # loaded by a client, or found by a poll
    assert readiness.why_not_ready() is None
    readiness.settled("m")  # and unloaded again
    assert readiness.why_not_ready() is None


@pytest.mark.parametrize("allow_empty", [True, False])
def test_one_failed_model(allow_empty: bool) -> None:
    strict, lenient = Readiness(Rules(True, allow_empty)), Readiness(Rules(False, allow_empty))
    for readiness in (strict, lenient):
        readiness.expect(["bad", "good", "other"], None)
        readiness.failures["bad"] = "it is broken"
        readiness.ready_once("good")
        reason = "models are not ready: it is broken; model 'other' is loading"
        assert readiness.why_not_ready() == reason  # not before all have been tried
        readiness.failures["other"] = "that too"
    assert strict.why_not_ready() == "models are not ready: it is broken; that too"
    assert lenient.why_not_ready() is None
    lenient.settled("good")
    assert lenient.why_not_ready() is None


@pytest.mark.parametrize("allow_empty", [True, False])
def test_where_all_have_failed(allow_empty: bool) -> None:
    strict, lenient = Readiness(Rules(True, allow_empty)), Readiness(Rules(False, allow_empty))
    for readiness in (strict, lenient):
        readiness.expect(["bad"], None)
        readiness.failures["bad"] = "it is broken"
    assert strict.why_not_ready() == "models are not ready: it is broken"
    assert lenient.why_not_ready() == (None if allow_empty else "models are not ready: it is broken")
    strict.settled("bad")  # unloaded: nobody waits for it, and there is none
    assert strict.why_not_ready() == (None if allow_empty else NONE_LOADED)


def test_a_repository_that_cannot_be_read() -> None:
    strict, lenient = Readiness(), Readiness(Rules(strict=False))
    reason = "the model repository cannot be read: Permission denied"
    for readiness in (strict, lenient):
        readiness.expect(["m"], "Permission denied")
        assert readiness.why_unknown() == reason
        assert readiness.why_not_ready() == reason + "; models are not ready: model 'm' is loading"
        readiness.ready_once("m")
    assert (strict.why_not_ready(), lenient.why_not_ready()) == (reason, None)
    strict.expect(["late"], None)
    assert strict.why_unknown() is None
    strict.ready_once("late")
    assert strict.why_not_ready() is None


def test_another_process_goes_on_with_it() -> None:
    one, other = Readiness(), Readiness()
    for prepare in (
        lambda: None,
        lambda: one.expect(["m", "bad"], "Permission denied"),
        lambda: one.failures.update(bad="it is broken"),
        lambda: one.ready_once("m"),
        lambda: one.expect([], None),
        lambda: one.settled("bad"),
    ):
        prepare()
        other.restore(json.loads(json.dumps(one.snapshot())))
        assert other.snapshot() == one.snapshot()
        assert (other.why_not_ready(), other.why_unknown()) == (one.why_not_ready(), one.why_unknown())


def test_what_is_known_at_once_stays_so_in_another_process() -> None:
    readiness = Readiness(Rules(allow_empty=True, scan=False))
    readiness.restore(Readiness().snapshot())
    assert readiness.why_unknown() is None
