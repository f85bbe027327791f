"""``fastinfer check``: loads every model of a repository as a server would, without serving."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastinfer.backends.backend import BackendContext
from fastinfer.backends.findings import Findings
from fastinfer.backends.registry import Backends
from fastinfer.base.budget import Budget
from fastinfer.base.errors import ApiError
from fastinfer.config.model_paths import Root
from fastinfer.config.server import ServerConfig
from fastinfer.native.executor import Executor
from fastinfer.repository import files as model_files
from fastinfer.repository.loader import try_version


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one version of a model.

    Attributes:
        name: the model's name.
        version: the version; None if the whole model is refused.
        ok: whether a server would serve it.
        detail: its signature, with the reason if its requests should not share a batch; or why it does not load.
    """

    name: str
    version: int | None
    ok: bool
    detail: str


def check(config: ServerConfig, roots: Sequence[Root], names: Sequence[str] = ()) -> Iterator[CheckResult]:
    """Load the versions that a server would serve, one after the other.

    Args:
        config: the server's configuration.
        roots: the repositories and models.
        names: the models to check; empty: all.
    """
    with asyncio.Runner() as runner:
        executor = Executor(1)
        backends = Backends(BackendContext(config, runner.get_loop(), executor, Budget(), Findings()))
        try:
            yield from _check_all(runner, backends, roots, names)
        finally:
            backends.close()
            executor.close()


def _check_all(
    runner: asyncio.Runner, backends: Backends, roots: Sequence[Root], names: Sequence[str]
) -> Iterator[CheckResult]:
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
        for version in versions:
            try:
                loaded = runner.run(try_version(backends, files, version, model_config))
                signature = str(loaded.implementation.signature)
                loaded.implementation.close()
                yield CheckResult(name, version, True, f"{signature} ({loaded.remark})" if loaded.remark else signature)
            except ApiError as error:
                yield CheckResult(name, version, False, error.message)
