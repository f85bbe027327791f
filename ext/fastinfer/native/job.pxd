from libc.stdint cimport int64_t

cdef extern from "fastinfer/native/interrupt.h" namespace "fastinfer" nogil:
    cdef struct Interrupt:
        int loop_fd
        int is_set
    void interrupt(Interrupt* job) noexcept
    bint is_interrupted(const Interrupt* job) noexcept
    bint yield_to_loop(const Interrupt* job) noexcept

cdef extern from "fastinfer/native/pool.h" namespace "fastinfer" nogil:
    cdef cppclass PoolShare "fastinfer::Share":
        int running

    cdef cppclass Task:
        void (*work)(void* state) noexcept
        void* state
        void* owner
        PoolShare* share
        int64_t started_ns
        int64_t ended_ns
        Task* next

cdef int64_t monotonic_ns() noexcept nogil


# CLOCK_MONOTONIC, which tests may stop.
cdef class Clock:
    cdef public int64_t fixed_ns        # the time to return; 0: the system's

    cdef int64_t now(self) noexcept


cdef class Job:
    cdef Task task                      # its part for native threads
    cdef Interrupt interruption         # long work checks it between pieces
    cdef bint _result_taken
    cdef public object done             # Callable[[Job], None] or None; called on the loop's thread

    # Does the work on this thread, at once, without the GIL.
    cdef void run_here(self) noexcept
    # For a subclass whose result can be taken once. ValueError the second time, or before the end.
    cdef int take_result(self) except -1
