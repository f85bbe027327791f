"""What is loaded without being asked for, on a disk that changes at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from fastinfer.base.errors import ApiError
from fastinfer.repository import watcher
from fastinfer.repository.watcher import Look

ROUNDS = 3  # looks until a change has been acted on


class Models:
    """A repository in memory.

    Attributes:
        disk: the state of each model's files, by name; what begins with "bad" does not load.
        served: the state that each model was loaded from.
        before_follow: called before the disk is read to follow a change.
    """

    def __init__(self, disk: dict[str, str]) -> None:
        self.disk = disk
        self.unreadable: str | None = None
        self.look_error: Exception | None = None
        self.served: dict[str, str] = {}
        self.expected: list[tuple[list[str], str | None]] = []
        self.calls: list[str] = []
        self.refused: dict[str, str] = {}
        self.before_follow: Callable[[], None] = lambda: None

    async def look(self, *, log_problems: bool = False) -> Look:  # noqa: ARG002
        if self.look_error is not None:
            raise self.look_error
        return {"models": dict(self.disk), "unreadable": self.unreadable}

    async def expect(self, names: Iterable[str], unreadable: str | None) -> None:
        self.expected.append((list(names), unreadable))

    async def load_model(self, name: str, version: None, parameters: Mapping[str, Any]) -> str:  # noqa: ARG002
        self.calls.append(f"load {name}")
        if self.disk.get(name, "bad").startswith("bad"):
            raise ApiError(400, f"'{name}' is broken")
        self.served[name] = self.disk[name]
        return name

    async def refuse(self, name: str, reason: str) -> None:
        self.refused[name] = reason

    async def follow(self, name: str, *, known: bool, gone: bool) -> None:
        self.before_follow()
        self.calls.append(f"follow {name}")
        if gone:
            self.served.pop(name, None)
        elif name in self.served or not known:
            await self.load_model(name, None, {})

    def loaded(self) -> Mapping[str, str]:
        return self.served


class Poll:
    """Polls step by step."""

    def __init__(
        self,
        models: Models,
        monkeypatch: pytest.MonkeyPatch,
        wanted: list[str] | None = None,
        unload_all: bool = False,
    ) -> None:
        self.models = models
        self.unload_all = unload_all
        self.wanted = wanted
        self._turns = asyncio.Semaphore(0)
        self._sleep = asyncio.sleep

        async def sleep(_: float) -> None:
            await self._turns.acquire()

        monkeypatch.setattr(watcher.asyncio, "sleep", sleep)

    async def __aenter__(self) -> Poll:
        async def main() -> None:
            seen = await watcher.load_all(self.models, self.wanted)
            seen = await watcher.load_rest(self.models, self.wanted, seen)
            await watcher.follow(self.models, 1, seen, unload_all=self.unload_all, requested=self.wanted)

        self._task = asyncio.ensure_future(main())
        await self.turns(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def turns(self, count: int = ROUNDS) -> None:
        for _ in range(count):
            self._turns.release()
        for _ in range(200):
            await self._sleep(0)
        assert not self._task.done(), self._task.exception()


def polled(test: Callable[[Poll], Any], poll: Callable[[], Poll]) -> None:
    async def main() -> None:
        async with poll() as running:
            await test(running)

    asyncio.run(main())


@pytest.fixture
def models() -> Models:
    return Models({"m": "A", "other": "A"})


def test_changes_are_followed(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(poll: Poll) -> None:
        assert models.served == {"m": "A", "other": "A"}
        models.disk |= {"m": "B", "new": "A"}
        await poll.turns(1)
        assert models.served == {"m": "A", "other": "A"}  # perhaps it is still being copied
        del models.disk["other"]
        await poll.turns()
        assert models.served == {"m": "B", "new": "A"}
        calls = len(models.calls)
        await poll.turns()
        assert len(models.calls) == calls

    polled(test, lambda: Poll(models, monkeypatch))


@pytest.mark.parametrize("requested", [["m", "late"], None, []])
def test_only_what_was_requested_is_loaded_later(
    models: Models, monkeypatch: pytest.MonkeyPatch, requested: list[str] | None
) -> None:
    async def test(poll: Poll) -> None:
        models.disk |= {"late": "A", "stranger": "A"}
        await poll.turns()
        expected = (
            {"m", "late"} if requested else {"late", "stranger"} | ({"m", "other"} if requested is None else set())
        )
        assert models.served.keys() == expected
        models.served["stranger"] = "A"  # a client loads it: then it is followed
        models.disk |= {"stranger": "B", "m": "B"}
        await poll.turns()
        assert models.served["stranger"] == "B"
        assert models.served.get("m", "B") == "B"
        del models.disk["stranger"]
        await poll.turns()
        assert "stranger" not in models.served

    polled(test, lambda: Poll(models, monkeypatch, requested))


@pytest.mark.parametrize("during", ["the start", "a poll"])
def test_a_link_that_is_swapped_there_and_back(models: Models, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    """Something else may have been loaded than what two looks have seen."""

    async def test(poll: Poll) -> None:
        if during == "a poll":
            models.disk["m"] = "B"
            models.before_follow = lambda: models.disk.update(m="C")
            await poll.turns(2)
            assert models.served["m"] == "C"
            models.before_follow = lambda: None
            models.disk["m"] = "B"
        else:
            models.served["m"] = "B"  # what lay on the disk for a moment when it was loaded
        await poll.turns()
        assert models.served["m"] == models.disk["m"]

    polled(test, lambda: Poll(models, monkeypatch))


def test_what_a_crash_has_loaded_meanwhile_is_compared_too(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(poll: Poll) -> None:
        models.served["m"] = "Z"
        await poll.turns()
        assert models.served["m"] == "A"

    polled(test, lambda: Poll(models, monkeypatch))


def test_what_does_not_load_is_tried_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(poll: Poll) -> None:
        models.disk["m"] = "bad"
        await poll.turns(6)
        assert (models.served["m"], models.calls.count("follow m")) == ("A", 1)
        models.disk["m"] = "bad again"
        await poll.turns(6)
        assert models.calls.count("follow m") == 2
        models.disk["m"] = "A"  # nothing has changed then
        await poll.turns()
        models.disk["m"] = "bad"
        await poll.turns()
        models.disk["m"] = "B"
        await poll.turns()
        assert models.served["m"] == "B"

    polled(test, lambda: Poll(models, monkeypatch))


@pytest.mark.parametrize("status", [500, 503])
def test_what_fails_for_another_reason_is_tried_again(
    models: Models, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def test(poll: Poll) -> None:
        def fail() -> None:
            raise ApiError(status, "a process has ended")

        models.disk["m"] = "B"
        models.before_follow = fail
        await poll.turns()
        assert models.served["m"] == "A"
        models.before_follow = lambda: None
        await poll.turns()
        assert models.served["m"] == "B"

    polled(test, lambda: Poll(models, monkeypatch))


def test_what_a_client_has_unloaded_stays_so(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(poll: Poll) -> None:
        del models.served["m"]
        await poll.turns()
        models.disk["m"] = "B"
        await poll.turns()
        assert models.served == {"other": "A"}

    polled(test, lambda: Poll(models, monkeypatch))


def test_nothing_is_gone_while_a_repository_cannot_be_read(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(poll: Poll) -> None:
        lost, models.unreadable = models.disk.pop("other"), "Stale file handle"
        models.disk["m"] = "B"
        await poll.turns(6)
        assert models.served == {"m": "B", "other": "A"}
        models.unreadable = None
        models.disk["other"] = lost
        await poll.turns()
        assert models.calls.count("follow other") == 0
        del models.disk["other"]
        await poll.turns()
        assert models.served == {"m": "B"}

    polled(test, lambda: Poll(models, monkeypatch))


@pytest.mark.parametrize("wanted", [None, ["m", "late"]])
def test_a_repository_that_cannot_be_read_at_first(
    models: Models, monkeypatch: pytest.MonkeyPatch, wanted: list[str] | None
) -> None:
    async def test(poll: Poll) -> None:
        assert models.served == {"m": "A"}
        await poll.turns(2)
        assert models.expected[-1] == ([], "Permission denied")
        models.unreadable = None
        models.disk["late"] = "A"
        await poll.turns(1)
        assert models.served == {"m": "A", "late": "A"}
        assert models.expected[-1][1] is None

    del models.disk["other"]
    models.unreadable = "Permission denied"
    polled(test, lambda: Poll(models, monkeypatch, wanted))


@pytest.mark.parametrize("blink", [1, 2, 5])
def test_several_models_that_vanish_at_once_stay_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, blink: int
) -> None:
    async def test(poll: Poll) -> None:
        disk, poll.models.disk = poll.models.disk, {}
        await poll.turns(blink)
        assert poll.models.served == disk
        poll.models.disk = disk
        await poll.turns()
        assert poll.models.served == disk
        assert not [call for call in poll.models.calls if call.startswith("follow")]
        del disk["b"]
        await poll.turns()
        assert poll.models.served == {"a": "1", "c": "1"}

    polled(test, lambda: Poll(Models({"a": "1", "b": "1", "c": "1"}), monkeypatch))
    assert caplog.text.count("vanished from the repository at once") == 1
    assert caplog.text.count("the models are in the repository again") <= 1


@pytest.mark.parametrize("torn", [{"a": "1"}, {"b": "1"}])
def test_a_look_while_a_repository_goes_tells_nothing_of_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, torn: dict[str, str]
) -> None:
    async def test(poll: Poll) -> None:
        disk = poll.models.disk
        for _ in range(3):
            poll.models.disk = torn
            await poll.turns(1)
            poll.models.disk = {}
            await poll.turns(2)
        poll.models.disk = disk
        await poll.turns()
        assert poll.models.served == disk
        assert not [call for call in poll.models.calls if call.startswith("follow")]

    polled(test, lambda: Poll(Models({"a": "1", "b": "1"}), monkeypatch))


def test_new_models_in_place_of_all_others_are_loaded_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(poll: Poll) -> None:
        poll.models.disk = {"c": "1"}
        await poll.turns()
        assert poll.models.served == {"a": "1", "b": "1", "c": "1"}

    polled(test, lambda: Poll(Models({"a": "1", "b": "1"}), monkeypatch))


@pytest.mark.parametrize(("disk", "unload_all"), [({"a": "1", "b": "1"}, True), ({"a": "1"}, False)])
def test_all_models_are_unloaded_if_the_operator_says_so_and_a_single_one_always(
    monkeypatch: pytest.MonkeyPatch, disk: dict[str, str], unload_all: bool
) -> None:
    async def test(poll: Poll) -> None:
        poll.models.disk = {}
        await poll.turns()
        assert poll.models.served == {}

    polled(test, lambda: Poll(Models(disk), monkeypatch, unload_all=unload_all))


@pytest.mark.parametrize("error", [ApiError(500, "internal error"), OSError(5, "Input/output error"), KeyError("x")])
def test_a_look_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def test(poll: Poll) -> None:
        poll.models.look_error = error
        await poll.turns()
        assert poll.models.served == {"a": "1"}
        poll.models.look_error = None
        poll.models.disk = {"a": "2"}
        await poll.turns()
        assert poll.models.served == {"a": "2"}

    polled(test, lambda: Poll(Models({"a": "1"}), monkeypatch))
