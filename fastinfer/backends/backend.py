"""The contract of a backend: what an engine offers so that its models can be served.

A backend turns one version's files into an :class:`~fastinfer.schedule.backend.Implementation`, to which the scheduler
gives batches. ``onnxruntime`` and ``python`` are built in; other packages add theirs under the entry-point group
``fastinfer.backends`` (:mod:`fastinfer.backends.registry`). Everything here is used on the loop's thread, unless a
method says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from fastinfer.backends.findings import Findings
from fastinfer.backends.parameters import Parameters
from fastinfer.base.budget import Budget
from fastinfer.config.model import ModelConfig
from fastinfer.config.server import ServerConfig
from fastinfer.native.executor import Executor
from fastinfer.schedule.backend import Implementation
from fastinfer.schedule.run_notes import RunNotes

P = TypeVar("P", bound=Parameters)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What the models of a process share.

    Attributes:
        config: the server's configuration.
        loop: the event loop.
        executor: the native threads, on which batches run without the GIL.
        budget: counts the memory of tensors.
        findings: results of slow checks, kept across restarts.
    """

    config: ServerConfig
    loop: asyncio.AbstractEventLoop
    executor: Executor
    budget: Budget
    findings: Findings


class Reading(Protocol):
    """Reads a version's model file on a load thread."""

    def __call__(self, load: Callable[[bytes], T], /) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Source(Generic[P]):
    """One version of a model that is to be loaded.

    Attributes:
        name: the model's name.
        version: the version.
        directory: the model's directory: labels and warm-up data lie in it.
        path: the model file.
        config: the model's configuration, with what the load's parameters replace.
        parameters: the load's and the configuration's, parsed as :attr:`Backend.parameters`.
        read: ``await source.read(load)`` calls ``load`` with the file's content, on a load thread, and returns its
            result. ApiError 400 if the file cannot be read, 503 if it is no longer the one that was looked at, 504 if
            ``load`` takes too long. If the process dies meanwhile, this load is blamed.
        notes: for an engine whose runs may end this process; None: runs are not noted.
    """

    name: str
    version: int
    directory: Path
    path: Path
    config: ModelConfig
    parameters: P
    read: Reading
    notes: RunNotes | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that works, and has no queue yet.

    Attributes:
        implementation: runs its batches.
        rows: requests may share a batch of up to this many rows; 1: each request runs alone.
        instances: batches that may run at once.
        remark: what an operator should know, as a clause for ``fastinfer check``: ``because ...``; empty: nothing.
        form: the version of the model's file format, for ``fastinfer check``: ``opset 17``; empty: it has none.
        notes: what the log says when the model is ready, each without its subject: ``is not batched: ...``.
    """

    implementation: Implementation
    rows: int
    instances: int = 1
    remark: str = ""
    form: str = ""
    notes: tuple[str, ...] = ()


class Backend(Protocol[P]):
    """An engine. Its class is called with a :class:`BackendContext`, once in a process, when the first model needs it.

    Attributes:
        name: as the configuration's ``backend``.
        aliases: other names, as ``backend`` or ``platform``.
        pattern: which file of a version's directory is the model (``*.onnx``), unless ``default_model_filename`` names
            one.
        parameters: those of a load that the engine understands.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]]
    pattern: ClassVar[str]
    parameters: type[P]

    async def load(self, source: Source[P]) -> Loaded:
        """Loads a version, checks it, and runs its warm-up.

        Raises:
            ApiError: 400 with the reason, in one sentence without paths.
        """

    def close(self) -> None:
        """Ends what belongs to no model; called when the process ends."""
