"""``fastinfer check``: loads every model of a repository as a server would, without serving it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastinfer.backends.onnx import load as onnx_load
from fastinfer.backends.onnx.backend import OnnxParameters
from fastinfer.backends.onnx.load import LoadedModel
from fastinfer.backends.parameters import parse
from fastinfer.base.errors import ApiError
from fastinfer.config.server import ServerConfig
from fastinfer.repository import files as model_files


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of one version of a model.

    Attributes:
        name: the model's.
        version: the version; None where the model as a whole is refused.
        ok: whether a server would serve it.
        detail: its signature, with why requests should not share a batch if so; or why it is not served.
    """

    name: str
    version: int | None
    ok: bool
    detail: str


def check(config: ServerConfig, directories: Sequence[Path], names: Sequence[str] = ()) -> Iterator[CheckResult]:
    """Tries the versions that a server would serve, one after the other.

    Args:
        config: the server's configuration.
        directories: the repositories.
        names: the models; empty: all.
    """
    for name in names or model_files.names(directories):
        try:
            files = model_files.find(directories, name)
            model_config = files.read_config()
            versions = model_config.select_versions(files.versions)
            if not versions:
                raise ApiError(400, f"model '{name}' has none of the versions that its version_policy names")
        except ApiError as error:
            yield CheckResult(name, None, False, error.message)
            continue
        for version in versions:
            try:
                path = files.model_file(version, model_config)
                options = parse(OnnxParameters, model_config.worker_parameters).session_options()
                loaded = onnx_load.load(path, model_config, name, options, config)
                yield CheckResult(name, version, True, _described(loaded))
            except ApiError as error:
                yield CheckResult(name, version, False, error.message)


def _described(loaded: LoadedModel) -> str:
    if loaded.why_alone is None:
        return str(loaded.signature)
    kind = "although" if loaded.signature.batched else "because"
    return f"{loaded.signature} ({kind} {loaded.why_alone})"
