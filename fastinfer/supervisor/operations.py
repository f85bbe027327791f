"""What is loaded, in all serving processes alike.

Every change is an operation that all processes make together: those of one name one after the other, each prepared
everywhere before it is made anywhere, and all changes in one order, so that equal processes stay equal. What they hold
after an operation is kept as the record, from which a process that starts makes itself equal to the others.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, Final, Protocol
from weakref import WeakSet

from fastinfer.base import limits, waits
from fastinfer.base.errors import ApiError
from fastinfer.repository.operation import text_mark
from fastinfer.repository.watcher import Look
from fastinfer.supervisor.channel import ChannelClosedError

log = logging.getLogger(__name__)

_NUMBER: Final = re.compile(r"(?:-\d+)+$")
_NOT_TRIED: Final = 503  # from this status on a failed preparation is not tried in further processes
_MODEL: Final = "model"  # the kind of an endpoint of a model of the repository
_TRIES: Final = 4  # of a load that nobody asks for again, where processes end meanwhile
_CLIENTS: Final = frozenset({"load_model", "load_worker", "unload"})  # what may be asked for over HTTP
_AT_ONCE: Final = frozenset({"expect", "refuse", "unload"})  # changes that need no preparation
_NOTHING: Final[dict[str, Any]] = {
    "not_ready": "the model repository has not been read yet",
    "start": {"wanted": None, "failures": {}, "unreadable": None, "served": False, "found": False},
    "digest": "",
    "mark": "",
    "trials": {},
    "endpoints": [],
}

Report = dict[str, Any]
"""See :mod:`fastinfer.repository.two_phase`; or ``{"lost": True}``: the process has ended meanwhile."""


class Member(Protocol):
    """A serving process; see :class:`fastinfer.supervisor.channel.Channel`."""

    async def call(self, call: str, **arguments: Any) -> Any: ...

    def tell(self, call: str, **arguments: Any) -> None: ...


class LostError(ApiError):
    """A process has ended while it prepared an operation, perhaps because of it; nothing has changed."""

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
        record: what each of them holds (see :meth:`fastinfer.repository.replicated.Replica.state`).

    Args:
        differs: called with a process that does not serve what the others do; returns when it serves no more.
    """

    def __init__(self, differs: Callable[[Member], Awaitable[None]]) -> None:
        self._differs = differs
        self.members: list[Member] = []
        self.record: Report = _NOTHING
        self._retired: WeakSet[Member] = WeakSet()
        self._numbers = count(1)
        self._names = _Locks()
        self._changing = asyncio.Lock()  # held while processes change
        self._admitting = asyncio.Lock()  # held while a process joins
        self._lost: set[str] = set()  # models that no process could load again after the last one had ended
        self._overrides: dict[str, str] = {}  # configurations that loads have given, by their marks, and how many ...
        self._asked: Counter[str] = Counter()  # ... operations that are under way give each
        self._newcomer: Member | None = None  # takes part in operations, and does not serve yet
        self._founder: tuple[Member, asyncio.Event] | None = None  # set when it is one no more
        self._one_by_one = asyncio.Lock()
        self._side_by_side = 0  # loads at start
        self._settled = asyncio.Condition()  # of that, and the members

    # --- Taking part --------------------------------------------------------------------------------------------------

    async def join(self, member: Member) -> bool:
        """Makes a process equal to the others, and lets it take part.

        If others serve already, it takes part when it serves what they do: the same versions, made of the same files.
        If those have changed on the disk since the others loaded them, all load them again. The first process serves
        what it can load of the record, and is what the others have to be equal to.

        Args:
            member: a process that holds nothing yet.

        Returns:
            Whether it takes part.

        Raises:
            ChannelClosedError: it has ended.
        """
        with waits.logged(lambda: "a new process waits until it can take part"):
            fit = await self._join(member)
        if fit:
            self._tell_readiness()
        return fit

    async def _join(self, member: Member) -> bool:
        record = self.record
        failed = await self._restored(member, record)
        await self._after_the_founder(member)
        async with self._admitting:
            for left in reversed(range(_TRIES + 1)):
                if left and self.record is not record:  # operations have ended meanwhile
                    record = self.record
                    failed = await self._restored(member, record)
                async with self._changing:
                    if not left and self.record is not record:  # they go on ending; now they wait
                        record = self.record
                        failed = await self._restored(member, record)
                    fit = await self._admit(member, failed, record)
                if fit is not None:
                    return fit
                if self.record is record and not await self._refresh(member):
                    return False
        log.error("a new process does not become equal to the others: the files on the disk keep changing")
        return False

    async def _restored(self, member: Member, record: Report) -> dict[str, str]:
        failed: dict[str, str] = await member.call("restore", state=record)
        for name, reason in failed.items():
            log.error("'%s' is not served as it was: %s", name, reason)
        return failed

    async def _admit(self, member: Member, failed: Mapping[str, str], record: Report) -> bool | None:
        """Takes a process in if it is equal to the record, or if there is nobody else. Nothing changes meanwhile.

        Operations that are being prepared go on: who has begun them finds the new member before deciding.

        Args:
            member: the process.
            failed: what it could not restore.
            record: from which it was restored.

        Returns:
            Whether it is fit; None: not yet, since files or the record have changed.
        """
        if self.record is not record:
            return None
        state = await member.call("state")
        if not self._others(member):
            told = {each["name"]: each for each in record["endpoints"]} if failed else {}
            if _served(state) != _served(self.record):  # those who drain answer what they have yet to answer
                await self._end_those(self.members)
            self.record = state
            self._lost |= {told[name]["base"] for name in failed}
        elif failed:
            return False
        elif _served(state) != _served(self.record):
            return None
        self.members.append(member)
        self._forget_founder(member)
        await self._notify()
        return True

    async def _refresh(self, member: Member) -> bool:
        """All processes, and one that is not among them yet, load again what has changed on the disk since."""
        record = self.record
        changed = await member.call("changed", state=record)
        self.members.insert(0, member)  # it has loaded the files alive
        self._newcomer = member
        try:
            for name in changed:
                log.warning("the files of '%s' have changed since it was loaded: all processes load it again", name)
                async with self._in_order(name):
                    await self._tried("refresh", name=name)
        except LostError:
            pass  # it is compared again, where it lives, with whoever is left
        except ApiError as error:
            log.error("what has changed on the disk could not be loaded again: %s", error.message)
            return False
        finally:
            self._newcomer = None
            self.leave(member)
        if not changed:
            await member.call("restore", state=record)
        return True

    async def _end_those(self, members: Iterable[Member]) -> None:
        members = list(members)
        for member in members:
            self.retire(member)
            self.leave(member)
        await asyncio.gather(*map(self._differs, members))

    def _others(self, member: Member) -> list[Member]:
        """Those who serve beside a process."""
        return [other for other in self.members if other is not member and other not in self._retired]

    def found(self, member: Member) -> bool:
        """Whether a process may accept before it takes part, because nobody else serves: then others wait for it."""
        if self._founder is None and not self._others(member) and not self._admitting.locked():
            self._founder = member, asyncio.Event()
        return self._founder is not None and self._founder[0] is member

    async def _after_the_founder(self, member: Member) -> None:
        while self._founder is not None and self._founder[0] is not member:
            await self._founder[1].wait()

    def _forget_founder(self, member: Member) -> None:
        if self._founder is not None and self._founder[0] is member:
            self._founder[1].set()
            self._founder = None

    def retire(self, member: Member) -> None:
        """A process is about to end: it takes part for as long as it lives, and no operation fails because it ends."""
        self._retired.add(member)
        self._forget_founder(member)

    def leave(self, member: Member) -> None:
        """A process takes part no more."""
        if member in self.members:
            self.members.remove(member)

    def ended(self, member: Member) -> None:
        """A process is gone."""
        self.leave(member)
        self._forget_founder(member)

    @asynccontextmanager
    async def _in_order(self, name: str) -> AsyncIterator[None]:
        """An operation's turn: there are members, and it is the only one of its name."""
        async with self._settled:
            with waits.logged(lambda: f"an operation on '{name}' waits for a process that serves"):
                await self._settled.wait_for(lambda: bool(self.members))
        async with self._names.hold(_NUMBER.sub("", name)):  # "a-0" may be another endpoint of "a"
            yield

    async def _notify(self) -> None:
        async with self._settled:
            self._settled.notify_all()

    def _tell_readiness(self) -> None:
        for member in self.members:
            member.tell("readiness", reason=self.record["not_ready"])

    # --- Operations ---------------------------------------------------------------------------------------------------

    async def ask(self, operation: str, arguments: dict[str, Any]) -> Any:
        """Runs a client's operation on all processes. Raises what the repository's method raises."""
        if operation not in _CLIENTS:
            raise ApiError(400, f"'{operation}' cannot be asked for")
        return await self.run(operation, **arguments)

    async def run(self, operation: str, *, all_at_once: bool = False, **arguments: Any) -> Any:
        """Has all processes make one change.

        Args:
            operation: the repository's method.
            all_at_once: prepare it in all processes at the same time. By default one of them goes first, so that
                something that ends a process ends only that one.
            arguments: the method's keyword arguments; ``name`` is an endpoint's or a model's.

        Returns:
            What the method has returned, when all processes have changed.

        Raises:
            ApiError: 400 with the reason. Nothing has changed anywhere then.
            LostError: a process has ended of it, or meanwhile.
        """
        async with self._in_order(str(arguments.get("name", ""))):
            with self._override_kept(arguments):
                result = await self._tried(operation, all_at_once=all_at_once, **arguments)
        self._tell_readiness()
        return result

    async def _tried(self, operation: str, *, all_at_once: bool = False, **arguments: Any) -> Any:
        """See :meth:`run`. Where processes have read different files, because those change, all read them again."""
        for _ in range(_TRIES - 1):
            try:
                return await self._made(operation, all_at_once, arguments)
            except _FilesDifferError:
                continue
        return await self._made(operation, all_at_once, arguments)

    async def _made(self, operation: str, all_at_once: bool, arguments: dict[str, Any]) -> Any:
        number = next(self._numbers)
        call: dict[str, Any] = {"number": number, "name": operation, "arguments": arguments}
        if operation in _AT_ONCE:
            async with self._changing:
                begun = self._drop_lost(await _all(self.members, "begin", **call))
                reports = await self._keep(_without_lost(begun) or begun)
        else:
            reports = {}
            while True:
                await self._prepare(operation, all_at_once, call, reports)
                async with self._changing:
                    if self._unprepared(reports) and not _has_failed(reports):
                        continue  # a process takes part since
                    for report in reports.values():  # who has failed has held that then; others have changed since
                        if report.pop("record", None) is not self.record:
                            report.pop("state", None)
                    reports = await self._keep(await self._decide(operation, number, reports))
                    break
        return _outcome(operation, reports)

    async def _prepare(
        self, operation: str, all_at_once: bool, call: Mapping[str, Any], reports: dict[Member, Report]
    ) -> None:
        """Has each process prepare an operation, those too that take part only since it has begun; adds to reports."""
        while unprepared := self._unprepared(reports):
            group = unprepared if all_at_once or reports else unprepared[:1]
            name = call["arguments"].get("name", "")
            with waits.logged(lambda: f"'{operation}' of '{name}' is prepared"):  # noqa: B023
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
        """Lets processes go on until all have ended the operation."""
        while prepared := [member for member, report in reports.items() if "prepared" in report]:
            refusal = _why_not(operation, reports)
            decided = await _all(prepared, "decide", number=number, refusal=refusal and refusal.told())
            reports = self._drop_lost(reports | decided)
            if isinstance(refusal, _FilesDifferError):
                await self._keep(reports)
                raise refusal
            if refusal is None:
                reports = _without_lost(reports)
        return reports

    def _drop_lost(self, reports: Mapping[Member, Report]) -> dict[Member, Report]:
        """Whoever tries again must not ask those that have ended, which may not be known otherwise yet.

        Returns:
            The reports without those of retired processes that have ended: they were expected to.
        """
        lost = reports.keys() - _without_lost(reports).keys()
        for member in lost:
            self.leave(member)
        return {
            member: report for member, report in reports.items() if not (member in lost and member in self._retired)
        }

    async def _keep(self, reports: Mapping[Member, Report]) -> dict[Member, Report]:
        """Keeps as the record what the processes hold. One that serves something else than most others, of which those
        count first that have done what was asked, has to go.

        Returns:
            The reports of those that stay.
        """
        told = {
            member: _served(report["state"])
            for member, report in reports.items()
            if "state" in report and member is not self._newcomer  # that one is compared before it serves
        }
        if not told:
            return dict(reports)
        ranks = {
            member: (list(told.values()).count(serves), "done" in reports[member], member not in self._retired)
            for member, serves in told.items()
        }
        right = max(told, key=ranks.__getitem__)
        equal = [member for member, serves in told.items() if serves == told[right]]
        await self._record(sorted(equal, key=lambda member: member is not right), reports)
        wrong = [member for member, serves in told.items() if serves != told[right]]
        await self._end_those(wrong)
        return {member: report for member, report in reports.items() if member not in wrong}

    async def _record(self, equal: Iterable[Member], reports: Mapping[Member, Report]) -> None:
        """Makes the record what the first of some equal processes holds: the old one with its changes, or, if those
        are of another state than the old one, all of it."""
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
        used = {told["override"] for told in self.record["endpoints"] if told["override"]}
        self._overrides = {mark: self._overrides[mark] for mark in used | self._asked.keys() if mark in self._overrides}

    def override(self, mark: str) -> str:
        """A configuration that a load has given, and that is in use. ApiError 503 where it is not any more."""
        if mark not in self._overrides:
            raise ApiError(503, "the configuration of a load is not in use any more", retry_after_s=1)
        return self._overrides[mark]

    @contextmanager
    def _override_kept(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Keeps the configuration that an operation gives, as long as the operation lasts; then the record does."""
        text = (arguments.get("parameters") or {}).get("config")
        if not isinstance(text, str):
            yield
            return
        mark = text_mark(text)
        self._overrides[mark] = text
        self._asked[mark] += 1
        try:
            yield
        finally:
            self._asked -= Counter((mark,))

    # --- As the repository of all (see fastinfer.repository.watcher.Models) -------------------------------------------

    async def look(self, *, tell: bool = False) -> Look:
        """What one process sees on the disk."""
        while True:
            async with self._in_order(""):
                for member in self.members[:1]:
                    try:
                        found: Look = await member.call("look", tell=tell)
                        return found
                    except ChannelClosedError:
                        self.leave(member)  # that it has ended may not be known otherwise yet

    def loaded(self) -> Mapping[str, str]:
        states: dict[str, set[str]] = {}
        for told in self.record["endpoints"]:
            if told["kind"] == _MODEL:
                states.setdefault(told["base"], set()).add(told["files"])
        files = {base: seen.pop() if len(seen) == 1 else "" for base, seen in states.items()}
        self._lost -= files.keys()
        return {**dict.fromkeys(self._lost, ""), **files}

    async def expect(self, names: Iterable[str], unreadable: str | None) -> None:
        await self._insist("expect", names=list(names), unreadable=unreadable)

    async def refuse(self, name: str, reason: str) -> None:
        await self._insist("refuse", name=name, reason=reason)

    async def follow(self, name: str, *, known: bool, gone: bool) -> None:
        await self._again("follow", name=name, known=known, gone=gone)

    async def load_model(self, name: str, version: None, parameters: Mapping[str, Any]) -> str:
        """For the start: all processes load side by side; what may have ended one is tried again by itself."""
        asked: dict[str, Any] = {"name": name, "version": version, "parameters": parameters}
        self._side_by_side += 1
        try:
            return str(await self.run("load_model", all_at_once=True, **asked))
        except LostError:
            pass
        finally:
            self._side_by_side -= 1
            await self._notify()
        async with self._one_by_one:
            async with self._settled:  # what ends processes is on its way in none of them any more
                await self._settled.wait_for(lambda: not self._side_by_side)
            return str(await self._again("load_model", **asked))

    async def _again(self, operation: str, **arguments: Any) -> Any:
        """Tries a few times: processes may end for other reasons."""
        for _ in range(_TRIES - 1):
            try:
                return await self.run(operation, **arguments)
            except LostError:
                continue
        return await self.run(operation, **arguments)

    async def _insist(self, operation: str, **arguments: Any) -> None:
        while True:
            try:
                await self.run(operation, **arguments)
                return
            except LostError:
                continue


class _Locks:
    """A lock for each name, as long as somebody wants it."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._wanted: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        self._wanted[name] += 1
        try:
            async with self._locks.setdefault(name, asyncio.Lock()):
                yield
        finally:
            self._wanted[name] -= 1
            if not self._wanted[name]:
                del self._wanted[name], self._locks[name]


async def _all(members: Iterable[Member], call: str, **arguments: Any) -> dict[Member, Report]:
    """Calls processes side by side."""

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
    """What two processes have to have in common. (Not their failures: those are texts, and may say the same in other
    words.)"""
    return state["digest"]


def _merged(record: Report, changes: Mapping[str, Any]) -> Report:
    """The record with what has changed since (see :meth:`fastinfer.repository.replicated.Replica.changes`)."""
    told = {each["name"]: each for each in record["endpoints"]}
    for name in changes["removed"]:
        told.pop(name, None)
    told |= {each["name"]: each for each in changes["changed"]}
    kept = {key: changes[key] for key in ("not_ready", "digest", "mark")}
    trials = list({**record.get("trials", {}), **changes.get("trials", {})}.items())
    return {
        **kept,
        "start": changes.get("start", record["start"]),
        "trials": dict(trials[-limits.MAX_TRIAL_RESULTS :]),
        "endpoints": list(told.values()),
    }


def _has_failed(reports: Mapping[Member, Report]) -> bool:
    """Whether an operation need not be begun in further processes: one has died of it, or it has not ended in time."""
    failures = [report["failed"]["status"] for report in reports.values() if "failed" in report]
    return any("lost" in report for report in reports.values()) or any(status >= _NOT_TRIED for status in failures)


def _why_not(operation: str, reports: Mapping[Member, Report]) -> ApiError | None:
    """Why an operation cannot go on although some processes are prepared; None where all are."""
    if any("lost" in report for report in reports.values()):
        return LostError(operation)
    for report in reports.values():
        if "failed" in report:
            return ApiError.of(report["failed"])
    prepared = [report.get("prepared") for report in reports.values()]
    if any(each != prepared[0] for each in prepared):
        return _FilesDifferError()
    return None


def _outcome(operation: str, reports: Mapping[Member, Report]) -> Any:
    # The others have failed because of the lost one, and say so.
    if not reports or any("lost" in report for report in reports.values()):
        raise LostError(operation)
    for report in reports.values():
        if "failed" in report:
            raise ApiError.of(report["failed"])
    return next(iter(reports.values()))["done"]
