from libc.stdint cimport int64_t


cdef class Poller:
    cdef object _loop
    cdef object _busy           # Sized: the native threads' work
    cdef object _on_turn        # self.on_turn, bound once
    cdef readonly int64_t window_ns
    cdef int _found             # rises with requests that came soon, falls with others and with empty windows
    cdef bint _polling          # a turn is scheduled
    cdef int64_t _since_ns      # when polling began
    cdef int64_t _answered_ns   # when the last answer was written

    # Bytes have come from a client.
    cpdef int on_bytes(self, int64_t now) except -1
    # An answer was written: from now on the loop waits for the next request.
    cpdef int on_answer(self) except -1
    cdef void _count(self, bint found) noexcept
