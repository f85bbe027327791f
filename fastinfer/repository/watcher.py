"""What is loaded without being asked for over HTTP: all that a server starts with, and what changes on the disk.

Decides what to load; the repository, or the supervisor's operations, does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from fastinfer.base.errors import ApiError

log = logging.getLogger(__name__)

RETRY_S = 1.0  # until a repository that cannot be read is read again


class Look(TypedDict):
    """What lies on the disk.

    Attributes:
        models: by name, a fingerprint of the files; None: it has no version.
        unreadable: why a repository cannot be read, so that there may be other models; None where all can.
    """

    models: dict[str, str | None]
    unreadable: str | None


class Models(Protocol):
    """See :class:`fastinfer.repository.repository.Repository`."""

    def look(self, *, tell: bool = False) -> Awaitable[Look]: ...

    def expect(self, names: Iterable[str], unreadable: str | None) -> Awaitable[None]: ...

    def load_model(self, name: str, version: None, parameters: Mapping[str, Any]) -> Awaitable[str]: ...

    def refuse(self, name: str, reason: str) -> Awaitable[None]: ...

    def follow(self, name: str, *, known: bool, gone: bool) -> Awaitable[None]: ...

    def loaded(self) -> Mapping[str, str]: ...


async def load_all(models: Models, wanted: Sequence[str] | None) -> Look:
    """Loads what is asked for at start, all side by side; a failure is logged, and told whoever asks for the model.

    Args:
        models: who loads.
        wanted: the names; None: everything.

    Returns:
        What lay on the disk before the first load.
    """
    look = await _look(models, tell=True)
    if not look["models"] and look["unreadable"] is None:
        log.warning("there is no model in the repository: a model is a directory with 1/model.onnx in it")
    await _load_these(models, look, look["models"] if wanted is None else wanted)
    return look


async def load_rest(models: Models, wanted: Sequence[str] | None, seen: Look) -> Look:
    """While a repository cannot be read, tries again, and loads what it holds.

    Args:
        models, wanted: as for :func:`load_all`.
        seen: what that has returned.

    Returns:
        What lies on the disk, where all repositories can be read.
    """
    while seen["unreadable"] is not None:
        await asyncio.sleep(RETRY_S)
        look = await _look(models)
        if look["unreadable"] is None:
            log.info("the model repository can be read now")
        if wanted is None:
            names = [name for name in look["models"] if name not in seen["models"]]
        else:  # what could not be found may lie in the repository that can be read now
            names = [name for name in wanted if look["unreadable"] is None and name not in models.loaded()]
        await _load_these(models, look, names)
        seen = {"models": {**seen["models"], **look["models"]}, "unreadable": look["unreadable"]}
    return seen


async def _load_these(models: Models, look: Look, names: Iterable[str]) -> None:
    names = list(dict.fromkeys(names))
    await models.expect(names, look["unreadable"])
    await asyncio.gather(*(_load(models, name) for name in names))


async def _load(models: Models, name: str) -> None:
    try:
        await models.load_model(name, None, {})
    except ApiError as error:
        log.error("model '%s' is not served: %s", name, error.message)
        await models.refuse(name, error.message)
    except Exception:
        log.exception("model '%s' is not served", name)
        await models.refuse(name, "internal error")


async def follow(models: Models, interval_s: float, at_start: Look, *, unload_all: bool = False) -> None:
    """Polls the disk for ever: loads what is new or changed, unloads what is gone.

    A change is acted on when two looks in a row have seen the same, so that half-copied files are left alone. What is
    compared with the disk is what is loaded, whoever has loaded it; a state that does not load is tried once. While a
    repository cannot be read, nothing counts as gone. Nor do several models that vanish at once and leave none: a disk
    that is not mounted looks like that.

    Args:
        models: who loads and unloads.
        interval_s: seconds between two looks.
        at_start: what was seen before.
        unload_all: several models that vanish at once and leave none are unloaded.
    """
    done = seen = _with_versions(at_start)
    refused: dict[str, str | None] = {}
    problems: dict[str, str] = {}  # by name, what was logged last
    readable = there = True
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
        if readable and there == (vanished and not unload_all):
            there = not there
            if there:
                log.info("the models are in the repository again")
            else:
                log.error("all models have vanished from the repository at once: none is unloaded")
        blink = not (readable and there)
        loaded = models.loaded()
        for name in sorted(now.keys() | done.keys()):
            files = now.get(name)
            known = name in done
            if blink and files is None:
                continue
            if files != loaded.get(name, done.get(name)):
                if files != seen.get(name) or files == refused.get(name, ""):
                    continue
                refused.pop(name, None)
                try:
                    await models.follow(name, known=known, gone=files is None)
                except ApiError as error:
                    if problems.get(name) != error.message:
                        log.error("model '%s' is not served as it lies on the disk: %s", name, error.message)
                    problems[name] = error.message
                    # What failed for another reason than its files, or was not what was seen, is tried again. What
                    # has not ended in time is not: each try may leave a thread that does not end.
                    if (error.status < 500 or error.status == 504) and (await _look(models))["models"].get(
                        name
                    ) == files:
                        refused[name] = files
                    continue
                except Exception:
                    log.exception("model '%s' is not served as it lies on the disk", name)
                    continue
            problems.pop(name, None)
            done = _with_versions({"models": {**done, name: files}, "unreadable": None})
        seen = {**done, **now} if blink else now  # what vanishes must be gone in two looks without a blink


async def _look(models: Models, *, tell: bool = False) -> Look:
    """What lies on the disk; a look that fails has seen a repository that cannot be read."""
    try:
        return await models.look(tell=tell)
    except ApiError as error:
        return {"models": {}, "unreadable": error.message}
    except Exception:
        log.exception("the model repository cannot be looked at")
        return {"models": {}, "unreadable": "internal error"}


def _with_versions(look: Look) -> dict[str, str]:
    return {name: files for name, files in look["models"].items() if files is not None}
