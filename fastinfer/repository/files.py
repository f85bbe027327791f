"""A model's directory: its versions, its configuration, and a fingerprint that changes with its files.

    digits/
        config.toml | config.pbtxt      optional
        labels.txt                      if the configuration names it
        warmup/                         data of warm-up requests, if the configuration names it
        1/model.onnx                    a version is a directory named by a positive integer

Each of them, and each directory above, may be a symbolic link. A stamp describes the files that links resolve to, so
that replacing a link changes it just as replacing a file does. The walk is bounded: see :class:`_Walk`.

Only reads the disk. Callers must check names before.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
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

_WARM_UP = "warmup"  # the directory of warm-up data

StampEntry = tuple[str, int, int, int, int]
"""A relative path, and of the file that it resolves to: device, inode, size, ctime in ns."""
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
    """A file is no longer the one of the stamp (status 503); the load reads the directory again."""

    def __init__(self, name: str) -> None:
        super().__init__(503, f"the files of model '{name}' change while it is loaded", retry_after_s=1)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model on the disk.

    Attributes:
        name: the directory's name.
        directory: the directory's path.
        versions: the stamp of each version directory's files, by version.
        shared: the stamp of the other files: the configuration, label files, warm-up data.
        marks: a fingerprint of each version's stamp, and under 0 that of the shared files. They are computed with the
            stamps, on the thread that walks the directory, because a stamp may have thousands of entries.
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
        """The model's configuration; all defaults if it has none. ApiError 400 with the reason."""
        try:
            return model_config.load(self.directory, self.name) or ModelConfig(name=self.name)
        except ConfigError as error:
            raise ApiError(400, f"model '{self.name}': {error}") from error

    def has_file(self, version: int, pattern: str) -> bool:
        """Whether the directory of a version has a file whose name matches. ApiError 400 if it cannot be listed."""
        return bool(self._files(version, lambda name: fnmatchcase(name, pattern)))

    def model_file(self, version: int, named: str, pattern: str) -> Path:
        """The model file of a version.

        Args:
            version: the version.
            named: the file's name; empty: the only one whose name matches ``pattern``.
            pattern: ``*.onnx``.

        Raises:
            ApiError: 400, there is not exactly one, or the directory cannot be listed.
        """
        found = self._files(version, lambda name: name == named if named else fnmatchcase(name, pattern))
        if len(found) == 1:
            return found[0]
        what = pattern.removeprefix("*")
        problem = f"several {what} files and no default_model_filename"
        if not found:
            problem = f"no file '{named or pattern}'" if named or what == pattern else f"no {what} file"
        raise ApiError(400, f"model '{self.name}' version {version} has {problem}")

    def _files(self, version: int, matches: Callable[[str], bool]) -> list[Path]:
        try:
            # The directory is listed even for a plain name: without a listing there is no stamp.
            entries = sorted((self.directory / str(version)).iterdir())
            return [path for path in entries if matches(path.name) and S_ISREG(_mode(path))]
        except (FileNotFoundError, NotADirectoryError):  # it was removed meanwhile
            return []
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise ApiError(400, f"model '{self.name}' version {version} {reason}") from error

    def read_model(self, version: int, path: Path) -> bytes:
        """The content of a version's model file, which is the file that the stamp describes.

        Args:
            version: the version.
            path: its file, from :meth:`model_file`.

        Raises:
            FilesChangedError: it is another file now.
            ApiError: 400 if it cannot be read.
        """
        try:
            with disk.regular_file(path) as file:
                found = os.fstat(file.fileno())
                if found.st_size > limits.MAX_MODEL_FILE_BYTES:
                    raise ApiError(
                        400,
                        f"model '{self.name}' version {version} has a file of {found.st_size:,} bytes, and a model "
                        "file has less than 2 GiB; put larger weights into external data",
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


def fingerprint(value: object) -> str:
    """A digest of a value's ``repr``; other files have other stamps, and so another digest."""
    return blake2b(repr(value).encode(), digest_size=16).hexdigest()


def unreadable(directories: Iterable[Path]) -> str | None:
    """The operating system's reason why a repository cannot be listed; None if all can be."""
    for directory in directories:
        try:
            with os.scandir(directory):
                pass
        except OSError as error:
            return error.strerror or "unknown error"
    return None


def names(directories: Iterable[Path], *, log_problems: bool = False) -> list[str]:
    """The models in the repositories' directories, sorted.

    Args:
        directories: the repositories; one that cannot be read has no models.
        log_problems: log unreadable directories and misplaced files.
    """
    found = set()
    for directory in directories:
        try:
            entries = list(directory.iterdir())  # unlike os.DirEntry, Path.is_dir() accepts a link to itself
        except OSError as error:
            if log_problems:
                log.error("the repository '%s' cannot be read: %s", directory, error.strerror)
            continue
        for entry in entries:
            # An entry without a readable status may be a model: it is not gone, and find() gives the reason.
            if _NAME.fullmatch(entry.name) and _may_be_dir(entry):
                found.add(entry.name)
            elif log_problems and not entry.name.startswith(".") and (_is_dir(entry) or entry.name.endswith(".onnx")):
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
        ApiError: 400 if the name is reserved, a repository that may have it cannot be read, or the directory is too
            large or has a link to a directory above it.
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
        if problem is not None:  # a later repository may have the name, but must not take precedence
            raise ApiError(400, f"model '{name}' is not found: a model repository cannot be read: {problem}")
    raise UnknownModelError(name)


def _look_at(path: Path, name: str) -> ModelFiles:
    """The files of the model in this directory. ApiError 400, OSError."""
    entries = list(path.iterdir())
    # Raises if an entry's type is unknown: otherwise a served version would count as gone.
    versions = [entry for entry in entries if _VERSION.fullmatch(entry.name) and S_ISDIR(_mode(entry))]
    if not versions:
        raise NoVersionError(name)
    walk = _Walk(path, name)
    stamps = {int(entry.name): walk.stamp(entry) for entry in sorted(versions)}
    shared = tuple(each for entry in sorted(entries) if _is_shared(entry) for each in walk.stamp(entry, entry.name))
    marks = {0: fingerprint(shared), **{version: fingerprint(stamp) for version, stamp in stamps.items()}}
    return ModelFiles(name, path, stamps, shared, marks)


def find_all(directories: Sequence[Path], *, log_problems: bool = False) -> dict[str, ModelFiles | ApiError]:
    """All models by name, each with its files or its error; ``log_problems`` as in :func:`names`."""
    found: dict[str, ModelFiles | ApiError] = {}
    for name in names(directories, log_problems=log_problems):
        try:
            found[name] = find(directories, name)
        except UnknownModelError:
            continue  # it was removed meanwhile
        except ApiError as error:
            found[name] = error
    return found


def _is_dir(path: Path) -> bool:
    """Whether the path is a directory or a link to one; False if it is missing or unreachable."""
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
    """``st_mode`` of the file that a path resolves to; 0 if there is none. OSError if it is unknown."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def _is_shared(entry: Path) -> bool:
    """Whether an entry is a file beside the versions, or warm-up data. Editors and copy programs leave hidden files."""
    return not entry.name.startswith(".") and (entry.name == _WARM_UP or not _is_dir(entry))


def _entry(name: str, status: os.stat_result) -> StampEntry:
    # The ctime, because a copy may keep the mtime, and may get the inode number of a removed file.
    return name, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


class _Walk:
    """Makes stamps of parts of one model's directory; follows symbolic links.

    A directory is walked only once, so cyclic links end. Refused are links to a directory above the model's (for
    example the root of the file system), and more entries or deeper nesting than the limits.
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
        """The stamp of the files below a directory, sorted by relative path; or of one file.

        Args:
            path: the directory or file.
            name: a prefix of the relative paths; may be empty.

        Raises:
            ApiError: 400 if a limit is exceeded.
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
            raise ApiError(400, f"model '{self._name}': '{path.name}' is a link to a directory above the model's own")
        if depth and place in {*self._seen, self._model}:
            found.append((name, *place, -1, 0))
            return
        self._seen.add(place)
        if depth > limits.MAX_MODEL_DEPTH:
            raise ApiError(400, f"model '{self._name}' has more than {limits.MAX_MODEL_DEPTH} nested directories")
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):  # it was removed after the listing
                return
            found.append(_entry(name, status))  # an unreadable directory is not part of the model
            return
        for entry in entries:
            self._visit(entry, f"{name}/{entry.name}".lstrip("/"), depth + 1, found)


def _dangling(path: Path, name: str) -> Stamp:
    """The stamp of a broken or cyclic link; empty if there is no link."""
    try:
        return (_entry(name, path.lstat()),)
    except OSError:
        return ()  # it was removed after the listing
