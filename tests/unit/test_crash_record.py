"""The crash record: what is noted, what is found again, and who is to blame."""

import mmap
import signal
import subprocess
import sys

import numpy as np
import pytest

from fastinfer.base import limits
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.shared import crash_record
from fastinfer.shared.crash_record import CULPRIT, LOAD_SUSPECT, QUARANTINED, SUSPECT, CrashRecord, CrashSlot, hashed
from fastinfer.tensor.message import InferRequest
from fastinfer.tensor.tensor import Tensor


@pytest.fixture
def record():
    return CrashRecord(mmap.mmap(-1, crash_record.nbytes(2)))


def notes(slot, key=7):
    return RunNotes(slot, key, hashed("m"), b"model 'm' version 1")


def request(*arrays):
    return InferRequest([Tensor.from_numpy(f"x{i}", np.asarray(array)) for i, array in enumerate(arrays)])


# --- The table --------------------------------------------------------------------------------------------------------


def test_what_is_put_is_found_until_it_is_over(record):
    assert not record.armed
    record.put(5, SUSPECT, 60, group=9, strikes=2, signal=8)
    assert record.armed
    assert record.find(5) == (SUSPECT, 9, 2, 8)
    assert record.find(6) is None
    record.put(5, CULPRIT, 60)
    assert record.find(5) == (CULPRIT, 0, 0, 0)
    assert record.entries() == [(5, 0, CULPRIT)]
    record.put(5, CULPRIT, -1)
    assert record.find(5) is None
    assert record.entries() == []
    assert not record.armed


def test_all_who_map_the_memory_see_one_table():
    memory = mmap.mmap(-1, crash_record.nbytes(1))
    one, other = CrashRecord(memory), CrashRecord(memory)
    one.put(2**64 - 1, SUSPECT, 60)
    assert other.find(2**64 - 1).kind == SUSPECT
    other.remove(2**64 - 1)
    assert not one.armed


def test_thousands_of_entries_do_not_push_each_other_out(record):
    keys = [hashed(str(i)) for i in range(2000)]
    for key in keys:
        record.put(key, SUSPECT, 60)
    assert all(record.find(key) for key in keys)
    assert len(record.entries()) == 2000
    for key in keys:
        record.remove(key)
    assert not record.armed


def test_where_places_are_rare_culprits_stay_and_the_table_stays_bounded(record):
    neighbours = [1 + 8192 * i for i in range(40)]  # all want the same place
    record.put(neighbours[0], CULPRIT, 60)
    for seconds, key in enumerate(neighbours[1:], start=100):
        record.put(key, SUSPECT, seconds)
    assert record.find(neighbours[0]).kind == CULPRIT
    assert record.find(neighbours[-1]).kind == SUSPECT
    assert len(record.entries()) == 16
    record.put(neighbours[-1], SUSPECT, -1)
    record.put(neighbours[1], CULPRIT, 1)  # takes the place of what is over
    assert len(record.entries()) == 16


def test_a_group_holds_entries_by_kind(record):
    record.put(1, CULPRIT, 60, group=5)
    record.put(2, QUARANTINED, 60, group=6)
    assert record.holds(5, CULPRIT)
    assert not record.holds(5, QUARANTINED)
    assert record.holds(6, QUARANTINED)
    record.remove(2)
    assert not record.holds(6, QUARANTINED)


def test_memory_that_does_not_do():
    with pytest.raises(ValueError, match="no memory for a crash record"):
        CrashRecord(bytearray(1000))
    memory = mmap.mmap(-1, crash_record.nbytes(2))
    memory[0] = 1
    with pytest.raises(ValueError, match="another build"):
        CrashRecord(memory)
    memory[0] = 0
    record = CrashRecord(memory)
    assert len(record) == 2
    with pytest.raises(IndexError):
        CrashSlot(record, 2)


def test_the_supervisor_needs_neither_numpy_nor_the_runtime():
    code = (
        "import sys, fastinfer.supervisor.blame as s\n"
        "s.Blame.create(3)\n"
        "print([m for m in ('numpy', 'fastinfer.backends.onnx.ort', 'fastinfer.tensor.tensor') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- Fingerprints -----------------------------------------------------------------------------------------------------


def test_equal_requests_have_equal_fingerprints_and_others_have_not(record):
    of = notes(CrashSlot(record, 0))
    a = np.arange(6, dtype="i4")
    asked = [
        request(a),
        request(a.reshape(2, 3)),
        request(a.reshape(3, 2)),
        request(a.view("f4")),
        request(a[:5]),
        request(np.append(a, 0).astype("i4")),
        request(a, a),
        request(a[:3], a[3:]),
        request(a[::-1]),
        request(np.array([b"a", b"bc"], object)),
        request(np.array([b"ab", b"c"], object)),
        request(np.empty((0, 4), "i4")),
        request(np.empty((0, 5), "i4")),
    ]
    fingerprints = [of.fingerprint(each) for each in asked]
    assert len(set(fingerprints)) == len(asked)
    assert of.fingerprint(request(a.copy())) == fingerprints[0]
    assert notes(CrashSlot(record, 1), key=8).fingerprint(request(a)) != fingerprints[0]
    named = InferRequest([Tensor.from_numpy("other", a)])
    assert of.fingerprint(named) == fingerprints[0]  # the place says which input it is


@pytest.mark.parametrize("size", [1, 7, 8, 31, 32, 33, 100, 4096, 65536])
def test_every_byte_of_small_inputs_counts(record, size):
    of = notes(CrashSlot(record, 0))
    data = np.zeros(size, "u1")
    before = of.fingerprint(request(data))
    for place in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
        changed = data.copy()
        changed[place] = 1
        assert of.fingerprint(request(changed)) != before, place


def test_of_large_inputs_the_size_the_ends_and_pieces_between_count(record):
    of = notes(CrashSlot(record, 0))
    data = np.random.default_rng(1).integers(0, 256, 64 << 20, np.uint8)
    before = of.fingerprint(request(data))
    assert of.fingerprint(request(data.copy())) == before
    assert of.fingerprint(request(data[:-1])) != before
    for place in (0, 8191, len(data) - 8192, len(data) - 1):
        changed = data.copy()
        changed[place] ^= 1
        assert of.fingerprint(request(changed)) != before, place
    other = np.random.default_rng(2).integers(0, 256, len(data), np.uint8)
    other[:8192], other[-8192:] = data[:8192], data[-8192:]
    assert of.fingerprint(request(other)) != before


def test_the_seed_is_a_secret_of_the_record(record):
    other = CrashRecord(mmap.mmap(-1, crash_record.nbytes(1)))
    asked = [np.arange(4)]
    assert notes(CrashSlot(record, 0)).fingerprint(request(*asked)) != notes(CrashSlot(other, 0)).fingerprint(
        request(*asked)
    )


# --- Loads ------------------------------------------------------------------------------------------------------------


def test_loads_are_noted_while_they_last(record):
    slot = CrashSlot(record, 1)
    record.put(11, LOAD_SUSPECT, limits.SUSPECT_S)
    places = [slot.begin_load(key, 5, f"model '{key}'".encode() * 30) for key in (10, 11)]
    death = record.death(1)
    assert [(load.key, load.group, load.requests) for load in death.loads] == [(10, 5, 0), (11, 5, 0)]
    assert death.loads[0].label.startswith("model '10'model")
    assert len(death.loads[0].label) == 160
    assert record.death(0) == ([], [], 0, False)
    slot.end_load(places[1])
    assert [load.key for load in record.death(1).loads] == [10]
    assert record.find(11) is None  # it ended well
    record.reset(1)
    assert record.death(1).loads == []


def test_more_loads_than_there_are_places(record):
    slot = CrashSlot(record, 0)
    places = [slot.begin_load(key, 1, b"m") for key in range(1, 20)]
    assert places == [*range(16), -1, -1, -1]
    for place in places:
        slot.end_load(place)
    assert record.death(0).loads == []


# --- Faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS"])
@pytest.mark.parametrize("on_loop", [True, False])
def test_a_fault_is_found_on_its_thread_and_ends_the_process_as_ever(name, on_loop, tmp_path):
    size = crash_record.nbytes(1)
    path = tmp_path / "record"
    path.write_bytes(bytes(size))
    code = f"""
import mmap, signal, threading
from fastinfer.shared.crash_record import CrashRecord, CrashSlot
file = open({str(path)!r}, "r+b")
slot = CrashSlot(CrashRecord(mmap.mmap(file.fileno(), {size})), 0)
slot.watch_faults()
def die():
    slot.begin_load(6, 1, b"m")
    signal.raise_signal(signal.{name})
slot.begin_load(5, 1, b"m") if {not on_loop} else threading.Thread(target=slot.begin_load, args=(5, 1, b"m")).start()
thread = threading.Thread(target=die)
die() if {on_loop} else thread.start() or thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -getattr(signal, name), done.stderr
    with path.open("r+b") as file:
        death = CrashRecord(mmap.mmap(file.fileno(), size)).death(0)
    assert [(load.key, load.at_fault) for load in death.loads] == [(5, False), (6, True)]
    assert death.on_loop == on_loop
