"""Who is to blame for a death, by what was under way."""

import mmap
import os
import signal
import threading

import pytest

from fastinfer.base import limits
from fastinfer.shared import crash_record
from fastinfer.shared.crash_record import (
    CULPRIT,
    LOAD_SUSPECT,
    QUARANTINED,
    SUSPECT,
    WITHDRAWN,
    CrashRecord,
    CrashSlot,
    hashed,
)
from fastinfer.supervisor.blame import Blame

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children only die

FAULTS = [signal.SIGFPE, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS]
MODEL = hashed("m")


@pytest.fixture
def record():
    return CrashRecord(mmap.mmap(-1, crash_record.nbytes(2)))


@pytest.fixture
def suspects(record):
    return Blame(record)


def kinds(record, *keys):
    return [found.kind if (found := record.find(key)) else None for key in keys]


def run(slot, *requests, key=1, count=None):
    """A run under way on this thread."""
    slot.begin_run(key, MODEL, b"model 'm' version 1", requests, count or len(requests))


def elsewhere(function, *arguments, **more):
    """Calls a function on another thread, which goes on living until the test ends."""
    called, over = threading.Event(), threading.Event()

    def body():
        function(*arguments, **more)
        called.set()
        over.wait(60)

    threading.Thread(target=body, daemon=True).start()
    assert called.wait(10)
    return over


@pytest.mark.parametrize("number", FAULTS)
def test_the_only_request_that_can_have_done_it_is_a_culprit_at_once(suspects, record, number):
    run(CrashSlot(record, 1), 10)
    suspects.after_death(1, number)
    assert kinds(record, 10) == [CULPRIT]


@pytest.mark.parametrize("number", FAULTS)
def test_the_requests_of_a_batch_are_suspect_and_the_one_that_does_it_again_alone_is_the_culprit(
    suspects, record, number
):
    run(CrashSlot(record, 0), *range(10, 42))
    suspects.after_death(0, number)
    assert kinds(record, *range(10, 42)) == [SUSPECT] * 32
    run(CrashSlot(record, 1), 20)
    suspects.after_death(1, number)
    assert kinds(record, 19, 20, 21) == [SUSPECT, CULPRIT, SUSPECT]


def test_equal_requests_of_a_batch_are_one(suspects, record):
    run(CrashSlot(record, 0), 10, 10, 10)
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 10) == [CULPRIT]


@pytest.mark.parametrize("number", [0, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nobody_is_blamed_for_an_end_that_is_no_crash(suspects, record, number):
    slot = CrashSlot(record, 0)
    run(slot, 10)
    slot.begin_load(5, MODEL, b"m")
    suspects.after_death(0, number)
    assert not record.armed
    assert record.death(0) == ([], [], 0, False)


def test_of_several_runs_all_requests_are_suspect(suspects, record):
    slot = CrashSlot(record, 0)
    run(slot, 10)
    run(slot, 11, key=2)
    suspects.after_death(0, signal.SIGSEGV)
    assert kinds(record, 10, 11) == [SUSPECT, SUSPECT]


def test_a_request_that_is_never_alone_under_way_is_convicted_by_the_third_death(suspects, record):
    for expected in (SUSPECT, SUSPECT, CULPRIT):
        slot = CrashSlot(record, 0)
        run(slot, 10)
        run(slot, 11 + expected, 12, key=2)
        suspects.after_death(0, signal.SIGSEGV)
        assert kinds(record, 10) == [expected]
    assert kinds(record, 12) == [SUSPECT]  # it was never alone in its run


def test_a_killed_process_convicts_nobody_before_the_third_time(suspects, record):
    """A person's kill -9, or the kernel's for want of memory, which a giant request may cause again and again."""
    for expected in (SUSPECT, SUSPECT, CULPRIT):
        run(CrashSlot(record, 0), 10)
        suspects.after_death(0, signal.SIGKILL)
        assert kinds(record, 10) == [expected]
    assert limits.STRIKES == 3


def test_what_has_been_cleared_begins_anew(suspects, record):
    for _ in range(10):
        run(CrashSlot(record, 0), 10)
        suspects.after_death(0, signal.SIGKILL)
        record.remove(10)  # it has run, and ended well
    run(CrashSlot(record, 0), 10)
    suspects.after_death(0, signal.SIGKILL)
    assert kinds(record, 10) == [SUSPECT]


def test_a_culprit_stays_one_whatever_it_is_found_beside(suspects, record):
    record.put(10, CULPRIT, 60)
    run(CrashSlot(record, 0), 10, 11)  # it was taken just before
    suspects.after_death(0, signal.SIGSEGV)
    assert kinds(record, 10, 11) == [CULPRIT, SUSPECT]


def test_of_more_requests_than_are_noted_the_model_itself_is_suspect(suspects, record):
    run(CrashSlot(record, 0), *range(10, 1034), key=3, count=1025)
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 3, 10, 1033) == [SUSPECT, SUSPECT, SUSPECT]


def test_a_run_for_which_there_was_no_place_may_have_done_it_too(suspects, record):
    slot = CrashSlot(record, 0)
    for request in range(10, 267):  # one more than there are places
        run(slot, request)
    assert record.death(0).unnoted == 1
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, *range(10, 266)) == [SUSPECT] * 256


def test_a_load_that_kills_is_quarantined(suspects, record):
    CrashSlot(record, 0).begin_load(5, MODEL, b"model 'm' version 1")
    suspects.after_death(0, signal.SIGFPE)
    assert record.find(5) == (QUARANTINED, MODEL, 1, signal.SIGFPE)
    assert suspects.is_quarantined("m")
    assert not suspects.is_quarantined("other")


def test_of_several_loads_all_are_suspect(suspects, record):
    slot = CrashSlot(record, 0)
    slot.begin_load(5, MODEL, b"m")
    slot.begin_load(6, MODEL, b"m")
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 5, 6) == [LOAD_SUSPECT, LOAD_SUSPECT]
    CrashSlot(record, 0).begin_load(6, MODEL, b"m")
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 5, 6) == [LOAD_SUSPECT, QUARANTINED]


def test_a_load_that_is_killed_is_quarantined_the_third_time(suspects, record):
    for expected in (LOAD_SUSPECT, LOAD_SUSPECT, QUARANTINED):
        CrashSlot(record, 0).begin_load(5, MODEL, b"m")
        suspects.after_death(0, signal.SIGKILL)
        assert kinds(record, 5) == [expected]


def forked(record, body):
    """A process that dies of SIGFPE on the thread that `body` leaves it on."""
    child = os.fork()
    if child == 0:
        try:
            slot = CrashSlot(record, 0)
            slot.watch_faults()
            body(slot)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGFPE


def test_a_fault_on_a_run_s_thread_blames_that_run_alone(suspects, record):
    def body(slot):
        elsewhere(run, slot, 10)
        run(slot, 11, key=2)
        signal.raise_signal(signal.SIGFPE)

    forked(record, body)
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 10, 11) == [None, CULPRIT]


@pytest.mark.parametrize(("requests", "kind"), [((11,), CULPRIT), (range(11, 43), SUSPECT)])
def test_other_processes_know_of_a_crash_before_anybody_has_looked_into_it(suspects, record, requests, kind):
    def body(slot):
        elsewhere(run, slot, 10)
        run(slot, *requests)
        signal.raise_signal(signal.SIGFPE)

    assert not record.armed
    forked(record, body)
    assert record.armed
    assert [record.kind(key) for key in (10, *requests)] == [0] + [kind] * len(requests)
    assert kinds(record, *requests) == [None] * len(requests)
    suspects.after_death(0, signal.SIGFPE)
    assert [record.kind(key) for key in (10, *requests)] == [0] + [kind] * len(requests)
    for key in requests:
        record.remove(key)
    assert not record.armed  # nothing is dying any more


def test_a_fault_on_a_load_s_thread_blames_that_load_alone(suspects, record):
    def body(slot):
        run(slot, 11)
        elsewhere(slot.begin_load, 5, MODEL, b"m")
        elsewhere(lambda: (slot.begin_load(6, MODEL, b"m"), signal.pthread_kill(threading.get_ident(), signal.SIGFPE)))

    forked(record, body)
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 5, 6, 11) == [None, QUARANTINED, None]


def test_a_fault_of_the_loop_itself_convicts_nobody_at_once(suspects, record):
    def body(slot):
        elsewhere(run, slot, 10)
        signal.raise_signal(signal.SIGFPE)

    forked(record, body)
    suspects.after_death(0, signal.SIGFPE)
    assert kinds(record, 10) == [SUSPECT]


def test_shared_memory_reaches_another_process():
    suspects, fd = Blame.create(3)
    child = os.fork()
    if child == 0:
        try:
            record = CrashRecord(mmap.mmap(fd, 0))
            run(CrashSlot(record, 2), 10)
            os._exit(0 if len(record) == 3 else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    suspects.after_death(2, signal.SIGILL)
    assert kinds(CrashRecord(mmap.mmap(fd, 0)), 10) == [CULPRIT]
    os.close(fd)


def test_each_process_has_a_slot_of_its_own_and_one_too_many_does_without(suspects, record):
    first, second = suspects.free_slot(), suspects.free_slot()
    assert {first, second} == {0, 1}
    assert suspects.free_slot() is None
    suspects.after_death(None, signal.SIGFPE)
    run(CrashSlot(record, first), 10)
    suspects.after_death(first, signal.SIGFPE)
    assert kinds(record, 10) == [CULPRIT]
    assert suspects.free_slot() == first


def test_old_entries_are_forgotten(suspects, record):
    record.put(1, SUSPECT, -1)
    record.put(2, CULPRIT, 60)
    suspects.forget_old()
    assert record.armed
    record.put(2, CULPRIT, -1)
    suspects.forget_old()
    assert not record.armed


# --- Models that end processes with different requests ----------------------------------------------------------------


class Time:
    """A clock that stands still; of the record it is the system's."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Time()


@pytest.fixture
def one_slot(record, clock):
    made = Blame(record, clock)
    made._free = [0]
    return made


def die_of(suspects, record, *requests, key=1, number=signal.SIGFPE):
    run(CrashSlot(record, 0), *requests, key=key)
    suspects.after_death(suspects.free_slot(), number)


def until_withdrawn(suspects, record, requests, key=1):
    """How many deaths it takes."""
    for number, request in enumerate(requests, 1):
        die_of(suspects, record, request, key=key)
        if record.kind(key) == WITHDRAWN:
            return number
    raise AssertionError


def test_a_model_is_withdrawn_after_deaths_by_different_requests(one_slot, record):
    die_of(one_slot, record, 10)
    die_of(one_slot, record, 20, key=2)
    die_of(one_slot, record, 11)
    assert record.kind(1) == 0
    die_of(one_slot, record, 12)
    assert (record.kind(1), record.kind(2)) == (WITHDRAWN, 0)
    verdict = record.find(1)
    assert (verdict.group, verdict.signal) == (MODEL, signal.SIGFPE)


def test_one_request_in_a_batch_and_then_alone_is_one(one_slot, record):
    for batch in ((10, 11, 12), (13, 14, 15)):
        die_of(one_slot, record, *batch)
        die_of(one_slot, record, batch[1])
    assert record.kind(1) == 0
    die_of(one_slot, record, 16)
    assert record.kind(1) == WITHDRAWN


def test_deaths_long_ago_do_not_count(one_slot, record, clock):
    for request in range(10, 30):
        die_of(one_slot, record, request)
        clock.now += 31
    assert record.kind(1) == 0


def test_kills_from_outside_are_nobodys(one_slot, record):
    for request in range(10, 20):
        die_of(one_slot, record, request, number=signal.SIGKILL)
    assert record.kind(1) == 0


def test_deaths_that_may_be_anothers_are_nobodys(record, one_slot):
    for request in range(10, 20):
        slot = CrashSlot(record, 0)
        over = elsewhere(run, slot, request)
        elsewhere(run, slot, request + 100, key=2)
        one_slot.after_death(one_slot.free_slot(), signal.SIGSEGV)
        over.set()
    assert (record.kind(1), record.kind(2)) == (0, 0)


def test_withdrawals_double_and_are_forgiven(one_slot, record, clock):
    requests, lengths = iter(range(10, 10_000)), []
    assert until_withdrawn(one_slot, record, requests) == 3
    for _ in range(8):
        lengths.append(one_slot._models[1].withdrawn_s)
        clock.now += lengths[-1] + 1
        record.remove(1)
        assert until_withdrawn(one_slot, record, requests) == 1  # it was on trial
    assert lengths == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    clock.now += 11 * 3600 + 1
    record.remove(1)
    one_slot.forget_old()
    assert one_slot._models == {}
    assert until_withdrawn(one_slot, record, requests) == 3
    assert one_slot._models[1].withdrawn_s == 60


def test_what_is_withdrawn_already_is_not_withdrawn_for_longer(one_slot, record, clock):
    requests = iter(range(10, 100))
    until_withdrawn(one_slot, record, requests)
    until = one_slot._models[1].until
    clock.now += 1
    slot = CrashSlot(record, 0)
    run(slot, 1000, 1001, count=5000)  # it had begun before, and more are in it than are noted
    one_slot.after_death(one_slot.free_slot(), signal.SIGFPE)
    assert record.kind(1) == WITHDRAWN
    assert one_slot._models[1].until == until
