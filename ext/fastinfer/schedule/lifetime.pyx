# The life of a request, from its first byte to its single end.
# Lives here: deadline, cancellation, the outcome, the count in the statistics, and parents, which split a request into
# child requests. Does not: queues and batches (scheduler), bodies and answers (inference).
# Thread: the loop's. Owners: a Life owns its request; Deadlines owns the lives in its list; a Parent owns its children.
#
# A Life is the wait of one client, from the first byte of its request to the encoded answer, with one deadline for all
# of it. If the deadline passes or the client goes away, the Life drops its request, whatever its state.
# A request is held by one Keeper: a scheduler, or a Parent, which makes child requests: slices, or the stages of a
# chain. A request ends once: its keeper settles it with an outcome, or its waiter drops it. A parent that is dropped
# drops its children, so nothing runs for a request that has ended.
# Decisions compare the clock with the deadline, in nanoseconds: before a request is queued, when it is taken for a
# batch, when its outcome comes, when its answer is encoded. Timers end waits that no such event ends; they may be late.

import logging

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t

from fastinfer.base.debug cimport DEBUG, invariant
from fastinfer.native.job cimport Clock
from fastinfer.shared.counters cimport BY_CLIENT, BY_MODEL, BY_TIMEOUT, CANCELLED, REJECTED, Counters
from fastinfer.tensor.message cimport ENDED, NEVER, RUNNING, InferRequest, Keeper, Waiter

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

cdef enum:
    MAX_TIMEOUT_US = 1_000_000_000_000_000      # 31 years; from here on a request has no deadline
    TICK_NS = 1_000_000                         # the resolution of the loop's timers
    FEW = 64                                    # steps from the list's end that are searched for a life's place


# --- The end of a request ---------------------------------------------------------------------------------------------

cdef int settle(InferRequest request, object outcome, int64_t now) except -1:
    cdef bint counted = False
    if request.state == ENDED:
        return 0
    complete = request.complete
    request.state = ENDED
    request.complete = None
    request.keeper = None
    while complete is not None:
        try:
            if isinstance(complete, Waiter):        # the common case
                counted = (<Waiter>complete).completed(request, outcome)
            else:
                complete(request, outcome)
            break
        except Exception as error:
            # The waiter could not use the outputs: it gets an error instead, so that no client waits forever.
            if not isinstance(outcome, list):
                log.exception("an error could not be delivered")
                break
            outcome = failure_of(error)
    if not counted:
        count(request, SUCCESS if isinstance(outcome, list) else cause_of(outcome), now)
    return 0


cdef int drop(InferRequest request, int cause, int64_t now) except -1:
    cdef Keeper keeper = request.keeper
    cdef int was = request.state
    request.state = ENDED
    request.complete = None
    request.keeper = None
    count(request, cause, now)
    if keeper is not None:
        keeper.let_go(request, was, cause)
    return 0


cdef int count(InferRequest request, int cause, int64_t now) except -1:
    cdef Counters stats = request.stats
    if stats is None:
        return 0
    request.stats = None
    if cause != SUCCESS:
        stats.count_failure(cause, now - request.arrived_ns)
        return 0
    stats.count_success(request.rows, now - request.arrived_ns, request.started_ns - request.enqueued_ns,
                        request.input_ns, request.infer_ns, request.output_ns)
    return 0


cdef int cause_of(object error) except -1:
    cdef int status = error.status
    if status == 504:
        return BY_TIMEOUT
    if status == 503:
        return REJECTED
    return BY_MODEL if status >= 500 else BY_CLIENT


cdef object failure_of(object error):
    if isinstance(error, ApiError):
        return error
    log.error("a request could not be answered", exc_info=error)
    if isinstance(error, MemoryError):
        return ApiError(503, "out of memory for the request", retry_after_s=1)
    return ApiError(500, "internal error")


cdef object timeout_error():
    return ApiError(504, "Request timeout expired")


# --- Deadlines --------------------------------------------------------------------------------------------------------

@cython.final
cdef class Deadlines:
    def __init__(self, loop not None, double timeout_s, Clock clock=None):
        self.clock = clock if clock is not None else Clock()
        self.timeout_ns = <int64_t>(timeout_s * 1e9)
        self._loop = loop

    def __dealloc__(self):
        # The list is empty unless the loop was closed with requests in flight: its timer holds a reference.
        cdef void* at = self._first
        cdef Life life
        while at != NULL:
            life = <Life>at
            at = life.after
            life.listed = False
            Py_DECREF(life)

    @property
    def watched(self):
        cdef void* at = self._first
        cdef Py_ssize_t lives = 0
        while at != NULL:
            lives += 1
            at = (<Life>at).after
        return lives

    cdef int watch(self, Life life, bint own_timer) except -1:
        life.deadlines = self
        if own_timer or not self._list(life):
            life.timer = self._loop.call_later(seconds(life.deadline_ns - self.clock.now()), life.on_timer)
        return 0

    cdef bint _list(self, Life life) except? True:
        # Inserts a life by its deadline, nearly always at the end. The place of a slow upload is further ahead:
        # returns False if a few steps do not find it.
        cdef void* at = self._last
        cdef int passed = 0
        while at != NULL and (<Life>at).deadline_ns > life.deadline_ns:
            if passed == FEW:
                return False
            passed += 1
            at = (<Life>at).before
        Py_INCREF(life)
        life.listed = True
        life.before = at
        if at != NULL:
            life.after = (<Life>at).after
            (<Life>at).after = <void*>life
        else:
            life.after = self._first
            self._first = <void*>life
        if life.after != NULL:
            (<Life>life.after).before = <void*>life
        else:
            self._last = <void*>life
        if DEBUG:
            self._check()
        if at == NULL and (self._sweep is None or self._sweep_ns > life.deadline_ns):
            self._set_sweep()
        return True

    cdef int _check(self) noexcept:
        # The list is linked both ways, and in the order of its deadlines.
        cdef void* at = self._first
        cdef void* before = NULL
        while at != NULL:
            invariant((<Life>at).listed and (<Life>at).before == before, "the deadlines are linked both ways")
            invariant(before == NULL or (<Life>before).deadline_ns <= (<Life>at).deadline_ns, "deadlines are in order")
            before = at
            at = (<Life>at).after
        invariant(self._last == before, "the list of deadlines ends at its last")
        return 0

    cdef int _unlist(self, Life life) noexcept:
        invariant(life.listed, "a life that leaves the list of deadlines is in it")
        life.listed = False
        if life.before != NULL:
            (<Life>life.before).after = life.after
        else:
            self._first = life.after
        if life.after != NULL:
            (<Life>life.after).before = life.before
        else:
            self._last = life.before
        if DEBUG:
            self._check()
        Py_DECREF(life)
        return 0

    cdef int _set_sweep(self) except -1:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_ns = (<Life>self._first).deadline_ns
        self._sweep = self._loop.call_later(seconds(self._sweep_ns - self.clock.now()), self._sweep_listed)
        return 0

    def _sweep_listed(self):
        cdef Life first
        cdef int64_t now = self.clock.now()
        self._sweep = None
        while self._first != NULL:
            first = <Life>self._first
            if not first.is_late(now):
                self._set_sweep()
                return
            first.expire(now)


cdef int64_t deadline_of(int64_t arrived_ns, int64_t timeout_us) noexcept:
    return arrived_ns + timeout_us * 1000 if timeout_us < MAX_TIMEOUT_US else NEVER


# The delay of a timer: rounded up, at least one tick. The loop would fire a shorter one at once.
cdef double seconds(int64_t ns) noexcept:
    return max(1, (ns + TICK_NS - 1) // TICK_NS) * 1e-3


cdef class Life(Waiter):
    @property
    def stage(self):
        if self.request is None:
            return "decoding"
        if self.request.state == ENDED:
            return "encoding"
        if self.request.state == RUNNING:
            return "running"
        return "queued"

    cdef int await_request(self, Deadlines deadlines, int64_t now) except -1:
        self.deadline_ns = self.arrived_ns + deadlines.timeout_ns
        if not self.is_late(now):
            deadlines.watch(self, False)
        return 0

    cdef int learn_timeout(self, Deadlines deadlines, int64_t timeout_us) except -1:
        cdef int64_t now = deadlines.clock.now()
        self.forget_deadline()
        self.deadline_ns = deadline_of(self.arrived_ns, timeout_us)
        if self.is_late(now):
            self.expire(now)
        elif self.deadline_ns != NEVER:
            deadlines.watch(self, True)
        return 0

    cdef int attach(self, Deadlines deadlines, InferRequest request, int64_t now) except -1:
        cdef int64_t timeout_us = request.timeout_us
        cdef int64_t deadline_ns = self.arrived_ns + deadlines.timeout_ns
        if timeout_us > 0:
            deadline_ns = deadline_of(self.arrived_ns, timeout_us)
            now = deadlines.clock.now()
        request.arrived_ns = self.arrived_ns
        request.deadline_ns = deadline_ns
        if self.deadlines is not None and (self.deadlines is not deadlines or deadline_ns != self.deadline_ns):
            self.forget_deadline()
        self.deadline_ns = deadline_ns
        if self.is_late(now):
            raise timeout_error()
        if self.deadlines is None and deadline_ns != NEVER:
            deadlines.watch(self, timeout_us > 0)
        return 0

    cdef bint is_late(self, int64_t now) noexcept:
        return now >= self.deadline_ns

    cdef int forget_deadline(self) except -1:
        cdef Deadlines deadlines = self.deadlines
        if deadlines is None:
            return 0
        self.deadlines = None
        if self.listed:         # the common case
            deadlines._unlist(self)
        elif self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    def on_timer(self):
        cdef Deadlines deadlines = self.deadlines
        cdef int64_t now
        self.timer = None
        if deadlines is not None:
            now = deadlines.clock.now()
            if self.is_late(now):
                self.expire(now)
            else:       # the loop's cached time was a little old when the timer was set
                deadlines.watch(self, True)

    cdef int expire(self, int64_t now) except -1:
        self.forget_deadline()
        try:
            if self.request is not None:
                drop(self.request, BY_TIMEOUT, now)
            self.overdue(now)
        except Exception:       # later lives in the list must expire all the same
            log.exception("a request whose deadline has passed could not be ended")
        return 0

    cdef int overdue(self, int64_t now) except -1:
        raise NotImplementedError


# --- Parents ----------------------------------------------------------------------------------------------------------

cdef class Parent(Keeper):
    def __init__(self, Clock clock not None, InferRequest request not None):
        self.clock = clock
        self.request = request
        self._children = set()

    def start(self):
        cdef InferRequest request = self.request
        request.keeper = self
        request.state = RUNNING
        if request.enqueued_ns == 0:
            request.enqueued_ns = self.clock.now()
        try:
            self.begin()
        except Exception as error:
            request.keeper = None
            self._close(cause_of(error) if isinstance(error, ApiError) else BY_MODEL)
            self.ended()
            raise

    def run(self, place, InferRequest child not None):
        cdef InferRequest request = self.request
        cdef int64_t now = self.clock.now()
        child.arrived_ns = now
        child.deadline_ns = request.deadline_ns
        child.complete = self._child_ended
        try:
            if now >= child.deadline_ns:
                raise timeout_error()
            place(child)
        except Exception as error:
            drop(child, cause_of(error) if isinstance(error, ApiError) else BY_MODEL, now)
            raise
        self._children.add(child)

    def _child_ended(self, InferRequest child, outcome):
        cdef InferRequest request = self.request
        self._children.discard(child)
        if request is None:
            return
        if not isinstance(outcome, list):
            self._fail(self.failure(child, outcome))
            return
        if child.part:
            if request.started_ns == 0 or child.started_ns < request.started_ns:
                request.started_ns = child.started_ns
            request.input_ns += child.input_ns
            request.infer_ns += child.infer_ns
            request.output_ns += child.output_ns
        try:
            self.took(child, outcome)
        except Exception as error:
            self._fail(error)

    def finish(self, list outputs not None):
        cdef InferRequest request = self.request
        if request is not None:
            self._close(CANCELLED)
            settle(request, outputs, self.clock.now())
            self.ended()

    def abandon(self):
        cdef InferRequest request = self.request
        cdef int64_t now = self.clock.now()
        if request is not None:
            drop(request, BY_TIMEOUT if now >= request.deadline_ns else CANCELLED, now)

    cdef int _fail(self, object error) except -1:
        cdef InferRequest request = self.request
        if request is not None:
            error = failure_of(error)
            self._close(cause_of(error))
            settle(request, error, self.clock.now())
            self.ended()
        return 0

    cdef int let_go(self, InferRequest request, int was, int cause) except -1:
        if self.request is not None:
            self._close(cause)
            self.ended()
        return 0

    cdef int _close(self, int cause) except -1:
        cdef set children = self._children
        cdef InferRequest child
        cdef int64_t now = self.clock.now()
        self.request = None
        self._children = set()
        for child in children:
            drop(child, cause, now)
        return 0

    # --- For subclasses -----------------------------------------------------------------------------------------------

    def begin(self):
        raise NotImplementedError

    def took(self, InferRequest child, list outputs):
        raise NotImplementedError

    def failure(self, InferRequest child, error):
        return error

    def ended(self):
        pass
