from libc.stdint cimport int64_t

from fastinfer.native.job cimport Clock
from fastinfer.tensor.message cimport InferRequest, Keeper, Waiter


# --- The end of a request ---------------------------------------------------------------------------------------------

# Called by the keeper, which no longer holds the request: gives `outcome` (list[Tensor] or ApiError) to the waiter.
# Does nothing if the request has ended.
cdef int settle(InferRequest request, object outcome, int64_t now) except -1
# Called by the waiter, which no longer waits: `complete` is not called. `cause`: one of those in shared/counters.pxd.
cdef int drop(InferRequest request, int cause, int64_t now) except -1
# Counts the end in the model's statistics, on the first call only. `cause`: SUCCESS, or one of those in
# shared/counters.pxd.
cdef int count(InferRequest request, int cause, int64_t now) except -1

cdef enum:
    SUCCESS = -1

# The cause in the statistics of a failure with this ApiError.
cdef int cause_of(object error) except -1
# The ApiError for any exception; logs the exception unless it is one.
cdef object failure_of(object error)
# A new ApiError 504. An instance is never raised twice: its traceback would grow.
cdef object timeout_error()


# --- Deadlines --------------------------------------------------------------------------------------------------------

# The lives with the default timeout of one model, ordered by deadline, with one timer for the first. A life with an
# explicit timeout has a timer of its own.
cdef class Deadlines:
    cdef readonly Clock clock
    cdef readonly int64_t timeout_ns    # the default
    cdef object _loop
    # A list linked through the lives; it holds a reference to each.
    cdef void* _first
    cdef void* _last
    cdef object _sweep                  # the handle of the list's timer, or None
    cdef int64_t _sweep_ns              # when it fires

    cdef int watch(self, Life life, bint own_timer) except -1
    cdef bint _list(self, Life life) except? True
    cdef int _unlist(self, Life life) noexcept
    cdef int _check(self) noexcept
    cdef int _set_sweep(self) except -1


cdef class Life(Waiter):
    cdef int64_t arrived_ns
    cdef int64_t deadline_ns
    cdef InferRequest request           # None before it is decoded and after its end is counted
    # The timer: an entry in the list of `deadlines`, or a handle.
    cdef Deadlines deadlines            # None: the life is not watched
    cdef object timer
    cdef void* before                   # neighbours in the list
    cdef void* after
    cdef bint listed

    # Before the request is decoded: watches the default deadline unless it has passed, since the request may give a
    # longer timeout.
    cdef int await_request(self, Deadlines deadlines, int64_t now) except -1
    # The timeout is known before the request is decoded.
    cdef int learn_timeout(self, Deadlines deadlines, int64_t timeout_us) except -1
    # The request is decoded: sets and watches its deadline. ApiError 504 if that has passed.
    cdef int attach(self, Deadlines deadlines, InferRequest request, int64_t now) except -1
    cdef bint is_late(self, int64_t now) noexcept
    cdef int forget_deadline(self) except -1
    # Drops the request because the deadline has passed, then calls `overdue`.
    cdef int expire(self, int64_t now) except -1
    # A subclass answers the client with 504.
    cdef int overdue(self, int64_t now) except -1


# --- Parents ----------------------------------------------------------------------------------------------------------

# Splits a request into child requests. A Python subclass makes the children (`begin`, `took`) and joins
# their outputs (`finish`). Any exception that it raises settles the request with an error.
cdef class Parent(Keeper):
    cdef readonly Clock clock
    cdef readonly InferRequest request      # None: it has ended
    cdef set _children                      # those that have not ended

    cdef int _close(self, int cause) except -1
    cdef int _fail(self, object error) except -1
