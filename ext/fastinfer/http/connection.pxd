from libc.stdint cimport int64_t

from fastinfer.http.inbound cimport Inbound
from fastinfer.http.loop_state cimport LoopState
from fastinfer.http.outbound cimport HttpExchange, Outbound, Sink


cdef class Connection(Sink):
    cdef LoopState hub                  # a Hub
    cdef readonly Inbound inbound
    cdef readonly Outbound outbound
    cdef object transport               # None: not made yet, or lost
    cdef object refusal                 # ApiError: the only answer, or None
    cdef object sweep_bucket            # the hub's
    cdef bint client_closed             # the client has closed its side
    cdef bint write_paused
    cdef bint reading_paused
    cdef object wake                    # the handle of a scheduled call of `resume`, or None
    cdef object lingering               # ... of `linger_on`, or None
    cdef double linger_end
    cdef int64_t written                # bytes that the transport was given
    # At the last check, and when it was: bytes that wait for the client, here and in the transport, and those that the
    # transport has sent; and when there were more of the latter than at the check before.
    cdef double checked_at
    cdef Py_ssize_t unwritten
    cdef int64_t sent
    cdef double progress_at

    cdef int read(self) except -1
    cdef bint is_blocked(self) noexcept
    cdef int take_message(self) except -1
    cdef int handle(self, HttpExchange exchange) except -1
    cdef int ask_for_body(self) except -1
    cdef int wake_up(self) except -1
    cdef int flush(self) except -1
    cdef int write_out(self) except -1
    cdef bint is_idle(self) except -1
    cdef int refuse(self, error) except -1
    cdef int linger(self) except -1
    cdef int close(self) except -1
    cdef bint waits_for_request(self, double since) except -1
    cdef bint check_writing(self, double now) except -1
    cdef int check_closed(self) except -1
