"""The backend ``onnxruntime``: runs batches in ONNX Runtime, on native threads or, if they are tiny, on the loop's.

:mod:`fastinfer.backends.runner` chooses the thread; here is what a load decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fastinfer.backends.backend import BackendContext, Loaded, Source
from fastinfer.backends.onnx import load as onnx_load
from fastinfer.backends.onnx.load import LoadedModel, Shared
from fastinfer.backends.onnx.options import OnnxParameters, session_settings
from fastinfer.backends.onnx.ort import Session
from fastinfer.backends.onnx.places import Places
from fastinfer.backends.reshape import ReshapedModel
from fastinfer.backends.runner import Runner
from fastinfer.backends.watchdog import Watchdog
from fastinfer.native.executor import Executor
from fastinfer.schedule.backend import Implementation
from fastinfer.schedule.run_notes import RunNotes
from fastinfer.tensor.signature import Signature


class OnnxModel:
    """A session that runs batches; a :class:`fastinfer.schedule.backend.Implementation`.

    Args:
        session: the loaded model.
        signature: its inputs and outputs.
        executor: the native threads, shared by all models.
        inline_run_us: a batch predicted to run for longer goes to a native thread.
        notes: records its runs in the crash record; None: runs are not recorded.
        watchdog: ends overdue runs on the loop's thread, for all models; None: the model gets its own.
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


def _form(opsets: Mapping[str, int]) -> str:
    """The versions of operator sets in words: ``opset 17, ai.onnx.ml 3``."""
    names = {"": "opset", "ai.onnx": "opset"}
    return ", ".join(f"{names.get(domain, domain)} {version}" for domain, version in sorted(opsets.items()))


class OnnxBackend:
    """Loads ``.onnx`` files; a :class:`fastinfer.backends.backend.Backend`."""

    name: ClassVar[str] = "onnxruntime"
    aliases: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime_onnx", "onnx_onnxv1")
    pattern: ClassVar[str] = "*.onnx"
    parameters = OnnxParameters

    def __init__(self, context: BackendContext) -> None:
        self._context = context
        self._shared = Shared(findings=context.findings)
        self._watchdog = Watchdog(context.config.inline_run_us)

    async def load(self, source: Source[OnnxParameters]) -> Loaded:
        config, executor = self._context.config, self._context.executor
        places = Places(source.path.parent, source.directory, config.allow_library)

        def load(content: bytes) -> LoadedModel:
            operators = source.config.model_operations.op_library_filename
            settings = session_settings(source.parameters, operators, places)
            return onnx_load.load(
                source.path, content, source.config, source.name, settings, config, self._shared, source.directory
            )

        loaded = await source.read(load)
        signature = loaded.signature
        loaded.session.budget = self._context.budget
        inline_us = config.inline_run_us if loaded.steady else 0
        model: Implementation = OnnxModel(loaded.session, signature, executor, inline_us, source.notes, self._watchdog)
        if source.config.reshapes:
            model = ReshapedModel(model, source.config)
        rows = signature.max_batch_size if loaded.combines else 1
        # One native thread is always left for other models.
        instances = min(source.parameters.instances or source.config.instances, max(1, executor.threads - 1))
        remark = f"{'although' if signature.batched else 'because'} {loaded.why_alone}" if loaded.why_alone else ""
        return Loaded(model, rows, instances, remark, _form(loaded.opsets), loaded.notes)

    def close(self) -> None:
        self._shared.trials.end()
        self._watchdog.close()
