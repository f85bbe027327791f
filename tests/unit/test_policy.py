"""The batching policy: how many to take, or how long to wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastinfer.schedule.policy import BatchingPolicy, Decision

MS = 1_000_000


@pytest.mark.parametrize(
    ("policy", "rows", "waited_ns", "expected"),
    [
        # Work-conserving: without a delay, whatever is there is taken.
        (BatchingPolicy(8), [1], 0, Decision(1, 0)),
        (BatchingPolicy(8), [1, 1, 1], 0, Decision(3, 0)),
        (BatchingPolicy(1), [1, 1, 1], 0, Decision(1, 0)),
        # Rows count, not requests.
        (BatchingPolicy(8), [3, 3, 3], 0, Decision(2, 0)),
        (BatchingPolicy(8), [8, 1], 0, Decision(1, 0)),
        (BatchingPolicy(8), [20, 1], 0, Decision(1, 0)),
        (BatchingPolicy(8), [0, 0, 8, 0], 0, Decision(3, 0)),
        # A delay: wait for the rest of it, unless the batch is full.
        (BatchingPolicy(8, (), 5 * MS), [1], 0, Decision(0, 5 * MS)),
        (BatchingPolicy(8, (), 5 * MS), [1, 2], 2 * MS, Decision(0, 3 * MS)),
        (BatchingPolicy(8, (), 5 * MS), [1, 2], 5 * MS, Decision(2, 0)),
        (BatchingPolicy(8, (), 5 * MS), [4, 4], 0, Decision(2, 0)),
        (BatchingPolicy(8, (), 5 * MS), [4, 3, 2], 0, Decision(2, 0)),
        # Preferred sizes are worth running at once; the largest that can be made wins.
        (BatchingPolicy(8, (2, 4), 5 * MS), [1], 0, Decision(0, 5 * MS)),
        (BatchingPolicy(8, (2, 4), 5 * MS), [1, 1], 0, Decision(2, 0)),
        (BatchingPolicy(8, (2, 4), 5 * MS), [1, 1, 1], 0, Decision(2, 0)),
        (BatchingPolicy(8, (2, 4), 5 * MS), [1, 1, 1, 1, 1], 0, Decision(4, 0)),
        (BatchingPolicy(8, (4,), 5 * MS), [3], 5 * MS, Decision(1, 0)),
        (BatchingPolicy(8, (4,), 0), [1, 1], 0, Decision(2, 0)),
    ],
)
def test_decide(policy, rows, waited_ns, expected):
    assert policy.decide(rows, waited_ns) == expected


@given(
    st.integers(1, 64),
    st.sets(st.integers(1, 64), max_size=3),
    st.integers(0, 10 * MS),
    st.lists(st.integers(0, 100), min_size=1, max_size=50),
    st.integers(0, 20 * MS),
)
def test_never_more_rows_than_allowed_and_never_a_wait_past_the_delay(largest, preferred, delay, rows, waited):
    take, wait_ns = BatchingPolicy(largest, tuple(sorted(preferred)), delay).decide(rows, waited)
    assert 0 <= take <= len(rows)
    assert (take == 0) == (wait_ns > 0)
    assert wait_ns <= max(0, delay - waited)
    if take > 1:
        assert sum(rows[:take]) <= largest
    if waited >= delay:
        assert take
