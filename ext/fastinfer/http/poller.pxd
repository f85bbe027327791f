# Busy polling: where requests come close together, the loop looks for the next one instead of going to sleep.
#
# To be woken takes longer than a small request, and who sleeps finds its caches cold. So the loop keeps turning for a
# short window after each answer, as long as most windows find another request. It does not where native
# threads have work, which could use the core, and it sleeps now and then all the same: while it turns, it leaves
# Python's other threads no time to take the interpreter lock.
# Loop's thread only.

from libc.stdint cimport int64_t


cdef class Poller:
    cdef object _loop
    cdef object _busy           # Sized: the native threads' work
    cdef object _turned         # self.turned, bound once
    cdef readonly int64_t window_ns
    cdef int _found             # goes up with requests that came soon, down with those that did not, and with windows
    cdef bint _polling          # a turn is due
    cdef int64_t _since_ns      # when polling began
    cdef int64_t _answered_ns   # when the last answer was written

    # Bytes have come from a client.
    cpdef int came(self, int64_t now) except -1
    # An answer was written: from now on the loop waits for the next request.
    cpdef int answered(self) except -1
    cdef void _count(self, bint found) noexcept
