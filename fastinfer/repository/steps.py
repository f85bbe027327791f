"""Loads the models of an ensemble's steps before the ensemble.

Each is an operation of its own, because operations on one name run one after another, and one that waited for another
name could wait forever: two ensembles may be each other's steps, by mistake.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from fastinfer.base import limits
from fastinfer.base.errors import ApiError

T = TypeVar("T")

_ATTEMPTS = 3  # how often a load is begun if a step is unloaded meanwhile


class MissingStepsError(ApiError):
    """The models of some steps of an ensemble are not loaded (status 400).

    Attributes:
        ensemble: its name.
        steps: the names of the models, each with a version or None.
    """

    def __init__(self, ensemble: str, steps: Iterable[tuple[str, int | None]]) -> None:
        self.ensemble = ensemble
        self.steps = tuple(steps)
        names = ", ".join(f"'{name}'" for name, _ in self.steps)
        are = "are" if len(self.steps) > 1 else "is"
        super().__init__(400, f"ensemble '{ensemble}' needs {names}, which {are} not loaded")

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"missing": [self.ensemble, [*self.steps]]}


def read_error(data: Mapping[str, Any]) -> ApiError:
    """The error that ``to_json`` has serialised, with the steps that a load has missed."""
    if "missing" not in data:
        return ApiError.from_json(data)
    ensemble, steps = data["missing"]
    return MissingStepsError(ensemble, ((name, version) for name, version in steps))


async def with_steps(
    load: Callable[[], Awaitable[T]],
    load_step: Callable[[str, int | None], Awaitable[Any]],
    path: tuple[str, ...] = (),
) -> T:
    """Loads a model; if it is an ensemble that misses models of its steps, loads these first.

    Args:
        load: loads the model.
        load_step: loads a model or worker by name and version if it is not loaded; None: any version.
        path: the ensembles that need this model.

    Raises:
        ApiError: as ``load``; 400 if an ensemble would be a step of itself.
    """
    for _ in range(_ATTEMPTS):
        try:
            return await load()
        except MissingStepsError as error:
            inside = (*path, error.ensemble)
            for name, version in error.steps:
                if name in inside:
                    cycle = " -> ".join((*inside[inside.index(name) :], name))
                    raise ApiError(400, f"'{name}' is a step of itself: {cycle}") from None
                if len(inside) > limits.MAX_STEP_DEPTH:
                    depth = f"more than {limits.MAX_STEP_DEPTH} ensembles within each other"
                    raise ApiError(400, f"ensemble '{inside[0]}' has {depth}") from None
                try:
                    await with_steps(partial(load_step, name, version), load_step, inside)
                except ApiError as failure:
                    text = f"step '{name}' of ensemble '{error.ensemble}' is not served: {failure.message}"
                    raise ApiError(failure.status, text, headers=failure.headers) from failure
    return await load()
