"""The scheduler of one loaded model: queue, instances, deadlines. Loop's thread only."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fastinfer.base.errors import ApiError
from fastinfer.native.job import Clock
from fastinfer.schedule.backend import Run
from fastinfer.schedule.lifetime import Deadlines
from fastinfer.schedule.policy import Policy
from fastinfer.schedule.queue import QueuePolicy
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.shared.counters import Counters
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.signature import Signature

class Scheduler:
    """Queues requests and runs them in batches.

    Every request's ``complete`` is called exactly once, with its outputs or with an error, unless it was dropped.

    Args:
        start: runs requests that share a batch; calls back once on the loop's thread, before it returns None, or later.
        policy: decides the size of each batch.
        instances: batches that may run at once.
        max_queue_size: requests that may wait; one more is refused with 503.
        priority_levels: how many levels a request's ``priority`` may have, 1 the most urgent; 0: it is ignored.
        default_priority: of a request that has none.
        policies: by priority, how its requests wait; 0: those of the others. None: ``max_queue_size`` and ``timeout_s``
            are for all.
        timeout_s: seconds until a request without a ``timeout`` of its own is answered with 504; see ``deadlines``.
        stats: the model's counters; the scheduler counts batches, a request's end counts the request.
        notes: the crash record: suspect requests run alone, culprits are answered with 500, and requests to a
            withdrawn model with 503; None: requests are not looked up.
        clock: the monotonic one; a test may pass one that stands still.
    """

    def __init__(
        self,
        start: Callable[[list[InferRequest], Callable[[BatchResult], None]], Run | None],
        policy: Policy,
        *,
        instances: int,
        max_queue_size: int,
        timeout_s: float,
        priority_levels: int = 0,
        default_priority: int = 0,
        policies: Mapping[int, QueuePolicy] | None = None,
        stats: Counters,
        loop: asyncio.AbstractEventLoop,
        notes: RunNotes | None = None,
        clock: Clock | None = None,
    ) -> None: ...
    stats: Counters
    loop: asyncio.AbstractEventLoop
    clock: Clock
    deadlines: Deadlines
    @property
    def queued(self) -> int:
        """Requests that wait."""
    @property
    def queue_steps(self) -> int:
        """How often a group of requests has moved in the queue, for tests of the cost of an arrival or a departure."""
    @property
    def running(self) -> int:
        """Batches under way."""
    @property
    def in_flight(self) -> int:
        """Requests that wait or run, and whose clients still wait."""
    def submit(self, request: InferRequest) -> None:
        """Queues a checked request. ApiError 503 if the queue is full or the model is being unloaded."""
    def cancel(self, request: InferRequest) -> None:
        """Ends a request without an outcome: its ``complete`` is not called."""
    def count_refusal(self, error: ApiError, arrived_ns: int = 0) -> None:
        """Counts a request that could not be decoded."""
    def admit(self) -> None:
        """A request comes in parts: they are accepted until :meth:`leave`, even if the model is unloaded meanwhile.
        ApiError 503 if it is being unloaded already."""
    def leave(self) -> None:
        """No further part of the request comes."""
    def why_withdrawn(self) -> ApiError | None:
        """The error for all requests while the model is withdrawn, else None; see
        :meth:`fastinfer.schedule.run_notes.RunNotes.why_withdrawn`."""
    def reinstate(self) -> bool:
        """Runs requests again; returns whether the model was withdrawn."""
    def retire(self, retired: Callable[[], None]) -> None:
        """Refuses new requests; calls ``retired`` on the loop when all accepted ones have ended."""

class Target:
    """The part of a model that an inference uses; :class:`fastinfer.schedule.model.Model` is a subclass.

    Attributes:
        name: the endpoint's name, under which it answers.
        version: its version, as on the wire.
        own_signature: the signature of its own implementation, without successors.
        scheduler: queue and instances.
        successor: returns the model that gets the outputs; None: the outputs are the answer.
    """

    name: str
    version: str
    own_signature: Signature
    scheduler: Scheduler
    successor: Callable[[], Any] | None
    def __init__(
        self,
        name: str,
        version: str,
        own_signature: Signature,
        scheduler: Scheduler,
        successor: Callable[[], Any] | None = None,
    ) -> None: ...
