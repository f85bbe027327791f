# The scheduler of one loaded model: see scheduler.pxd.

import logging

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF

from fastinfer._ext.job cimport monotonic_ns
from fastinfer._ext.crashrecord cimport IS_CULPRIT, IS_SUSPECT, NONE
from fastinfer._ext.message cimport BatchResult, BatchRunner, InferRequest, Waiter
from fastinfer._ext.queue cimport ENDED, QUEUED, Group, Queue
from fastinfer._ext.runnotes cimport RunNotes
from fastinfer._ext.stats cimport BY_CLIENT, BY_MODEL, BY_TIMEOUT, CANCELLED, REJECTED, Counters

from fastinfer.errors import ApiError

log = logging.getLogger(__name__)

cdef str REFUSED = "this request has ended the process that ran it; it is not run again"

cdef enum:
    TURN_NS = 500_000       # batches run inline for at most about so long before the loop turns
    HEADS_ASKED = 16        # groups that are asked for a batch while the most urgent one waits for company


@cython.final
cdef class Batch:
    def __call__(self, BatchResult result not None):
        self.finish(result)

    cdef int finish(self, BatchResult result) except -1:
        if not self.finished:
            self.finished = True
            self.run = None
            self.scheduler._finish(self, result)
        return 0


@cython.final
cdef class Scheduler:
    def __init__(self, start, policy, *, int64_t instances, int64_t max_queue_size, double timeout_s,
                 int64_t priority_levels=0, int64_t default_priority=0, Counters stats not None, loop,
                 RunNotes notes=None):
        self._start = start
        self._runner = start if isinstance(start, BatchRunner) else None
        self._policy = policy
        self._max_batch_size = policy.max_batch_size
        self._policy_matters = policy.max_queue_delay_ns > 0 or len(policy.preferred_batch_size) > 0
        self._max_queue_size = max_queue_size
        self._timeout_ns = <int64_t>(timeout_s * 1e9)
        self._stats = stats
        self._notes = notes
        self._loop = loop
        self._queue = Queue(priority_levels, default_priority)
        self._free_instances = instances
        self._running = set()

    def __dealloc__(self):
        # Only where a run was lost: what is listed otherwise keeps the loop's timer, and that keeps the scheduler.
        cdef void* at = self._oldest
        cdef InferRequest request
        while at != NULL:
            request = <InferRequest>at
            at = request.after
            request.listed = False
            Py_DECREF(request)

    @property
    def queued(self):
        return self._queue.size

    @property
    def running(self):
        return len(self._running)

    @property
    def in_flight(self):
        return self._queue.size + sum([(<Batch>batch).waiting for batch in self._running])

    # --- In -----------------------------------------------------------------------------------------------------------

    cpdef int submit(self, InferRequest request) except -1:
        if self._queue.size >= self._max_queue_size:
            self._stats.count_failure(REJECTED, 0)
            raise ApiError(503, "Exceeds maximum queue size", retry_after_s=1)
        if self._retiring:
            raise ApiError(503, "the model is being unloaded", retry_after_s=1)
        request.enqueued_ns = monotonic_ns()
        self._queue.add(request)
        if request.timeout_us != 0:
            request.timer = self._loop.call_later(request.timeout_us * 1e-6, self._expired, request)
        else:
            self._list(request)
            if self._sweep is None:
                self._sweep = self._loop.call_later(self._timeout_ns * 1e-9, self._sweep_listed)
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._dispatch_now)
        return 0

    cpdef int cancel(self, InferRequest request) except -1:
        if request.state != ENDED:
            self._stats.count_failure(CANCELLED, monotonic_ns() - request.enqueued_ns)
            self._end(request)
        return 0

    cpdef int count_refusal(self, object error) except -1:
        self._stats.count_failure(BY_CLIENT if error.status < 500 else REJECTED, 0)
        return 0

    def retire(self, retired not None):
        self._retiring = True
        self._retired = retired
        self._loop.call_soon(self._check_retired)

    def _check_retired(self):
        self._check_idle()

    # --- From queue to run to answer ----------------------------------------------------------------------------------

    def _dispatch_now(self):
        self._dispatch_due = False
        self._dispatch()

    cdef int _dispatch(self) except -1:
        cdef list taken
        cdef int64_t now = monotonic_ns()
        cdef int64_t began_ns = now
        cdef bint ended
        self._dispatching = True
        try:
            while self._free_instances > 0 and self._queue.size > 0:
                taken = self._take(now)
                if taken is None:
                    break
                ended = self._run_at_once(taken, now) or self._start_batch(taken, now)
                if self._queue.size == 0:       # the common case
                    break
                now = monotonic_ns()
                if ended and now - began_ns > TURN_NS:
                    # These ran on this thread: let others have a turn of the loop before the next one.
                    if not self._dispatch_due:
                        self._dispatch_due = True
                        self._loop.call_soon(self._dispatch_now)
                    break
        finally:
            self._dispatching = False
        return 0

    cdef bint _run_at_once(self, list requests, int64_t now) except -1:
        cdef BatchResult result
        if self._runner is None:
            return False
        try:
            result = self._runner.run_at_once(requests)
        except Exception:
            log.exception("a batch could not be run")
            result = failed(requests, "the batch could not be run")
        if result is None:
            return False
        self._end_batch(requests, now, result)
        return True

    cdef bint _start_batch(self, list requests, int64_t now) except -1:
        # Whether it has ended already.
        cdef Batch batch = Batch.__new__(Batch)
        batch.scheduler = self
        batch.requests = requests
        batch.started_ns = now
        batch.waiting = len(requests)
        self._free_instances -= 1
        self._running.add(batch)
        try:
            run = self._start(requests, batch)
        except Exception:
            log.exception("a batch could not be started")
            batch.finish(failed(requests, "the batch could not be started"))
            return True
        if not batch.finished:
            batch.run = run
        return batch.finished

    cdef list _take(self, int64_t now):
        # The requests of the next batch, or None where the policy waits (a timer is then set).
        cdef list taken = None
        if self._policy_matters:
            return self._take_by_policy(now)
        while taken is None and len(self._queue.heads) > 0:     # a group may hold nothing but ended ones
            taken = self._take_from(<Group>self._queue.heads[0], -1)
        return taken

    cdef list _take_by_policy(self, int64_t now):
        cdef Group group
        cdef list taken
        cdef int64_t shortest_ns = 0
        cdef int64_t waits_ns
        cdef int64_t since_ns
        cdef Py_ssize_t take
        # Without a configured delay the first one always gives a batch.
        for group in self._queue.most_urgent(HEADS_ASKED if self._policy.max_queue_delay_ns > 0 else 1):
            since_ns = group.oldest().enqueued_ns
            take, waits_ns = self._policy.decide(group.rows(self._max_batch_size), now - since_ns)
            if take > 0:
                taken = self._take_from(group, take)
                if taken is not None:       # else the group held culprits, and is gone
                    return taken
                continue
            shortest_ns = waits_ns if shortest_ns == 0 else min(shortest_ns, waits_ns)
        if self._delay is None and len(self._queue.heads) > 0:
            self._delay = self._loop.call_later(shortest_ns * 1e-9, self._delay_over)
        return None

    cdef list _take_from(self, Group group, Py_ssize_t limit):
        # The first `limit` live requests of a group, or with -1 as many as fit, as BatchingPolicy would have it.
        cdef InferRequest request
        cdef list taken = []
        cdef int64_t rows = 0
        cdef Py_ssize_t count = 0
        cdef bint armed = self._notes is not None and self._notes.armed()
        cdef bint alone = False
        while count != limit and not alone:
            alone = armed and self._refuse_culprits(group) == IS_SUSPECT
            request = self._queue.first(group)
            if request is None or (alone and count > 0):
                break
            if limit < 0 and count > 0 and (rows >= self._max_batch_size or rows + request.rows > self._max_batch_size):
                break
            rows += request.rows
            count += 1
            taken.append(request)
            self._queue.take_first(group)
        self._queue.settle(group)
        return taken if count > 0 else None

    cdef int _refuse_culprits(self, Group group) except -1:
        # Those at the start; the verdict on the request that is first then. They are answered in a moment: whoever is
        # told may change the queue, which is being read.
        cdef InferRequest request = self._queue.first(group)
        cdef int verdict
        while request is not None:
            verdict = self._notes.verdict(request)
            if verdict != IS_CULPRIT:
                return verdict
            self._queue.take_first(group)
            self._finishing += 1
            self._notes.slot.slot.refused += 1
            self._loop.call_soon(self._refuse, request)
            request = self._queue.first(group)
        return NONE

    def _refuse(self, InferRequest request):
        self._finishing -= 1
        self._fail(request, BY_MODEL, ApiError(500, REFUSED))
        self._check_idle()

    def _delay_over(self):
        self._delay = None
        self._dispatch()

    cdef int _finish(self, Batch batch, BatchResult result) except -1:
        self._running.discard(batch)
        self._free_instances += 1
        return self._end_batch(batch.requests, batch.started_ns, result)

    cdef int _end_batch(self, list requests, int64_t started_ns, BatchResult result) except -1:
        self._finishing += 1
        try:
            if self._queue.size > 0 and not self._dispatching:
                self._dispatch()    # the next batch starts before the answers of this one are written
        finally:
            self._answer(requests, started_ns, result)
            self._finishing -= 1
            self._check_idle()
        return 0

    cdef int _answer(self, list requests, int64_t started_ns, BatchResult result) except -1:
        cdef InferRequest request
        cdef int64_t now, total_ns
        cdef int64_t rows = 0
        cdef int64_t answered = 0
        cdef Py_ssize_t i
        if len(result.outputs) != len(requests):
            log.error("a run gave %d outcomes for %d requests", len(result.outputs), len(requests))
            result = failed(requests, "the model was not run")
        now = monotonic_ns()
        for i in range(len(requests)):
            request = <InferRequest>requests[i]
            rows += request.rows
            if request.state == ENDED:
                continue
            outcome = result.outputs[i]
            total_ns = now - request.enqueued_ns
            if isinstance(outcome, list):
                answered += 1
                self._stats.count_success(total_ns, started_ns - request.enqueued_ns, request.rows)
            else:
                self._stats.count_failure(BY_MODEL if outcome.status >= 500 else BY_CLIENT, total_ns)
            complete = request.complete
            self._forget(request)
            tell(complete, request, outcome)
        self._stats.count_batch(rows, answered, result.compute_input_ns, result.compute_infer_ns,
                                result.compute_output_ns)
        return 0

    cdef int _check_idle(self) except -1:
        if self._retired is not None and self._queue.size == 0 and len(self._running) == 0 and self._finishing == 0:
            retired, self._retired = self._retired, None
            retired()
        return 0

    # --- The ends of requests -----------------------------------------------------------------------------------------

    cdef int _forget(self, InferRequest request) except -1:
        request.state = ENDED
        request.complete = None
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        else:
            self._unlist(request)
        return 0

    cdef int _end(self, InferRequest request) except -1:
        # Ends a request early, wherever it is.
        cdef Batch batch
        if request.state == QUEUED:
            self._forget(request)
            self._queue.has_ended()
            return self._check_idle()
        self._forget(request)
        for batch in self._running:
            if any([member is request for member in batch.requests]):
                batch.waiting -= 1
                if batch.waiting == 0 and batch.run is not None:
                    batch.run.terminate()
                break
        return 0

    cdef int _expire(self, InferRequest request) except -1:
        return self._fail(request, BY_TIMEOUT, ApiError(504, "Request timeout expired"))

    cdef int _fail(self, InferRequest request, int cause, error) except -1:
        if request.state != ENDED:
            complete = request.complete
            self._stats.count_failure(cause, monotonic_ns() - request.enqueued_ns)
            self._end(request)
            tell(complete, request, error)
        return 0

    def _expired(self, InferRequest request):
        self._expire(request)

    # --- Deadlines ----------------------------------------------------------------------------------------------------

    def _sweep_listed(self):
        cdef InferRequest oldest
        cdef int64_t due = monotonic_ns() - self._timeout_ns
        self._sweep = None
        while self._oldest != NULL:
            oldest = <InferRequest>self._oldest
            if oldest.enqueued_ns > due:
                self._sweep = self._loop.call_later((oldest.enqueued_ns - due) * 1e-9, self._sweep_listed)
                return
            self._expire(oldest)

    cdef void _list(self, InferRequest request) noexcept:
        Py_INCREF(request)
        request.listed = True
        request.before = self._newest
        request.after = NULL
        if self._newest != NULL:
            (<InferRequest>self._newest).after = <void*>request
        else:
            self._oldest = <void*>request
        self._newest = <void*>request

    cdef void _unlist(self, InferRequest request) noexcept:
        if not request.listed:
            return
        request.listed = False
        if request.before != NULL:
            (<InferRequest>request.before).after = request.after
        else:
            self._oldest = request.after
        if request.after != NULL:
            (<InferRequest>request.after).before = request.before
        else:
            self._newest = request.before
        Py_DECREF(request)


cdef BatchResult failed(list requests, str message):
    return BatchResult([ApiError(500, message)] * len(requests))


# An outcome that cannot be told is told as an error, so that nobody waits for ever.
cdef int tell(complete, InferRequest request, outcome) except -1:
    try:
        if isinstance(complete, Waiter):        # the common case
            (<Waiter>complete).completed(request, outcome)
        elif complete is not None:
            complete(request, outcome)
    except Exception:
        log.exception("an answer could not be given")
        if isinstance(outcome, list):
            tell(complete, request, ApiError(500, "internal error"))
    return 0
