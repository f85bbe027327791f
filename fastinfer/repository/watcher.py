"""Loads models without a client's request: the models at start, and models that change on the disk.

Decides what to load; the repository, or the supervisor's operations, does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

RETRY_S = 1.0  # time until an unreadable repository is read again
_LOADS_AT_ONCE = 16  # more than there are load threads, because some loads wait for processes of their own


class Look(TypedDict):
    """The models on the disk.

    Attributes:
        models: by name, a fingerprint of the model's files; None: it has no version.
        unreadable: why a repository cannot be read, so that there may be more models; None if all can be read.
    """

    models: dict[str, str | None]
    unreadable: str | None


class Models(Protocol):
    """See :class:`fastinfer.repository.repository.Repository`."""

    def look(self, *, log_problems: bool = False) -> Awaitable[Look]: ...

    def expect(self, names: Iterable[str], unreadable: str | None) -> Awaitable[None]: ...

    def load_model(self, name: str, version: None, parameters: Mapping[str, Any]) -> Awaitable[str]: ...

    def refuse(self, name: str, reason: str) -> Awaitable[None]: ...

    def follow(self, name: str, *, known: bool, gone: bool) -> Awaitable[None]: ...

    def loaded(self) -> Mapping[str, str]: ...


async def load_all(models: Models, requested: Sequence[str] | None) -> Look:
    """Loads the models requested at start, several at once. A failure is logged, and is the answer for its model.

    Args:
        models: loads the models.
        requested: the names; None: all models.

    Returns:
        The models on the disk before the first load.
    """
    look = await _look(models, log_problems=True)
    if not look["models"] and look["unreadable"] is None:
        log.warning("there is no model in the repository: a model is a directory with 1/model.onnx in it")
    await _load_these(models, look, look["models"] if requested is None else requested)
    return look


async def load_rest(models: Models, requested: Sequence[str] | None, seen: Look) -> Look:
    """Retries while a repository cannot be read, and loads its models when it can.

    Args:
        models, requested: as for :func:`load_all`.
        seen: the result of :func:`load_all`.

    Returns:
        The models on the disk, when all repositories can be read.
    """
    while seen["unreadable"] is not None:
        await asyncio.sleep(RETRY_S)
        look = await _look(models)
        if look["unreadable"] is None:
            log.info("the model repository can be read now")
        if requested is None:
            names = [name for name in look["models"] if name not in seen["models"]]
        else:  # missing models may be in the repository that can be read now
            names = [name for name in requested if look["unreadable"] is None and name not in models.loaded()]
        await _load_these(models, look, names)
        seen = {"models": {**seen["models"], **look["models"]}, "unreadable": look["unreadable"]}
    return seen


async def _load_these(models: Models, look: Look, names: Iterable[str]) -> None:
    names = list(dict.fromkeys(names))
    await models.expect(names, look["unreadable"])
    waiting = iter(names)

    async def load_in_turn() -> None:
        for name in waiting:
            await _load(models, name)

    await asyncio.gather(*(load_in_turn() for _ in range(_LOADS_AT_ONCE)))


async def _load(models: Models, name: str) -> None:
    try:
        await models.load_model(name, None, {})
    except ApiError as error:
        log.error("model '%s' is not served: %s", name, error.message)
        await models.refuse(name, error.message)
    except Exception:
        log.exception("model '%s' is not served", name)
        await models.refuse(name, "internal error")


async def follow(
    models: Models,
    interval_s: float,
    at_start: Look,
    *,
    unload_all: bool = False,
    requested: Sequence[str] | None = None,
) -> None:
    """Polls the disk forever: loads new and changed models, unloads models that are gone.

    A change takes effect when two looks in a row see the same, so that half-copied files are ignored. The disk is
    compared with the loaded state, even if a client has loaded it; files that do not load are tried once. While a
    repository cannot be read, no model counts as gone. If several models vanish at once and none is left, none counts
    as gone either, because an unmounted disk looks the same.

    Args:
        models: loads and unloads the models.
        interval_s: seconds between two looks.
        at_start: the models seen before.
        unload_all: unload the models even if several vanish at once and none is left.
        requested: the only new models that are loaded; None or empty: all.
    """
    done = seen = _with_versions(at_start)
    refused: dict[str, str | None] = {}
    problems: dict[str, str] = {}  # by name, the last logged error
    readable = present = True
    while True:
        await asyncio.sleep(interval_s)
        look = await _look(models)
        if readable != (look["unreadable"] is None):
            readable = not readable
            if readable:
                log.info("the model repository can be read again")
            else:
                log.error("the model repository cannot be read: %s", look["unreadable"])
        now = _with_versions(look)
        vanished = len(done) > 1 and not done.keys() & now.keys()
        if readable and present == (vanished and not unload_all):
            present = not present
            if present:
                log.info("the models are in the repository again")
            else:
                log.error("all models have vanished from the repository at once: none is unloaded")
        unreliable = not (readable and present)
        loaded = models.loaded()
        for name in sorted(now.keys() | done.keys()):
            files = now.get(name)
            known = name in done or bool(requested and name not in requested)
            if unreliable and files is None:
                continue
            if files != loaded.get(name, done.get(name)):
                if files != seen.get(name) or files == refused.get(name, ""):
                    continue
                refused.pop(name, None)
                try:
                    await models.follow(name, known=known, gone=files is None)
                except ApiError as error:
                    if problems.get(name) != error.message:
                        log.error("model '%s' is not updated from the disk: %s", name, error.message)
                    problems[name] = error.message
                    # A failure for another reason than the files, or of files that have changed since, is retried. A
                    # timeout is not, because each try may leave a stuck thread.
                    if (error.status < 500 or error.status == 504) and (await _look(models))["models"].get(
                        name
                    ) == files:
                        refused[name] = files
                    continue
                except Exception:
                    log.exception("model '%s' is not updated from the disk", name)
                    continue
            problems.pop(name, None)
            done = _with_versions({"models": {**done, name: files}, "unreadable": None})
        seen = {**done, **now} if unreliable else now  # a model must be missing in two reliable looks


async def _look(models: Models, *, log_problems: bool = False) -> Look:
    """The models on the disk; a failed look counts as an unreadable repository."""
    try:
        return await models.look(log_problems=log_problems)
    except ApiError as error:
        return {"models": {}, "unreadable": error.message}
    except Exception:
        log.exception("the model repository cannot be read")
        return {"models": {}, "unreadable": "internal error"}


def _with_versions(look: Look) -> dict[str, str]:
    return {name: files for name, files in look["models"].items() if files is not None}
