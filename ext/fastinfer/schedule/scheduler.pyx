# Takes batches from one loaded model's Queue whenever an instance is free. Lives here: instances and batches. Does not:
# waiting requests (queue), the size of a batch (policy), HTTP, ONNX Runtime.
#
# Loop's thread only, hence no locks. The queue owns waiting requests, a Batch its running ones.
#
# Requests come in by submit, batches go to the `start` callable, and every request is settled once (lifetime), with its
# outputs or with an error, unless it was dropped. Requests that arrive in the same turn of the loop are batched
# together: submit only queues, the dispatch follows at the end of the turn. A request whose deadline has passed, or
# that was dropped, is not run, and a batch without a waiting request is terminated.

import logging

cimport cython

from fastinfer.base.debug cimport invariant
from fastinfer.native.job cimport Clock
from fastinfer.schedule.lifetime cimport Deadlines, cause_of, drop, timeout_error, settle
from fastinfer.schedule.policy cimport Policy
from fastinfer.schedule.queue cimport Group, Queue, QueuePolicy
from fastinfer.schedule.run_notes cimport RunNotes
from fastinfer.shared.crash_record cimport IS_CULPRIT, IS_SUSPECT, IS_WITHDRAWN, NONE
from fastinfer.shared.counters cimport CANCELLED, Counters
from fastinfer.tensor.message cimport ENDED, QUEUED, BatchResult, BatchRunner, InferRequest, Keeper

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

cdef str REFUSED = "this request has ended the process that ran it; it is not run again"

cdef enum:
    TURN_NS = 500_000       # batches run inline for at most about this long before the loop turns
    GROUPS_ASKED = 16       # for a batch, while the most urgent group waits for more requests


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

    cdef int let_go(self, InferRequest request, int was, int cause) except -1:
        self.waiting -= 1
        invariant(self.waiting >= 0, "a request leaves a batch once")
        if self.run is None:
            return 0
        if self.waiting == 0:
            self.run.terminate()
        elif isinstance(self.run, Keeper):
            (<Keeper>self.run).let_go(request, was, cause)
        return 0


@cython.final
cdef class Scheduler:
    def __init__(self, start, Policy policy not None, *, int64_t instances, int64_t max_queue_size, double timeout_s,
                 int64_t priority_levels=0, int64_t default_priority=0, policies=None, Counters stats not None, loop,
                 RunNotes notes=None, Clock clock=None):
        self._start = start
        self._runner = start if isinstance(start, BatchRunner) else None
        self._policy = policy
        self._max_queue_size = max_queue_size
        self.stats = stats
        if self._runner is not None:
            self._runner.stats = stats
        self._notes = notes
        self.loop = loop
        self.clock = clock if clock is not None else Clock()
        self.deadlines = Deadlines(loop, timeout_s, self.clock)
        self._queue = Queue(priority_levels, default_priority, policies)
        self._free_instances = instances
        self._running = set()

    @property
    def queued(self):
        return self._queue.size

    @property
    def queue_steps(self):
        return self._queue.steps

    @property
    def running(self):
        return len(self._running)

    @property
    def in_flight(self):
        return self._queue.size + sum([(<Batch>batch).waiting for batch in self._running])

    # --- In -----------------------------------------------------------------------------------------------------------

    cpdef int submit(self, InferRequest request) except -1:
        if self._is_full(request):
            raise ApiError(503, "Exceeds maximum queue size", retry_after_s=1)
        if self._retiring and not request.part and request.step is None:
            self._refuse_more()
        if request.enqueued_ns == 0:
            request.enqueued_ns = self.clock.now()
            if request.arrived_ns == 0:
                request.arrived_ns = request.enqueued_ns
        request.keeper = self
        self._queue.add(request)
        if not self._dispatch_due:
            self._dispatch_soon()
        return 0

    cdef bint _is_full(self, InferRequest request) except? True:
        cdef QueuePolicy policy
        if self._queue.policies is None:        # the common case
            return self._queue.size >= self._max_queue_size
        policy = self._queue.policy_of(request)
        return policy.waiting >= policy.max_size

    cdef bint has_policies(self) noexcept:
        return self._queue.policies is not None

    cpdef int set_timeout(self, InferRequest request) except -1:
        cdef QueuePolicy policy = self._queue.policy_of(request)
        if policy is not None and (request.timeout_us == 0 or not policy.allow_override):
            request.timeout_us = policy.timeout_us
        return 0

    cdef int _dispatch_soon(self) except -1:
        self._dispatch_due = True
        if self._dispatch_method is None:
            self._dispatch_method = self._dispatch_now
        self.loop.call_soon(self._dispatch_method)
        return 0

    def _refuse_more(self):
        raise ApiError(503, "the model is being unloaded", retry_after_s=1)

    cpdef int admit(self) except -1:
        if self._retiring:
            self._refuse_more()
        self._parents += 1
        return 0

    cpdef int leave(self) except -1:
        self._parents -= 1
        invariant(self._parents >= 0, "a parent leaves once")
        return self._check_idle()

    cpdef int cancel(self, InferRequest request) except -1:
        if request.state != ENDED:
            drop(request, CANCELLED, self.clock.now())
        return 0

    cpdef int count_refusal(self, object error, int64_t arrived_ns=0) except -1:
        self.stats.count_failure(cause_of(error), self.clock.now() - arrived_ns if arrived_ns != 0 else 0)
        return 0

    def why_withdrawn(self):
        return self._notes.why_withdrawn() if self._notes is not None else None

    def reinstate(self):
        return self._notes is not None and self._notes.reinstate()

    def retire(self, retired not None):
        self._retiring = True
        self._retired = retired
        self.loop.call_soon(self._check_retired)

    def _check_retired(self):
        self._check_idle()

    # --- From queue to run to answer ----------------------------------------------------------------------------------

    def _dispatch_now(self):
        self._dispatch_due = False
        self._dispatch()

    cdef int _dispatch(self) except -1:
        cdef list taken
        cdef int64_t now = self.clock.now()
        cdef int64_t began_ns = now
        cdef bint ended
        self._dispatching = True
        try:
            while self._free_instances > 0 and self._queue.size > 0:
                taken = self._next_batch(now)
                if taken is None:
                    break
                ended = self._run_at_once(taken) or self._start_batch(taken)
                if self._queue.size == 0:       # the common case
                    break
                now = self.clock.now()
                if ended and now - began_ns > TURN_NS:
                    # These ran on this thread, so the loop turns before the next one.
                    if not self._dispatch_due:
                        self._dispatch_soon()
                    break
        finally:
            self._dispatching = False
        return 0

    cdef bint _run_at_once(self, list requests) except -1:
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
        self._end_batch(requests, result)
        return True

    cdef bint _start_batch(self, list requests) except -1:
        # Starts a batch; returns whether it has ended already.
        cdef Batch batch = Batch.__new__(Batch)
        cdef InferRequest request
        batch.scheduler = self
        batch.requests = requests
        batch.waiting = len(requests)
        for request in requests:
            request.keeper = batch
        invariant(self._free_instances > 0, "a batch has an instance")
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

    cdef list _next_batch(self, int64_t now):
        # Returns the requests of the next batch, or None if the policy waits (a timer is then set).
        cdef Group group
        cdef list taken
        cdef int64_t answer
        while self._queue.ready_groups > 0:
            group = <Group>self._queue.heap[0]
            if self._queue.first(group) is None:        # only if taking a batch has failed midway
                self._queue.settle(group)
                continue
            answer = self._ask(group, now)
            if answer < 0:
                return self._take_from_others(group, -answer, now)
            taken = self._take_from(group, answer, now)
            if taken is not None:       # else the first ones were refused
                return taken
        return None

    cdef list _take_from_others(self, Group first, int64_t shortest_ns, int64_t now):
        # While the most urgent group waits for more requests, another may have a batch.
        cdef Group group
        cdef list taken
        cdef int64_t answer
        for group in self._queue.most_urgent(GROUPS_ASKED):
            if group is first:
                continue
            answer = self._ask(group, now)
            if answer < 0:
                shortest_ns = min(shortest_ns, -answer)
                continue
            taken = self._take_from(group, answer, now)
            if taken is not None:
                return taken
        if self._delay is None and self._queue.ready_groups > 0:
            self._delay = self.loop.call_later(shortest_ns * 1e-9, self._delay_over)
        return None

    cdef int64_t _ask(self, Group group, int64_t now) except 0:
        # The policy's answer: as Policy.ask, never 0.
        cdef int64_t answer
        try:
            answer = self._policy.ask(group, now - group.oldest().enqueued_ns)
        except Exception:
            log.exception("the batching policy has failed: one request is taken")
            return 1
        return answer if answer != 0 else 1

    cdef list _take_from(self, Group group, Py_ssize_t limit, int64_t now):
        # Takes those of the first `limit` live requests of a group that may run together; None if all are refused.
        cdef InferRequest request
        cdef list taken = None
        cdef int64_t live = group.live
        cdef bint armed = self._notes is not None and self._notes.armed()
        cdef bint alone = False
        while live - group.live < limit and not alone:
            self._refuse_late(group, now)
            if group.policy is not None and group.policy.delay_ns > 0:
                self._delay_late(group, now)
            alone = armed and self._refuse_culprits(group) == IS_SUSPECT
            request = self._queue.first(group)
            if request is None or live - group.live >= limit or (alone and taken is not None):
                break
            request.started_ns = now
            if taken is None:
                taken = [request]
            else:
                taken.append(request)
            self._queue.take_first(group)
        self._queue.settle(group)
        return taken

    cdef int _refuse_late(self, Group group, int64_t now) except -1:
        # Removes requests at the front whose deadline has passed before their timer fired.
        cdef InferRequest request = self._queue.first(group)
        while request is not None and now >= request.deadline_ns:
            self._refuse_first(group, timeout_error())
            request = self._queue.first(group)
        return 0

    cdef int _delay_late(self, Group group, int64_t now) except -1:
        # Moves requests at the front that have waited for too long behind the others of their priority.
        cdef InferRequest request = self._queue.first(group)
        while request is not None and not request.delayed and now - request.arrived_ns >= group.policy.delay_ns:
            self._queue.delay_first(group)
            request = self._queue.first(group)
        return 0

    cdef int _refuse_culprits(self, Group group) except -1:
        # Removes convicted requests at the front, or all of a model that is withdrawn; returns the verdict on the new
        # front.
        cdef InferRequest request = self._queue.first(group)
        cdef int verdict
        while request is not None:
            verdict = self._notes.verdict(request)
            if verdict == IS_CULPRIT:
                self._notes.slot.slot.refused += 1
                self._refuse_first(group, ApiError(500, REFUSED))
            elif verdict == IS_WITHDRAWN and (error := self._notes.why_withdrawn()) is not None:
                self.stats.count_withdrawn()
                self._refuse_first(group, error)
            else:
                return verdict
            request = self._queue.first(group)
        return NONE

    cdef int _refuse_first(self, Group group, object error) except -1:
        # Removes the front now and settles it in the loop's next turn: its waiter may change the queue, which is being
        # read here.
        cdef InferRequest request = self._queue.first(group)
        self._queue.take_first(group)
        self._finishing += 1
        self.loop.call_soon(self._refuse, request, error)
        return 0

    def _refuse(self, InferRequest request, error):
        self._finishing -= 1
        settle(request, error, self.clock.now())
        self._check_idle()

    def _delay_over(self):
        self._delay = None
        self._dispatch()

    cdef int _finish(self, Batch batch, BatchResult result) except -1:
        invariant(batch in self._running, "a batch ends once")
        self._running.discard(batch)
        self._free_instances += 1
        return self._end_batch(batch.requests, result)

    cdef int _end_batch(self, list requests, BatchResult result) except -1:
        cdef bint well = len(result.outputs) == len(requests)
        self._finishing += 1
        try:
            if self._queue.size > 0 and not self._dispatching:
                for outcome in result.outputs:
                    well = well and isinstance(outcome, list)
                if well:
                    self._dispatch()    # the next batch starts before the answers of this one are written
        finally:
            self._answer(requests, result)
            self._finishing -= 1
            self._check_idle()
        if not well and self._queue.size > 0 and not self._dispatching:
            self._dispatch()            # after the answers: a failed slice takes its siblings out of the queue
        return 0

    cdef int _answer(self, list requests, BatchResult result) except -1:
        cdef InferRequest request
        cdef int64_t now
        cdef int64_t rows = 0
        cdef bint useful = False
        cdef Py_ssize_t i
        if len(result.outputs) != len(requests):
            log.error("a run gave %d outcomes for %d requests", len(result.outputs), len(requests))
            result = failed(requests, "the model was not run")
        now = self.clock.now()
        for i in range(len(requests)):
            request = <InferRequest>requests[i]
            rows += request.rows
            if request.state == ENDED:
                continue
            outcome = result.outputs[i]
            if isinstance(outcome, list):
                useful = True
                request.input_ns = result.compute_input_ns
                request.infer_ns = result.compute_infer_ns
                request.output_ns = result.compute_output_ns
                if now >= request.deadline_ns:
                    outcome = timeout_error()
            settle(request, outcome, now)
        self.stats.count_run(rows, useful, result.compute_input_ns, result.compute_infer_ns, result.compute_output_ns)
        return 0

    cdef int _check_idle(self) except -1:
        if (self._retired is not None and self._queue.size == 0 and len(self._running) == 0 and self._finishing == 0
                and self._parents == 0):
            retired, self._retired = self._retired, None
            self._dispatch_method = None        # ends the cycle of references, so that the model is freed now
            retired()
        return 0

    # --- The early ends of requests -----------------------------------------------------------------------------------

    cdef int let_go(self, InferRequest request, int was, int cause) except -1:
        # For waiting requests; a batch keeps the running ones. A refused one has left the queue already.
        if was == QUEUED:
            self._queue.has_ended(request)
            return self._check_idle()
        return 0


cdef BatchResult failed(list requests, str message):
    return BatchResult([ApiError(500, message)] * len(requests))


cdef class Target:
    def __init__(self, str name not None, str version not None, Signature own_signature not None,
                 Scheduler scheduler not None, successor=None):
        self.name = name
        self.version = version
        self.own_signature = own_signature
        self.scheduler = scheduler
        self.successor = successor
