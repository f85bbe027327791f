"""``fastinfer check``: loads every model of a repository as a server would, without serving."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastinfer.backends.backend import BackendContext, Loaded
from fastinfer.backends.builtin.item import WorkerContext
from fastinfer.backends.example import find_example
from fastinfer.backends.findings import Findings
from fastinfer.backends.registry import Backends
from fastinfer.base import limits
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.cli.check_steps import StepChecker
from fastinfer.config.model import ModelConfig
from fastinfer.config.model_paths import Root
from fastinfer.config.server import ServerConfig
from fastinfer.native.executor import Executor
from fastinfer.repository import files as model_files
from fastinfer.repository.files import ModelFiles
from fastinfer.repository.loader import try_version
from fastinfer.tensor.signature import Signature


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one version of a model.

    Attributes:
        name: the model's name.
        version: the version; None if the whole model is refused.
        ok: whether a server would serve it.
        detail: its signature, with the reason if its requests should not share a batch; or why it does not load.
        notes: further lines about a version that loads.
    """

    name: str
    version: int | None
    ok: bool
    detail: str
    notes: tuple[str, ...] = ()


def check(config: ServerConfig, roots: Sequence[Root], names: Sequence[str] = ()) -> Iterator[CheckResult]:
    """Load the versions that a server would serve, one after the other; ensembles come last.

    Args:
        config: the server's configuration.
        roots: the repositories and models.
        names: the models to check; empty: all.
    """
    with asyncio.Runner() as runner:
        loop, executor = runner.get_loop(), Executor(1)
        loop.add_reader(executor.fileno(), executor.drain)
        backends = Backends(BackendContext(config, loop, executor, Budget(), Findings()))
        try:
            yield from _check_all(runner, config, backends, roots, names)
        finally:
            backends.close()
            loop.remove_reader(executor.fileno())
            executor.close()


def _check_all(
    runner: asyncio.Runner, config: ServerConfig, backends: Backends, roots: Sequence[Root], names: Sequence[str]
) -> Iterator[CheckResult]:
    def load_step(files: ModelFiles, version: int, config: ModelConfig) -> Signature:
        loaded = runner.run(try_version(backends, files, version, config))
        loaded.implementation.close()
        return loaded.implementation.signature

    steps = StepChecker(roots, load_step, WorkerContext(runner.get_loop(), Budget()))
    ensembles: list[tuple[ModelFiles, ModelConfig]] = []
    for name in names or model_files.names(roots):
        try:
            files = model_files.find(roots, name)
            model_config = files.read_config()
            versions = model_config.select_versions(files.versions)
            if not versions:
                raise ApiError(400, f"model '{name}' has none of the versions that its version_policy names")
        except ApiError as error:
            yield CheckResult(name, None, False, error.message)
            continue
        if model_config.ensemble_scheduling is not None:
            ensembles.append((files, model_config))
            continue
        for version in versions:
            resident = _resident_bytes()
            try:
                loaded = runner.run(try_version(backends, files, version, model_config))
            except ApiError as error:
                yield CheckResult(name, version, False, error.message)
                continue
            try:
                path = f"models/{name}" if len(versions) == 1 else f"models/{name}/versions/{version}"
                url = f"localhost:{config.port}/v2/{path}/infer"
                notes = runner.run(_notes(loaded, url, config.load_run_timeout_s, resident))
            finally:
                loaded.implementation.close()
            steps.known[name, version] = loaded.implementation.signature
            if fields := model_config.without_effect:
                notes = (*notes, f"fields without effect: {', '.join(fields)}")
            signature = str(loaded.implementation.signature)
            detail = f"{signature} ({loaded.remark})" if loaded.remark else signature
            yield CheckResult(name, version, True, detail, notes)
    for files, model_config in ensembles:
        yield _check_ensemble(steps, files, model_config)


def _check_ensemble(steps: StepChecker, files: ModelFiles, config: ModelConfig) -> CheckResult:
    """Check an ensemble; its versions differ in nothing."""
    version = config.select_versions(files.versions)[-1]
    try:
        wiring = steps.check(files, config)
    except ApiError as error:
        return CheckResult(files.name, version, False, error.message)
    names = ", ".join(step.model for step in wiring.steps)
    notes = (f"an ensemble of {len(wiring.steps)} step{'s' * (len(wiring.steps) > 1)}: {names}",)
    return CheckResult(files.name, version, True, str(wiring.signature), notes)


async def _notes(loaded: Loaded, url: str, limit_s: float, resident_before: int) -> tuple[str, ...]:
    """Describe a loaded model, its cost, and a request to try."""
    facts = [loaded.form, _why_batched(loaded)]
    try:
        example = await find_example(loaded.implementation, limit_s)
    except ApiError as error:
        command = f"no example was found: {error.message}"
    else:
        facts += [f"{rows} row{'s' * (rows > 1)} in {_time(seconds)}" for rows, seconds in example.run_s.items()]
        command = example.command(url)
    facts.append(f"{max(_resident_bytes() - resident_before, 0) / limits.MIB:.1f} MiB of memory")
    return ", ".join(fact for fact in facts if fact), command


def _why_batched(loaded: Loaded) -> str:
    """Return why requests share batches; empty if they do not, because the remark then says why not."""
    if loaded.rows <= 1:
        return ""
    configured = loaded.implementation.signature.max_batch_size_configured
    return "batched because " + ("max_batch_size is configured" if configured else "its rows are independent")


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms" if seconds < 1 else f"{seconds:.2g} s"


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
