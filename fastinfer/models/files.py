"""A model's directory: its versions, its configuration, and a fingerprint that tells when something changed.

    digits/
        config.toml | config.pbtxt      optional
        labels.txt                      where the configuration names it
        1/model.onnx                    a version is a directory named by a positive integer

Reads the disk and nothing else. Names must have been checked before they come here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from fastinfer.config import model as model_config
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.errors import ApiError

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
RESERVED_NAMES = frozenset({"stats"})  # /v2/models/stats is an endpoint of its own

Stamp = tuple[tuple[str, int, int, int], ...]  # files by relative path: inode, size, mtime in ns


class UnknownModelError(ApiError):
    """No repository has a model of that name (status 400)."""

    def __init__(self, name: str) -> None:
        super().__init__(400, f"no model '{name}' in the repository")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What lies on the disk for one model.

    Attributes:
        name: the directory's name.
        directory: where it is.
        versions: the stamp of each version directory's files, by version.
        shared: the stamp of the files beside them: the configuration, label files.
    """

    name: str
    directory: Path
    versions: dict[int, Stamp]
    shared: Stamp

    def read_config(self) -> ModelConfig:
        """The model's configuration, all defaults where it has none. ApiError 400 with the reason."""
        try:
            return model_config.load(self.directory, self.name) or ModelConfig(name=self.name)
        except ConfigError as error:
            raise ApiError(400, f"model '{self.name}': {error}") from error

    def model_file(self, version: int, config: ModelConfig) -> Path:
        """The ``.onnx`` file of a version. ApiError 400 where there is not exactly one."""
        directory = self.directory / str(version)
        if config.default_model_filename:
            path = directory / config.default_model_filename
            if path.is_file():
                return path
            raise ApiError(400, f"model '{self.name}' version {version} has no file '{config.default_model_filename}'")
        try:
            found = sorted(path for path in directory.iterdir() if path.suffix == ".onnx" and path.is_file())
        except OSError:  # it went away meanwhile
            found = []
        if len(found) == 1:
            return found[0]
        problem = "no .onnx file" if not found else "several .onnx files and no default_model_filename"
        raise ApiError(400, f"model '{self.name}' version {version} has {problem}")


def fingerprint(of: object) -> str:
    """A short text for something made of stamps: another one for other files."""
    return blake2b(repr(of).encode(), digest_size=16).hexdigest()


def names(directories: Iterable[Path], *, tell: bool = False) -> list[str]:
    """The models in the repositories' directories, sorted.

    Args:
        directories: the repositories; one that cannot be read has no models.
        tell: log what cannot be read, and what looks misplaced.
    """
    found = set()
    for directory in directories:
        try:
            entries = list(directory.iterdir())  # unlike os.DirEntry's, their is_dir() takes a link to itself
        except OSError as error:
            if tell:
                log.error("the repository '%s' cannot be read: %s", directory, error.strerror)
            continue
        for entry in entries:
            if entry.is_dir() and _NAME.fullmatch(entry.name):
                found.add(entry.name)
            elif tell and not entry.name.startswith(".") and (entry.is_dir() or entry.name.endswith(".onnx")):
                log.warning(
                    "'%s' is not served: a model is NAME/1/model.onnx, NAME of letters, digits, _ . -",
                    entry.name,
                )
    return sorted(found)


def find(directories: Sequence[Path], name: str) -> ModelFiles:
    """A model's files; the first repository that has the name wins.

    Raises:
        UnknownModelError: there is no such model.
        ApiError: 400 where it has no version, or a name that is not to be served.
    """
    if name in RESERVED_NAMES:
        raise ApiError(400, f"a model cannot be called '{name}'")
    for directory in directories:
        path = directory / name
        if _NAME.fullmatch(name) and path.is_dir():
            try:
                entries = list(path.iterdir())
                versions = {int(entry.name): _stamp(entry) for entry in entries if _is_version(entry)}
                shared = _stamp(*(entry for entry in entries if _is_shared(entry)))
            except OSError as error:
                raise ApiError(400, f"model '{name}' cannot be read: {error.strerror}") from error
            if not versions:
                raise ApiError(400, f"model '{name}' has no version: a directory named by a positive integer")
            return ModelFiles(name, path, versions, shared)
    raise UnknownModelError(name)


def find_all(directories: Sequence[Path], *, tell: bool = False) -> dict[str, ModelFiles | ApiError]:
    """All models by name, each with its files, or with why it cannot be loaded; ``tell`` as of :func:`names`."""
    found: dict[str, ModelFiles | ApiError] = {}
    for name in names(directories, tell=tell):
        try:
            found[name] = find(directories, name)
        except UnknownModelError:
            continue  # it went away meanwhile
        except ApiError as error:
            found[name] = error
    return found


def _is_version(entry: Path) -> bool:
    return entry.is_dir() and _VERSION.fullmatch(entry.name) is not None


def _is_shared(entry: Path) -> bool:
    return entry.is_file() and not entry.name.startswith(".")


def _stamp(*paths: Path) -> Stamp:
    """Files, and the files in directories, with what changes when they are written or replaced.

    The time is that of the inode: a copy may keep the other one, and get the number of a file that was removed.
    """
    entries: list[tuple[str, int, int, int]] = []
    for path in paths:
        try:
            if path.is_dir() and path.is_symlink():
                continue  # it may lead anywhere, back here too
            if path.is_dir():
                for name, inode, size, changed_ns in _stamp(*path.iterdir()):
                    entries.append((f"{path.name}/{name}", inode, size, changed_ns))
            else:
                status = path.stat()
                entries.append((path.name, status.st_ino, status.st_size, status.st_ctime_ns))
        except OSError:
            continue  # it went away between listing and looking
    return tuple(sorted(entries))
