"""Checks the steps of ensembles for ``fastinfer check``, by the signatures of their models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastinfer.backends.builtin import workers
from fastinfer.backends.builtin.item import WorkerContext
from fastinfer.backends.ensemble import wiring_of
from fastinfer.base import limits
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.config.model_paths import Root
from fastinfer.repository import files as model_files
from fastinfer.repository.files import ModelFiles, UnknownModelError
from fastinfer.schedule.wiring import Wiring
from fastinfer.tensor.signature import Signature

Load = Callable[[ModelFiles, int, ModelConfig], Signature]


class StepChecker:
    """Checks ensembles; loads the models of their steps if their signatures are not known yet.

    Args:
        roots: the repositories and models.
        load: loads a version of a model that is no ensemble, and returns its signature. ApiError.
        context: for built-in workers.

    Attributes:
        known: the signatures of versions that were loaded, by name and version.
    """

    def __init__(self, roots: Sequence[Root], load: Load, context: WorkerContext) -> None:
        self.known: dict[tuple[str, int], Signature] = {}
        self._roots = roots
        self._load = load
        self._context = context

    def check(self, files: ModelFiles, config: ModelConfig, path: tuple[str, ...] = ()) -> Wiring:
        """Returns the checked steps of an ensemble; ``path``: the ensembles that it is a step of. ApiError 400."""
        wiring = wiring_of(files.directory, config)
        inside = (*path, files.name)
        if len(inside) > limits.MAX_STEP_DEPTH:
            raise ApiError(400, f"there are more than {limits.MAX_STEP_DEPTH} ensembles within each other")
        try:
            wiring.plan([self._signature(step.model, step.version, inside) for step in wiring.steps])
        except ApiError as error:
            raise ApiError(400, f"ensemble '{files.name}': {error.message}") from error
        return wiring

    def _signature(self, name: str, version: str | None, inside: tuple[str, ...]) -> Signature:
        """The signature of a step's model, as it would be loaded."""
        if name in inside:
            cycle = " -> ".join((*inside[inside.index(name) :], name))
            raise ApiError(400, f"'{name}' is a step of itself: {cycle}")
        try:
            files = model_files.find(self._roots, name)
        except UnknownModelError:
            if name not in workers.KINDS:
                raise
            kind, parameters = workers.resolve(name, {})
            signature: Signature = kind.factory(parameters, self._context).signature
            return signature
        config = files.read_config()
        versions = [int(version)] if version else config.select_versions(files.versions)
        if not versions or versions[-1] not in files.versions:
            raise ApiError(400, f"model '{name}' has no version {version or 'that its version_policy names'}")
        place = name, versions[-1]
        if place not in self.known:
            if config.ensemble_scheduling is not None:
                self.known[place] = self.check(files, config, inside).signature
            else:
                self.known[place] = self._load(files, versions[-1], config)
        return self.known[place]
