# The scheduler of one loaded model: instances, batches, deadlines; what waits is in a Queue.
#
# Touched by the loop's thread only, hence no locks. It knows neither HTTP nor ONNX: requests come in by submit, batches
# go to the `start` callable that it was given, and every request's `complete` is called exactly once, with its outputs
# or with an error, unless it was cancelled.
#
# Requests that arrive in the same turn of the loop are seen together: submit only queues, the dispatch follows at the
# end of the turn. A request whose deadline passes is answered at once, wherever it is; queued it never runs, and a
# batch in which nobody waits any more is terminated.

from libc.stdint cimport int64_t

from fastinfer._ext.message cimport BatchResult, BatchRunner, InferRequest
from fastinfer._ext.queue cimport Group, Queue
from fastinfer._ext.runnotes cimport RunNotes
from fastinfer._ext.stats cimport Counters

# Requests that run together, and how many of them still wait for the answer. It is also what a run is to call at its
# end. Kept by Scheduler._running until then; `run` makes a cycle meanwhile, which finish breaks.
cdef class Batch:
    cdef Scheduler scheduler
    cdef list requests
    cdef int64_t started_ns
    cdef Py_ssize_t waiting
    cdef object run             # Run | None
    cdef bint finished
    cdef object __weakref__

    cdef int finish(self, BatchResult result) except -1


cdef class Scheduler:
    # Configuration.
    cdef object _start
    cdef BatchRunner _runner            # _start, if it is one
    cdef object _policy
    cdef bint _policy_matters           # else a batch is what fits
    cdef int64_t _max_batch_size
    cdef int64_t _max_queue_size
    cdef int64_t _timeout_ns
    cdef Counters _stats
    cdef RunNotes _notes                # None where crashes are not recorded
    cdef object _loop
    cdef Queue _queue
    # What runs.
    cdef int64_t _free_instances
    cdef set _running                   # of Batch
    # Deadlines: those of requests without a timeout of their own expire in the order of arrival. A list linked through
    # the requests, each owned by it.
    cdef void* _oldest
    cdef void* _newest
    cdef object _sweep                  # the handle of the timer that looks at the oldest, or None
    # Dispatching.
    cdef bint _dispatch_due
    cdef bint _dispatching
    cdef object _delay                  # the handle of the timer that ends a wait for company, or None
    cdef bint _retiring
    cdef object _retired                # called once, when all that was taken has ended; None: not, or not any more
    # Ends that are not told yet: an inline batch may end inside the end of another; and culprits.
    cdef int _finishing

    cpdef int submit(self, InferRequest request) except -1
    cpdef int cancel(self, InferRequest request) except -1
    cpdef int count_refusal(self, object error) except -1

    # From queue to run to answer.
    cdef int _dispatch(self) except -1
    cdef bint _run_at_once(self, list requests, int64_t now) except -1
    cdef bint _start_batch(self, list requests, int64_t now) except -1
    cdef list _take(self, int64_t now)
    cdef list _take_by_policy(self, int64_t now)
    cdef list _take_from(self, Group group, Py_ssize_t limit)
    cdef int _refuse_culprits(self, Group group) except -1
    cdef int _finish(self, Batch batch, BatchResult result) except -1
    cdef int _end_batch(self, list requests, int64_t started_ns, BatchResult result) except -1
    cdef int _answer(self, list requests, int64_t started_ns, BatchResult result) except -1
    cdef int _check_idle(self) except -1
    # The ends of requests.
    cdef int _forget(self, InferRequest request) except -1
    cdef int _end(self, InferRequest request) except -1
    cdef int _expire(self, InferRequest request) except -1
    cdef int _fail(self, InferRequest request, int cause, error) except -1
    # Deadlines.
    cdef void _list(self, InferRequest request) noexcept
    cdef void _unlist(self, InferRequest request) noexcept
