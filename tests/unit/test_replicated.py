"""What a process holds, told and made again by another one."""

from __future__ import annotations

import asyncio
import json
import shutil
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ensembles import linear, write_basic, write_ensemble
from support import REPOSITORY

from fastinfer.api.service import Service
from fastinfer.backends.findings import Findings
from fastinfer.backends.onnx import load as onnx_load
from fastinfer.backends.onnx import trial as onnx_trial
from fastinfer.base.errors import ApiError
from fastinfer.config.server import ServerConfig
from fastinfer.repository import files
from fastinfer.repository.operation import Operation
from fastinfer.repository.replicated import ReplicatedRepository
from fastinfer.repository.two_phase import _PREPARED, TwoPhaseOperations


def run(directory: Path, test: Callable[[ReplicatedRepository, ReplicatedRepository], Awaitable[None]]) -> None:
    """Two processes' repositories, in one."""

    async def main() -> None:
        config = ServerConfig(model_repository=(directory,), threads=2)
        services = [Service(config, asyncio.get_running_loop()) for _ in range(2)]
        try:
            await test(*(service.repository for service in services))
        finally:
            for service in services:
                await service.close()

    asyncio.run(main())


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("simple", "digits", "two_versions"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    return tmp_path


OVERRIDE = '{"max_batch_size": 3}'


async def filled(replica: ReplicatedRepository) -> dict[str, Any]:
    """Holds something of everything, and tells it as it comes over a channel."""
    await replica.expect(["simple", "nope"])
    await replica.load_model("simple", None, {})
    with pytest.raises(ApiError):
        await replica.load_model("nope", None, {})
    await replica.load_model("digits", None, {})
    await replica.load_model("digits", None, {"batch_size": 4, "config": OVERRIDE})
    await replica.unload("digits")
    await replica.load_model("two_versions", 1, {})
    for _ in range(3):
        await replica.load_worker("echo", {"share": False})
    await replica.load_worker("echo", {"next": "echo"})
    told: dict[str, Any] = json.loads(json.dumps(replica.state()))
    return told


def test_told_and_made_again(models: Path) -> None:
    async def test(one: ReplicatedRepository, other: ReplicatedRepository) -> None:
        told = await filled(one)
        asked: list[str] = []

        async def override_of(mark: str) -> str:
            asked.append(mark)
            return OVERRIDE

        other.override_of = override_of
        assert await other.restore(told) == {}
        assert other.state() == told
        assert await other.restore(told) == {}
        assert len(asked) == 1  # what it has it does not ask for again
        assert other.changed(told) == []
        assert other.names() == ["digits-0", "echo", "echo-0", "simple", "two_versions"]
        assert other.why_not_ready() == one.why_not_ready() is not None
        for _ in range(3):
            await other.unload("echo")
        assert "echo" in other.names()  # the chain holds it
        await other.unload("echo-0")
        assert "echo" not in other.names()

    run(models, test)


def test_what_has_changed_is_told_alone(models: Path) -> None:
    async def test(one: ReplicatedRepository, _: ReplicatedRepository) -> None:
        await filled(one)
        state = one.state()
        same = one.changes()
        assert (same["base"], same["mark"]) == (state["mark"], state["mark"])
        assert (same["changed"], same["removed"], "start" in same) == ([], [], False)
        await one.unload("simple")
        await one.load_model("digits", None, {"batch_size": 2})
        await one.unload("echo")  # one load less
        changes = one.changes()
        assert [each["name"] for each in changes["changed"]] == ["digits", "echo"]
        assert changes["removed"] == ["simple"]
        again = one.state()
        assert (changes["base"], changes["digest"], changes["mark"]) == (state["mark"], again["digest"], again["mark"])
        merged = {each["name"]: each for each in [*state["endpoints"], *changes["changed"]]}
        assert [merged[each["name"]] for each in again["endpoints"]] == again["endpoints"]
        assert OVERRIDE not in json.dumps(again)

    run(models, test)


def test_made_equal_again(models: Path) -> None:
    """What is not there any more goes, what is there stays, what is new comes."""

    async def test(one: ReplicatedRepository, other: ReplicatedRepository) -> None:
        told = await filled(one)

        async def override_of(_: str) -> str:
            return OVERRIDE

        other.override_of = override_of
        await other.restore(told)
        kept = other.find("simple")
        await one.unload("echo-0")
        await one.unload("digits-0")
        await one.load_model("two_versions", None, {})
        await one.load_model("digits", None, {"batch_size": 2})
        again = one.state()
        assert await other.restore(again) == {}
        assert other.state() == again
        assert other.find("simple") is kept

    run(models, test)


def test_versions_are_those_that_were_served(models: Path) -> None:
    async def test(one: ReplicatedRepository, other: ReplicatedRepository) -> None:
        await one.expect(["simple"])
        await one.load_model("simple", None, {})
        told = one.state()
        shutil.copytree(models / "simple" / "1", models / "simple" / "2")
        assert await other.restore(told) == {}
        assert other.versions("simple") == ["1"]
        assert other.changed(told) == []
        (models / "simple" / "1" / "model.onnx").touch()
        assert other.changed(told) == []
        shutil.rmtree(models / "simple" / "1")
        await other.unload("simple")
        failed = await other.restore(told)
        assert "gone" in failed["simple"]
        with pytest.raises(ApiError) as caught:
            other.find("simple")
        assert caught.value.status == 503

    run(models, test)


def test_changed_files_are_told(models: Path) -> None:
    async def test(one: ReplicatedRepository, other: ReplicatedRepository) -> None:
        await one.load_model("simple", None, {})
        told = one.state()
        (models / "simple" / "1" / "model.onnx").touch()
        assert await other.restore(told) == {}
        assert other.changed(told) == ["simple"]

    run(models, test)


def test_an_operation_goes_on_when_it_is_decided(models: Path) -> None:
    async def test(one: ReplicatedRepository, _: ReplicatedRepository) -> None:
        rounds = TwoPhaseOperations(one)
        arguments = {"name": "simple", "version": None, "parameters": {}}
        report = await rounds.begin(1, "load_model", arguments)
        assert report["prepared"][0] == "simple"
        assert one.names() == []
        report = await rounds.decide(1, None)
        assert (report["done"], one.names()) == ("simple", ["simple"])
        assert report["state"]["changed"] == one.state()["endpoints"]
        assert (await rounds.begin(2, "unload", {"name": "simple"}))["done"] is None
        report = await rounds.begin(3, "load_model", arguments)
        report = await rounds.decide(3, ApiError(400, "the other one cannot").to_json())
        assert report["failed"]["message"] == "the other one cannot"
        assert one.names() == []
        report = await rounds.begin(4, "load_model", {**arguments, "name": "nope"})
        assert report["failed"]["status"] == 400
        with pytest.raises(ValueError, match="no operation"):
            await rounds.begin(5, "close", {})

    run(models, test)


def test_what_is_read_is_told_and_not_only_when_it_was_written(models: Path) -> None:
    """Two processes that have read different bytes are not equal, whatever the file's status says."""

    async def test(one: ReplicatedRepository, other: ReplicatedRepository) -> None:
        await one.load_model("simple", None, {})
        told = one.state()
        (version,) = told["endpoints"][0]["versions"].values()
        one.find("simple").content = "of other bytes"  # type: ignore[attr-defined]
        (changed,) = one.state()["endpoints"][0]["versions"].values()
        assert changed["files"] != version["files"]
        assert one.changed(told) == ["simple"]
        assert await other.restore(told) == {}
        assert other.state()["endpoints"] == told["endpoints"]

    run(models, test)


def test_files_that_are_swapped_while_they_are_loaded_are_read_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There and back again too: what has been loaded is what the stamp says."""

    async def test(one: ReplicatedRepository, _: ReplicatedRepository) -> None:
        version = models / "two_versions" / "2"
        (models / "now").symlink_to(models / "two_versions" / "1")
        shutil.rmtree(version)
        version.symlink_to(models / "now")
        real = files.ModelFiles.read_model
        swaps: list[str] = []

        def swap(target: str) -> None:
            (models / "then").symlink_to(target)
            (models / "then").rename(models / "now")

        def read(self: files.ModelFiles, number: int, path: Path) -> bytes:
            if len(swaps) < 2:
                swaps.append("there and back")
                swap(str(models / "digits" / "1"))
                try:
                    return real(self, number, path)
                finally:
                    swap(str(models / "two_versions" / "1"))
            return real(self, number, path)

        monkeypatch.setattr(files.ModelFiles, "read_model", read)
        await one.load_model("two_versions", None, {})
        assert len(swaps) == 2
        assert [spec.name for spec in one.find("two_versions").signature.inputs] == ["number"]

        def changed(self: files.ModelFiles, *_: object) -> bytes:
            raise files.FilesChangedError(self.name)

        monkeypatch.setattr(files.ModelFiles, "read_model", changed)
        with pytest.raises(ApiError, match="change while it is loaded") as caught:
            await one.load_model("simple", None, {})
        assert caught.value.status == 503

    run(models, test)


def test_what_a_poll_compares_is_what_was_loaded(models: Path) -> None:
    async def test(one: ReplicatedRepository, other: ReplicatedRepository) -> None:
        look = (await one.look())["models"]
        assert one.loaded() == {}
        await one.load_model("simple", None, {})
        await one.load_model("simple", None, {"batch_size": 2})
        await one.load_model("two_versions", 1, {})
        await one.load_worker("echo", {})
        assert one.loaded() == {"simple": look["simple"], "two_versions": look["two_versions"]}
        await other.restore(one.state())
        assert other.loaded() == one.loaded()
        (models / "simple" / "1" / "model.onnx").touch()
        await one.load_model("simple", None, {})
        assert one.loaded()["simple"] == ""  # its two endpoints are made of different files
        # Nobody has chosen what is loaded again after a crash from what lies there then.
        await other.close()
        await other.restore(one.state())
        assert other.loaded()["simple"] == ""
        await one.refresh("two_versions", Operation(99))
        assert one.loaded()["two_versions"] == ""

    run(models, test)


def test_one_that_is_withdrawn_serves_no_more(models: Path) -> None:
    async def test(one: ReplicatedRepository, _: ReplicatedRepository) -> None:
        await filled(one)
        one.withdraw()
        one.withdraw()
        for name in ("simple", "nope", "echo"):
            with pytest.raises(ApiError, match="is being replaced") as caught:
                one.find(name)
            assert caught.value.status == 503
        with pytest.raises(ApiError, match="is being replaced"):
            await one.load_model("digits", None, {})
        assert one.names() == []
        assert dict(one.ready) == {}

    run(models, test)


def test_the_index_before_the_repository_was_read(models: Path) -> None:
    async def test(one: ReplicatedRepository, _: ReplicatedRepository) -> None:
        assert {(entry.state, entry.reason) for entry in await one.index()} == {("LOADING", "")}
        await one.expect([])
        assert {entry.reason for entry in await one.index()} == {"unloaded"}

    run(models, test)


def test_what_a_trial_has_found_is_not_tried_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Counted(onnx_trial.Trial):
        def why_rows_depend(self) -> str | None:
            tried.append(self)
            return "the trial says so" if self._exact else super().why_rows_depend()

    monkeypatch.setattr(onnx_load, "Trial", Counted)
    exact = json.dumps({"batching": "exact"})

    async def test(first: ReplicatedRepository, second: ReplicatedRepository) -> None:
        await first.load_model("simple", None, {})
        await first.load_model("simple", None, {"tag": 1, "config": exact})
        assert len(tried) == 2
        state = json.loads(json.dumps(first.state()))

        async def override_of(_: str) -> str:
            return exact

        second.override_of = override_of
        assert await second.restore(state) == {}
        assert len(tried) == 2
        for replica in (first, second):
            limits = [model.own_signature.batched for model in replica.models()]
            assert limits == [True, False]
        assert json.loads(json.dumps(second.state()))["trials"] == state["trials"]

        # Another graph, or other options of the session, are tried; what has no effect on a run is not.
        await second.load_model("simple", None, {"config": json.dumps({"dynamic_batching": {"max_queue_size": 7}})})
        assert len(tried) == 2
        await second.load_model("simple", None, {"graph_optimization_level": "none"})
        assert len(tried) == 3
        shutil.copy(REPOSITORY / "identity_fp32" / "1" / "model.onnx", models / "simple" / "1" / "model.onnx")
        await second.load_model("simple", None, {})
        assert len(tried) == 4

    run(models, test)


def test_results_of_trials_are_bounded_and_the_latest_stay() -> None:
    results = Findings()
    for number in range(3000):
        results.once(str(number), lambda number=number: None if number % 2 else f"reason {number}")
        assert results.once("0", lambda: "another") == "reason 0"
    entries = results.snapshot()
    assert len(entries) == 1000
    assert list(entries)[-2:] == ["2999", "0"]
    other = Findings()
    other.restore(json.loads(json.dumps(entries)))
    assert other.once("2998", lambda: "another") == "reason 2998"
    assert other.once("2999", lambda: "another") is None
    assert other.snapshot().keys() == entries.keys()


def test_a_trial_that_fails_is_tried_again() -> None:
    results = Findings()

    def fails() -> str | None:
        raise RuntimeError("the server is ending")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            results.once("key", fails)
    assert results.snapshot() == {}
    assert results.once("key", lambda: None) is None


def test_results_of_trials_are_told_once_as_changes(models: Path) -> None:
    async def test(first: ReplicatedRepository, second: ReplicatedRepository) -> None:
        await first.load_model("simple", None, {})
        told = first.changes()["trials"]
        assert len(told) == 1
        assert first.changes()["trials"] == {}
        assert first.state()["trials"] == told
        second.state()
        await second.load_model("simple", None, {})
        assert second.changes()["trials"] == told

    run(models, test)


# --- In step ----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "what is new": ("follow", {"name": "new", "known": False, "gone": False}),
    "what has changed": ("follow", {"name": "simple", "known": True, "gone": False}),
    "what is gone": ("follow", {"name": "simple", "known": True, "gone": True}),
    "a model": ("load_model", {"name": "new", "version": None, "parameters": {}}),
    "one version": ("load_model", {"name": "two_versions", "version": 2, "parameters": {}}),
    "one more load": ("load_model", {"name": "simple", "version": None, "parameters": {"share": False}}),
    "a worker": ("load_worker", {"name": "fake", "parameters": {}}),
    "one more load of a worker": ("load_worker", {"name": "echo", "parameters": {"share": False}}),
    "a step": ("load_step", {"name": "new", "version": None}),
    "another version of a step": ("load_step", {"name": "two_versions", "version": 2}),
    "a worker as a step": ("load_step", {"name": "echo_multi", "version": None}),
    "the same again": ("refresh", {"name": "simple"}),
}


def test_each_operation_that_is_prepared_is_tried() -> None:
    assert {operation for operation, _ in CHANGES.values()} == _PREPARED


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("refused", [False, True])
def test_nothing_changes_before_all_have_prepared_it(models: Path, change: str, refused: bool) -> None:
    """Otherwise processes differ while another operation is published, and one of them would be replaced."""

    async def test(replica: ReplicatedRepository, _: ReplicatedRepository) -> None:
        await filled(replica)
        shutil.copytree(REPOSITORY / "simple", models / "new")
        (models / "simple" / "1" / "model.onnx").touch()
        before = replica.state()["digest"]  # of what is served
        operation, arguments = CHANGES[change]
        rounds = TwoPhaseOperations(replica)
        report = await rounds.begin(7, operation, arguments)
        assert "prepared" in report
        assert replica.state()["digest"] == before
        report = await rounds.decide(7, ApiError(503, "another process has failed").to_json() if refused else None)
        while "prepared" in report:
            report = await rounds.decide(7, None)
        assert ("failed" in report) == refused
        assert (replica.state()["digest"] == before) == refused

    run(models, test)


# --- Ensembles --------------------------------------------------------------------------------------------------------


def test_the_model_of_a_step_is_freed_when_it_is_unloaded(models: Path) -> None:
    write_basic(models)
    write_ensemble(models, "linear", linear())

    async def test(replica: ReplicatedRepository, _: ReplicatedRepository) -> None:
        await replica.load_model("linear", None, {})
        assert replica.names() == ["linear", "plus", "times"]
        assert replica.find("linear").why_withdrawn() is None
        step = weakref.ref(replica.find("plus"))
        await replica.unload("plus")
        for _ in range(100):
            if step() is None:
                break
            await asyncio.sleep(0.01)
        assert step() is None
        assert replica.find("linear").why_withdrawn() is not None

    run(models, test)
