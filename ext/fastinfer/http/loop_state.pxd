from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.http.head_cache cimport HeadCache
from fastinfer.http.poller cimport Poller
from fastinfer.http.upload cimport BodyPool


cdef class LoopState:
    cdef readonly object router
    cdef readonly object limits         # HttpLimits
    cdef readonly object loop
    cdef readonly object pieces         # Pieces: threads that inflate bodies and compress answers
    cdef Py_ssize_t max_pipelined
    # Every connection reads into it; its contents are valid until the callback returns.
    cdef readonly bytearray buffer
    cdef readonly object view           # of the whole buffer; it also pins the memory, so that data stays valid
    cdef char* data
    cdef bint view_kept                 # a handler kept a view of its body: the buffer must not be read into again
    cdef readonly Poller poller
    cdef readonly BodyPool bodies       # the memory of bodies that are not in the buffer
    cdef readonly HeadCache heads
    cdef readonly Budget budget         # of the memory that requests hold
    cdef public bint draining
    cdef public double now              # the loop's clock, read a few times a second
    cdef Py_buffer counted              # memory that other processes may read
    cdef int64_t* answers_by_class      # in it: answers by the status's first digit; then ...
    cdef int64_t* accepted              # ... how many connections were accepted so far
