# Notes what a process is running in memory that outlives it, and keeps the verdicts on requests and loads that ended
# processes. Lives here: the memory, and single steps on it. Does not: who is to blame (supervisor/blame), requests
# (schedule/run_notes), models.
#
# A process writes its slot on the loop's thread; loads, and the starts and ends of runs, are noted on their own
# threads. The caller gives the memory; a CrashRecord keeps it alive. This module imports neither ONNX Runtime nor
# numpy, so that a supervisor can import it.

import os
from hashlib import blake2b
from typing import NamedTuple

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from fastinfer.native.job cimport monotonic_ns

cdef extern from "fastinfer/shared/crash_signals.h" namespace "fastinfer":
    int watch_faults(RecordHeader* header, RecordSlot* slot) except -1

SUSPECT = IS_SUSPECT
CULPRIT = IS_CULPRIT
LOAD_SUSPECT = IS_LOAD_SUSPECT
QUARANTINED = IS_QUARANTINED
WITHDRAWN = IS_WITHDRAWN


class Verdict(NamedTuple):
    kind: int
    group: int
    strikes: int
    signal: int


class Running(NamedTuple):
    label: str
    key: int
    group: int
    at_fault: bool
    requests: int
    fingerprints: tuple


class Death(NamedTuple):
    runs: list
    loads: list
    unnoted: int
    on_loop: bool


def nbytes(Py_ssize_t slots):
    return record_nbytes(slots)


def hashed(text):
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1


@cython.final
cdef class CrashRecord:
    def __cinit__(self, memory):
        PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE)
        self.header = <RecordHeader*>self.view.buf
        if self.view.len < <Py_ssize_t>record_nbytes(1) or <uintptr_t>self.header % sizeof(uint64_t) != 0:
            raise ValueError(f"{self.view.len} bytes are no memory for a crash record")
        if self.header.layout == 0:
            self.header.slots = (self.view.len - record_nbytes(0)) // (record_nbytes(1) - record_nbytes(0))
            self.header.seed = int.from_bytes(os.urandom(8), "little")
            self.header.layout = LAYOUT
        if self.header.layout != LAYOUT or <Py_ssize_t>record_nbytes(self.header.slots) > self.view.len:
            raise ValueError("the crash record is of another build")

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    cdef RecordSlot* slot(self, Py_ssize_t index) except NULL:
        if not 0 <= index < <Py_ssize_t>self.header.slots:
            raise IndexError(f"there is no slot {index} of {self.header.slots}")
        return slot_of(self.header, index)

    def __len__(self):
        return self.header.slots

    @property
    def armed(self):
        return is_armed(self.header)

    @property
    def seed(self):
        return self.header.seed

    @property
    def refused(self):
        cdef Py_ssize_t index
        return sum([self.slot(index).refused for index in range(len(self))])

    # --- The table ----------------------------------------------------------------------------------------------------

    def put(self, uint64_t key, int kind, double seconds, *, uint64_t group=0, int strikes=0, int signal=0):
        cdef int64_t now = monotonic_ns()
        put_entry(self.header, Entry(key, group, now + <int64_t>(seconds * 1e9), kind, strikes, signal), now)

    def find(self, uint64_t key):
        cdef Entry* entry = entry_of(self.header, key, monotonic_ns())
        if entry == NULL:
            return None
        return Verdict(entry.kind, entry.group, entry.strikes, entry.signal)

    def kind(self, uint64_t key):
        return kind_of(self.header, key, monotonic_ns())

    def holds(self, uint64_t group, int kind):
        return any([entry[1:3] == (group, kind) for entry in self.entries()])

    def entries(self):
        cdef int64_t now = monotonic_ns()
        cdef Py_ssize_t i
        cdef Entry* entry
        cdef list found = []
        if not is_armed(self.header):
            return found
        for i in range(PLACES):
            entry = &self.header.table[i]
            key = load_acquire(entry.key)
            if key == 0:
                continue
            if entry.until_ns > now:
                found.append((key, entry.group, entry.kind))
            else:
                remove_entry(self.header, entry, key)
        return found

    def remove(self, uint64_t key):
        cdef Entry* entry = entry_of(self.header, key, monotonic_ns())
        if entry != NULL:
            remove_entry(self.header, entry, key)

    # --- Slots --------------------------------------------------------------------------------------------------------

    def death(self, Py_ssize_t index):
        cdef RecordSlot* slot = self.slot(index)
        cdef Py_ssize_t i
        cdef list runs = [running(slot, &slot.runs[i].what, &slot.runs[i])
                          for i in range(RUNS) if slot.runs[i].what.thread != 0]
        cdef list loads = [running(slot, &slot.loads[i], NULL) for i in range(LOADS) if slot.loads[i].thread != 0]
        on_loop = slot.fault_thread != 0 and slot.fault_thread == slot.main_thread
        return Death(runs, loads, slot.unnoted, on_loop)

    def reset(self, Py_ssize_t index):
        reset_slot(self.header, self.slot(index))


cdef object running(RecordSlot* slot, const Noted* what, const NotedRun* run):
    label = what.label[:LABEL].partition(b"\0")[0].decode("utf-8", "replace")
    cdef uint64_t requests = 0
    if run != NULL:
        requests = run.requests
    fingerprints = tuple([fingerprints_of(slot, run)[i] for i in range(min(requests, <uint64_t>REQUESTS))])
    return Running(label, what.key, what.group, what.thread == slot.fault_thread, requests, fingerprints)


@cython.final
cdef class CrashSlot:
    def __init__(self, CrashRecord record not None, Py_ssize_t index):
        cdef int place
        self.record = record
        self.slot = record.slot(index)
        record.reset(index)
        self.slot.main_thread = this_thread()
        self.free_count = RUNS
        for place in range(RUNS):
            self.free_runs[place] = RUNS - 1 - place

    def watch_faults(self):
        watch_faults(self.record.header, self.slot)

    # --- Runs ---------------------------------------------------------------------------------------------------------

    cdef NotedRun* take_place(self) noexcept:
        cdef NotedRun* run
        if self.free_count == 0:
            self.slot.unnoted += 1
            return NULL
        self.free_count -= 1
        run = &self.slot.runs[self.free_runs[self.free_count]]
        run.ended = 0
        return run

    cdef void give_back(self, NotedRun* run) noexcept:
        if run == NULL:
            self.slot.unnoted -= 1
            return
        self.free_runs[self.free_count] = <int>(run - self.slot.runs)
        self.free_count += 1
        if run.ended and run.requests == 1 and is_armed(self.record.header):
            self.absolve(fingerprints_of(self.slot, run)[0], IS_SUSPECT)

    cdef int kind_of(self, uint64_t key) noexcept:
        return kind_of(self.record.header, key, monotonic_ns())

    cdef int64_t entry_remaining_ns(self, uint64_t key, int kind) noexcept:
        cdef int64_t now = monotonic_ns()
        cdef Entry* entry = entry_of(self.record.header, key, now)
        return entry.until_ns - now if entry != NULL and entry.kind == kind else 0

    cdef bint absolve(self, uint64_t key, int kind) noexcept:
        cdef Entry* entry = entry_of(self.record.header, key, monotonic_ns())
        return entry != NULL and entry.kind == kind and remove_entry(self.record.header, entry, key)

    def begin_run(self, uint64_t key, uint64_t group, bytes label not None, fingerprints, uint64_t requests):
        cdef NotedRun* run = self.take_place()
        if run != NULL:
            write_what(&run.what, key, group, label)
            run.requests = requests
            for i, fingerprint in enumerate(fingerprints):
                fingerprints_of(self.slot, run)[<Py_ssize_t>i] = fingerprint
            run_begins(run)

    # --- Loads --------------------------------------------------------------------------------------------------------

    def begin_load(self, uint64_t key, uint64_t group, bytes label not None):
        cdef int place
        for place in range(LOADS):
            if self.slot.loads[place].thread == 0:
                write_what(&self.slot.loads[place], key, group, label)
                begins(&self.slot.loads[place])
                return place
        return -1

    def end_load(self, int place):
        if not 0 <= place < LOADS:
            return
        store_release(self.slot.loads[place].thread, <uint64_t>0)
        if is_armed(self.record.header):
            self.absolve(self.slot.loads[place].key, IS_LOAD_SUSPECT)


cdef void write_what(Noted* what, uint64_t key, uint64_t group, bytes label) noexcept:
    cdef Py_ssize_t size = min(<Py_ssize_t>len(label), <Py_ssize_t>LABEL)
    memcpy(what.label, <const char*>label, size)
    if size < LABEL:
        what.label[size] = 0
    what.key = key
    what.group = group
