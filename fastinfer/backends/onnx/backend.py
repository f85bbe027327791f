"""The ``onnx`` worker: runs batches in ONNX Runtime, on native threads or, when they are tiny, on the loop's thread.

What a batch costs is in :mod:`fastinfer.backends.runner`; here is what a load says of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fastinfer.backends.onnx.ort import Session
from fastinfer.backends.parameters import Integer, Name, Parameters
from fastinfer.backends.runner import Runner
from fastinfer.backends.watchdog import Watchdog
from fastinfer.native.executor import Executor
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.tensor.signature import Signature


class OnnxParameters(Parameters):
    """Of a model's load.

    Attributes:
        model: of a load of the worker ``onnx``: the model of the repository.
        intra_op_threads: threads of a pool of its own; by default all models share the process's.
        inter_op_threads: more than 1 also runs independent operators side by side.
        execution_providers: names separated by commas, the most wanted first.
        graph_optimization_level: ``none``, ``basic``, ``extended``, ``layout`` or ``all``.
        allow_spinning: idle threads of the own pool burn their cores for a while, for a lower latency.
    """

    model: Name | None = None
    intra_op_threads: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    inter_op_threads: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    execution_providers: str | None = None
    graph_optimization_level: Literal["none", "basic", "extended", "layout", "all"] | None = None
    allow_spinning: bool | None = None

    def session_options(self) -> dict[str, Any]:
        """The keyword arguments of :class:`Session`."""
        options: dict[str, Any] = {
            "intra_op_threads": self.intra_op_threads,
            "inter_op_threads": self.inter_op_threads,
            "graph_optimization_level": self.graph_optimization_level,
            "allow_spinning": self.allow_spinning,
        }
        if self.execution_providers is not None:
            options["execution_providers"] = [name.strip() for name in self.execution_providers.split(",")]
        return options


class OnnxWorker:
    """A session that runs batches.

    Args:
        session: the loaded model.
        signature: what it takes and gives.
        executor: the native threads, shared by all models.
        inline_run_us: a batch predicted to run for longer goes to a native thread.
        notes: where its runs are noted; None: nowhere.
        watchdog: of the loop's thread, for all models; None: the model gets one of its own.
    """

    platform = "onnxruntime_onnx"

    def __init__(
        self,
        session: Session,
        signature: Signature,
        executor: Executor,
        inline_run_us: int,
        notes: RunNotes | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.signature = signature
        self.start = Runner(session, signature.batched, executor, inline_run_us, notes, watchdog)
        self.close = self.start.close
