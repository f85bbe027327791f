"""What is loaded without being asked for over HTTP: all that a server starts with, and what changes on the disk.

It decides, and has it done: by a repository, or by the repositories of all processes alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Protocol

from fastinfer.errors import ApiError

log = logging.getLogger(__name__)

Look = dict[str, str | None]
"""The models on the disk, each with a fingerprint of its files; None: it has no version."""


class Models(Protocol):
    """See :class:`fastinfer.models.repository.Repository`."""

    def look(self, *, tell: bool = False) -> Awaitable[Look]: ...

    def expect(self, names: Iterable[str]) -> Awaitable[None]: ...

    def load_model(self, name: str, version: None, parameters: Mapping[str, Any]) -> Awaitable[str]: ...

    def refuse(self, name: str, reason: str) -> Awaitable[None]: ...

    def follow(self, name: str, *, known: bool, gone: bool) -> Awaitable[None]: ...


async def load_all(models: Models, wanted: Iterable[str] | None) -> Look:
    """Loads what is asked for at start, all side by side; a failure is logged, and told whoever asks for the model.

    Args:
        models: who loads.
        wanted: the names; None: everything.

    Returns:
        What lay on the disk before the first load.
    """
    found = await models.look(tell=True)
    if not found:
        log.warning("there is no model in the repository: a model is a directory with 1/model.onnx in it")
    names = list(dict.fromkeys(found if wanted is None else wanted))
    await models.expect(names)
    await asyncio.gather(*(_load(models, name) for name in names))
    return found


async def _load(models: Models, name: str) -> None:
    try:
        await models.load_model(name, None, {})
    except ApiError as error:
        log.error("model '%s' is not served: %s", name, error.message)
        await models.refuse(name, error.message)
    except Exception:
        log.exception("model '%s' is not served", name)
        await models.refuse(name, "internal error")


async def follow(models: Models, interval_s: float, at_start: Look) -> None:
    """Polls the disk for ever: loads what is new or changed, unloads what is gone.

    A change is acted on when two looks in a row have seen the same, so that half-copied files are left alone.
    """
    done = seen = _with_versions(at_start)
    while True:
        await asyncio.sleep(interval_s)
        now = _with_versions(await models.look())
        for name in sorted(now.keys() | done.keys()):
            files = now.get(name)
            if seen.get(name) == files != done.get(name):
                await _follow(models, name, known=name in done, gone=files is None)
                done = _with_versions({**done, name: files})
        seen = now


async def _follow(models: Models, name: str, *, known: bool, gone: bool) -> None:
    try:
        await models.follow(name, known=known, gone=gone)
    except ApiError as error:
        log.error("model '%s' is not served as it lies on the disk: %s", name, error.message)
    except Exception:
        log.exception("model '%s' is not served as it lies on the disk", name)


def _with_versions(look: Look) -> dict[str, str]:
    return {name: files for name, files in look.items() if files is not None}
