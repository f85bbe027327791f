"""Two-phase operations: every process prepares, the supervisor decides, all publish.

The supervisor begins an operation in all processes. In each it runs until a change is prepared, and reports that. When
all processes have reported, the supervisor decides, and all continue: to the next change of the same operation, or to
its end.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from fastinfer.base.errors import ApiError
from fastinfer.repository.operation import Operation
from fastinfer.repository.replicated import ReplicatedRepository
from fastinfer.repository.steps import read_error

log = logging.getLogger(__name__)

_PREPARED: Final = frozenset({"follow", "load_model", "load_step", "load_worker", "refresh"})
_IMMEDIATE: Final = frozenset({"expect", "refuse", "unload"})  # these need no preparation

Report = dict[str, Any]
"""``{"prepared": [name, files]}``; at the end ``{"done": result, "state"}`` or ``{"failed": error, "state"}``, with the
state from :meth:`ReplicatedRepository.changes`."""


class TwoPhaseOperations:
    """Runs operations by number. Loop's thread only."""

    def __init__(self, repository: ReplicatedRepository) -> None:
        self._repository = repository
        self._running: dict[int, _Running] = {}

    async def begin(self, number: int, name: str, arguments: dict[str, Any]) -> Report:
        """Begins an operation: a method of the repository by name, with its keyword arguments."""
        if name not in _PREPARED | _IMMEDIATE:
            raise ValueError(f"there is no operation '{name}'")
        running = self._running[number] = _Running(number)
        if name in _PREPARED:
            arguments = {**arguments, "operation": running}
        running.task = asyncio.get_running_loop().create_task(self._run(running, name, arguments))
        return await running.reports.get()

    async def decide(self, number: int, refusal: Report | None) -> Report:
        """Continues a prepared operation; with a refusal, makes it fail."""
        running = self._running[number]
        running.proceed(None if refusal is None else read_error(refusal))
        return await running.reports.get()

    async def _run(self, running: _Running, name: str, arguments: dict[str, Any]) -> None:
        report: Report
        try:
            report = {"done": await getattr(self._repository, name)(**arguments)}
        except ApiError as error:
            report = {"failed": error.to_json()}
        except Exception:
            log.exception("operation '%s' has failed", name)
            report = {"failed": ApiError(500, "internal error").to_json()}
        del self._running[running.number]
        running.reports.put_nowait({**report, "state": self._repository.changes()})


class _Running(Operation):
    """An operation that waits for the supervisor's decision each time it has prepared a change."""

    task: asyncio.Task[None]

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self._decision: asyncio.Future[None] | None = None

    async def prepared(self, name: str, files: str) -> None:
        self._decision = asyncio.get_running_loop().create_future()
        self.reports.put_nowait({"prepared": [name, files]})
        await self._decision

    def proceed(self, refusal: ApiError | None) -> None:
        """Continues the operation, or makes it fail."""
        if self._decision is None:
            raise RuntimeError("the operation is not prepared")
        if refusal is None:
            self._decision.set_result(None)
        else:
            self._decision.set_exception(refusal)
