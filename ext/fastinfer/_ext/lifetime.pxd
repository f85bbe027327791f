# The life of a request: from its first byte to its one end.
# Lives here: deadline, cancellation, the one outcome, the one count in the statistics; and parents, whose requests are
# done by others. Does not: queues and batches (scheduler), bodies and answers (inference).
#
# A Life is a client's wait: from the first byte of its request to the encoded answer. It has one deadline for all that
# happens meanwhile. When that passes, or the client goes away, it drops its request, wherever that is.
# A request is in the hands of one Keeper: a scheduler, or a Parent, which has it done by children of its own: slices, or
# the stages of a chain. It ends once: its keeper settles it with an outcome, or whoever waits for it drops it. What is
# dropped takes its children with it, so nothing runs for nobody.
# The deadline is compared exactly, in nanoseconds, wherever something is decided: before a request is queued, when it
# is taken for a batch, when its outcome comes, when its answer is encoded. Timers only remind of it, and come late.
# Loop's thread only.

from libc.stdint cimport int64_t

from fastinfer._ext.job cimport Clock
from fastinfer._ext.message cimport InferRequest, Keeper, Waiter


# --- The end of a request ---------------------------------------------------------------------------------------------

# By its keeper, which has let go of it: `outcome` (list[Tensor] or ApiError) for who waits. Nothing if it has ended.
cdef int settle(InferRequest request, object outcome, int64_t now) except -1
# By who waits for it: nobody does any more. Its `complete` is not called. `cause`: as in stats.
cdef int drop(InferRequest request, int cause, int64_t now) except -1
# Counts its end in its model's statistics, the first time that it is called: SUCCESS, or why it failed.
cdef int count(InferRequest request, int cause, int64_t now) except -1

cdef enum:
    SUCCESS = -1

# Of the statistics, for an error that a request is answered with.
cdef int cause_of(object error) except -1
# The answer for whatever was raised; what is no ApiError is logged.
cdef object failure_of(object error)
cdef object late()


# --- Deadlines --------------------------------------------------------------------------------------------------------

# The lives of one model, in the order of their deadlines; one timer is set for the first one. Those with a timeout of
# their own have a timer of their own instead.
cdef class Deadlines:
    cdef readonly Clock clock
    cdef readonly int64_t timeout_ns    # of a request without a timeout of its own
    cdef object _loop
    # A list linked through the lives, each owned by it.
    cdef void* _first
    cdef void* _last
    cdef object _sweep                  # the handle of the timer that looks at the first one, or None
    cdef int64_t _sweep_ns              # when it will

    cdef int watch(self, Life life, bint own_timer) except -1
    cdef bint _list(self, Life life) except? True
    cdef int _unlist(self, Life life) noexcept
    cdef int _set_sweep(self) except -1


cdef class Life(Waiter):
    cdef int64_t arrived_ns
    cdef int64_t deadline_ns
    cdef InferRequest request           # from when it is known until its end was counted
    # The reminder.
    cdef Deadlines deadlines            # None: there is none
    cdef object timer                   # its handle, or None: it is listed
    cdef void* before                   # neighbours in the list
    cdef void* after
    cdef bint listed

    # The request is not known yet, nor its timeout: it is held to the default one, unless that has passed already.
    cdef int await_request(self, Deadlines deadlines, int64_t now) except -1
    # It is known: its deadline, and the reminder. ApiError 504 where that has passed.
    cdef int take_up(self, Deadlines deadlines, InferRequest request, int64_t now) except -1
    cdef bint is_late(self, int64_t now) noexcept
    cdef int forget_deadline(self) except -1
    # The deadline has passed: the request is dropped, and then the client is answered: overdue.
    cdef int expire(self, int64_t now) except -1
    # For subclasses.
    cdef int overdue(self, int64_t now) except -1


# --- Parents ----------------------------------------------------------------------------------------------------------

# Has a request that is done by others. A subclass says how children are made (`begin`, `took`) and what is joined out
# of their outputs (`finish`); it may raise whatever it likes.
cdef class Parent(Keeper):
    cdef readonly Clock clock
    cdef readonly InferRequest request      # None: it has ended
    cdef set _children                      # that have not ended

    cdef int _close(self, int cause) except -1
    cdef int _fail(self, object error) except -1
