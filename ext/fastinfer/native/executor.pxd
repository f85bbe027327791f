from libcpp cimport bool as cbool
from libc.stdint cimport int64_t

from fastinfer.native.job cimport Job, PoolShare, Task

cdef extern from "fastinfer/native/pool.h" namespace "fastinfer" nogil:
    cdef cppclass Pool:
        int start(int threads)
        int fd()
        cbool submit(Task* task)
        Task* take_done()
        int queued()
        int running()
        int displaced()
        void relieve(int64_t since_ns, int normal, int most)
        Task* close()


# What competes for an executor's threads (native/pool.h): a model's runs, or data work of one kind.
cdef class Share:
    cdef PoolShare share


cdef class Executor:
    cdef Pool* pool
    cdef readonly int threads
    cdef int _undisturbed               # overlong jobs that keep their priority
    cdef int _loop_fd                   # see native/interrupt.h
    cdef object _call_later             # the loop's; None: overlong jobs keep their places
    cdef bint _watching
    # Of data work: what takes about a millisecond, and what takes longer.
    cdef readonly Share brief
    cdef readonly Share bulk
    # job -> (what to call with it, its share): keeps both, and what the job works on, until `done` was called. In and
    # out on the loop's thread only.
    cdef dict _jobs

    cpdef int submit(self, Job job, object done=*, Share share=*) except -1
    cpdef int drain(self) except -1
