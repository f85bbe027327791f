from cpython.buffer cimport Py_buffer
from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t

cdef extern from "fastinfer/shared/crash_record.h" namespace "fastinfer" nogil:
    enum: RUNS
    enum: REQUESTS
    enum: LOADS
    enum: LABEL
    enum: PLACES

    enum:
        NONE
        IS_SUSPECT "fastinfer::SUSPECT"
        IS_CULPRIT "fastinfer::CULPRIT"
        IS_LOAD_SUSPECT "fastinfer::LOAD_SUSPECT"
        IS_QUARANTINED "fastinfer::QUARANTINED"
        IS_WITHDRAWN "fastinfer::WITHDRAWN"

    struct Entry:
        uint64_t key
        uint64_t group
        int64_t until_ns
        int32_t kind
        int16_t strikes
        int16_t signal

    struct Noted:
        uint64_t thread
        uint64_t key
        uint64_t group
        char* label

    struct NotedRun:
        Noted what
        uint64_t ended
        uint64_t requests

    struct RecordSlot:
        uint64_t main_thread
        uint64_t fault_thread
        uint64_t unnoted
        uint64_t refused
        Noted* loads
        NotedRun* runs

    struct RecordHeader:
        uint64_t layout
        uint64_t slots
        uint64_t seed
        uint64_t used
        Entry* table

    const uint64_t LAYOUT
    T load_acquire[T](const T& cell)
    void store_release[T](T& cell, T value)
    size_t record_nbytes(size_t slots)
    RecordSlot* slot_of(RecordHeader* header, size_t slot)
    uint64_t* fingerprints_of(RecordSlot* slot, const NotedRun* run)
    bint is_armed(const RecordHeader* header)
    int kind_of(RecordHeader* header, uint64_t key, int64_t now_ns)
    void reset_slot(RecordHeader* header, RecordSlot* slot)
    Entry* entry_of(RecordHeader* header, uint64_t key, int64_t now_ns)
    bint remove_entry(RecordHeader* header, Entry* entry, uint64_t key)
    void put_entry(RecordHeader* header, const Entry& made, int64_t now_ns)
    uint64_t this_thread()
    void begins(Noted* noted)
    void run_begins(NotedRun* run)
    void run_ends(NotedRun* run)


cdef class CrashRecord:
    cdef Py_buffer view         # keeps the memory alive and in place
    cdef RecordHeader* header   # borrowed from view

    cdef RecordSlot* slot(self, Py_ssize_t index) except NULL


# A process's own part of a record. Loop's thread, except for loads.
cdef class CrashSlot:
    cdef readonly CrashRecord record
    cdef RecordSlot* slot       # borrowed from record
    cdef int[RUNS] free_runs    # a stack of free places
    cdef int free_count

    # A place for a run, which is given back when the run has ended; NULL if there is none. give_back clears a suspect
    # that ran alone and did not end the process.
    cdef NotedRun* take_place(self) noexcept
    cdef void give_back(self, NotedRun* run) noexcept
    cdef int kind_of(self, uint64_t key) noexcept
    # Nanoseconds until the entry of a key expires; 0: there is no entry of this kind.
    cdef int64_t entry_remaining_ns(self, uint64_t key, int kind) noexcept
    cdef bint absolve(self, uint64_t key, int kind) noexcept


cdef void write_what(Noted* what, uint64_t key, uint64_t group, bytes label) noexcept
