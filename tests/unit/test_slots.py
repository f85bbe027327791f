"""A slot always has a process; one that fails again and again is started less and less often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fastinfer.supervisor import slots
from fastinfer.supervisor.child import how_it_ended
from fastinfer.supervisor.slots import ProcessSlot, pause_s


def test_pauses_double_up_to_a_limit() -> None:
    assert [pause_s(failures) for failures in range(6)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert pause_s(9) == 25.6
    assert {pause_s(failures) for failures in (10, 100, 10_000)} == {30}


class Child:
    """A process whose life the test decides."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.lifetime = 0.0

    def is_ready(self) -> None:
        pass

    def lived_s(self) -> float:
        return self.lifetime


class Scene:
    """A slot, what it starts, and how long it pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: list[Child] = []
        self.fit = True
        self.gate = asyncio.Event()  # set: a process can serve
        self.gate.set()
        self.early = 0  # processes that end before they serve
        self.retired: list[Child] = []
        self.died: list[Child] = []
        self.pauses: list[float] = []
        self.slot = ProcessSlot(0, [], self.launch, lambda: None, self.retired.append, self.died.append)  # type: ignore[arg-type]
        sleep = asyncio.sleep

        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)
            await sleep(0)

        monkeypatch.setattr(slots.asyncio, "sleep", pause)
        self.settle = lambda: sleep(0.01)

    async def launch(self, _: ProcessSlot) -> Any:
        if self.early:
            self.early -= 1
            return None
        if not self.fit:
            return None
        await self.gate.wait()
        self.children.append(Child())
        return self.children[-1]

    def run(self, test: Callable[[], Any]) -> None:
        async def main() -> None:
            keeping = asyncio.ensure_future(self.slot.keep())
            await self.settle()
            await test()
            keeping.cancel()

        asyncio.run(main())


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_process_that_ends_is_replaced_at_once(scene: Scene) -> None:
    async def test() -> None:
        for _ in range(5):
            scene.children[-1].lifetime = 2
            scene.children[-1].ended.set_result(-9)
            await scene.settle()
        assert len(scene.children) == 6
        assert scene.died == scene.children[:5]
        assert scene.pauses == []

    scene.run(test)


def test_processes_that_end_before_they_serve_are_started_less_and_less_often(scene: Scene) -> None:
    async def test() -> None:
        for early in (4, 2):
            scene.early = early
            scene.children[-1].lifetime = 2
            scene.children[-1].ended.set_result(-9)
            await scene.settle()
        assert scene.pauses == [0.1, 0.2, 0.4, 0.8, 0.1, 0.2]  # one that serves begins anew

    scene.run(test)


def test_where_processes_die_as_soon_as_they_serve_the_pauses_stay_short(scene: Scene) -> None:
    async def test() -> None:
        for _ in range(5):
            scene.children[-1].ended.set_result(-8)
            await scene.settle()
        assert scene.pauses == [0.1, 0.2, 0.2, 0.2, 0.2]
        scene.children[-1].lifetime = 2
        for _ in range(2):
            scene.children[-1].ended.set_result(-8)
            await scene.settle()
        assert scene.pauses == [0.1, 0.2, 0.2, 0.2, 0.2, 0.1]  # it had recovered

    scene.run(test)


def test_the_old_one_goes_when_the_new_one_serves(scene: Scene) -> None:
    async def test() -> None:
        assert await scene.slot.renew()
        old, new = scene.children
        assert (scene.slot.child, scene.retired) == (new, [old])
        old.ended.set_result(0)
        await scene.settle()
        assert (scene.slot.child, scene.died) == (new, [])

    scene.run(test)


def test_the_old_one_stays_where_the_new_one_is_not_fit(scene: Scene) -> None:
    async def test() -> None:
        scene.fit = False
        assert not await scene.slot.renew()
        assert (scene.slot.child, scene.retired) == (scene.children[0], [])
        scene.fit = True
        assert await scene.slot.renew()

    scene.run(test)


def test_a_restart_ends_where_there_is_no_process_and_a_new_one_is_not_fit(scene: Scene) -> None:
    async def test() -> None:
        scene.fit = False
        scene.children[-1].ended.set_result(-9)
        await scene.settle()
        assert not await scene.slot.renew()
        scene.fit = True
        await scene.settle()
        assert scene.slot.child is scene.children[1]

    scene.run(test)


def test_a_restart_wants_a_process_that_is_started_later(scene: Scene) -> None:
    async def test() -> None:
        scene.gate = asyncio.Event()
        scene.children[-1].ended.set_result(-9)
        await scene.settle()  # the next one is being started, with the old configuration
        renewal = asyncio.ensure_future(scene.slot.renew())
        await scene.settle()
        scene.gate.set()
        assert await renewal
        assert scene.slot.child is scene.children[2]
        assert scene.retired == [scene.children[1]]

    scene.run(test)


def test_one_that_must_not_serve_any_longer_is_replaced_before_it_has_ended(scene: Scene) -> None:
    async def test() -> None:
        for dropped in (0, 1):
            wrong = scene.children[-1]
            scene.slot.drop(wrong)  # type: ignore[arg-type]
            assert scene.slot.child is None
            await scene.settle()
            assert len(scene.children) == dropped + 2
            assert scene.slot.child is scene.children[-1]
            wrong.ended.set_result(0)
            scene.slot.drop(wrong)  # type: ignore[arg-type]
            await scene.settle()
            assert scene.slot.child is scene.children[-1]
        assert (scene.died, scene.retired) == ([], [])

    scene.run(test)


@pytest.mark.parametrize(("status", "words"), [(-9, "SIGKILL"), (-8, "SIGFPE"), (3, "status 3"), (-120, "signal 120")])
def test_how_a_process_has_ended(status: int, words: str) -> None:
    assert how_it_ended(status) == words
