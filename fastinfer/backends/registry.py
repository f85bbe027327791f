"""Finds the backend of a model: built in, or from another package by the entry-point group ``fastinfer.backends``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from threading import Lock
from typing import Any

from fastinfer.backends.backend import Backend, BackendContext
from fastinfer.backends.onnx.backend import OnnxBackend
from fastinfer.backends.python.backend import PythonBackend
from fastinfer.base.errors import ApiError, without_paths
from fastinfer.base.validation import shown
from fastinfer.config.model import ModelConfig

log = logging.getLogger(__name__)

GROUP = "fastinfer.backends"
BUILT_IN: tuple[type[Backend[Any]], ...] = (OnnxBackend, PythonBackend)

_BY_NAME: Mapping[str, str] = {alias: each.name for each in BUILT_IN for alias in (each.name, *each.aliases)}


class Backends:
    """The backends of a process; each is made when the first model needs it. Thread-safe but for :meth:`close`."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context
        self._lock = Lock()
        self._made: dict[str, Backend[Any]] = {}

    def choose(self, config: ModelConfig, holds: Callable[[str], bool]) -> Backend[Any]:
        """Returns the backend of a model.

        Args:
            config: its configuration; ``backend``, else ``platform``, names the backend.
            holds: whether the version's directory has a file that matches a pattern; decides if neither is given. Only
                built-in backends are found so.

        Raises:
            ApiError: 400, no backend has that name, or it cannot be made.
        """
        for field in ("backend", "platform"):
            if name := getattr(config, field):
                return self._named(name, field)
        found = next((each for each in BUILT_IN if holds(each.pattern)), BUILT_IN[0])
        return self._named(found.name, "backend")

    def close(self) -> None:
        """Closes all backends."""
        for backend in self._made.values():
            backend.close()

    def _named(self, given: str, field: str) -> Backend[Any]:
        name = _BY_NAME.get(given, given)
        with self._lock:
            if name not in self._made:
                self._made[name] = _make(name, field, self._context)
            return self._made[name]


def _make(name: str, field: str, context: BackendContext) -> Backend[Any]:
    for built_in in BUILT_IN:
        if built_in.name == name:
            made: Callable[[BackendContext], Backend[Any]] = built_in
            return made(context)
    installed = entry_points(group=GROUP)
    if name not in installed.names:
        known = sorted({*(each.name for each in BUILT_IN), *installed.names})
        raise ApiError(400, f"{field}: {shown(name)} is not served here; use {' or '.join(known)}")
    try:
        backend: Backend[Any] = installed[name].load()(context)
        return backend
    except Exception as error:
        log.exception("the backend '%s' cannot be made", name)
        raise ApiError(400, f"{field}: '{name}' cannot be made: {without_paths(str(error))}") from error
