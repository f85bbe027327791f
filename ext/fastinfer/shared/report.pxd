# Text made of counters: see report.pyx.

from libc.stdint cimport int32_t, int64_t, uint32_t

from fastinfer.native.job cimport Interrupt, Job

cdef extern from "fastinfer/shared/shared_counters.h" namespace "fastinfer" nogil:
    cdef cppclass Key:
        pass
    cdef cppclass KeyTable:
        const Key* keys
        uint32_t* slots
        uint32_t mask
        void add(uint32_t model) noexcept

cdef enum:
    TEXTS = 2               # of an entry

# One piece of text and the number after it. All pointers are borrowed from the template.
cdef struct CStep:
    const char* before
    Py_ssize_t before_size
    int text                # the entry's text that follows, or -1
    const char* after
    Py_ssize_t after_size
    const int32_t* cells    # their sum is the number
    int cell_count
    bint goes_on            # adds to the number of the step before
    int form
    double unit
    int condition           # a cell: if it is 0, this step and `skipped` more are left out; -1: there is none
    int skipped
    bint listed             # a comma goes before it, unless it is the first of its list

cdef struct CSection:
    int group
    const char* head
    Py_ssize_t head_size
    const char* between
    Py_ssize_t between_size
    const char* tail
    Py_ssize_t tail_size
    int first_step
    int step_count
    Py_ssize_t entry_size   # the most that an entry takes here, without its texts
    int[TEXTS] text_counts  # how often each of its texts is written

# One line of labels. Pointers are borrowed from its Entry.
cdef struct CEntry:
    const char* texts[TEXTS]
    Py_ssize_t[TEXTS] text_sizes
    const int64_t* cells    # its counters, if they are not found by the key; else NULL

cdef struct CGroup:
    CEntry* entries
    int64_t* totals         # for each entry `extra` cells and then `counted` ones
    Py_ssize_t count
    int extra
    int counted
    Py_ssize_t stride

# A report under way. `report` owns what it points to.
cdef struct State:
    # The current position.
    int stage
    int group
    int section
    Py_ssize_t entry
    Py_ssize_t block
    Py_ssize_t process
    int64_t ended_ticks     # CPU time of the first process's ended children, before the others were read
    int repeated
    # Inputs.
    CGroup* groups
    int group_count
    Key* keys               # of the first group's entries
    KeyTable table
    int64_t* copy           # of a block
    int latest              # the counted cell whose maximum is taken, or -1
    int64_t busy_since_ns   # when the next block was first found to be changed (CLOCK_MONOTONIC); 0: it was not
    const char* banks       # borrowed from the buffer that the report holds; NULL: there are none
    Py_ssize_t bank_count
    Py_ssize_t bank_bytes
    Py_ssize_t block_bytes
    Py_ssize_t cells_at
    int64_t* pids
    Py_ssize_t pid_count
    # Output.
    const CSection* sections
    int section_count
    const CStep* steps
    char* begin
    char* at
    const Interrupt* interruption       # of the job


cdef class Template:
    cdef readonly int cells         # the number that it reads of each model's counters
    cdef readonly tuple extra       # for each group, how many cells the caller gives
    cdef list _kept                 # owns the texts
    cdef CSection* sections
    cdef int section_count
    cdef CStep* steps
    cdef int32_t* cell_lists


cdef class Entry:
    cdef readonly bytes key
    cdef readonly tuple texts
    cdef readonly object counters


cdef class Report(Job):
    cdef State report
    cdef Template template
    cdef list _kept                 # the entries and the memory of the banks


cdef class Text:
    cdef char* block
    cdef Py_ssize_t size
