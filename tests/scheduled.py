"""A scheduler whose batches end when a test says so; for tests of the scheduler and its queue."""

import asyncio

import numpy as np

from fastinfer.base.errors import ApiError
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.tensor import Tensor


class Model:
    """A model whose batches end when the test says so; each request's output is its own input."""

    def __init__(self, policy=BatchingPolicy(8), *, inline=False, **options):  # noqa: B008
        self.batches = []  # (requests, done) under way
        self.sizes = []
        self.terminated = 0
        self.inline = inline
        self.stats = ModelStats()
        defaults = {"instances": 1, "max_queue_size": 100, "timeout_s": 30.0}
        self.scheduler = Scheduler(
            self.start, policy, **{**defaults, **options}, stats=self.stats, loop=asyncio.get_running_loop()
        )

    def start(self, requests, done):
        self.sizes.append(len(requests))
        if self.inline:
            done(BatchResult([request.inputs for request in requests]))
            return None
        self.batches.append((requests, done))
        return self

    def terminate(self):
        self.terminated += 1

    def finish(self, error=None):
        requests, done = self.batches.pop(0)
        done(BatchResult([error or request.inputs for request in requests]))

    def submit(self, value=0, **options):
        return Ticket(self, value, **options)


class Ticket:
    """A submitted request and what came of it."""

    def __init__(self, model, value, *, rows=1, key=None, timeout_us=0, priority=0):
        tensor = Tensor.from_numpy("x", np.full((rows,), value))
        self.request = InferRequest([tensor], timeout_us=timeout_us, priority=priority)
        self.request.rows = rows
        self.request.shape_key = key
        self.request.complete = self.complete
        self.request.stats = model.stats
        self.outcomes = []
        model.scheduler.submit(self.request)

    def complete(self, request, outcome):
        assert request is self.request
        self.outcomes.append(outcome)

    @property
    def status(self):
        (outcome,) = self.outcomes
        return outcome.status if isinstance(outcome, ApiError) else 200


def run(test):
    """Runs a coroutine test on a loop of its own."""

    def runner():
        asyncio.run(test())

    runner.__name__ = test.__name__
    return runner


async def turn():
    for _ in range(3):
        await asyncio.sleep(0)
