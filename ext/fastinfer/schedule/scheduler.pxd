from libc.stdint cimport int64_t

from fastinfer.native.job cimport Clock
from fastinfer.schedule.lifetime cimport Deadlines
from fastinfer.schedule.policy cimport Policy
from fastinfer.schedule.queue cimport Group, Queue, QueuePolicy
from fastinfer.schedule.run_notes cimport RunNotes
from fastinfer.shared.counters cimport Counters
from fastinfer.tensor.message cimport BatchResult, BatchRunner, InferRequest, Keeper
from fastinfer.tensor.signature cimport Signature

# Requests that run together, and how many of them still wait for the answer. A batch is also the callback of its run.
# Scheduler._running keeps it, and it keeps its requests, until the run ends; `run` makes a cycle, which finish breaks.
cdef class Batch(Keeper):
    cdef Scheduler scheduler
    cdef list requests
    cdef Py_ssize_t waiting
    cdef object run             # Run | None
    cdef bint finished
    cdef object __weakref__

    cdef int finish(self, BatchResult result) except -1


cdef class Scheduler(Keeper):
    # Configuration.
    cdef object _start
    cdef BatchRunner _runner            # _start, if it is a BatchRunner
    cdef Policy _policy
    cdef int64_t _max_queue_size
    cdef readonly Counters stats
    cdef RunNotes _notes                # None if crashes are not recorded
    cdef readonly object loop
    cdef readonly Clock clock
    cdef readonly Deadlines deadlines   # of requests to this model, with its default timeout
    cdef Queue _queue
    # Running batches.
    cdef int64_t _free_instances
    cdef set _running                   # of Batch
    cdef int64_t _parents               # requests in parts that are admitted and have not left
    # Dispatching.
    cdef bint _dispatch_due
    cdef object _dispatch_method        # _dispatch_now, bound once; None before the first request and at the end
    cdef bint _dispatching
    cdef object _delay                  # the handle of the timer that ends a wait for more requests, or None
    cdef bint _retiring
    cdef object _retired                # called once, when all accepted requests have ended; None: unset, or called
    # Ends that are not reported yet: of batches (an inline one may end inside the end of another) and of refused
    # requests.
    cdef int _finishing

    cpdef int submit(self, InferRequest request) except -1
    # Whether priorities have policies of their own; then `set_timeout` gives a request the timeout of its policy.
    cdef bint has_policies(self) noexcept
    cpdef int set_timeout(self, InferRequest request) except -1
    cpdef int cancel(self, InferRequest request) except -1
    cpdef int count_refusal(self, object error, int64_t arrived_ns=*) except -1
    # A parent calls `admit` before its first slice and `leave` at its end; between them slices are accepted even if the
    # model retires.
    cpdef int admit(self) except -1
    cpdef int leave(self) except -1

    # From queue to run to answer.
    cdef int _dispatch_soon(self) except -1
    cdef int _dispatch(self) except -1
    cdef bint _run_at_once(self, list requests) except -1
    cdef bint _start_batch(self, list requests) except -1
    cdef list _next_batch(self, int64_t now)
    cdef list _take_from_others(self, Group first, int64_t shortest_ns, int64_t now)
    cdef int64_t _ask(self, Group group, int64_t now) except 0
    cdef list _take_from(self, Group group, Py_ssize_t limit, int64_t now)
    cdef int _refuse_late(self, Group group, int64_t now) except -1
    cdef int _delay_late(self, Group group, int64_t now) except -1
    cdef bint _is_full(self, InferRequest request) except? True
    cdef int _refuse_culprits(self, Group group) except -1
    cdef int _refuse_first(self, Group group, object error) except -1
    cdef int _finish(self, Batch batch, BatchResult result) except -1
    cdef int _end_batch(self, list requests, BatchResult result) except -1
    cdef int _answer(self, list requests, BatchResult result) except -1
    cdef int _check_idle(self) except -1


# The part of a model that an inference uses. fastinfer.schedule.model.Model is a subclass, with the methods `begin` and
# `enqueue` for the rare cases, and the property `signature`: for a chained model, this model's inputs with the last
# stage's outputs.
cdef class Target:
    cdef readonly str name
    cdef readonly str version
    cdef readonly Signature own_signature   # without its successors
    cdef readonly object successor      # Callable[[], Target] | None
    cdef readonly Scheduler scheduler
