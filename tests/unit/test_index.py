"""The index of the repository, from its parts."""

from __future__ import annotations

from fastinfer.repository.index import NO_VERSION, Entry, entries


def test_everything_is_told_once_by_name_and_version() -> None:
    found = entries(
        ready=[("m", 10), ("m", 9), ("echo", 1)],
        loading=[("m", 10), ("m", 11), ("new", NO_VERSION)],
        unloading=[("m", 10), ("old", 2)],
        on_disk={"m": [8, 9, 10, 11], "new": [1], "old": [2], "z": [2, 1], "a": [], "bad": [1]},
        failures={"bad": "it does not load", "m": "its last load failed"},
    )
    assert found == [
        Entry("a", "", "UNAVAILABLE", "unloaded"),
        Entry("bad", "1", "UNAVAILABLE", "it does not load"),
        Entry("echo", "1", "READY"),
        Entry("m", "9", "READY"),
        Entry("m", "10", "READY"),
        Entry("m", "11", "LOADING"),
        Entry("new", "", "LOADING"),
        Entry("old", "2", "UNLOADING"),
        Entry("z", "1", "UNAVAILABLE", "unloaded"),
        Entry("z", "2", "UNAVAILABLE", "unloaded"),
    ]


def test_what_is_withdrawn_is_unavailable_and_says_why() -> None:
    found = entries(
        ready=[("m", 1), ("m", 2)],
        loading=[("m", 3)],
        unloading=[("m", 4)],
        on_disk={},
        failures={},
        withdrawn={("m", 2): "it kills", ("m", 3): "it kills", ("m", 4): "it kills", ("gone", 1): "it kills"},
    )
    assert found == [
        Entry("m", "1", "READY"),
        Entry("m", "2", "UNAVAILABLE", "it kills"),
        Entry("m", "3", "LOADING"),
        Entry("m", "4", "UNLOADING"),
    ]


def test_nothing_is_an_empty_index() -> None:
    assert entries(ready=(), loading=(), unloading=(), on_disk={}, failures={"gone": "why"}) == []
