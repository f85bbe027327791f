"""When the loop looks for the next request instead of sleeping. The windows are so long that no clock decides."""

from time import monotonic_ns

from fastinfer.http.poller import Poller

LONG_US = 60e6
SHORT_US = 1e-3


class Loop:
    """Keeps what is to be called in the next turn."""

    def __init__(self):
        self.due = []

    def call_soon(self, callback):
        self.due.append(callback)

    def turn(self):
        due, self.due = self.due, []
        for callback in due:
            callback()


def requests(poller, count):
    for _ in range(count):
        poller.on_bytes(monotonic_ns())
        poller.on_answer()


def test_requests_that_come_close_together_are_polled_for():
    loop = Loop()
    poller = Poller(loop, [], LONG_US)
    poller.on_answer()
    requests(poller, 4)
    assert not poller.polling
    requests(poller, 12)
    assert poller.polling
    assert len(loop.due) == 1
    loop.turn()
    assert len(loop.due) == 1  # and again


def test_requests_that_come_late_are_slept_for():
    loop = Loop()
    poller = Poller(loop, [], SHORT_US)
    requests(poller, 100)
    assert not poller.polling
    assert not loop.due


def test_an_idle_loop_goes_to_sleep():
    loop = Loop()
    poller = Poller(loop, [], 200)
    while not poller.polling:
        requests(poller, 20)
    turns = 0
    while loop.due:
        loop.turn()
        turns += 1
    assert turns
    assert not poller.polling


def test_native_work_has_the_core_to_itself():
    loop, busy = Loop(), []
    poller = Poller(loop, busy, LONG_US)
    poller.on_answer()
    busy.append("job")
    requests(poller, 50)
    assert not poller.polling
    busy.clear()
    requests(poller, 1)
    assert poller.polling
    busy.append("job")
    loop.turn()
    assert not poller.polling
    assert not loop.due


def test_the_loop_sleeps_now_and_then_all_the_same():
    loop = Loop()
    poller = Poller(loop, [], LONG_US)
    poller.on_answer()
    requests(poller, 50)
    while loop.due:
        requests(poller, 1)
        loop.turn()
    assert not poller.polling
    requests(poller, 1)
    assert poller.polling


def test_without_a_window_it_always_sleeps():
    loop = Loop()
    poller = Poller(loop, [], 0)
    requests(poller, 100)
    assert not poller.polling
    assert not loop.due
