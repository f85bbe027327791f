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
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final, Protocol
from weakref import WeakSet

from fastinfer.errors import ApiError
from fastinfer.supervisor.channel import ChannelClosedError

log = logging.getLogger(__name__)

_NUMBER: Final = re.compile(r"(?:-\d+)+$")
_TRIES: Final = 4  # of a load that nobody asks for again, where processes end meanwhile
_CLIENTS: Final = frozenset({"load_model", "load_worker", "unload"})  # what may be asked for over HTTP
_AT_ONCE: Final = frozenset({"expect", "refuse", "unload"})  # changes that need no preparation
_NOTHING: Final[dict[str, Any]] = {
    "not_ready": "the repository has not been read yet",
    "wanted": None,
    "failures": {},
    "endpoints": [],
}

Report = dict[str, Any]
"""See :mod:`fastinfer.models.rounds`; or ``{"lost": True}``: the process has ended meanwhile."""


class Member(Protocol):
    """A serving process; see :class:`fastinfer.supervisor.channel.Channel`."""

    async def call(self, call: str, **arguments: Any) -> Any: ...

    def tell(self, call: str, **arguments: Any) -> None: ...


class LostError(ApiError):
    """A process has ended while it prepared an operation, perhaps because of it; nothing has changed."""

    def __init__(self, name: str) -> None:
        super().__init__(500, f"a process of the server has ended during '{name}'")


class Operations:
    """The operations of a server, and its record.

    Attributes:
        members: the processes that take part.
        record: what each of them holds (see :meth:`fastinfer.models.replica.Replica.state`).
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.record: Report = _NOTHING
        self._retired: WeakSet[Member] = WeakSet()
        self._numbers = count(1)
        self._names = _Locks()
        self._changing = asyncio.Lock()  # held while processes change
        self._one_by_one = asyncio.Lock()
        self._in_flight = 0
        self._joining = 0
        self._side_by_side = 0  # loads at start
        self._settled = asyncio.Condition()  # of the last three, and the members

    # --- Taking part --------------------------------------------------------------------------------------------------

    async def join(self, member: Member, *, anyway: bool) -> bool:
        """Makes a process equal to the others, and lets it take part.

        Args:
            member: a process that holds nothing yet.
            anyway: also where something does not load any more; otherwise it stays outside then.

        Returns:
            Whether it takes part.

        Raises:
            ChannelClosedError: it has ended.
        """
        made_of = self.record
        failed = await member.call("restore", state=made_of)
        async with self._nothing_in_flight():
            if self.record is not made_of:  # an operation has ended meanwhile
                failed = await member.call("restore", state=self.record)
            for name, reason in failed.items():
                log.error("'%s' is not served as it was: %s", name, reason)
            if failed and not anyway:
                return False
            state = await member.call("state")
            if not self.members:
                self.record = state
            self.members.append(member)
        self._tell_readiness()
        return True

    def retire(self, member: Member) -> None:
        """A process is about to end: it takes part for as long as it lives, and no operation fails because it ends."""
        self._retired.add(member)

    def leave(self, member: Member) -> None:
        """A process takes part no more."""
        if member in self.members:
            self.members.remove(member)

    async def refresh(self, member: Member) -> None:
        """Where files have changed since they were loaded, all processes load them, as the new one had to."""
        try:
            for name in await member.call("changed", state=self.record):
                log.warning("the files of '%s' have changed since it was loaded: all processes load it again", name)
                await self.run("refresh", name=name)
        except ChannelClosedError:
            return
        except ApiError as error:
            log.error("what has changed on the disk could not be loaded again: %s", error.message)

    async def look_again(self) -> None:
        """The record is what the processes hold, which may be made of newer files than what others held before them."""
        async with self._nothing_in_flight():
            states = await _all(self.members, "state")
            self._keep({member: {"state": state} for member, state in _without_lost(states).items()})

    @asynccontextmanager
    async def _nothing_in_flight(self) -> AsyncIterator[None]:
        """Holds operations up."""
        self._joining += 1
        try:
            async with self._settled:
                await self._settled.wait_for(lambda: not self._in_flight)
            yield
        finally:
            self._joining -= 1
            await self._notify()

    @asynccontextmanager
    async def _in_order(self, name: str) -> AsyncIterator[None]:
        """An operation's turn: there are members, nobody joins, and it is the only one of its name."""
        async with self._settled:
            await self._settled.wait_for(lambda: bool(self.members) and not self._joining)
            self._in_flight += 1
        try:
            async with self._names.hold(_NUMBER.sub("", name)):  # "a-0" may be another endpoint of "a"
                yield
        finally:
            self._in_flight -= 1
            await self._notify()

    async def _notify(self) -> None:
        async with self._settled:
            self._settled.notify_all()

    def _tell_readiness(self) -> None:
        for member in self.members:
            member.tell("readiness", reason=self.record["not_ready"])

    # --- Operations ---------------------------------------------------------------------------------------------------

    async def ask(self, operation: str, arguments: dict[str, Any]) -> Any:
        """An operation that a client asks for. ApiError as of the repository's method of that name."""
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
            number = next(self._numbers)
            call: dict[str, Any] = {"number": number, "name": operation, "arguments": arguments}
            if operation in _AT_ONCE:
                async with self._changing:
                    begun = self._drop_lost(await _all(self.members, "begin", **call))
                    reports = _without_lost(begun) or begun
                    self._keep(reports)
            else:
                members = sorted(self.members, key=self._retired.__contains__)
                groups = [members] if all_at_once else [members[:1], members[1:]]
                reports = {}
                for group in groups:
                    begun = await _all([member for member in group if member in self.members], "begin", **call)
                    begun = self._drop_lost(begun)
                    # One that has gone on before has not died of it: then others' ends have other reasons.
                    reports |= _without_lost(begun) if reports else begun
                    if any("lost" in report for report in reports.values()):
                        break
                async with self._changing:
                    reports = await self._decide(operation, number, reports)
                    self._keep(reports)
        self._tell_readiness()
        return _outcome(operation, reports)

    async def _decide(self, operation: str, number: int, reports: dict[Member, Report]) -> dict[Member, Report]:
        """Lets processes go on until all have ended the operation."""
        while prepared := [member for member, report in reports.items() if "prepared" in report]:
            refusal = _why_not(operation, reports)
            decided = await _all(prepared, "decide", number=number, refusal=refusal and refusal.told())
            reports = self._drop_lost(reports | decided)
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

    def _keep(self, reports: Mapping[Member, Report]) -> None:
        states = [report["state"] for report in reports.values() if "state" in report]
        if states:
            self.record = states[0]
            if any(state != states[0] for state in states):
                log.error("the processes do not hold the same models any more; SIGHUP makes them equal")

    # --- As the repository of all (see fastinfer.models.upkeep.Models) ------------------------------------------------

    async def look(self, *, tell: bool = False) -> dict[str, str | None]:
        """What one process sees on the disk."""
        while True:
            async with self._in_order(""):
                for member in self.members[:1]:
                    try:
                        found: dict[str, str | None] = await member.call("look", tell=tell)
                        return found
                    except ChannelClosedError:
                        self.leave(member)  # that it has ended may not be known otherwise yet

    async def expect(self, names: Iterable[str]) -> None:
        await self._insist("expect", names=list(names))

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


def _why_not(operation: str, reports: Mapping[Member, Report]) -> ApiError | None:
    """Why an operation cannot go on although some processes are prepared; None where all are."""
    if any("lost" in report for report in reports.values()):
        return LostError(operation)
    for report in reports.values():
        if "failed" in report:
            return ApiError.of(report["failed"])
    prepared = [report.get("prepared") for report in reports.values()]
    if any(each != prepared[0] for each in prepared):
        return ApiError(503, "the files of the model change while it is loaded", retry_after_s=1)
    return None


def _outcome(operation: str, reports: Mapping[Member, Report]) -> Any:
    # The others have failed because of the lost one, and say so.
    if not reports or any("lost" in report for report in reports.values()):
        raise LostError(operation)
    for report in reports.values():
        if "failed" in report:
            raise ApiError.of(report["failed"])
    return next(iter(reports.values()))["done"]
