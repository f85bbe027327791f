"""The scheduler of one loaded model: queue, instances, deadlines.

Touched by the loop's thread only, hence no locks. It knows neither HTTP nor ONNX: requests come in by :meth:`submit`,
batches go to the ``start`` callable that it was given, and every request's ``complete`` is called exactly once, with
its outputs or with an error, unless it was cancelled.

Requests that arrive in the same turn of the loop are seen together: ``submit`` only queues, the dispatch follows at the
end of the turn. Compatible requests (equal priority and ``shape_key``) wait in one group; the group whose head is the
most urgent, then the oldest, is served first. A request whose deadline passes is answered at once, wherever it is;
queued it never runs, and a batch in which nobody waits any more is terminated.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, nsmallest
from time import monotonic_ns
from typing import Any, Protocol

from fastinfer._ext.message import InferRequest
from fastinfer._ext.tensor import Tensor
from fastinfer.errors import ApiError
from fastinfer.models.policy import BatchingPolicy
from fastinfer.models.stats import ModelStats

log = logging.getLogger(__name__)

QUEUED, RUNNING, ENDED = 1, 2, 3  # InferRequest.state

Outcome = list[Tensor] | ApiError


@dataclass(slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        outputs: for each request of the batch, in order, all outputs of the model in the model's order (each with the
            request's own rows), or the error that this request is answered with.
        compute_input_ns: gathering.
        compute_infer_ns: running.
        compute_output_ns: scattering.
    """

    outputs: Sequence[Outcome]
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


class Run(Protocol):
    """A batch under way."""

    def terminate(self) -> None:
        """Nobody waits any more: end it early if that is possible. It is reported as finished all the same."""


Start = Callable[[list[InferRequest], Callable[[BatchResult], None]], Run | None]
"""Runs requests that share a batch; calls back once on the loop's thread, before it returns None, or later."""


_Head = tuple[int, int, int, Any]  # priority, when the group's oldest request came, a unique number, the group's key
_TURN_NS = 500_000  # batches run inline for at most about so long before the loop turns
_HEADS_ASKED = 16  # groups that are asked for a batch while the most urgent one waits for company


class _Batch:
    """Requests that run together, and how many of them still wait for the answer."""

    __slots__ = ("__weakref__", "requests", "run", "started_ns", "waiting")

    def __init__(self, requests: list[InferRequest], started_ns: int) -> None:
        self.requests = requests
        self.started_ns = started_ns
        self.waiting = len(requests)
        self.run: Run | None = None


class Scheduler:
    """Queues requests and runs them in batches.

    Args:
        start: runs a batch; calls back once on the loop's thread, possibly before it returns.
        policy: how large a batch should be.
        instances: batches that may run at once.
        max_queue_size: requests that may wait; one more is refused with 503.
        priority_levels: how many levels a request's ``priority`` may have, 1 the most urgent; 0: it is ignored.
        default_priority: of a request that has none.
        timeout_s: seconds until a request without a ``timeout`` of its own is answered with 504.
        stats: told of every batch and of every request's end.
    """

    def __init__(
        self,
        start: Start,
        policy: BatchingPolicy,
        *,
        instances: int,
        max_queue_size: int,
        timeout_s: float,
        priority_levels: int = 0,
        default_priority: int = 0,
        stats: ModelStats,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # Configuration.
        self._start = start
        self._policy = policy
        self._max_queue_size = max_queue_size
        self._priority_levels = priority_levels
        self._default_priority = default_priority
        self._timeout_ns = int(timeout_s * 1e9)
        self._stats = stats
        self._loop = loop
        # The queue: groups of compatible requests, none empty, and a heap with one head for each of them.
        self._groups: dict[Any, deque[InferRequest]] = {}
        self._heads: list[_Head] = []
        self._number = 0
        self._queued = 0
        self._ended_in_queue = 0  # cancelled or expired ones that still lie in a group
        # What runs.
        self._free_instances = instances
        self._running: set[_Batch] = set()
        # Deadlines: those of requests without a timeout of their own expire in the order of arrival.
        self._pending: dict[InferRequest, None] = {}
        self._sweep: asyncio.TimerHandle | None = None
        # Dispatching.
        self._dispatch_due = False
        self._dispatching = False
        self._delay: asyncio.TimerHandle | None = None
        self._retiring = False
        self._retired: Callable[[], None] | None = None  # called once, when all that was taken has ended
        self._finishing = 0  # depth: an inline batch may end inside the end of another

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._queued

    @property
    def running(self) -> int:
        """Batches under way."""
        return len(self._running)

    @property
    def in_flight(self) -> int:
        """Requests that wait or run, and whose clients are still there."""
        return self._queued + sum(batch.waiting for batch in self._running)

    # --- In -----------------------------------------------------------------------------------------------------------

    def submit(self, request: InferRequest) -> None:
        """Queues a checked request. ApiError 503 where the queue is full or the model is being unloaded."""
        if self._queued >= self._max_queue_size:
            self._stats.record_failure("rejected", 0)
            raise ApiError(503, "Exceeds maximum queue size", retry_after_s=1)
        if self._retiring:
            raise ApiError(503, "the model is being unloaded", retry_after_s=1)
        request.state = QUEUED
        request.enqueued_ns = monotonic_ns()
        priority = 0
        if self._priority_levels:
            priority = min(request.priority or self._default_priority, self._priority_levels)
        key = (priority, request.shape_key)
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = deque((request,))
            self._push_head(key)
        else:
            group.append(request)
        self._queued += 1
        if request.timeout_us:
            request.timer = self._loop.call_later(request.timeout_us * 1e-6, self._expire, request)
        else:
            self._pending[request] = None
            if self._sweep is None:
                self._sweep = self._loop.call_later(self._timeout_ns * 1e-9, self._sweep_pending)
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._dispatch)

    def cancel(self, request: InferRequest) -> None:
        """Nobody waits for this request any more; its ``complete`` is not called."""
        if request.state != ENDED:
            self._stats.record_failure("cancelled", monotonic_ns() - request.enqueued_ns)
            self._end(request)

    def retire(self, retired: Callable[[], None]) -> None:
        """Takes no more requests; calls ``retired`` on the loop when all that were taken have ended."""
        self._retiring = True
        self._retired = retired
        self._loop.call_soon(self._check_retired)

    def _check_retired(self) -> None:
        if self._retired is not None and not self._queued and not self._running and not self._finishing:
            retired, self._retired = self._retired, None
            retired()

    # --- Through ------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._dispatch_due = False
        self._dispatching = True
        began_ns = monotonic_ns()
        try:
            while self._free_instances and self._queued:
                batch = self._take()
                if batch is None:
                    break
                self._free_instances -= 1
                self._running.add(batch)
                run = self._run(batch)
                if run is not None:
                    batch.run = run
                elif self._queued and monotonic_ns() - began_ns > _TURN_NS:
                    # These ran on this thread: let others have a turn of the loop before the next one.
                    if not self._dispatch_due:
                        self._dispatch_due = True
                        self._loop.call_soon(self._dispatch)
                    break
        finally:
            self._dispatching = False

    def _run(self, batch: _Batch) -> Run | None:
        finished = False

        def done(result: BatchResult) -> None:
            nonlocal finished
            if not finished:
                finished = True
                self._finish(batch, result)

        try:
            return self._start(batch.requests, done)
        except Exception:
            log.exception("a batch could not be started")
            done(BatchResult([ApiError(500, "the batch could not be started")] * len(batch.requests)))
            return None

    def _take(self) -> _Batch | None:
        """The next batch, or None where the policy waits (a timer is then set)."""
        now = monotonic_ns()
        shortest_ns = 0
        # Without a configured delay the first head always gives a batch.
        for head in self._heads_to_ask():
            group = self._groups[head[3]]
            take, wait_ns = self._policy.decide(
                (request.rows for request in group if request.state == QUEUED), now - group[0].enqueued_ns
            )
            if take:
                return self._take_from(head, group, take, now)
            shortest_ns = min(shortest_ns or wait_ns, wait_ns)
        if self._delay is None:
            self._delay = self._loop.call_later(shortest_ns * 1e-9, self._delay_over)
        return None

    def _heads_to_ask(self) -> list[_Head]:
        """The most urgent groups, each with a live request at its front; only one where nobody waits on purpose."""
        wanted = _HEADS_ASKED if self._policy.max_queue_delay_ns else 1
        while True:
            heads = nsmallest(wanted, self._heads) if wanted > 1 else self._heads[:1]
            empty = [head for head in heads if not self._trim(self._groups[head[3]])]
            if not empty:
                return heads
            for head in empty:
                self._drop_group(head)

    def _trim(self, group: deque[InferRequest]) -> bool:
        """Takes ended requests from the front of a group; returns whether a live one is left."""
        while group and group[0].state == ENDED:
            group.popleft()
            self._ended_in_queue -= 1
        return bool(group)

    def _take_from(self, head: _Head, group: deque[InferRequest], take: int, now: int) -> _Batch:
        requests: list[InferRequest] = []
        while len(requests) < take:
            request = group.popleft()
            if request.state == ENDED:
                self._ended_in_queue -= 1
                continue
            request.state = RUNNING
            requests.append(request)
        self._queued -= take
        if group:
            self._remove_head(head)
            self._push_head(head[3])
        else:
            self._drop_group(head)
        return _Batch(requests, now)

    def _push_head(self, key: Any) -> None:
        self._number += 1
        heappush(self._heads, (key[0], self._groups[key][0].enqueued_ns, self._number, key))

    def _remove_head(self, head: _Head) -> None:
        if self._heads[0] is head:  # the common case
            heappop(self._heads)
        else:
            self._heads.remove(head)
            heapify(self._heads)

    def _drop_group(self, head: _Head) -> None:
        self._remove_head(head)
        del self._groups[head[3]]

    def _delay_over(self) -> None:
        self._delay = None
        self._dispatch()

    def _finish(self, batch: _Batch, done: BatchResult) -> None:
        self._running.discard(batch)
        self._free_instances += 1
        batch.run = None  # it holds the batch's memory, and knows the batch: a cycle that only the collector would end
        self._finishing += 1
        try:
            if self._queued and not self._dispatching:
                self._dispatch()  # the next batch starts before the answers of this one are written
        finally:
            self._answer(batch, done)
            self._finishing -= 1
            self._check_retired()

    def _answer(self, batch: _Batch, done: BatchResult) -> None:
        now = monotonic_ns()
        rows = answered = 0
        for request, result in zip(batch.requests, done.outputs, strict=True):
            rows += request.rows
            if request.state == ENDED:
                continue
            total_ns = now - request.enqueued_ns
            if isinstance(result, ApiError):
                self._stats.record_failure("model" if result.status >= 500 else "client", total_ns)
            else:
                answered += 1
                self._stats.record_success(total_ns, batch.started_ns - request.enqueued_ns, request.rows)
            complete = request.complete
            self._forget(request)
            if complete is not None:
                _tell(complete, request, result)
        self._stats.record_batch(rows, answered, done.compute_input_ns, done.compute_infer_ns, done.compute_output_ns)

    # --- Out ----------------------------------------------------------------------------------------------------------

    def _forget(self, request: InferRequest) -> None:
        request.state = ENDED
        request.complete = None
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None
        else:
            self._pending.pop(request, None)

    def _end(self, request: InferRequest) -> None:
        """Ends a request early, wherever it is."""
        if request.state == QUEUED:
            self._queued -= 1
            self._ended_in_queue += 1
            self._forget(request)
            if self._ended_in_queue > 64 and self._ended_in_queue > self._queued:
                self._sweep_out()
            self._check_retired()
            return
        self._forget(request)
        for batch in self._running:
            if any(member is request for member in batch.requests):
                batch.waiting -= 1
                if not batch.waiting and batch.run is not None:
                    batch.run.terminate()
                break

    def _sweep_out(self) -> None:
        """Lets go of ended requests that lie behind live ones, so that a stalled queue cannot hold their memory."""
        for head in list(self._heads):
            group = self._groups[head[3]]
            alive = deque(request for request in group if request.state == QUEUED)
            if alive:
                self._groups[head[3]] = alive
            else:
                self._drop_group(head)
        self._ended_in_queue = 0

    def _expire(self, request: InferRequest) -> None:
        if request.state == ENDED:
            return
        complete = request.complete
        self._stats.record_failure("timeout", monotonic_ns() - request.enqueued_ns)
        self._end(request)
        if complete is not None:
            _tell(complete, request, ApiError(504, "Request timeout expired"))

    def _sweep_pending(self) -> None:
        self._sweep = None
        due = monotonic_ns() - self._timeout_ns
        while self._pending:
            oldest = next(iter(self._pending))
            if oldest.enqueued_ns > due:
                self._sweep = self._loop.call_later((oldest.enqueued_ns - due) * 1e-9, self._sweep_pending)
                return
            self._expire(oldest)


def _tell(complete: Callable[[InferRequest, Outcome], None], request: InferRequest, outcome: Outcome) -> None:
    """Tells an outcome; one that cannot be told is told as an error, so that nobody waits for ever."""
    try:
        complete(request, outcome)
    except Exception:
        log.exception("an answer could not be given")
        if not isinstance(outcome, ApiError):
            _tell(complete, request, ApiError(500, "internal error"))
