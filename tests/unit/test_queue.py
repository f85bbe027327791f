"""The queue of one model with very many shapes: what departures cost, and that the order stays right."""

import asyncio
import math
import random

import pytest
from scheduled import Model, run, turn

from fastinfer.schedule.policy import BatchingPolicy

SHAPES = 10_000


def in_order(tickets):
    return tickets


def reversed_(tickets):
    return tickets[::-1]


def shuffled(tickets):
    return random.Random(1).sample(tickets, len(tickets))


@pytest.mark.parametrize("order", [in_order, reversed_, shuffled])
def test_a_departure_takes_steps_by_the_height_of_the_heap(order):
    @run
    async def test():
        model = Model(BatchingPolicy(1), max_queue_size=SHAPES)
        model.submit()
        await turn()
        tickets = [model.submit(key=shape) for shape in range(SHAPES)]
        height = math.ceil(math.log2(SHAPES))
        most = 0
        for ticket in order(tickets):
            before = model.scheduler.queue_steps
            model.scheduler.cancel(ticket.request)
            most = max(most, model.scheduler.queue_steps - before)
        assert most <= 2 * height
        assert most or order is reversed_  # the last to come is the last in the heap
        assert model.scheduler.queue_steps <= SHAPES * 2 * height
        assert model.scheduler.queued == 0
        model.finish()
        await turn()
        assert model.sizes == [1]

    test()


@run
async def test_deadlines_of_all_shapes_at_once_take_steps_by_the_height_of_the_heap():
    model = Model(BatchingPolicy(1), max_queue_size=SHAPES)
    model.submit()
    await turn()
    tickets = [model.submit(key=shape, timeout_us=1) for shape in range(SHAPES)]
    for ticket in tickets:
        ticket.request.deadline_ns = 1
    model.finish()  # each is refused when it comes to the front
    await turn()
    await asyncio.sleep(0.01)
    await turn()
    assert {ticket.status for ticket in tickets} == {504}
    assert model.sizes == [1]
    assert model.scheduler.queue_steps <= SHAPES * 2 * math.ceil(math.log2(SHAPES))


@run
async def test_waiting_for_company_looks_at_few_of_many_shapes():
    model = Model(BatchingPolicy(2, max_queue_delay_ns=10**12), max_queue_size=SHAPES + 2)
    for shape in range(SHAPES):
        model.submit(key=shape)
    await turn()
    before = model.scheduler.queue_steps
    model.submit(key=11)
    model.submit(key=12)
    await turn()
    assert model.sizes == [2]  # of both that are full the first
    assert model.batches[0][0][0].shape_key == 11
    assert model.scheduler.queue_steps - before <= 4 * math.ceil(math.log2(SHAPES))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("delay_ns", [0, 1])
def test_arrivals_and_departures_in_any_order_leave_the_order_right(seed, levels, delay_ns):
    """Against a model of the queue: by priority, then by the time that the oldest of a shape came."""

    @run
    async def test():
        source = random.Random(seed)
        policy = BatchingPolicy(3, max_queue_delay_ns=delay_ns)
        model = Model(policy, max_queue_size=1000, priority_levels=levels, default_priority=2 if levels else 0)
        model.submit(key="first", rows=3)
        await turn()
        waiting = []
        for _ in range(300):
            if waiting and source.random() < 0.4:
                model.scheduler.cancel(waiting.pop(source.randrange(len(waiting))).request)
            elif waiting and source.random() < 0.2:
                # The next batch is of the group that is first by priority and age of its oldest live request, unless
                # an older one of the group has left since; so only what a batch may hold is checked, and the urgency.
                model.finish()
                await turn()
                taken = [request for requests, _ in model.batches for request in requests]
                keys = {(request.priority, request.shape_key) for request in taken}
                assert len(keys) == 1
                if levels:
                    assert min(ticket.request.priority for ticket in waiting) == taken[0].priority
                same = [t.request for t in waiting if (t.request.priority, t.request.shape_key) in keys]
                assert taken == same[: len(taken)]
                assert len(taken) == min(3, len(same))
                waiting = [ticket for ticket in waiting if ticket.request not in taken]
            else:
                priority = source.randrange(1, 4) if levels else 0
                waiting.append(model.submit(key=source.choice([None, *range(6)]), priority=priority))
            assert model.scheduler.queued == len(waiting)
        while waiting:
            model.finish()
            await turn()
            taken = [request for requests, _ in model.batches for request in requests]
            waiting = [ticket for ticket in waiting if ticket.request not in taken]
        assert model.scheduler.queued == 0

    test()


@run
async def test_shapes_are_served_by_age_after_departures():
    model = Model(BatchingPolicy(1), max_queue_size=SHAPES)
    model.submit()
    await turn()
    tickets = [model.submit(key=shape) for shape in range(500)]
    for number, ticket in enumerate(tickets):
        if number % 3:
            model.scheduler.cancel(ticket.request)
    served = []
    for _ in range(167):
        model.finish()
        await turn()
        served.append(model.batches[0][0][0].shape_key)
    assert served == list(range(0, 500, 3))
