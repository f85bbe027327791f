"""Changes what is loaded, in all serving processes at once.

Every change is an operation of all processes. Operations on one name run one after another, each is prepared everywhere
before it is published anywhere, and all changes have one order, so that equal processes stay equal. The state after an
operation is kept as the record; a new process restores it to become equal to the others.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import Any, Final, Protocol
from weakref import WeakSet

from fastinfer.base import limits, waits
from fastinfer.base.errors import ApiError
from fastinfer.repository.operation import text_mark
from fastinfer.repository.steps import read_error, with_steps
from fastinfer.repository.watcher import Look
from fastinfer.supervisor.channel import ChannelClosedError

log = logging.getLogger(__name__)

_NUMBER: Final = re.compile(r"(?:-\d+)+$")
_NOT_RETRIED: Final = 503  # a preparation that fails with this status or higher is not tried in further processes
_MODEL: Final = "model"  # the kind of an endpoint of a model of the repository
_TRIES: Final = 4  # attempts of an operation without a client if processes end or files change meanwhile
_CLIENT_OPERATIONS: Final = frozenset({"load_model", "load_worker", "unload"})  # operations that clients may request
_IMMEDIATE: Final = frozenset({"expect", "refuse", "unload"})  # operations that need no preparation
_EMPTY_RECORD: Final[dict[str, Any]] = {
    "not_ready": "the model repository has not been read yet",
    "start": {"wanted": None, "failures": {}, "unreadable": None, "served": False, "found": False},
    "digest": "",
    "mark": "",
    "trials": {},
    "endpoints": [],
}

Report = dict[str, Any]
"""See :mod:`fastinfer.repository.two_phase`; ``{"lost": True}`` if the process has ended meanwhile."""


class Member(Protocol):
    """A serving process; see :class:`fastinfer.supervisor.channel.Channel`."""

    async def call(self, call: str, **arguments: Any) -> Any: ...

    def notify(self, call: str, **arguments: Any) -> None: ...


class LostError(ApiError):
    """A process has ended during the preparation of an operation, perhaps because of it; nothing has changed."""

    def __init__(self, name: str) -> None:
        super().__init__(500, f"a process of the server has ended during '{name}'")


class _FilesDifferError(ApiError):
    """Two processes have prepared an operation from different files; nothing has changed."""

    def __init__(self) -> None:
        super().__init__(503, "the files of the model change while it is loaded", retry_after_s=1)


class Operations:
    """The operations of a server, and its record.

    Attributes:
        members: the processes that take part.
        record: the state of each of them (see :meth:`fastinfer.repository.replicated.ReplicatedRepository.state`).

    Args:
        end_member: called with a process that does not serve the same as the others; returns when it serves no more.
    """

    def __init__(self, end_member: Callable[[Member], Awaitable[None]]) -> None:
        self._end_member = end_member
        self.members: list[Member] = []
        self.record: Report = _EMPTY_RECORD
        self._retired: WeakSet[Member] = WeakSet()
        self._numbers = count(1)
        self._names = _Locks()
        self._changing = asyncio.Lock()  # held while processes publish
        self._admitting = asyncio.Lock()  # held while a process joins
        self._lost: set[str] = set()  # models that could not be restored after the last process had ended
        self._overrides: dict[str, str] = {}  # configurations that loads have given, by digest ...
        self._override_users: Counter[str] = Counter()  # ... and how many operations under way use each
        self._joining: Member | None = None  # a process that takes part in operations, but does not serve yet
        # The process that accepts before it joins; the event is set when it has joined or ended.
        self._first: tuple[Member, asyncio.Event] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._parallel_loads = 0  # loads at start that are under way
        self._settled = asyncio.Condition()  # notified when the number above or the members change

    # --- Taking part --------------------------------------------------------------------------------------------------

    async def join(self, member: Member) -> bool:
        """Makes a process equal to the others, and lets it take part.

        If others already serve, it takes part when it serves the same versions from the same files. If files have
        changed on the disk since the others loaded them, all processes load them again. The first process serves the
        part of the record that it can load, and defines the record for the others.

        Args:
            member: a process that has loaded nothing yet.

        Returns:
            Whether it takes part.

        Raises:
            ChannelClosedError: it has ended.
        """
        with waits.logged(lambda: "a new process waits until it can take part"):
            fit = await self._join(member)
        if fit:
            self._send_readiness()
        return fit

    async def _join(self, member: Member) -> bool:
        record = self.record
        failed = await self._restore(member, record)
        await self._wait_for_first(member)
        async with self._admitting:
            for left in reversed(range(_TRIES + 1)):
                if left and self.record is not record:  # operations have ended meanwhile
                    record = self.record
                    failed = await self._restore(member, record)
                async with self._changing:
                    if not left and self.record is not record:  # operations kept ending; now the lock stops them
                        record = self.record
                        failed = await self._restore(member, record)
                    fit = await self._admit(member, failed, record)
                if fit is not None:
                    return fit
                if self.record is record and not await self._refresh_all(member):
                    return False
        log.error("a new process cannot become equal to the others: the files on the disk keep changing")
        return False

    async def _restore(self, member: Member, record: Report) -> dict[str, str]:
        failed: dict[str, str] = await member.call("restore", state=record)
        for name, reason in failed.items():
            log.error("'%s' cannot be restored: %s", name, reason)
        return failed

    async def _admit(self, member: Member, failed: Mapping[str, str], record: Report) -> bool | None:
        """Admits a process if it is equal to the record, or if no other process serves. Nothing is published meanwhile.

        Preparations continue meanwhile: before an operation decides, it finds the new member.

        Args:
            member: the process.
            failed: by name, why endpoints could not be restored.
            record: the record from which it was restored.

        Returns:
            Whether it takes part; None: not yet, because files or the record have changed.
        """
        if self.record is not record:
            return None
        state = await member.call("state")
        if not self._others(member):
            endpoints = {each["name"]: each for each in record["endpoints"]} if failed else {}
            if _served(state) != _served(self.record):  # the other members only finish their requests
                await self._end_those(self.members)
            self.record = state
            self._lost |= {endpoints[name]["base"] for name in failed}
        elif failed:
            return False
        elif _served(state) != _served(self.record):
            return None
        self.members.append(member)
        self._release_first(member)
        await self._wake_waiting()
        return True

    async def _refresh_all(self, member: Member) -> bool:
        """Makes all processes, and one that is about to join, reload endpoints whose files have changed on the disk."""
        record = self.record
        changed = await member.call("changed", state=record)
        self.members.insert(0, member)  # first, because it has loaded the files and survived
        self._joining = member
        try:
            for name in changed:
                log.warning("the files of '%s' have changed since it was loaded: all processes load it again", name)
                async with self._in_order(name):
                    await self._run_attempts("refresh", name=name)
        except LostError:
            pass  # if it still runs, it is compared again with the remaining processes
        except ApiError as error:
            log.error("changed files could not be loaded again: %s", error.message)
            return False
        finally:
            self._joining = None
            self.leave(member)
        if not changed:
            await member.call("restore", state=record)
        return True

    async def _end_those(self, members: Iterable[Member]) -> None:
        members = list(members)
        for member in members:
            self.retire(member)
            self.leave(member)
        await asyncio.gather(*map(self._end_member, members))

    def _others(self, member: Member) -> list[Member]:
        """The other members that serve."""
        return [other for other in self.members if other is not member and other not in self._retired]

    def may_serve_first(self, member: Member) -> bool:
        """Whether a process may accept before it joins, because no other process serves; others then join after it."""
        if self._first is None and not self._others(member) and not self._admitting.locked():
            self._first = member, asyncio.Event()
        return self._first is not None and self._first[0] is member

    async def _wait_for_first(self, member: Member) -> None:
        while self._first is not None and self._first[0] is not member:
            await self._first[1].wait()

    def _release_first(self, member: Member) -> None:
        if self._first is not None and self._first[0] is member:
            self._first[1].set()
            self._first = None

    def retire(self, member: Member) -> None:
        """Notes that a process is about to end. It takes part until then, and its end fails no operation."""
        self._retired.add(member)
        self._release_first(member)

    def leave(self, member: Member) -> None:
        """Removes a process from the members."""
        if member in self.members:
            self.members.remove(member)

    def ended(self, member: Member) -> None:
        """Notes that a process has ended."""
        self.leave(member)
        self._release_first(member)

    @asynccontextmanager
    async def _in_order(self, name: str) -> AsyncIterator[None]:
        """Waits until there are members, and no other operation on this name runs."""
        async with self._settled:
            with waits.logged(lambda: f"an operation on '{name}' waits for a process that serves"):
                await self._settled.wait_for(lambda: bool(self.members))
        async with self._names.hold(_NUMBER.sub("", name)):  # "a-0" may be another endpoint of "a"
            yield

    async def _wake_waiting(self) -> None:
        async with self._settled:
            self._settled.notify_all()

    def _send_readiness(self) -> None:
        for member in self.members:
            member.notify("readiness", reason=self.record["not_ready"])

    # --- Operations ---------------------------------------------------------------------------------------------------

    async def run_for_client(self, operation: str, arguments: dict[str, Any]) -> Any:
        """Runs a client's operation on all processes. Raises what the repository's method raises."""
        if operation not in _CLIENT_OPERATIONS:
            raise ApiError(400, f"'{operation}' cannot be requested")
        return await with_steps(partial(self.run, operation, **arguments), self._load_step)

    async def run(self, operation: str, *, all_at_once: bool = False, **arguments: Any) -> Any:
        """Makes one change in all processes.

        Args:
            operation: the name of the repository's method.
            all_at_once: prepare it in all processes at the same time. By default one process goes first, so that a
                crash ends only that process.
            arguments: the method's keyword arguments; ``name`` is an endpoint or a model.

        Returns:
            The method's result, when all processes have changed.

        Raises:
            ApiError: 400 with the reason; nothing has changed in any process.
            LostError: a process has ended because of the operation, or during it.
        """
        async with self._in_order(str(arguments.get("name", ""))):
            with self._override_kept(arguments):
                result = await self._run_attempts(operation, all_at_once=all_at_once, **arguments)
        self._send_readiness()
        return result

    async def _run_attempts(self, operation: str, *, all_at_once: bool = False, **arguments: Any) -> Any:
        """See :meth:`run`. If processes have read different files, because the files change, all processes retry."""
        for _ in range(_TRIES - 1):
            try:
                return await self._run_once(operation, all_at_once, arguments)
            except _FilesDifferError:
                continue
        return await self._run_once(operation, all_at_once, arguments)

    async def _run_once(self, operation: str, all_at_once: bool, arguments: dict[str, Any]) -> Any:
        number = next(self._numbers)
        call: dict[str, Any] = {"number": number, "name": operation, "arguments": arguments}
        if operation in _IMMEDIATE:
            async with self._changing:
                begun = self._drop_lost(await _all(self.members, "begin", **call))
                reports = await self._reconcile(_without_lost(begun) or begun)
        else:
            reports = {}
            while True:
                await self._prepare(operation, all_at_once, call, reports)
                async with self._changing:
                    if self._unprepared(reports) and not _has_failed(reports):
                        continue  # a process has joined meanwhile
                    for report in reports.values():  # a state from before another operation is out of date
                        if report.pop("record", None) is not self.record:
                            report.pop("state", None)
                    reports = await self._reconcile(await self._decide(operation, number, reports))
                    break
        return _outcome(operation, reports)

    async def _prepare(
        self, operation: str, all_at_once: bool, call: Mapping[str, Any], reports: dict[Member, Report]
    ) -> None:
        """Makes each process prepare an operation, including those that join meanwhile; adds to ``reports``."""
        while unprepared := self._unprepared(reports):
            group = unprepared if all_at_once or reports else unprepared[:1]
            name = call["arguments"].get("name", "")
            with waits.logged(lambda: f"'{operation}' of '{name}' is being prepared"):  # noqa: B023
                begun = self._drop_lost(await _all(group, "begin", **call))
            for report in begun.values():
                report["record"] = self.record
            # If the first process survived the load, later deaths are unrelated to it.
            reports |= _without_lost(begun) if reports else begun
            if _has_failed(reports):
                break

    def _unprepared(self, reports: Mapping[Member, Report]) -> list[Member]:
        members = [member for member in self.members if member not in reports]
        return sorted(members, key=self._retired.__contains__)

    async def _decide(self, operation: str, number: int, reports: dict[Member, Report]) -> dict[Member, Report]:
        """Sends decisions until all processes have ended the operation."""
        while prepared := [member for member, report in reports.items() if "prepared" in report]:
            refusal = _refusal(operation, reports)
            decided = await _all(prepared, "decide", number=number, refusal=refusal and refusal.to_json())
            reports = self._drop_lost(reports | decided)
            if isinstance(refusal, _FilesDifferError):
                await self._reconcile(reports)
                raise refusal
            if refusal is None:
                reports = _without_lost(reports)
        return reports

    def _drop_lost(self, reports: Mapping[Member, Report]) -> dict[Member, Report]:
        """Removes lost processes from the members, so that a retry does not call them.

        Returns:
            The reports without those of lost processes that were retired, because their end was expected.
        """
        lost = reports.keys() - _without_lost(reports).keys()
        for member in lost:
            self.leave(member)
        return {
            member: report for member, report in reports.items() if not (member in lost and member in self._retired)
        }

    async def _reconcile(self, reports: Mapping[Member, Report]) -> dict[Member, Report]:
        """Updates the record from the reports, and ends processes that serve something else than most of the others. In
        a tie, processes that have done the operation win, then those that are not retired.

        Returns:
            The reports of the processes that stay.
        """
        digests = {
            member: _served(report["state"])
            for member, report in reports.items()
            if "state" in report and member is not self._joining  # a joining process is compared before it serves
        }
        if not digests:
            return dict(reports)
        ranks = {
            member: (list(digests.values()).count(digest), "done" in reports[member], member not in self._retired)
            for member, digest in digests.items()
        }
        right = max(digests, key=ranks.__getitem__)
        equal = [member for member, digest in digests.items() if digest == digests[right]]
        await self._record(sorted(equal, key=lambda member: member is not right), reports)
        wrong = [member for member, digest in digests.items() if digest != digests[right]]
        await self._end_those(wrong)
        return {member: report for member, report in reports.items() if member not in wrong}

    async def _record(self, equal: Iterable[Member], reports: Mapping[Member, Report]) -> None:
        """Sets the record to the state of the first of several equal processes: applies its changes to the old record,
        or, if they apply to another state, requests its full state."""
        for member in equal:
            state = reports[member]["state"]
            if "base" in state and state["base"] == self.record["mark"]:
                state = _merged(self.record, state)
            elif "base" in state:
                try:
                    state = await member.call("state")
                except ChannelClosedError:
                    continue
            self.record = state
            break
        used = {each["override"] for each in self.record["endpoints"] if each["override"]}
        self._overrides = {
            mark: self._overrides[mark] for mark in used | self._override_users.keys() if mark in self._overrides
        }

    def override(self, mark: str) -> str:
        """A configuration that a load has given and that is in use. ApiError 503 if it is no longer in use."""
        if mark not in self._overrides:
            raise ApiError(503, "the configuration of a load is no longer in use", retry_after_s=1)
        return self._overrides[mark]

    @contextmanager
    def _override_kept(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Keeps the configuration that an operation gives while it lasts; afterwards the record keeps it."""
        text = (arguments.get("parameters") or {}).get("config")
        if not isinstance(text, str):
            yield
            return
        mark = text_mark(text)
        self._overrides[mark] = text
        self._override_users[mark] += 1
        try:
            yield
        finally:
            self._override_users -= Counter((mark,))

    # --- The watcher's interface (see fastinfer.repository.watcher.Models) --------------------------------------------

    async def look(self, *, log_problems: bool = False) -> Look:
        """The models on the disk, read by one process."""
        while True:
            async with self._in_order(""):
                for member in self.members[:1]:
                    try:
                        found: Look = await member.call("look", log_problems=log_problems)
                        return found
                    except ChannelClosedError:
                        self.leave(member)  # its end may not have been noticed yet

    def loaded(self) -> Mapping[str, str]:
        states: dict[str, set[str]] = {}
        for endpoint in self.record["endpoints"]:
            if endpoint["kind"] == _MODEL:
                states.setdefault(endpoint["base"], set()).add(endpoint["files"])
        files = {base: seen.pop() if len(seen) == 1 else "" for base, seen in states.items()}
        self._lost -= files.keys()
        return {**dict.fromkeys(self._lost, ""), **files}

    async def expect(self, names: Iterable[str], unreadable: str | None) -> None:
        await self._run_until_done("expect", names=list(names), unreadable=unreadable)

    async def refuse(self, name: str, reason: str) -> None:
        await self._run_until_done("refuse", name=name, reason=reason)

    async def follow(self, name: str, *, known: bool, gone: bool) -> None:
        await with_steps(partial(self._retry, "follow", name=name, known=known, gone=gone), self._load_step)

    async def _load_step(self, name: str, version: int | None) -> None:
        await self._retry("load_step", name=name, version=version)

    async def load_model(self, name: str, version: None, parameters: Mapping[str, Any]) -> str:
        """Loads at start, in all processes in parallel. A load that may have ended a process is retried alone."""
        arguments: dict[str, Any] = {"name": name, "version": version, "parameters": parameters}
        return await with_steps(lambda: self._load_at_start(arguments), self._load_step)

    async def _load_at_start(self, arguments: dict[str, Any]) -> str:
        self._parallel_loads += 1
        try:
            return str(await self.run("load_model", all_at_once=True, **arguments))
        except LostError:
            pass
        finally:
            self._parallel_loads -= 1
            await self._wake_waiting()
        async with self._one_at_a_time:
            async with self._settled:  # until no parallel load can end a process
                await self._settled.wait_for(lambda: not self._parallel_loads)
            return str(await self._retry("load_model", **arguments))

    async def _retry(self, operation: str, **arguments: Any) -> Any:
        """Tries a few times, because processes may end for other reasons."""
        for _ in range(_TRIES - 1):
            try:
                return await self.run(operation, **arguments)
            except LostError:
                continue
        return await self.run(operation, **arguments)

    async def _run_until_done(self, operation: str, **arguments: Any) -> None:
        while True:
            try:
                await self.run(operation, **arguments)
                return
            except LostError:
                continue


class _Locks:
    """A lock for each name, removed when it has no users."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        self._users[name] += 1
        try:
            async with self._locks.setdefault(name, asyncio.Lock()):
                yield
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name], self._locks[name]


async def _all(members: Iterable[Member], call: str, **arguments: Any) -> dict[Member, Report]:
    """Calls all processes in parallel."""

    async def one(member: Member) -> Report:
        try:
            report: Report = await member.call(call, **arguments)
            return report
        except ChannelClosedError:
            return {"lost": True}

    members = list(members)
    return dict(zip(members, await asyncio.gather(*map(one, members)), strict=True))


def _without_lost(reports: Mapping[Member, Report]) -> dict[Member, Report]:
    return {member: report for member, report in reports.items() if "lost" not in report}


def _served(state: Report) -> Any:
    """The part of a state that must be equal in two processes. (Not the failures: their texts may differ.)"""
    return state["digest"]


def _merged(record: Report, changes: Mapping[str, Any]) -> Report:
    """The record with changes applied (see :meth:`fastinfer.repository.replicated.ReplicatedRepository.changes`)."""
    endpoints = {each["name"]: each for each in record["endpoints"]}
    for name in changes["removed"]:
        endpoints.pop(name, None)
    endpoints |= {each["name"]: each for each in changes["changed"]}
    replaced = {key: changes[key] for key in ("not_ready", "digest", "mark")}
    trials = list({**record.get("trials", {}), **changes.get("trials", {})}.items())
    start = changes.get("start", record["start"])
    if gone := set(changes.get("settled", ())):
        start = {**start, "wanted": [name for name in start["wanted"] if name not in gone]}
    return {
        **replaced,
        "start": start,
        "trials": dict(trials[-limits.MAX_TRIAL_RESULTS :]),
        "endpoints": list(endpoints.values()),
    }


def _has_failed(reports: Mapping[Member, Report]) -> bool:
    """Whether to stop preparing an operation: it has ended a process, or has failed with a status from 503 on."""
    failures = [report["failed"]["status"] for report in reports.values() if "failed" in report]
    return any("lost" in report for report in reports.values()) or any(status >= _NOT_RETRIED for status in failures)


def _refusal(operation: str, reports: Mapping[Member, Report]) -> ApiError | None:
    """Why an operation cannot continue although some processes are prepared; None if all are."""
    if any("lost" in report for report in reports.values()):
        return LostError(operation)
    for report in reports.values():
        if "failed" in report:
            return read_error(report["failed"])
    prepared = [report.get("prepared") for report in reports.values()]
    if any(each != prepared[0] for each in prepared):
        return _FilesDifferError()
    return None


def _outcome(operation: str, reports: Mapping[Member, Report]) -> Any:
    # If a process is lost, the others have failed with LostError.
    if not reports or any("lost" in report for report in reports.values()):
        raise LostError(operation)
    for report in reports.values():
        if "failed" in report:
            raise read_error(report["failed"])
    return next(iter(reports.values()))["done"]
