"""Operations of several processes: in step, in order, all or none; with processes that are not there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastinfer.base.errors import ApiError
from fastinfer.repository.operation import text_mark
from fastinfer.supervisor.channel import ChannelClosedError
from fastinfer.supervisor.operations import LostError, Operations

SENTENCE = ApiError(400, "no such model").to_json()


def state_of(names: list[Any]) -> dict[str, Any]:
    """What a process holds; an endpoint is a name, a name and what it was made of, or what is told of it."""
    endpoints = []
    for each in names:
        told = each if isinstance(each, dict) else {"name": each if isinstance(each, str) else each[0]}
        endpoints.append({"kind": "worker", "base": "w", "override": None, "files": "", **told, "of": each})
    return {"not_ready": None, "start": {}, "endpoints": endpoints, "digest": repr(names), "mark": repr(names)}


def held(state: dict[str, Any]) -> list[Any]:
    return [each["of"] for each in state["endpoints"]]


class Process:
    """Holds names of models; does what its script says instead, once for each entry.

    Args:
        script: for a call's name what happens: a report, or an exception.
    """

    def __init__(self, **script: Any) -> None:
        self.script = script
        self.models: list[str] = []
        self.calls: list[str] = []
        self.told: list[Any] = []
        self._prepared: dict[int, str] = {}
        self.waiting: asyncio.Event | None = None

    def state(self) -> dict[str, Any]:
        return state_of(list(self.models))

    async def call(self, call: str, **arguments: Any) -> Any:
        self.calls.append(f"{call} {arguments.get('name', '')}".strip())
        await asyncio.sleep(0)
        if call in self.script:
            scripted = self.script.pop(call)
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        match call:
            case "restore":
                self.models = held(arguments["state"])
                return {}
            case "state":
                return self.state()
            case "begin":
                if self.waiting is not None and arguments["name"] != "unload":
                    await self.waiting.wait()
                if arguments["name"] == "unload":
                    self.models.remove(arguments["arguments"]["name"])
                    return {"done": None, "state": self.state()}
                self._prepared[arguments["number"]] = arguments["arguments"]["name"]
                return {"prepared": [arguments["arguments"]["name"], "files"]}
            case "decide":
                name = self._prepared.pop(arguments["number"])
                if arguments["refusal"] is not None:
                    return {"failed": arguments["refusal"], "state": self.state()}
                self.models.append(name)
                return {"done": name, "state": self.state()}
        raise AssertionError(call)

    def notify(self, call: str, **arguments: Any) -> None:
        self.told.append((call, arguments))


class Reader(Process):
    """Makes its models of what lies on a disk, and serves that: endpoints are pairs of a name and its content."""

    def __init__(self, disk: dict[str, str], **script: Any) -> None:
        super().__init__(**script)
        self.disk = disk
        self.serves: dict[str, str] = {}

    def state(self) -> dict[str, Any]:
        return state_of([list(each) for each in self.serves.items()])

    async def call(self, call: str, **arguments: Any) -> Any:
        await asyncio.sleep(0)
        scripted = call in self.script
        if call == "restore" and not scripted:
            self.calls.append(call)
            told = [name for name, _ in held(arguments["state"])]
            self.serves = {name: self.disk[name] for name in told if name in self.disk}
            return {name: "gone" for name in told if name not in self.disk}
        if call == "changed" and not scripted:
            return [name for name, content in held(arguments["state"]) if self.serves.get(name) != content]
        if call == "begin" and not scripted:
            self.calls.append(f"{call} {arguments['name']}")
            name = arguments["arguments"]["name"]
            self._prepared[arguments["number"]] = name
            self.read = self.disk[name]
            return {"prepared": [name, self.read]}
        if call == "decide" and not scripted:
            name = self._prepared.pop(arguments["number"])
            if arguments["refusal"] is not None:
                return {"failed": arguments["refusal"], "state": self.state()}
            self.serves[name] = self.read
            return {"done": name, "state": self.state()}
        return await super().call(call, **arguments)


ENDED: list[Any] = []
"""Who was ended because it serves something else than the others, by the last test."""


def run(test: Callable[[Operations], Awaitable[None]]) -> None:
    async def end(member: Any) -> None:
        ENDED.append(member)

    async def main() -> None:
        await asyncio.wait_for(test(Operations(end)), 20)

    ENDED.clear()
    asyncio.run(main())


async def joined(operations: Operations, *processes: Process) -> None:
    for process in processes:
        assert await operations.join(process)


def load(operations: Operations, name: str = "m") -> Awaitable[Any]:
    return operations.run("load_model", name=name)


def test_all_change_and_the_first_goes_ahead() -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process()
        await joined(operations, first, second)
        first.waiting = asyncio.Event()
        loading = asyncio.ensure_future(load(operations))
        await asyncio.sleep(0.01)
        assert "begin load_model" not in second.calls  # it might end its process
        first.waiting.set()
        assert await loading == "m"
        assert first.models == second.models == held(operations.record) == ["m"]
        assert first.told[-1] == second.told[-1] == ("readiness", {"reason": None})

    run(test)


@pytest.mark.parametrize("failing", [0, 1])
def test_where_one_fails_none_changes(failing: int) -> None:
    async def test(operations: Operations) -> None:
        processes = [Process(), Process()]
        processes[failing].script["begin"] = {"failed": SENTENCE, "state": processes[0].state()}
        await joined(operations, *processes)
        with pytest.raises(ApiError, match="no such model") as caught:
            await load(operations)
        assert caught.value.status == 400
        assert [process.models for process in processes] == [[], []]

    run(test)


def test_where_the_files_differ_none_changes() -> None:
    async def test(operations: Operations) -> None:
        class Changing(Process):
            async def call(self, call: str, **arguments: Any) -> Any:
                report = await super().call(call, **arguments)
                return {"prepared": ["m", "other files"]} if "prepared" in (report or {}) else report

        first, second = Process(), Changing()
        await joined(operations, first, second)
        with pytest.raises(ApiError, match="change while") as caught:
            await load(operations)
        assert caught.value.status == 503
        assert (first.models, second.models) == ([], [])

    run(test)


def test_where_the_files_differ_once_they_are_read_again() -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "old"}

        class Late(Reader):
            async def call(self, call: str, **arguments: Any) -> Any:
                if call == "begin":
                    self.disk["m"] = "new"
                return await super().call(call, **arguments)

        first, second = Reader(disk), Late(disk)
        await joined(operations, first, second)
        assert await load(operations) == "m"
        assert first.serves == second.serves == {"m": "new"}

    run(test)


def test_a_load_that_ends_a_process_is_tried_in_no_other() -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(begin=ChannelClosedError()), Process()
        await joined(operations, first, second)
        with pytest.raises(LostError):
            await load(operations)
        assert "begin load_model" not in second.calls

    run(test)


@pytest.mark.parametrize("call", ["begin", "decide"])
def test_a_process_that_ends_meanwhile_does_not_hold_the_others_up(call: str) -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process(**{call: ChannelClosedError()})
        await joined(operations, first, second)
        assert await load(operations) == "m"
        assert first.models == ["m"]

    run(test)


def test_what_needs_no_preparation_is_done_where_processes_live() -> None:
    async def test(operations: Operations) -> None:
        ended, living = Process(), Process()
        await joined(operations, ended, living)
        await load(operations)
        ended.script["begin"] = ChannelClosedError()
        await operations.run("unload", name="m")
        assert (operations.members, living.models, held(operations.record)) == ([living], [], [])

    run(test)


@pytest.mark.parametrize("all_at_once", [False, True])
@pytest.mark.parametrize("call", ["begin", "decide"])
def test_operations_do_not_fail_because_a_retired_process_ends(call: str, all_at_once: bool) -> None:
    async def test(operations: Operations) -> None:
        retired, successor = Process(), Process()
        await joined(operations, retired, successor)
        operations.retire(retired)
        await load(operations, "first")
        assert retired.models == ["first"]
        retired.script[call] = ChannelClosedError()
        assert await operations.run("load_model", name="m", all_at_once=all_at_once) == "m"
        assert (operations.members, successor.models) == ([successor], ["first", "m"])

    run(test)


@pytest.mark.parametrize("call", ["begin", "decide"])
def test_what_fails_tells_why_also_where_a_retired_process_ends(call: str) -> None:
    async def test(operations: Operations) -> None:
        retired, successor = Process(**{call: ChannelClosedError()}), Process()
        await joined(operations, retired, successor)
        operations.retire(retired)
        successor.script["begin"] = {"failed": SENTENCE, "state": successor.state()}
        with pytest.raises(ApiError, match="no such model"):
            await operations.run("load_model", name="m", all_at_once=True)

    run(test)


def test_a_retired_process_is_not_the_one_that_goes_ahead() -> None:
    async def test(operations: Operations) -> None:
        retired, successor = Process(), Process(begin=ChannelClosedError())
        await joined(operations, retired, successor)
        operations.retire(retired)
        with pytest.raises(LostError):
            await load(operations)
        assert "begin load_model" not in retired.calls

    run(test)


def test_at_start_what_may_have_ended_a_process_is_tried_again_alone() -> None:
    async def test(operations: Operations) -> None:
        ended, successor = Process(begin=ChannelClosedError()), Process()
        await joined(operations, ended)
        loading = [asyncio.ensure_future(operations.load_model(name, None, {})) for name in ("a", "b", "c")]
        await asyncio.sleep(0.01)
        assert ended not in operations.members
        await joined(operations, successor)
        assert await asyncio.gather(*loading) == ["a", "b", "c"]
        assert sorted(successor.models) == ["a", "b", "c"]

    run(test)


@pytest.mark.parametrize("ending", [0, 1])
def test_at_start_a_load_is_tried_again_whichever_process_has_ended(ending: int) -> None:
    async def test(operations: Operations) -> None:
        processes = [Process(), Process()]
        processes[ending].script["begin"] = ChannelClosedError()
        await joined(operations, *processes)
        assert await operations.load_model("a", None, {}) == "a"
        assert processes[1 - ending].models == ["a"]

    run(test)


def test_at_start_a_load_that_has_lost_its_processes_twice_is_tried_again() -> None:
    async def test(operations: Operations) -> None:
        await joined(operations, Process(begin=ChannelClosedError()))
        loading = asyncio.ensure_future(operations.load_model("a", None, {}))
        await asyncio.sleep(0.01)
        await joined(operations, Process(begin=ChannelClosedError()))
        await asyncio.sleep(0.01)
        assert not operations.members
        last = Process()
        await joined(operations, last)
        assert await loading == "a"
        assert last.models == ["a"]

    run(test)


def test_at_start_a_load_is_tried_again_when_no_other_may_end_its_process() -> None:
    class Slow(Process):
        async def call(self, call: str, **arguments: Any) -> Any:
            if call == "begin" and arguments["arguments"]["name"] == "slow":
                await slow.wait()
                raise ChannelClosedError
            return await super().call(call, **arguments)

    slow = asyncio.Event()

    async def test(operations: Operations) -> None:
        dies_later, last = Slow(), Process()
        await joined(operations, Process(begin=ChannelClosedError()), dies_later)
        loading = asyncio.gather(*(operations.load_model(name, None, {}) for name in ("quick", "slow")))
        await asyncio.sleep(0.01)
        assert dies_later.calls.count("begin load_model") == 1  # and not once more
        slow.set()
        await joined(operations, last)
        assert await loading == ["quick", "slow"]
        assert sorted(last.models) == ["quick", "slow"]

    run(test)


@pytest.mark.parametrize("others", [0, 1])
def test_a_look_at_the_disk_does_not_wait_for_a_process_that_has_gone(others: int) -> None:
    class Gone(Process):
        async def call(self, call: str, **arguments: Any) -> Any:
            if call == "look":
                raise ChannelClosedError  # at once: the loop has no turn
            return await super().call(call, **arguments)

    async def test(operations: Operations) -> None:
        gone, alive = Gone(), Process(look={"a": None})
        await joined(operations, gone, *[alive] * others)
        looking = asyncio.create_task(operations.look())
        if not others:
            await asyncio.sleep(0)
            assert not looking.done()
            await joined(operations, alive)
        assert await looking == {"a": None}
        assert operations.members == [alive]

    run(test)


def test_operations_of_one_name_wait_for_each_other() -> None:
    """Also those whose endpoints could get each other's names."""

    async def test(operations: Operations) -> None:
        process = Process()
        await joined(operations, process)
        process.waiting = asyncio.Event()
        loading = [asyncio.ensure_future(load(operations, name)) for name in ("m", "m-0", "m-0-1", "other-1x")]
        await asyncio.sleep(0.01)
        assert process.calls.count("begin load_model") == 2  # m and the other one
        process.waiting.set()
        await asyncio.gather(*loading)
        assert process.calls.count("begin load_model") == 4

    run(test)


def test_a_newcomer_has_what_the_others_have() -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process()
        await joined(operations, first)
        await load(operations)
        await joined(operations, second)
        assert second.models == ["m"]

    run(test)


def test_a_newcomer_takes_part_in_what_is_being_prepared() -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process()
        await joined(operations, first)
        first.waiting = asyncio.Event()  # the load hangs there
        loading = asyncio.ensure_future(load(operations))
        await asyncio.sleep(0.01)
        assert await operations.join(second)
        assert "begin load_model" not in second.calls  # the first one has not survived it yet
        later = asyncio.ensure_future(load(operations, "later"))
        first.waiting.set()
        await asyncio.gather(loading, later)
        assert first.models == second.models == ["m", "later"]

    run(test)


def test_a_newcomer_that_joins_after_the_preparations_prepares_before_anybody_changes() -> None:
    async def test(operations: Operations) -> None:
        first, second, third = Process(), Process(), Process()
        await joined(operations, first, second)
        second.waiting = asyncio.Event()
        loading = asyncio.ensure_future(load(operations))
        await asyncio.sleep(0.01)
        joining = asyncio.ensure_future(operations.join(third))
        await asyncio.sleep(0.01)
        third.waiting = asyncio.Event()
        second.waiting.set()
        await asyncio.sleep(0.01)
        assert await joining
        assert "begin load_model" in third.calls
        assert first.models == second.models == []
        third.waiting.set()
        await loading
        assert first.models == second.models == third.models == ["m"]

    run(test)


def test_a_dead_process_is_replaced_while_a_load_hangs_in_another() -> None:
    async def test(operations: Operations) -> None:
        dead, hanging, newcomer = Process(), Process(), Process()
        await joined(operations, dead, hanging)
        await load(operations, "old")
        hanging.waiting = asyncio.Event()
        loading = asyncio.ensure_future(load(operations))
        await asyncio.sleep(0.01)
        operations.ended(dead)
        assert await operations.join(newcomer)
        assert newcomer.models == ["old"]
        unloaded = operations.run("unload", name="old")  # nobody waits for the load that hangs
        await asyncio.wait_for(unloaded, 5)
        assert newcomer.models == hanging.models == []
        hanging.waiting.set()
        await loading
        assert newcomer.models == hanging.models == ["m"]

    run(test)


@pytest.mark.parametrize("status", [503, 504])
def test_what_hangs_in_one_process_is_not_tried_in_the_others(status: int) -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process()
        failure = ApiError(status, "loading model 'm' has not ended in 1 s").to_json()
        await joined(operations, first, second)
        first.script["begin"] = {"failed": failure, "state": first.state()}
        with pytest.raises(ApiError, match="has not ended") as caught:
            await load(operations)
        assert caught.value.status == status
        assert "begin load_model" not in second.calls
        assert await load(operations) == "m"

    run(test)


def test_the_record_outlives_the_processes() -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process()
        await joined(operations, first)
        await load(operations)
        operations.leave(first)
        unloading = asyncio.ensure_future(operations.run("unload", name="m"))
        await asyncio.sleep(0.01)
        assert not unloading.done()  # it waits for somebody to do it
        await joined(operations, second)
        await unloading
        assert second.models == []

    run(test)


def test_a_newcomer_that_cannot_have_the_same_stays_outside() -> None:
    async def test(operations: Operations) -> None:
        first, second, third = Process(), Process(restore={"m": "gone"}), Process(restore={"m": "gone"})
        endpoint = {"name": "m", "base": "the model"}
        first.models = [endpoint]
        operations.record = first.state()
        await joined(operations, first)
        assert not await operations.join(second)
        assert operations.members == [first]
        assert operations.loaded() == {}
        operations.leave(first)
        assert await operations.join(third)  # nobody serves what it cannot
        assert operations.members == [third]
        assert operations.loaded() == {"the model": ""}  # a poll tries again

    run(test)


class Changing(Process):
    """Reports what has changed since it reported last."""

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.base = ""

    async def call(self, call: str, **arguments: Any) -> Any:
        report = await super().call(call, **arguments)
        if call == "state":
            self.base = report["mark"]
        if isinstance(report, dict) and "state" in report:
            report = {**report, "state": self.changes()}
        return report

    def changes(self) -> dict[str, Any]:
        state = self.state()
        changes = {**state, "base": self.base, "changed": state.pop("endpoints"), "removed": ["gone"]}
        self.base = state["mark"]
        del changes["endpoints"], changes["start"]
        return changes


def test_the_record_is_what_it_was_with_what_has_changed() -> None:
    async def test(operations: Operations) -> None:
        first, second = Changing(), Changing()
        await joined(operations, first, second)
        states = first.calls.count("state")
        await load(operations, "gone")
        first.models.remove("gone")
        second.models.remove("gone")
        await load(operations, "m")
        assert held(operations.record) == ["m"]
        assert operations.record["start"] == {}
        assert first.calls.count("state") == states  # nobody had to tell all

    run(test)


def test_changes_of_another_state_than_the_record_are_not_merged() -> None:
    async def test(operations: Operations) -> None:
        first = Changing()
        await joined(operations, first)
        first.models.append("unknown")
        first.base = "another"
        await load(operations, "m")
        assert held(operations.record) == ["unknown", "m"]
        assert first.calls[-1] == "state"

    run(test)


def test_a_configuration_is_kept_once_and_as_long_as_it_is_used() -> None:
    async def test(operations: Operations) -> None:
        class Overridden(Process):
            def state(self) -> dict[str, Any]:
                return state_of([{"name": name, "override": text_mark(OVERRIDE)} for name in self.models])

        await joined(operations, Overridden())
        given = {"config": OVERRIDE}
        for name in ("a", "b"):
            assert await operations.run_for_client("load_model", {"name": name, "parameters": given}) == name
        assert operations.override(text_mark(OVERRIDE)) == OVERRIDE
        for name in ("a", "b"):
            assert operations.override(text_mark(OVERRIDE)) == OVERRIDE
            await operations.run_for_client("unload", {"name": name})
        with pytest.raises(ApiError, match="no longer in use"):
            operations.override(text_mark(OVERRIDE))

    run(test)


OVERRIDE = '{"max_batch_size": 3}'


def test_who_failed_before_others_changed_is_not_taken_for_different() -> None:
    async def test(operations: Operations) -> None:
        first, second = Process(), Process()
        await joined(operations, first, second)
        first.script["begin"] = {"failed": SENTENCE, "state": first.state()}
        second.waiting = asyncio.Event()
        failing = asyncio.ensure_future(load(operations, "bad"))
        await asyncio.sleep(0.01)
        waiting, second.waiting = second.waiting, None
        assert await load(operations, "good") == "good"
        waiting.set()
        with pytest.raises(ApiError, match="no such model"):
            await failing
        assert (ENDED, operations.members) == ([], [first, second])
        assert held(operations.record) == first.models == second.models == ["good"]

    run(test)


def test_a_newcomer_whose_others_end_after_a_change_has_that_change() -> None:
    async def test(operations: Operations) -> None:
        first, newcomer = Process(), Process()
        await joined(operations, first)
        restored = asyncio.Event()

        class Slow(Process):
            async def call(self, call: str, **arguments: Any) -> Any:
                result = await super().call(call, **arguments)
                if call == "restore" and not restored.is_set():
                    restored.set()
                    await load(operations)
                    operations.ended(first)
                return result

        newcomer = Slow()
        assert await operations.join(newcomer)
        assert held(operations.record) == newcomer.models == ["m"]

    run(test)


def test_clients_may_not_ask_for_everything() -> None:
    async def test(operations: Operations) -> None:
        with pytest.raises(ApiError):
            await operations.run_for_client("expect", {"names": []})

    run(test)


# --- Nobody serves something else than the others ---------------------------------------------------------------------


def test_before_a_newcomer_takes_part_all_have_what_lies_on_the_disk() -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "old", "other": "same"}
        first, second, newcomer = Reader(disk), Reader(disk), Reader(disk)
        await joined(operations, first, second)
        for name in disk:
            await load(operations, name)
        disk["m"] = "new"
        await joined(operations, newcomer)
        assert first.serves == second.serves == newcomer.serves == {"m": "new", "other": "same"}
        assert held(operations.record) == [["m", "new"], ["other", "same"]]
        assert first.calls.count("begin refresh") == 1

    run(test)


def test_a_newcomer_that_serves_something_else_stays_outside() -> None:
    """What it could load does not load in the others, or not in the same way."""

    async def test(operations: Operations) -> None:
        disk = {"m": "old"}
        first, second, newcomer = Reader(disk), Reader(disk), Reader(disk)
        await joined(operations, first, second)
        await load(operations)
        disk["m"] = "new"
        second.script["begin"] = {"failed": SENTENCE, "state": second.state()}
        assert not await operations.join(newcomer)
        assert operations.members == [first, second]
        assert first.serves == second.serves == {"m": "old"}
        assert held(operations.record) == [["m", "old"]]
        assert ENDED == []

    run(test)


def test_a_newcomer_whose_files_change_while_all_load_again() -> None:
    """It serves something else than the others then, and nobody has to go."""

    async def test(operations: Operations) -> None:
        disk = {"m": "old"}

        class Late(Reader):
            async def call(self, call: str, **arguments: Any) -> Any:
                report = await super().call(call, **arguments)
                if call == "begin" and len(late) < 2:
                    late.append(report)
                    return {**report, "prepared": ["m", "newer"]}
                return report

        late: list[Any] = []
        first, newcomer = Reader(disk), Late(disk)
        await joined(operations, first)
        await load(operations)
        disk["m"] = "new"
        await joined(operations, newcomer)
        assert (len(late), ENDED) == (2, [])
        assert first.serves == newcomer.serves == {"m": "new"}

    run(test)


def test_files_that_change_all_the_time_let_no_newcomer_in() -> None:
    async def test(operations: Operations) -> None:
        class Restless(Reader):
            def state(self) -> dict[str, Any]:
                self.serves["m"] += "!"
                return super().state()

        disk = {"m": "old"}
        first, newcomer = Reader(disk), Restless(disk)
        await joined(operations, first)
        await load(operations)
        assert not await operations.join(newcomer)
        assert first in operations.members
        assert newcomer not in operations.members

    run(test)


@pytest.mark.parametrize("lost", ["the newcomer", "one of the others"])
def test_a_process_that_ends_while_all_load_again(lost: str) -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "old"}
        first, second, newcomer = Reader(disk), Reader(disk), Reader(disk)
        await joined(operations, first, second)
        await load(operations)
        disk["m"] = "new"
        if lost == "the newcomer":

            class Dead(Reader):
                async def call(self, call: str, **arguments: Any) -> Any:
                    if call == "begin" or self.calls.count("begin"):
                        self.calls.append("begin")
                        raise ChannelClosedError
                    return await super().call(call, **arguments)

            with pytest.raises(ChannelClosedError):
                await operations.join(Dead(disk))
            assert operations.members == [first, second]
            assert first.serves == second.serves == {"m": "old"}
        else:
            second.script["begin"] = ChannelClosedError()
            assert await operations.join(newcomer)
            assert set(operations.members) == {first, newcomer}
            assert first.serves == newcomer.serves == {"m": "new"}

    run(test)


def test_two_newcomers_at_once_are_equal() -> None:
    """Both had nobody to be equal to when they began."""

    async def test(operations: Operations) -> None:
        disk = {"m": "one"}
        before = Reader(disk)
        await joined(operations, before)
        await load(operations)
        operations.ended(before)

        class Later(Reader):
            async def call(self, call: str, **arguments: Any) -> Any:
                if call == "restore":
                    self.disk["m"] = "two"
                return await super().call(call, **arguments)

        first, second = Reader(disk), Later(disk)
        assert await asyncio.gather(operations.join(first), operations.join(second)) == [True, True]
        assert first.serves == second.serves

    run(test)


def test_who_serves_something_else_after_an_operation_is_ended_before_it_is_answered() -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "old"}
        processes = [Reader(disk) for _ in range(3)]
        await joined(operations, *processes)
        await load(operations)
        broken = {"failed": ApiError(500, "internal error").to_json(), "state": processes[1].state()}
        disk["m"] = "new"
        processes[1].script["decide"] = broken
        assert await load(operations) == "m"
        assert [processes[1]] == ENDED
        assert operations.members == [processes[0], processes[2]]
        assert held(operations.record) == [["m", "new"]]

    run(test)


def test_of_two_that_differ_the_one_stays_that_has_done_what_was_asked() -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "old"}
        processes = [Reader(disk) for _ in range(2)]
        await joined(operations, *processes)
        await load(operations)
        disk["m"] = "new"
        processes[0].script["decide"] = {
            "failed": ApiError(500, "internal error").to_json(),
            "state": processes[0].state(),
        }
        assert await load(operations) == "m"
        assert (ENDED, operations.members) == ([processes[0]], [processes[1]])

    run(test)


def test_failures_in_other_words_are_no_difference() -> None:
    async def test(operations: Operations) -> None:
        class Wordy(Process):
            def state(self) -> dict[str, Any]:
                return {**super().state(), "start": {"failures": {"broken": f"in the words of {id(self)}"}}}

        await joined(operations, Wordy(), Wordy())
        for number in range(3):
            await load(operations, f"m{number}")
        assert (len(operations.members), ENDED) == (2, [])

    run(test)


def test_others_wait_for_one_that_accepts_before_it_takes_part() -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "one"}
        before = Reader(disk)
        await joined(operations, before)
        await load(operations)
        assert not operations.may_serve_first(Reader(disk))  # somebody serves
        operations.ended(before)
        slow, quick = Reader(disk), Reader(disk)
        assert operations.may_serve_first(slow)
        assert operations.may_serve_first(slow)
        assert not operations.may_serve_first(quick)  # nobody knows whether it has loaded the same
        joining = asyncio.ensure_future(operations.join(quick))
        await asyncio.sleep(0.01)
        assert not joining.done()
        disk["m"] = "two"
        await joined(operations, slow)
        assert await joining
        assert slow.serves == quick.serves == {"m": "two"}

    run(test)


def test_others_go_on_when_one_that_accepts_before_it_takes_part_has_ended() -> None:
    async def test(operations: Operations) -> None:
        slow, quick = Process(), Process()
        assert operations.may_serve_first(slow)
        joining = asyncio.ensure_future(operations.join(quick))
        await asyncio.sleep(0.01)
        assert not joining.done()
        operations.ended(slow)
        assert await joining

    run(test)


def test_who_drains_does_not_answer_beside_a_process_that_serves_something_else() -> None:
    async def test(operations: Operations) -> None:
        disk = {"m": "old"}
        draining, newcomer = Reader(disk), Reader(disk)
        await joined(operations, draining)
        await load(operations)
        operations.retire(draining)
        disk["m"] = "new"
        await joined(operations, newcomer)
        assert (ENDED, operations.members) == ([draining], [newcomer])

    run(test)
