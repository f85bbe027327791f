"""The scheduler: who shares a batch, who goes first, who is never run."""

import asyncio
import contextlib
import gc
import mmap
import weakref

import numpy as np
import pytest
from reports import statistics_entry
from scheduled import Model, run, turn

from fastinfer.base.errors import ApiError
from fastinfer.schedule.policy import BatchingPolicy, Policy
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.shared import crash_record
from fastinfer.shared.crash_record import CULPRIT, SUSPECT, WITHDRAWN, CrashRecord, CrashSlot
from fastinfer.tensor.message import BatchResult, InferRequest
from fastinfer.tensor.tensor import Tensor


@run
async def test_requests_of_one_turn_are_one_batch():
    model = Model()
    tickets = [model.submit(value) for value in range(5)]
    await turn()
    assert model.sizes == [5]
    model.finish()
    assert [ticket.outcomes[0][0].numpy()[0] for ticket in tickets] == [0, 1, 2, 3, 4]


@run
async def test_a_batch_is_what_waits_when_the_model_becomes_free():
    model = Model()
    model.submit()
    await turn()
    for _ in range(20):
        model.submit()
    await turn()
    assert model.sizes == [1]
    model.finish()
    model.finish()
    model.finish()
    await turn()
    assert model.sizes == [1, 8, 8, 4]


@run
async def test_rows_are_counted_not_requests():
    model = Model()
    for _ in range(3):
        model.submit(rows=3)
    await turn()
    assert model.sizes == [2]


class Answers(Policy):
    """Says what it is told to, and notes what it is asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def decide(self, rows, waited_ns):
        self.asked.append((list(rows), waited_ns))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@run
async def test_the_policy_is_asked_before_each_batch():
    policy = Answers((1, 0))
    model = Model(policy, instances=9)
    for rows in (2, 3, 1):
        model.submit(rows=rows)
    await turn()
    assert model.sizes == [1, 1, 1]
    assert [rows for rows, _ in policy.asked] == [[2, 3, 1], [3, 1], [1]]
    assert all(waited_ns >= 0 for _, waited_ns in policy.asked)


@run
async def test_a_policy_takes_what_it_says_and_waits_as_long_as_it_says():
    model = Model(Answers((0, 5_000_000), (2, 0), (100, 0)), instances=9)
    for _ in range(5):
        model.submit()
    await turn()
    assert model.sizes == []
    while not model.sizes:
        await asyncio.sleep(0.001)
    assert model.sizes == [2, 3]


@pytest.mark.parametrize("answer", [(0, 0), (-3, 0), (0, -1), RuntimeError("bad"), (1, 2, 3), None, ("1", 0)])
def test_a_policy_that_makes_no_sense_gets_batches_of_one(answer):
    async def main():
        model = Model(Answers(answer), instances=9)
        for _ in range(3):
            model.submit()
        await turn()
        assert model.sizes == [1, 1, 1]

    asyncio.run(main())


@run
async def test_only_compatible_requests_share_a_batch_and_the_oldest_goes_first():
    model = Model(instances=3, priority_levels=2, default_priority=1)
    model.submit(key=b"a")
    model.submit(key=b"b")
    model.submit(key=b"a")
    model.submit(key=b"c", priority=2)
    model.submit(key=b"c", priority=1)
    await turn()
    assert [[r.shape_key for r in requests] for requests, _ in model.batches] == [[b"a", b"a"], [b"b"], [b"c"]]
    assert model.batches[2][0][0].priority == 1


@run
async def test_every_instance_is_used():
    model = Model(BatchingPolicy(1), instances=2)
    for _ in range(3):
        model.submit()
    await turn()
    assert model.sizes == [1, 1]
    assert (model.scheduler.running, model.scheduler.queued) == (2, 1)


@run
async def test_a_configured_delay_waits_for_company_and_no_longer():
    model = Model(BatchingPolicy(8, (), 20_000_000))
    model.submit()
    await turn()
    model.submit()
    await turn()
    assert model.sizes == []
    await asyncio.sleep(0.05)
    assert model.sizes == [2]


@run
async def test_a_waiting_group_does_not_hold_up_a_full_one():
    model = Model(BatchingPolicy(2, (), 10_000_000_000))
    model.submit(key=b"a")
    model.submit(key=b"b")
    model.submit(key=b"b")
    await turn()
    assert model.sizes == [2]


@run
async def test_a_full_queue_refuses_with_retry_after():
    model = Model(max_queue_size=2)
    model.submit()
    await turn()
    model.submit()
    model.submit()
    with pytest.raises(ApiError) as caught:
        model.submit()
    assert caught.value.status == 503
    assert dict(caught.value.headers)[b"Retry-After"]
    assert "Exceeds maximum queue size" in caught.value.message


@run
async def test_cancelled_requests_are_never_run_and_never_answered():
    model = Model()
    model.submit()
    await turn()
    gone, kept = model.submit(), model.submit()
    model.scheduler.cancel(gone.request)
    model.scheduler.cancel(gone.request)
    model.finish()
    await turn()
    assert [requests for requests, _ in model.batches] == [[kept.request]]
    model.finish()
    assert gone.outcomes == []
    assert kept.status == 200


@run
async def test_a_run_for_nobody_is_terminated():
    model = Model()
    tickets = [model.submit(), model.submit()]
    await turn()
    model.scheduler.cancel(tickets[0].request)
    assert model.terminated == 0
    model.scheduler.cancel(tickets[1].request)
    assert model.terminated == 1


@run
async def test_requests_in_flight_are_those_that_somebody_waits_for():
    model = Model(BatchingPolicy(2))
    tickets = [model.submit() for _ in range(5)]
    assert model.scheduler.in_flight == 5
    await turn()
    assert (model.scheduler.queued, model.scheduler.in_flight) == (3, 5)
    model.scheduler.cancel(tickets[0].request)  # it runs
    model.scheduler.cancel(tickets[4].request)  # it waits
    assert (model.scheduler.queued, model.scheduler.in_flight) == (2, 3)
    model.finish()
    await turn()
    model.finish()
    assert (model.scheduler.queued, model.scheduler.in_flight) == (0, 0)


@run
async def test_cancelled_requests_do_not_pile_up_behind_a_stalled_model():
    model = Model(max_queue_size=10)
    model.submit()
    await turn()
    held = []
    for round_ in range(1000):
        gone = model.submit(key=round_ % 7).request
        held.append(weakref.ref(gone.inputs[0].owner))
        model.scheduler.cancel(gone)
    del gone
    assert model.scheduler.queued == 0
    assert sum(memory() is not None for memory in held) <= 80
    kept = [model.submit(key=key) for key in range(7)]
    for _ in range(8):
        model.finish()
        await turn()
    assert [ticket.status for ticket in kept] == [200] * 7


@run
async def test_a_model_that_fails_fails_the_request_not_the_server():
    model = Model()
    ticket = model.submit()
    await turn()
    model.finish(ApiError(500, "the model failed"))
    assert ticket.status == 500
    again = model.submit()
    await turn()
    model.finish()
    assert again.status == 200


@run
async def test_a_start_that_raises_answers_500():
    class Broken(Model):
        def start(self, requests, done):
            raise RuntimeError(requests, done)

    model = Broken()
    ticket = model.submit()
    await turn()
    assert ticket.status == 500
    assert model.scheduler.running == 0


@run
async def test_inline_batches_leave_the_loop_its_turn_and_all_are_answered():
    model = Model(BatchingPolicy(1), inline=True)
    tickets = [model.submit() for _ in range(100)]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0.05)
    assert [ticket.status for ticket in tickets] == [200] * 100


@run
async def test_retiring_finishes_what_was_taken_and_takes_no_more():
    model = Model(BatchingPolicy(1))
    retired = []
    tickets = [model.submit(), model.submit()]
    await turn()
    model.scheduler.retire(lambda: retired.append(True))
    with pytest.raises(ApiError):
        model.submit()
    model.finish()
    assert retired == []
    model.finish()
    assert retired == [True]
    assert [ticket.status for ticket in tickets] == [200, 200]


@run
async def test_statistics_add_up():
    model = Model(max_queue_size=3)
    model.submit(rows=3)
    model.submit(rows=2)
    await turn()
    model.finish()
    gone = model.submit()
    model.scheduler.cancel(gone.request)
    entry = statistics_entry(model.stats)
    assert entry["inference_count"] == 5
    assert entry["execution_count"] == 1
    assert entry["inference_stats"]["success"]["count"] == 2
    assert entry["inference_stats"]["fail"]["count"] == 1


@run
async def test_a_run_that_loses_outcomes_fails_its_requests():
    model = Model()
    tickets = [model.submit(), model.submit()]
    await turn()
    (_, done) = model.batches.pop()
    done(BatchResult([tickets[0].request.inputs]))
    done(BatchResult([]))  # only the first call counts
    assert [ticket.status for ticket in tickets] == [500, 500]
    assert (model.scheduler.running, model.scheduler.in_flight) == (0, 0)


@run
async def test_a_long_queue_is_served_in_order():
    model = Model(BatchingPolicy(3), inline=True, max_queue_size=1000)
    order = []
    tickets = [model.submit(value) for value in range(1000)]
    for ticket in tickets:
        ticket.request.complete = lambda request, _: order.append(request.inputs[0].numpy()[0])
    for gone in tickets[::7]:
        model.scheduler.cancel(gone.request)
    while model.scheduler.queued:
        await turn()
    assert order == [value for value in range(1000) if value % 7]


@run
async def test_a_preferred_size_is_taken_at_once():
    model = Model(BatchingPolicy(8, (2,)), instances=2)
    for _ in range(3):
        model.submit()
    await turn()
    assert model.sizes == [2, 1]


@run
async def test_a_batch_is_freed_without_the_collector():
    gc.collect()
    gc.disable()
    try:
        model = Model()
        tickets = [model.submit() for _ in range(3)]
        await turn()
        requests = [weakref.ref(ticket.outcomes) if ticket.outcomes else None for ticket in tickets]
        watched = weakref.ref(model.batches[0][1])
        model.finish()
        del tickets, requests
        await turn()
        assert watched() is None
    finally:
        gc.enable()


@run
async def test_many_groups_that_were_given_up_do_not_stand_in_the_way():
    model = Model(max_queue_size=10_000)
    first = model.submit()
    await turn()
    tickets = [model.submit(key=key) for key in range(3000)]
    for ticket in tickets[:1400]:
        model.scheduler.cancel(ticket.request)
    model.finish()
    await turn()
    assert first.status == 200
    assert model.batches[0][0] == [tickets[1400].request]


@run
async def test_an_answer_that_cannot_be_given_is_given_as_an_error():
    model = Model()
    ticket = model.submit()
    outcomes = []

    def complete(_request, outcome):
        outcomes.append(outcome)
        if not isinstance(outcome, ApiError):
            raise RuntimeError("no")

    ticket.request.complete = complete
    await turn()
    model.finish()
    assert [isinstance(outcome, ApiError) for outcome in outcomes] == [False, True]


@run
async def test_retired_is_told_once_and_last():
    model = Model(BatchingPolicy(1))
    told = []
    first = model.submit()
    await turn()
    second = model.submit()
    model.scheduler.retire(lambda: told.append((first.status, second.status)))
    model.inline = True  # the second one runs inside the end of the first
    model.finish()
    await turn()
    assert told == [(200, 200)]


@run
async def test_what_is_refused_before_the_queue_is_counted():
    model = Model()
    for status in (400, 400, 503):
        model.scheduler.count_refusal(ApiError(status, "no"))
    assert {cause: failed.count for cause, failed in model.stats.failures.items() if failed.count} == {
        "client": 2,
        "rejected": 1,
    }
    assert model.scheduler.queued == 0


# --- Crashes ----------------------------------------------------------------------------------------------------------


class Recorded(Model):
    """A model whose crashes are recorded."""

    def __init__(self, *arguments, **options):
        self.record = CrashRecord(mmap.mmap(-1, crash_record.nbytes(1)))
        self.notes = RunNotes(CrashSlot(self.record, 0), 1, 2, b"m")
        super().__init__(*arguments, notes=self.notes, **options)

    def judge(self, value, kind, **options):
        """Says what requests with this value are."""
        tensor = Tensor.from_numpy("x", np.full((options.get("rows", 1),), value))
        self.record.put(self.notes.fingerprint(InferRequest([tensor])), kind, 60)


@run
async def test_a_suspect_runs_alone_and_the_others_keep_their_order():
    model = Recorded(instances=9)
    model.judge(2, SUSPECT)
    tickets = [model.submit(value) for value in (0, 1, 2, 3, 4)]
    await turn()
    assert model.sizes == [2, 1, 2]
    while model.batches:
        model.finish()
    assert [ticket.status for ticket in tickets] == [200] * 5


@run
async def test_two_suspects_each_run_alone():
    model = Recorded(instances=9)
    model.judge(1, SUSPECT)
    for _ in range(2):
        model.submit(1)
    await turn()
    assert model.sizes == [1, 1]


@run
async def test_who_becomes_suspect_in_the_queue_runs_alone():
    model = Recorded()
    model.submit(0)
    await turn()
    for value in (1, 2, 3):
        model.submit(value)
    model.judge(2, SUSPECT)  # another process has died of it
    for _ in range(4):
        model.finish()
    assert model.sizes == [1, 1, 1, 1]


@run
async def test_a_suspect_model_runs_each_request_alone():
    model = Recorded(instances=9)
    model.record.put(1, SUSPECT, 60)
    for value in range(3):
        model.submit(value)
    await turn()
    assert model.sizes == [1, 1, 1]


@pytest.mark.parametrize("policy", [BatchingPolicy(8), BatchingPolicy(8, max_queue_delay_ns=1)])
def test_a_culprit_is_never_run_and_its_mates_are(policy):
    @run
    async def test():
        model = Recorded(policy, instances=9)
        model.judge(7, CULPRIT)
        tickets = [model.submit(value) for value in (7, 1, 7, 2, 7)]
        await turn()
        await asyncio.sleep(0.01)
        await turn()
        assert model.sizes == [2]
        model.finish()
        assert [ticket.status for ticket in tickets] == [500, 200, 500, 200, 500]
        assert tickets[0].outcomes[0].message == ("this request has ended the process that ran it; it is not run again")
        assert model.notes.slot.record.refused == 3
        assert model.stats.failures["model"].count == 3
        assert model.scheduler.in_flight == 0

    test()


@pytest.mark.parametrize("policy", [BatchingPolicy(8), BatchingPolicy(8, max_queue_delay_ns=1)])
def test_culprits_alone_in_their_groups_do_not_stall_the_others(policy):
    @run
    async def test():
        model = Recorded(policy)
        model.judge(7, CULPRIT)
        refused = [model.submit(7, key=key) for key in "abc"]
        served = model.submit(1, key="d")
        await turn()
        await asyncio.sleep(0.01)
        await turn()
        assert model.sizes == [1]
        model.finish()
        assert [ticket.status for ticket in (*refused, served)] == [500, 500, 500, 200]
        assert model.scheduler.queued == 0

    test()


@run
async def test_a_culprit_that_is_cancelled_before_it_is_told_is_not_told():
    model = Recorded()
    model.judge(7, CULPRIT)
    ticket = model.submit(7)
    await asyncio.sleep(0)  # it is taken
    model.scheduler.cancel(ticket.request)
    await turn()
    assert ticket.outcomes == []


@run
async def test_a_model_that_retires_tells_its_culprits_first():
    model = Recorded()
    model.judge(7, CULPRIT)
    ticket = model.submit(7)
    retired = []
    model.scheduler.retire(lambda: retired.append(ticket.status))
    await turn()
    assert ticket.status == 500
    assert len(retired) == 1


@run
async def test_while_nobody_is_suspect_nobody_is_looked_at():
    model = Recorded()
    for value in range(3):
        model.submit(value)
    await turn()
    assert model.sizes == [3]


@pytest.mark.parametrize("policy", [BatchingPolicy(8), BatchingPolicy(8, max_queue_delay_ns=1)])
def test_of_a_withdrawn_model_nothing_is_run(policy):
    @run
    async def test():
        model = Recorded(policy)
        record = model.notes.slot.record
        record.put(1, WITHDRAWN, 60)
        model.judge(7, CULPRIT)
        tickets = [model.submit(value, key=key) for value, key in ((1, None), (7, None), (2, "a"), (3, "a"))]
        await turn()
        await asyncio.sleep(0.01)
        await turn()
        assert model.sizes == []
        assert [ticket.status for ticket in tickets] == [503] * 4
        error = tickets[0].outcomes[0]
        assert error.message == "m is withdrawn for 60 s: it has ended processes with different requests"
        assert dict(error.headers)[b"Retry-After"] == b"60"
        assert model.scheduler.why_withdrawn().message == error.message
        assert (model.stats.withdrawn, model.stats.failures["rejected"].count) == (4, 4)
        assert record.refused == 0

        assert model.scheduler.reinstate()
        assert not model.scheduler.reinstate()
        assert model.scheduler.why_withdrawn() is None
        again = model.submit(1)
        await turn()
        await asyncio.sleep(0.01)
        assert model.sizes == [1]
        model.finish()
        assert again.status == 200

    test()


@run
async def test_a_withdrawal_ends_by_itself_and_only_that_of_the_model_counts():
    model = Recorded()
    record = model.notes.slot.record
    record.put(1, WITHDRAWN, -1)
    record.put(2, WITHDRAWN, 60)
    ticket = model.submit(1)
    await turn()
    model.finish()
    assert ticket.status == 200
    assert model.scheduler.why_withdrawn() is None


@run
async def test_without_a_record_nothing_is_withdrawn():
    model = Model()
    assert model.scheduler.why_withdrawn() is None
    assert not model.scheduler.reinstate()
