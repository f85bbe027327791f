"""Two-phase operations: every process prepares, the supervisor decides, all publish.

The supervisor begins an operation in all processes. Each runs until it has prepared what is to change, and reports
that; when all have, the supervisor decides, and all go on: to the next change of the same operation, or to its end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from fastinfer.base.errors import ApiError
from fastinfer.repository.operation import Operation
from fastinfer.repository.replicated import Replica

log = logging.getLogger(__name__)

_PREPARED: Final = frozenset({"follow", "load_model", "load_worker", "refresh"})
_AT_ONCE: Final = frozenset({"expect", "refuse", "unload"})  # there is nothing to prepare

Report = dict[str, Any]
"""``{"prepared": what}``; at the end ``{"done": result, "state"}`` or ``{"failed": error, "state"}``, the state as
:meth:`Replica.changes` tells it."""


class Rounds:
    """Runs operations by number. Loop's thread only."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._running: dict[int, _Running] = {}

    async def begin(self, number: int, name: str, arguments: dict[str, Any]) -> Report:
        """Begins an operation: a method of the replica by name, with its keyword arguments."""
        if name not in _PREPARED | _AT_ONCE:
            raise ValueError(f"there is no operation '{name}'")
        running = self._running[number] = _Running(number)
        if name in _PREPARED:
            arguments = {**arguments, "by": running}
        running.task = asyncio.get_running_loop().create_task(self._run(running, name, arguments))
        return await running.reports.get()

    async def decide(self, number: int, refusal: Report | None) -> Report:
        """Goes on with an operation that is prepared, or, with a refusal, gives it up."""
        running = self._running[number]
        running.go_on(None if refusal is None else ApiError.of(refusal))
        return await running.reports.get()

    async def _run(self, running: _Running, name: str, arguments: dict[str, Any]) -> None:
        report: Report
        try:
            report = {"done": await getattr(self._replica, name)(**arguments)}
        except ApiError as error:
            report = {"failed": error.told()}
        except Exception:
            log.exception("operation '%s' has failed", name)
            report = {"failed": ApiError(500, "internal error").told()}
        del self._running[running.number]
        running.reports.put_nowait({**report, "state": self._replica.changes()})


class _Running(Operation):
    """An operation that waits for the others each time it has prepared something."""

    task: asyncio.Task[None]

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self._decision: asyncio.Future[None] | None = None

    async def prepared(self, name: str, made_of: str) -> None:
        self._decision = asyncio.get_running_loop().create_future()
        self.reports.put_nowait({"prepared": [name, made_of]})
        await self._decision

    def go_on(self, refusal: ApiError | None) -> None:
        """Lets it go on, or makes it fail."""
        if self._decision is None:
            raise RuntimeError("the operation is not prepared")
        if refusal is None:
            self._decision.set_result(None)
        else:
            self._decision.set_exception(refusal)
