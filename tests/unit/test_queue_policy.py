"""Queue policies: a limit, a timeout and a delay for each priority."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scheduled import Model, run

from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.repository.loader import queue_policies
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.queue import QueuePolicy
from fastinfer.tensor.message import InferRequest

HOUR_US = 3_600_000_000


def policy(**options: Any) -> QueuePolicy:
    return QueuePolicy(**{"max_size": 100, "timeout_us": HOUR_US, **options})


async def busy(policies: dict[int, QueuePolicy], levels: int, rows: int = 1) -> Model:
    """A model whose only instance is running; batches have one row by default."""
    model = Model(BatchingPolicy(rows), priority_levels=levels, default_priority=min(levels, 1), policies=policies)
    model.submit(-1)
    await asyncio.sleep(0)
    assert model.sizes == [1]
    return model


async def order(model: Model) -> list[int]:
    """Ends one batch after the other; returns the values of the requests, a list for a batch."""
    values: list[Any] = []
    while model.batches:
        batch = [int(request.inputs[0].numpy()[0]) for request in model.batches[0][0]]
        values.append(batch[0] if len(batch) == 1 else batch)
        model.finish()
        await asyncio.sleep(0)
    return values[1:]


@run
async def test_each_priority_has_a_limit_of_its_own():
    model = await busy({0: policy(max_size=2), 2: policy(max_size=1)}, levels=3)
    model.submit(0, priority=2)
    for priority, accepted in ((2, False), (1, True), (3, True), (1, False), (3, False)):  # 1 and 3 share the default
        if accepted:
            model.submit(0, priority=priority)
            continue
        with pytest.raises(ApiError, match="Exceeds maximum queue size"):
            model.submit(0, priority=priority)
    model.finish()
    await asyncio.sleep(0)
    model.submit(0, priority=1)  # one of priority 1 is running now
    assert model.scheduler.queued == 3


@run
async def test_dropped_requests_do_not_count_for_the_limit():
    model = await busy({0: policy(max_size=1)}, levels=0)
    for key in (None, b"shape"):
        for _ in range(200):
            model.scheduler.cancel(model.submit(0, key=key).request)
    model.submit(1)
    with pytest.raises(ApiError):
        model.submit(2, key=b"other")


@run
async def test_delayed_requests_let_others_of_their_priority_go_first():
    model = await busy({0: policy(), 1: policy(delay_us=5000)}, levels=2)
    for value in (1, 2):
        model.submit(value, priority=1)
    await asyncio.sleep(0.01)
    model.submit(3, priority=2)
    for value in (4, 5):
        model.submit(value, priority=1)
    assert await order(model) == [4, 5, 1, 2, 3]


@run
async def test_delayed_requests_share_batches_and_keep_their_order():
    model = await busy({0: policy(delay_us=5000)}, levels=0, rows=2)
    for value in (1, 2, 3):
        model.submit(value)
    await asyncio.sleep(0.01)
    for value in (4, 5, 6):
        model.submit(value)
    assert await order(model) == [[4, 5], 6, [1, 2], 3]
    assert model.scheduler.queued == 0


@run
async def test_a_delayed_request_can_be_dropped():
    model = await busy({0: policy(delay_us=5000)}, levels=0)
    late = [model.submit(value) for value in (1, 2, 3)]
    await asyncio.sleep(0.01)
    model.submit(4)
    model.submit(5)
    model.finish()  # 4 runs; the others are delayed now
    await asyncio.sleep(0)
    model.scheduler.cancel(late[1].request)
    assert model.scheduler.queued == 3
    assert await order(model) == [5, 1, 3]


@run
async def test_without_newer_requests_a_delay_changes_nothing():
    model = await busy({0: policy(delay_us=1000)}, levels=0)
    for value in (1, 2, 3):
        model.submit(value, key=b"shape" if value == 2 else None)
    await asyncio.sleep(0.005)
    assert await order(model) == [1, 2, 3]


@run
async def test_the_timeout_of_a_request():
    policies = {0: policy(timeout_us=70), 2: policy(timeout_us=50, allow_override=False)}
    model = Model(priority_levels=2, default_priority=1, policies=policies)
    for given, priority, timeout in ((0, 1, 70), (9, 1, 9), (90, 0, 90), (0, 2, 50), (9, 2, 50)):
        request = InferRequest([], timeout_us=given, priority=priority)
        model.scheduler.set_timeout(request)
        assert request.timeout_us == timeout


def test_the_policies_of_a_configuration():
    text = """{"dynamic_batching": {"priority_levels": 3, "default_priority_level": 3,
        "default_queue_policy": {"default_timeout_microseconds": 7, "max_queue_size": 5},
        "priority_queue_policy": {"1": {"timeout_action": "DELAY", "default_timeout_microseconds": 9},
                                  "2": {"allow_timeout_override": false, "max_queue_size": 2}}}}"""
    config = ModelConfig.from_json(text, "m")
    made = queue_policies(config.dynamic_batching, 100, 30)
    values = {level: (each.max_size, each.timeout_us, each.delay_ns) for level, each in made.items()}
    assert values == {0: (5, 7, 0), 1: (100, 30_000_000, 9000), 2: (2, 30_000_000, 0)}
    assert [each.allow_override for each in made.values()] == [True, True, False]
    shown = config.to_triton_json()
    assert b'"priority_queue_policy":{"1":{"timeout_action":"DELAY"' in shown
    assert ModelConfig.from_json(shown.decode(), "m").dynamic_batching == config.dynamic_batching
