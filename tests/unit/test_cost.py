"""What a model costs by shape: what is predicted, what a preempted run changes, what suspends a model."""

import math
import random

import pytest

from fastinfer.native.job import Clock
from fastinfer.schedule.cost import ShapeCosts, shape_of

LIMIT = 100_000
SECOND = 1_000_000_000


@pytest.fixture
def clock():
    made = Clock()
    made.fixed_ns = SECOND
    return made


@pytest.fixture
def costs(clock):
    return ShapeCosts(LIMIT, clock)


def test_only_what_was_measured_is_predicted(costs):
    small = shape_of(1, 4, 4)
    assert not costs.is_short(small)
    assert costs.predict_ns(small) == math.inf
    costs.measured(small, 20_000)
    assert costs.is_short(small)
    assert costs.predict_ns(small) == 20_000
    for other in (shape_of(1, 4, 5), shape_of(1, 3, 4), shape_of(2, 4, 4), shape_of(1, 2, 8), shape_of(1, 16)):
        assert not costs.is_short(other)


def test_shapes_of_equal_size_cost_what_they_cost(costs):
    costs.measured(shape_of(1, 4000), 5_000)
    costs.measured(shape_of(4000, 1), 50 * LIMIT)
    assert costs.is_short(shape_of(1, 4000))
    assert not costs.is_short(shape_of(4000, 1))
    assert len({shape_of(*numbers) for numbers in [(), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 0)]}) == 6


def test_a_long_shape_comes_to_the_loop_when_it_is_short(costs):
    shape = shape_of(1)
    costs.measured(shape, 30 * LIMIT)  # the first run also warms up
    runs = 0
    while not costs.is_short(shape):
        costs.measured(shape, LIMIT // 4)
        runs += 1
    assert runs <= 8


@pytest.mark.parametrize("times", [11, 1000, 1_000_000])
def test_a_preempted_run_changes_nothing_for_long(costs, times):
    shape = shape_of(1)
    costs.measured(shape, LIMIT // 4)
    assert costs.ran(shape, times * LIMIT)  # an overrun, by a thread that did not compute
    assert costs.suspended_until_ns == 0
    for _ in range(3):
        costs.measured(shape, LIMIT // 4)
    assert costs.is_short(shape)
    assert costs.predict_ns(shape) == pytest.approx(LIMIT // 4, rel=0.5)


def test_preempted_runs_now_and_then_do_not_move_a_model_off_the_loop(costs):
    source, shape, off = random.Random(1), shape_of(1), 0
    costs.measured(shape, 20_000)
    for _ in range(20_000):
        ns = 3_000_000 if source.random() < 0.01 else source.randrange(15_000, 30_000)
        if costs.is_short(shape):
            costs.ran(shape, ns, cpu_ns=20_000)
        else:
            off += 1
            costs.measured(shape, ns)
    assert costs.suspended_until_ns == 0
    assert off < 1000


def test_an_overrun_is_ten_times_the_estimate_and_above_the_limit(costs):
    costs.measured(shape_of(1), 1000)
    assert not costs.ran(shape_of(1), LIMIT)
    assert costs.probation == 0
    costs.measured(shape_of(2), LIMIT // 2)
    assert not costs.ran(shape_of(2), 4 * LIMIT)
    assert costs.probation == 0
    costs.measured(shape_of(3), LIMIT // 2)
    assert costs.ran(shape_of(3), 6 * LIMIT)
    assert costs.probation > 0


@pytest.mark.parametrize(("used", "suspended"), [
    ({}, False), ({"cpu_ns": LIMIT}, False), ({"cpu_ns": 15 * LIMIT}, True), ({"waits": 1}, True)
])  # fmt: skip
def test_on_probation_an_overrun_that_computed_or_waited_suspends(costs, used, suspended):
    costs.measured(shape_of(1), LIMIT // 4)
    assert costs.ran(shape_of(1), 20 * LIMIT, cpu_ns=20 * LIMIT)  # nobody had looked at it before it ran
    assert costs.suspended_until_ns == 0
    for _ in range(5):
        assert not costs.ran(shape_of(1), LIMIT // 4, cpu_ns=LIMIT // 4, waits=1)
    assert costs.ran(shape_of(1), 20 * LIMIT, **used)
    assert (costs.suspended_until_ns > 0) == suspended


def test_probation_ends(costs):
    costs.measured(shape_of(1), 1000)
    assert costs.ran(shape_of(1), 20 * LIMIT)
    for _ in range(1024):
        assert costs.probation > 0
        costs.ran(shape_of(1), 1000)
    assert costs.probation == 0


def suspend(costs, clock):
    """A run that was ended while it computed; how long the model is suspended for it."""
    shape = shape_of(1)
    while not costs.is_short(shape):
        costs.measured(shape, 1000)
    assert costs.ran(shape, 100 * LIMIT, well=False, cut=True, at_work=True)
    assert not costs.is_short(shape)
    return costs.suspended_until_ns - clock.fixed_ns


def test_a_run_that_was_ended_at_work_suspends_the_whole_model(costs, clock):
    costs.measured(shape_of(1), 1000)
    costs.measured(shape_of(2), 1000)
    length = suspend(costs, clock)
    assert not costs.is_short(shape_of(2))
    clock.fixed_ns += length - 1
    assert not costs.is_short(shape_of(2))
    clock.fixed_ns += 1
    assert costs.is_short(shape_of(2))
    assert not costs.is_short(shape_of(1))  # its estimate is what the run took, until it is measured again
    assert costs.suspended_until_ns == 0


def test_suspensions_double_and_are_forgiven(costs, clock):
    costs.measured(shape_of(1), 1000)
    lengths = []
    for _ in range(20):
        lengths.append(suspend(costs, clock))
        clock.fixed_ns = costs.suspended_until_ns + 1
    assert lengths[:5] == [10 * SECOND, 20 * SECOND, 40 * SECOND, 80 * SECOND, 160 * SECOND]
    assert lengths[-1] == 86_400 * SECOND
    clock.fixed_ns += 11 * lengths[-1]
    assert suspend(costs, clock) == lengths[0]


def test_a_run_that_was_ended_while_it_was_preempted_suspends_nothing(costs):
    costs.measured(shape_of(1), 1000)
    costs.measured(shape_of(2), 1000)
    assert costs.ran(shape_of(1), 100 * LIMIT, well=False, cut=True, at_work=False)
    assert costs.is_short(shape_of(2))
    assert not costs.is_short(shape_of(1))  # it is run again, and that elsewhere
    for _ in range(20):
        costs.measured(shape_of(1), 1000)
    assert costs.is_short(shape_of(1))


def test_failures_teach_nothing(costs):
    costs.measured(shape_of(1), 50_000)
    for _ in range(20):
        costs.ran(shape_of(1), 10, well=False)
    assert costs.predict_ns(shape_of(1)) == 50_000


def test_what_is_known_is_bounded_and_what_is_used_stays(costs):
    often = [shape_of(0, number) for number in range(100)]
    for shape in often:
        costs.measured(shape, 1000)
    for number in range(20_000):
        costs.measured(shape_of(1, number), 1000)
        assert costs.known <= 2048
        costs.measured(often[number % 100], 1000)
    assert all(costs.predict_ns(shape) == 1000 for shape in often)
    assert costs.predict_ns(shape_of(1, 19_999)) == 1000


def test_when_all_shapes_are_used_all_are_forgotten_and_learned_again(costs):
    for _ in range(3):
        for number in range(3000):
            costs.measured(shape_of(number), number + 1)
            assert costs.predict_ns(shape_of(number)) == number + 1
            assert costs.known <= 2048


def test_a_shape_that_was_never_measured_does_not_run_on_the_loop(costs):
    with pytest.raises(KeyError):
        costs.ran(shape_of(1), 1000)
