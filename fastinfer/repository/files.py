"""A model's directory: its versions, its configuration, and a fingerprint that tells when something changed.

    digits/
        config.toml | config.pbtxt      optional
        labels.txt                      where the configuration names it
        warmup/                         data of warm-up requests, likewise
        1/model.onnx                    a version is a directory named by a positive integer

Any of them, and any directory above, may be a symbolic link. A stamp describes the files that the links resolve to, so
that a link that is swapped changes it as a file does that is replaced. The walk is bounded: see :class:`_Walk`.

Reads the disk and nothing else. Names must have been checked before they come here.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from fastinfer.base import disk, limits
from fastinfer.base.errors import ApiError
from fastinfer.config import model as model_config
from fastinfer.config.model import ConfigError, ModelConfig

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
RESERVED_NAMES = frozenset({"stats"})  # /v2/models/stats is an endpoint of its own

_WARM_UP = "warmup"  # the directory of warm-up data in the model's

StampEntry = tuple[str, int, int, int, int]
"""A relative path and what it resolves to: device, inode, size, ctime in ns."""
Stamp = tuple[StampEntry, ...]


class UnknownModelError(ApiError):
    """No repository has a model of that name (status 400)."""

    def __init__(self, name: str) -> None:
        super().__init__(400, f"no model '{name}' in the repository")


class NoVersionError(ApiError):
    """The model's directory has no version (status 400)."""

    def __init__(self, name: str) -> None:
        super().__init__(400, f"model '{name}' has no version: a directory named by a positive integer")


class FilesChangedError(ApiError):
    """A file is no longer the one of the stamp (status 503): the load looks at the directory again."""

    def __init__(self, name: str) -> None:
        super().__init__(503, f"the files of model '{name}' change while it is loaded", retry_after_s=1)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What lies on the disk for one model.

    Attributes:
        name: the directory's name.
        directory: where it is.
        versions: the stamp of each version directory's files, by version.
        shared: the stamp of the files beside them: the configuration, label files, warm-up data.
        marks: a fingerprint of each version's stamp, and under 0 that of the shared one. They are made with the
            stamps, on the thread that walks the directory: a stamp may have thousands of entries.
    """

    name: str
    directory: Path
    versions: dict[int, Stamp]
    shared: Stamp
    marks: dict[int, str]

    @property
    def mark(self) -> str:
        """A fingerprint of all files."""
        return fingerprint((self.name, self.directory, self.marks))

    def read_config(self) -> ModelConfig:
        """The model's configuration, all defaults where it has none. ApiError 400 with the reason."""
        try:
            return model_config.load(self.directory, self.name) or ModelConfig(name=self.name)
        except ConfigError as error:
            raise ApiError(400, f"model '{self.name}': {error}") from error

    def model_file(self, version: int, config: ModelConfig) -> Path:
        """The ``.onnx`` file of a version. ApiError 400 where there is not exactly one, or none can be looked for."""
        directory = self.directory / str(version)
        named = config.default_model_filename
        try:
            entries = list(directory.iterdir())  # for a named file too: what cannot be listed has no stamp
            wanted = [directory / named] if named else sorted(path for path in entries if path.suffix == ".onnx")
            found = [path for path in wanted if S_ISREG(_mode(path))]
        except (FileNotFoundError, NotADirectoryError):  # it went away meanwhile
            found = []
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise ApiError(400, f"model '{self.name}' version {version} {reason}") from error
        if len(found) == 1:
            return found[0]
        problem = "several .onnx files and no default_model_filename"
        if not found:
            problem = f"no file '{named}'" if named else "no .onnx file"
        raise ApiError(400, f"model '{self.name}' version {version} has {problem}")

    def read_model(self, version: int, path: Path) -> bytes:
        """The content of a version's model file, which is the file that the stamp describes.

        Args:
            version: the version.
            path: its file, as of :meth:`model_file`.

        Raises:
            FilesChangedError: it is another file by now.
            ApiError: 400 where it cannot be read.
        """
        try:
            with disk.regular_file(path) as file:
                found = os.fstat(file.fileno())
                if found.st_size > limits.MAX_MODEL_FILE_BYTES:
                    raise ApiError(
                        400,
                        f"model '{self.name}' version {version} has a file of {found.st_size:,} bytes, and a model "
                        "file has less than 2 GiB; weights beyond that lie in external data",
                    )
                before = _entry(path.name, found)
                content = file.read()
                after = _entry(path.name, os.fstat(file.fileno()))
        except FileNotFoundError:
            raise FilesChangedError(self.name) from None
        except OSError as error:
            raise ApiError(400, f"model '{self.name}' cannot be read: {error.strerror}") from error
        if before != after or before not in self.versions[version]:
            raise FilesChangedError(self.name)
        return content


def fingerprint(of: object) -> str:
    """A short text for something made of stamps: another one for other files."""
    return blake2b(repr(of).encode(), digest_size=16).hexdigest()


def unreadable(directories: Iterable[Path]) -> str | None:
    """Why the models of a repository cannot be listed, as the operating system says it; None where all can."""
    for directory in directories:
        try:
            with os.scandir(directory):
                pass
        except OSError as error:
            return error.strerror or "unknown error"
    return None


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
            # What cannot be looked at may be a model: it has not gone, and to look for it tells why it is refused.
            if _NAME.fullmatch(entry.name) and _may_be_dir(entry):
                found.add(entry.name)
            elif tell and not entry.name.startswith(".") and (_is_dir(entry) or entry.name.endswith(".onnx")):
                log.warning(
                    "'%s' is not served: a model is NAME/1/model.onnx, NAME of letters, digits, _ . -",
                    entry.name,
                )
    return sorted(found)


def find(directories: Sequence[Path], name: str) -> ModelFiles:
    """A model's files; the first repository that has the name wins.

    Raises:
        UnknownModelError: there is no such model.
        NoVersionError: it has no version.
        ApiError: 400 where the name is not to be served, a repository cannot be read that may have it, or the
            directory is too large or leads out of itself to a directory above.
    """
    if name in RESERVED_NAMES:
        raise ApiError(400, f"a model cannot be called '{name}'")
    if not _NAME.fullmatch(name):
        raise UnknownModelError(name)
    for directory in directories:
        path = directory / name
        try:
            if S_ISDIR(_mode(path)):
                return _look_at(path, name)
            problem = unreadable([directory])
        except OSError as error:
            raise ApiError(400, f"model '{name}' cannot be read: {error.strerror}") from error
        if problem is not None:  # a later repository may have the name, and must not get its turn
            raise ApiError(400, f"model '{name}' is not found: a model repository cannot be read: {problem}")
    raise UnknownModelError(name)


def _look_at(path: Path, name: str) -> ModelFiles:
    """The files of the model in a directory. ApiError 400, OSError."""
    entries = list(path.iterdir())
    # Raises where it cannot be known whether something is a version: one that is served has not gone.
    versions = [entry for entry in entries if _VERSION.fullmatch(entry.name) and S_ISDIR(_mode(entry))]
    if not versions:
        raise NoVersionError(name)
    walk = _Walk(path, name)
    stamps = {int(entry.name): walk.stamp(entry) for entry in sorted(versions)}
    shared = tuple(each for entry in sorted(entries) if _is_shared(entry) for each in walk.stamp(entry, entry.name))
    marks = {0: fingerprint(shared), **{version: fingerprint(stamp) for version, stamp in stamps.items()}}
    return ModelFiles(name, path, stamps, shared, marks)


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


def _is_dir(path: Path) -> bool:
    """Whether it is a directory, or a link to one; what is not there, or cannot be reached, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _may_be_dir(path: Path) -> bool:
    try:
        return S_ISDIR(_mode(path))
    except OSError:
        return True


def _mode(path: Path) -> int:
    """``st_mode`` of what a path leads to; 0 where that is nothing. OSError where it cannot be known."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def _is_shared(entry: Path) -> bool:
    """Files beside the versions, and warm-up data. Hidden ones are an editor's or a copying program's."""
    return not entry.name.startswith(".") and (entry.name == _WARM_UP or not _is_dir(entry))


def _entry(name: str, status: os.stat_result) -> StampEntry:
    # The time is that of the inode: a copy may keep the other one, and get the number of a file that was removed.
    return name, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


class _Walk:
    """Stamps parts of one model's directory, following symbolic links.

    A directory that was met before is not walked again, so links in circles end. A link to a directory that holds the
    model's, the root of the file system for one, is refused, and so are more entries or deeper nesting than a model
    may have.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._name = name
        self._entries = 0
        self._seen: set[tuple[int, int]] = set()
        status = directory.stat()
        self._model = (status.st_dev, status.st_ino)
        resolved = Path(os.path.realpath(directory))
        self._above = {(above.stat().st_dev, above.stat().st_ino) for above in (*resolved.parents, directory.parent)}

    def stamp(self, path: Path, name: str = "") -> Stamp:
        """The files below a directory, by their paths relative to it, in order; or one file.

        Args:
            path: the directory or file.
            name: what the relative paths begin with; empty: with what is in the directory.

        Raises:
            ApiError: 400 where there is too much of it.
        """
        self._seen = set()
        found: list[StampEntry] = []
        self._visit(path, name, 0, found)
        return tuple(found)

    def _visit(self, path: Path, name: str, depth: int, found: list[StampEntry]) -> None:
        self._entries += 1
        if self._entries > limits.MAX_MODEL_FILES:
            raise ApiError(400, f"model '{self._name}' has more than {limits.MAX_MODEL_FILES} files, links included")
        try:
            status = path.stat()
        except OSError:
            found += _dangling(path, name)
            return
        if not S_ISDIR(status.st_mode):
            found.append(_entry(name, status))
            return
        place = (status.st_dev, status.st_ino)
        if place in self._above:
            raise ApiError(400, f"model '{self._name}': '{path.name}' leads to a directory that holds the model's own")
        if depth and place in {*self._seen, self._model}:
            found.append((name, *place, -1, 0))
            return
        self._seen.add(place)
        if depth > limits.MAX_MODEL_DEPTH:
            raise ApiError(
                400, f"model '{self._name}' has more than {limits.MAX_MODEL_DEPTH} directories in each other"
            )
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):  # it went away between listing and looking
                return
            found.append(_entry(name, status))  # what cannot be read is no part of the model as it is now
            return
        for entry in entries:
            self._visit(entry, f"{name}/{entry.name}".lstrip("/"), depth + 1, found)


def _dangling(path: Path, name: str) -> Stamp:
    """A link that leads nowhere, or in a circle; nothing where there is no link."""
    try:
        return (_entry(name, path.lstat()),)
    except OSError:
        return ()  # it went away between listing and looking
