"""The life of a request: one end for each, at the right time, and no run for nobody.

Everything between an exchange and a run is real; the loop, the clock, the runs and the clients are the test's.
"""

import json
import random
from collections import Counter, deque
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from fastinfer.api.inference import InferHandler
from fastinfer.base.errors import ApiError
from fastinfer.codec.encode import LITERAL
from fastinfer.http.exchange import Exchange
from fastinfer.native.executor import Executor
from fastinfer.native.job import Clock
from fastinfer.schedule import model as model_module
from fastinfer.schedule.model import Model
from fastinfer.schedule.policy import BatchingPolicy
from fastinfer.schedule.scheduler import Scheduler
from fastinfer.shared.statistics import ModelStats
from fastinfer.tensor.message import BatchResult
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec

MS = 1_000_000
START_NS = 10**15
DEFAULT_MS = 1000
SIZE = 4  # rows of a batch


class Handle:
    def __init__(self, call):
        self.call = call

    def cancel(self):
        self.call = None


class Loop:
    """Turns when the test says so. As uvloop's, its timers count milliseconds from where the current turn began."""

    def __init__(self, clock):
        self.clock = clock
        self.began_ns = clock.fixed_ns
        self.soon = deque()
        self.timers = []

    def call_soon(self, callback, *arguments):
        self.soon.append(Handle(lambda: callback(*arguments)))
        return self.soon[-1]

    def call_later(self, delay_s, callback, *arguments):
        handle = Handle(lambda: callback(*arguments))
        self.timers.append((self.began_ns + round(delay_s * 1000) * MS, handle))
        return handle

    def turn(self):
        self.began_ns = now = self.clock.fixed_ns
        self.timers = [timer for timer in self.timers if timer[1].call is not None]
        due = [timer for timer in self.timers if timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        self.soon.extend(handle for _, handle in sorted(due, key=lambda timer: timer[0]))
        for _ in range(len(self.soon)):
            handle = self.soon.popleft()
            if handle.call is not None:
                handle.call()


class Run:
    """A batch under way."""

    def __init__(self, backend, requests, done):
        self.backend = backend
        self.requests = requests
        self.done = done
        self.clients = [backend.world.client_of(request) for request in requests]
        self.terminated = False

    def terminate(self):
        self.terminated = True

    def finish(self, error=None):
        self.backend.runs.remove(self)
        outcomes = [error or [request.inputs[0].renamed("y")] for request in self.requests]
        self.done(BatchResult(outcomes, 1, 2, 3))


class Backend:
    """A model that gives back what it gets when the test says so; it begins nothing for nobody."""

    platform = "none"

    def __init__(self, world, signature):
        self.world = world
        self.signature = signature
        self.runs = []
        self.started = []  # the rows of each run

    def start(self, requests, done):
        run = Run(self, requests, done)
        self.world.expect(all(client.waits for client in run.clients), "a run for nobody was started")
        self.started.append(sum(request.rows for request in requests))
        self.runs.append(run)
        return run

    def close(self):
        assert not self.runs


class Client:
    """One request, and what its client gets."""

    def __init__(self, world, model, value, rows, timeout_us, uploaded_ms, priority):
        self.world = world
        self.model = model
        self.answers = []
        self.gone = False
        self.value, self.rows = value, rows
        arrived_ns = world.now - uploaded_ms * MS
        self.deadline_ns = arrived_ns + (timeout_us * 1000 if timeout_us else world.default_ns(model))
        tensor = {"name": "x", "shape": [rows, 1], "datatype": "INT32", "data": [value] * rows}
        parameters = {"timeout": timeout_us, "priority": priority}
        body = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
        self.exchange = Exchange(self, "POST", (model,), {}, body, True)
        self.exchange.arrived_ns = arrived_ns
        self.exchange.handled_ns = world.now

    @property
    def waits(self):
        return not self.gone and not self.answers and self.world.now < self.deadline_ns

    @property
    def ended(self):
        return self.gone or bool(self.answers)

    @property
    def status(self):
        (status,) = self.answers
        return status

    def answer(self, exchange, status, _content_type, body, _fields):
        expect = self.world.expect
        expect(exchange is self.exchange, "another client's answer")
        expect(not self.ended, "a second answer, or one to a client that has gone")
        late = self.world.now >= self.deadline_ns
        expect(status != 200 or not late, "outputs after the deadline")
        expect(late or status != 504, "504 before the deadline")
        if status == 200:
            (output,) = json.loads(bytes(body))["outputs"]
            expect(output["data"] == [self.value] * self.rows, "another request's outputs")
        self.answers.append(status)

    def vanish(self):
        if not self.ended:
            self.gone = True
            abandoned, self.exchange.on_client_gone = self.exchange.on_client_gone, None
            self.exchange.answered = True
            if abandoned is not None:
                abandoned()


class World:
    """Models `m` (batched), `head` and `tail`, and `chain`: head, then tail."""

    def __init__(self, **options):
        self.clock = Clock()
        self.clock.fixed_ns = START_NS
        self.loop = Loop(self.clock)
        self.executor = Executor(1)
        self.clients = []
        self.broken = []  # what must not happen and did: an exception in a callback would become an answer
        self.backends, self.models = {}, {}
        for name in ("m", "tail", "head"):
            self.add(name, **options)
        self.add("chain", successor=lambda: self.models["tail"], **options)
        self.handlers = {
            inline: InferHandler(self.find, {}, self.executor, 1 << 30 if inline else -1, LITERAL)
            for inline in (True, False)
        }

    def add(self, name, *, successor=None, max_queue_size=8, instances=2, delay_ms=0):
        signature = Signature([TensorSpec("x", "INT32", (-1, 1))], [TensorSpec("y", "INT32", (-1, 1))],
                              batched=True, max_batch_size=SIZE)  # fmt: skip
        backend = self.backends[name] = Backend(self, signature)
        stats = ModelStats()
        scheduler = Scheduler(
            backend.start, BatchingPolicy(SIZE, (), delay_ms * MS), instances=instances,
            max_queue_size=max_queue_size, priority_levels=2, default_priority=1, timeout_s=DEFAULT_MS / 1000,
            stats=stats, loop=self.loop, clock=self.clock,
        )  # fmt: skip
        self.models[name] = Model(name, "1", backend, scheduler, stats, SimpleNamespace(), successor)

    def find(self, name, version=None):
        del version
        return self.models[name]

    def default_ns(self, name):
        return self.models[name].scheduler.deadlines.timeout_ns

    @property
    def now(self):
        return self.clock.fixed_ns

    @property
    def runs(self):
        return [run for backend in self.backends.values() for run in backend.runs]

    def client_of(self, request):
        return self.clients[int(request.inputs[0].numpy()[0, 0])]

    def expect(self, condition, rule):
        if not condition:
            self.broken.append(rule)

    def ask(self, model="m", rows=1, timeout_us=0, *, uploaded_ms=0, priority=0, inline=True):
        client = Client(self, model, len(self.clients), rows, timeout_us, uploaded_ms, priority)
        self.clients.append(client)
        client.exchange.guard(self.handlers[inline], client.exchange)
        return client

    def turn(self, turns=3):
        for _ in range(turns):
            self.loop.turn()

    def advance(self, ms):
        self.clock.fixed_ns += int(ms * MS)
        self.turn()

    def native(self):
        """Lets the native threads end what they have, and takes their results."""
        while len(self.executor):
            self.executor.drain()

    def finish_all(self):
        self.native()
        self.turn()
        while self.runs:
            for run in self.runs:
                run.finish()
            self.turn()
            self.native()

    def failures(self, name):
        return {cause: each.count for cause, each in self.models[name].stats.failures.items() if each.count}

    def check(self):
        """What holds between any two steps."""
        assert self.broken == []
        for run in self.runs:
            assert run.terminated or not all(client.ended for client in run.clients), "a run for nobody"
        if all(client.ended for client in self.clients):
            assert not any(model.scheduler.in_flight for model in self.models.values())

    def check_end(self):
        """What holds when everything has ended."""
        self.check()
        assert all(client.ended for client in self.clients)
        for name, model in self.models.items():
            scheduler = model.scheduler
            assert (scheduler.queued, scheduler.running, scheduler.in_flight) == (0, 0, 0)
            assert scheduler.deadlines.watched == 0
            assert model.stats.runs == len(self.backends[name].started)
        statuses = Counter(client.answers[0] if client.answers else 0 for client in self.clients if client.model == "m")
        stats = self.models["m"].stats
        assert stats.success.count == stats.queue.count == stats.compute_infer.count == statuses[200]
        assert stats.answered_rows == sum(c.rows for c in self.clients if c.model == "m" and c.answers == [200])
        causes = {0: "cancelled", 400: "client", 500: "model", 503: "rejected", 504: "timeout"}
        assert self.failures("m") == {cause: statuses[s] for s, cause in causes.items() if statuses[s]}
        # Each request to the chain counts once in its first model, and in the second if it got so far.
        first, last = self.models["chain"].stats, self.models["tail"].stats
        asked = [client for client in self.clients if client.model == "chain"]
        assert first.success.count + sum(self.failures("chain").values()) == len(asked)
        assert last.success.count + sum(self.failures("tail").values()) == first.success.count
        assert last.success.count >= sum(client.answers == [200] for client in asked)


@pytest.fixture
def world(request):
    made = World(**getattr(request, "param", {}))
    yield made
    made.executor.close()


# --- Anything, in any order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_each_request_ends_once_and_nothing_runs_for_nobody(world, seed, monkeypatch):
    source = random.Random(seed)
    chance = source.random
    joined = model_module.concatenate

    def concatenate(tensors):
        if chance() < 0.1:
            raise source.choice((MemoryError, ValueError, RuntimeError))
        return joined(tensors)

    monkeypatch.setattr(model_module, "concatenate", concatenate)
    for _ in range(source.choice((50, 400))):
        step = source.randrange(9)
        if step <= 2:
            timeout_us = source.choice((0, 0, 1, 300, 900, 5_000, 20_000, 400_000))
            world.ask(source.choice(("m", "m", "chain")), source.choice((0, 1, 1, 1, 2, 3, 5, 9, 30)), timeout_us,
                      uploaded_ms=source.choice((0, 0, 0, 3, 15, 950, 2000)), inline=chance() < 0.7)  # fmt: skip
        elif step == 3 and world.clients:
            source.choice(world.clients).vanish()
        elif step == 4:
            world.advance(source.choice((0.1, 0.5, 1, 7, 40, 300)))
        elif step == 5:
            world.native()
        elif step == 6:
            world.turn(1)
        elif step <= 8 and world.runs:
            source.choice(world.runs).finish(ApiError(500, "the model failed") if chance() < 0.15 else None)
        world.check()
    while world.runs or not all(client.ended for client in world.clients):
        for run in world.runs:
            run.finish()
        world.native()
        world.advance(50)
        world.check()
    world.check_end()


# --- Deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_us", "status"), [(10, 200), (299, 200), (300, 504), (5000, 504)])
def test_a_deadline_below_a_millisecond_is_compared_exactly(world, after_us, status):
    client = world.ask(timeout_us=300)
    world.turn()
    world.clock.fixed_ns += after_us * 1000
    world.runs[0].finish()
    assert client.status == status
    world.check_end()


@pytest.mark.parametrize("model", ["m", "chain"])
@pytest.mark.parametrize("rows", [1, SIZE, 5 * SIZE])
@pytest.mark.parametrize("timeout_us", [0, 20_000])
def test_the_deadline_is_one_for_the_whole_request(world, model, rows, timeout_us):
    """Each run takes 0.35 of the time: what needs three of them, one after the other, has too much to do."""
    client = world.ask(model, rows, timeout_us)
    time_ms = timeout_us / 1000 or DEFAULT_MS
    world.turn()
    steps = 0
    while not client.ended:
        world.advance(time_ms * 0.35)
        steps += 1
        for run in world.runs:
            run.finish()
        world.turn()
    needed = (2 if model == "chain" else 1) * {1: 1, SIZE: 1, 5 * SIZE: 3}[rows]
    assert (client.status, steps) == ((200, needed) if needed < 3 else (504, 3))
    assert not world.runs
    world.check_end()


def test_a_deadline_that_passes_in_the_second_stage_ends_that_stage(world):
    client = world.ask("chain", timeout_us=10_000)
    world.turn()
    world.advance(4)
    world.backends["chain"].runs[0].finish()
    world.turn()
    (run,) = world.backends["tail"].runs
    world.advance(7)
    assert (client.status, run.terminated) == (504, True)
    assert (world.failures("chain"), world.failures("tail")) == ({}, {"timeout": 1})
    run.finish()
    world.check_end()


def test_outputs_that_come_too_late_are_a_timeout_of_their_stage(world):
    client = world.ask("chain", timeout_us=10_000)
    world.turn()
    world.clock.fixed_ns += 10 * MS  # no timer has had its turn
    world.backends["chain"].runs[0].finish()
    assert client.status == 504
    assert world.failures("chain") == {"timeout": 1}
    assert world.backends["tail"].started == []
    world.check_end()


def test_requests_that_are_late_when_they_are_taken_do_not_run(world):
    """The batch is made before the timers have had their turn."""
    busy = [world.ask(rows=SIZE) for _ in range(2)]
    world.turn()
    late = [world.ask(timeout_us=700) for _ in range(3)]
    kept = world.ask(timeout_us=900_000)
    world.clock.fixed_ns += 2 * MS
    for run in world.runs:
        run.finish()
    world.turn()
    assert [client.status for client in (*busy, *late)] == [200, 200, 504, 504, 504]
    assert [run.clients for run in world.runs] == [[kept]]
    world.finish_all()
    world.check_end()


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(("timeout_us", "uploaded_ms", "status"), [
    (20_000, 30, 504), (20_000, 19, 200), (0, DEFAULT_MS, 504), (0, DEFAULT_MS - 1, 200), (5_000_000, 2000, 200),
])  # fmt: skip
def test_the_upload_counts(world, inline, timeout_us, uploaded_ms, status):
    client = world.ask(timeout_us=timeout_us, uploaded_ms=uploaded_ms, inline=inline)
    world.finish_all()
    assert client.status == status
    assert len(world.backends["m"].started) == (status == 200)
    world.check_end()


def test_a_deadline_passes_while_the_body_is_decoded(world):
    client = world.ask(inline=False)
    world.advance(DEFAULT_MS)
    assert client.status == 504
    world.finish_all()
    assert world.backends["m"].started == []
    world.check_end()


@pytest.mark.parametrize("rows", [1, 3 * SIZE, 0])
@pytest.mark.parametrize("timeout_us", [0, 50_000])
def test_a_deadline_passes_while_the_answer_is_encoded(world, rows, timeout_us):
    client = world.ask(rows=rows, timeout_us=timeout_us, inline=False)
    world.native()
    world.turn()
    while world.runs:
        world.runs[0].finish()
        world.turn()
    assert len(world.executor) == 1  # it is being encoded
    world.advance(timeout_us / 1000 or DEFAULT_MS)
    assert client.status == 504
    world.native()
    assert world.failures("m") == {"timeout": 1}
    world.check_end()


@pytest.mark.parametrize("timeout_us", [30_000, 4_000_000, 2**62])
def test_a_timeout_that_passes_while_a_large_body_is_decoded(world, timeout_us):
    """It stands before the data, and is known long before their end."""
    client = world.ask(rows=500_000, timeout_us=timeout_us, inline=False)
    while world.executor.queued or world.executor.running:
        pass  # the native thread has decoded it; nobody has asked for the result yet
    world.advance(6)
    world.advance(23)
    assert not client.ended
    world.advance(min(timeout_us // 1000, 10**6))
    assert client.ended == (timeout_us < 2**62)
    client.vanish()
    world.native()
    world.turn()
    assert world.backends["m"].started == []
    world.check_end()


def test_an_answer_that_is_encoded_too_late_is_not_given(world):
    client = world.ask(timeout_us=50_000, inline=False)
    world.native()
    world.turn()
    world.runs[0].finish()
    world.clock.fixed_ns += 50 * MS  # no timer has had its turn
    world.native()
    assert client.status == 504
    world.check_end()


def test_uploads_of_any_length_expire_in_the_order_of_their_deadlines(world):
    """The list that one timer looks at stays in order, whoever comes late."""
    source = random.Random(5)
    busy = [world.ask(rows=SIZE, timeout_us=60_000_000) for _ in range(2)]
    world.turn()
    model = world.models["m"]
    waiting = [world.ask(uploaded_ms=source.randrange(DEFAULT_MS)) for _ in range(8)]
    assert model.scheduler.deadlines.watched == 8
    while not all(client.ended for client in waiting):
        world.advance(5)
        for client in waiting:
            assert client.ended == (world.now >= client.deadline_ns)
    assert not any(client.ended for client in busy)
    world.finish_all()
    world.check_end()


@pytest.mark.parametrize("world", [{"max_queue_size": 1000}], indirect=True)
def test_a_slow_upload_among_hundreds_gets_a_timer_of_its_own(world):
    busy = [world.ask(rows=SIZE, timeout_us=60_000_000) for _ in range(2)]
    world.turn()
    others = [world.ask() for _ in range(200)]
    slow = world.ask(uploaded_ms=DEFAULT_MS - 10)
    assert world.models["m"].scheduler.deadlines.watched == 200
    world.advance(10)
    assert slow.status == 504
    assert not any(client.ended for client in (*busy, *others))
    slower = world.ask(uploaded_ms=DEFAULT_MS - 3)
    slower.vanish()
    world.finish_all()
    assert {client.status for client in others} == {200}
    world.check_end()


def test_a_timeout_beyond_all_times_is_none(world):
    client = world.ask(timeout_us=2**63 - 1)
    world.turn()
    assert world.loop.timers == []
    client.deadline_ns = 2**63
    world.advance(10**9)
    assert not client.ended
    world.finish_all()
    assert client.status == 200
    world.check_end()


# --- Parents ----------------------------------------------------------------------------------------------------------


def test_a_slice_that_is_refused_ends_the_others(world):
    """Four at once, and a queue of eight that others have nearly filled."""
    others = [world.ask(rows=SIZE) for _ in range(8)]
    world.turn()
    others += [world.ask(rows=SIZE) for _ in range(1)]
    client = world.ask(rows=40 * SIZE)
    assert client.status == 503
    world.finish_all()
    assert {each.status for each in others} == {200}
    assert len(world.backends["m"].started) == len(others)
    world.check_end()


@pytest.mark.parametrize("world", [{"instances": 4, "max_queue_size": 4, "delay_ms": 100}], indirect=True)
def test_a_later_slice_that_is_refused_ends_those_that_run(world):
    """The queue is full of requests that wait for company."""
    client = world.ask(rows=40 * SIZE)
    world.turn()
    runs = list(world.runs)
    assert len(runs) == 4
    others = [world.ask(priority=priority) for priority in (1, 1, 2, 2)]
    runs.pop().finish()
    assert client.status == 503
    assert all(run.terminated for run in runs)
    for run in runs:
        run.finish()
    world.turn()
    assert len(world.backends["m"].started) == 4
    world.advance(100)
    world.finish_all()
    assert {other.status for other in others} == {200}
    world.check_end()


@pytest.mark.parametrize("how", ["fails", "vanishes", "expires"])
def test_what_ends_a_sliced_request_ends_all_its_slices(world, how):
    client = world.ask(rows=50 * SIZE, timeout_us=30_000)
    world.turn()
    runs = list(world.runs)
    assert (len(runs), world.models["m"].scheduler.queued) == (2, 2)
    if how == "fails":
        runs.pop().finish(ApiError(500, "the model failed"))
        assert client.status == 500
    elif how == "vanishes":
        client.vanish()
    else:
        world.advance(31)
        assert client.status == 504
    assert all(run.terminated for run in runs)
    assert world.models["m"].scheduler.queued == 0
    world.finish_all()
    assert len(world.backends["m"].started) == 2
    cause = {"fails": "model", "vanishes": "cancelled", "expires": "timeout"}[how]
    assert world.failures("m") == {cause: 1}
    world.check_end()


@pytest.mark.parametrize(("raised", "status"), [(MemoryError, 503), (ValueError, 500), (RuntimeError, 500),
                                                (ApiError(500, "no"), 500)])  # fmt: skip
def test_whatever_joining_raises_is_answered(world, raised, status, monkeypatch, caplog):
    monkeypatch.setattr(model_module, "concatenate", Mock(side_effect=raised))
    client = world.ask(rows=3 * SIZE)
    world.finish_all()
    assert client.status == status
    assert bool(caplog.records) == (raised in (MemoryError, RuntimeError))
    world.check_end()


@pytest.mark.parametrize(("raised", "status"), [(MemoryError, 503), (KeyError, 500)])
@pytest.mark.parametrize("when", [1, 3, 5])
def test_whatever_making_a_slice_raises_is_answered(world, raised, status, when, monkeypatch):
    made = 0

    def request(*arguments, **options):
        nonlocal made
        made += 1
        if made == when:
            raise raised
        return real(*arguments, **options)

    real = model_module.InferRequest
    monkeypatch.setattr(model_module, "InferRequest", request)
    client = world.ask(rows=9 * SIZE)
    world.finish_all()
    assert client.status == status
    assert made == when
    world.check_end()


def test_a_chain_whose_second_stage_is_refused(world):
    filled = [world.ask("tail", rows=SIZE) for _ in range(2)]
    world.turn()
    filled += [world.ask("tail", rows=SIZE) for _ in range(8)]
    client = world.ask("chain")
    world.turn()
    world.backends["chain"].runs[0].finish()
    assert client.status == 503
    assert (world.failures("chain"), world.failures("tail")) == ({}, {"rejected": 1})
    world.finish_all()
    assert {each.status for each in filled} == {200}


def test_a_chain_of_sliced_stages_counts_one_request_in_each(world):
    client = world.ask("chain", rows=5 * SIZE)
    world.finish_all()
    assert client.status == 200
    for name in ("chain", "tail"):
        stats = world.models[name].stats
        assert (stats.success.count, stats.answered_rows, stats.runs) == (1, 5 * SIZE, 5)
        assert (stats.compute_infer.count, stats.compute_infer.sum) == (1, 5 * 2)
    world.check_end()


def test_a_sliced_request_is_finished_while_its_model_retires(world):
    client = world.ask(rows=9 * SIZE)
    world.turn()
    retired = []
    world.models["m"].retire(lambda: retired.append(client.status))
    world.turn()
    refused = [world.ask(), world.ask(rows=9 * SIZE)]
    world.finish_all()
    assert [each.status for each in refused] == [503, 503]
    assert retired == [200]
    world.check_end()


@pytest.mark.parametrize("when", ["decoded", "queued", "run", "sliced", "second", "encoded"])
def test_nothing_runs_for_a_client_that_has_gone(world, when):
    if when == "queued":
        busy = [world.ask(rows=SIZE) for _ in range(2)]
        world.turn()
    model, rows = {"sliced": ("m", 20 * SIZE), "second": ("chain", 1)}.get(when, ("m", 1))
    client = world.ask(model, rows, inline=when not in ("decoded", "encoded"))
    if when in ("run", "sliced", "second", "encoded"):
        world.native()
        world.turn()
    if when in ("second", "encoded"):
        world.runs[0].finish()
        world.turn()
    started = {name: len(backend.started) for name, backend in world.backends.items()}
    client.vanish()
    assert all(run.terminated for run in world.runs) or when == "queued"
    world.finish_all()
    assert {name: len(backend.started) for name, backend in world.backends.items()} == started
    assert world.failures("tail" if when == "second" else "m") == {"cancelled": 1}
    if when == "queued":
        assert {each.status for each in busy} == {200}
    world.check_end()


def test_zero_rows_are_a_success_in_a_moment_and_can_be_abandoned(world):
    kept, gone = world.ask(rows=0), world.ask(rows=0)
    gone.vanish()
    assert not kept.ended
    world.turn()
    assert kept.status == 200
    assert world.backends["m"].started == []
    world.check_end()
