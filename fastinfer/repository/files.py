"""A model's directory: its versions, its configuration, and a fingerprint that changes with its files.

    digits/
        config.toml | config.pbtxt      optional
        labels.txt                      if the configuration names it
        warmup/                         data of warm-up requests, if the configuration names it
        1/model.onnx                    a version is a directory named by a positive integer

A model may also be given by a path (:mod:`fastinfer.config.model_paths`): such a directory, one in which a single model
file takes the place of the versions, or a model file alone. Its files are then only those that a load reads, because
other programs may write beside them.

Each of them, and each directory above, may be a symbolic link. A stamp describes the files that links resolve to, so
that replacing a link changes it just as replacing a file does. The walk is bounded: see :class:`_Walk`.

Only reads the disk. Callers must check names before.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from fastinfer.backends.onnx.graph.external import external_files
from fastinfer.backends.onnx.places import OUTPUT
from fastinfer.base import disk, limits
from fastinfer.base.errors import ApiError
from fastinfer.base.near import suggestion
from fastinfer.config import model as model_config
from fastinfer.config.model import ConfigError, ModelConfig
from fastinfer.config.model_paths import NAME, RESERVED_NAMES, VERSION, ModelPath, Root

log = logging.getLogger(__name__)

_WARM_UP = "warmup"  # the directory of warm-up data
_INNER_FILE = "model.onnx"  # the model file in a directory that has the name of a model file (Triton's convention)
_MAX_SCANNED = 1024  # models whose external data is remembered

StampEntry = tuple[str, int, int, int, int]
"""A relative path, and of the file that it resolves to: device, inode, size, ctime in ns."""
Stamp = tuple[StampEntry, ...]


class UnknownModelError(ApiError):
    """No repository has a model of that name (status 400)."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        super().__init__(400, f"no model '{name}' in the repository{suggestion(name, known)}")


class NoVersionError(ApiError):
    """The model's directory has no version (status 400)."""

    def __init__(self, name: str, file: str = "") -> None:
        move = f"; move '{file[:60]}' into the directory '1'" if file else ""
        super().__init__(400, f"model '{name}' has no version: a directory named by a positive integer{move}")


class FilesChangedError(ApiError):
    """A file is no longer the one of the stamp (status 503); the load reads the directory again."""

    def __init__(self, name: str) -> None:
        super().__init__(503, f"the files of model '{name}' change while it is loaded", retry_after_s=1)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model on the disk.

    Attributes:
        name: the model's name.
        place: where the files are.
        versions: the stamp of each version directory's files, by version.
        shared: the stamp of the other files: the configuration, label files, warm-up data.
        marks: a fingerprint of each version's stamp, and under 0 that of the shared files. They are computed with the
            stamps, on the thread that walks the directory, because a stamp may have thousands of entries.
    """

    name: str
    place: ModelPath
    versions: dict[int, Stamp]
    shared: Stamp
    marks: dict[int, str]

    @property
    def directory(self) -> Path:
        """The model's directory."""
        return self.place.base

    @property
    def mark(self) -> str:
        """A fingerprint of all files."""
        return fingerprint((self.name, self.place, self.marks))

    def read_config(self) -> ModelConfig:
        """The model's configuration; all defaults if it has none. ApiError 400 with the reason."""
        directory = self.place.directory
        try:
            if directory is None:
                return ModelConfig(name=self.name)
            model_config.warn_of_other_spellings(directory, self.name)
            return model_config.load(directory, self.name) or ModelConfig(name=self.name)
        except ConfigError as error:
            raise ApiError(400, f"model '{self.name}': {error}") from error

    def has_file(self, version: int, pattern: str) -> bool:
        """Whether the directory of a version has a file whose name matches. ApiError 400 if it cannot be listed."""
        return bool(self._files(version, lambda name: fnmatchcase(name, pattern)))

    def model_file(self, version: int, named: str, pattern: str) -> Path:
        """The model file of a version.

        Args:
            version: the version.
            named: the file's name; empty: the only one whose name matches ``pattern``, or ``model.onnx``.
            pattern: ``*.onnx``.

        Raises:
            ApiError: 400, there is not exactly one, or the directory cannot be listed.
        """
        found = self._files(version, lambda name: name == named if named else fnmatchcase(name, pattern))
        if len(found) > 1:
            found = [path for path in found if path.name == _INNER_FILE] or found
        if len(found) == 1:
            return found[0]
        what = pattern.removeprefix("*")
        problem = f"several {what} files, none of them {_INNER_FILE}, and no default_model_filename"
        if not found:
            problem = f"no file '{named or pattern}'" if named or what == pattern else f"no {what} file"
        raise ApiError(400, f"model '{self.name}' version {version} has {problem}")

    def _version_directory(self, version: int) -> Path:
        file = self.place.file
        return self.directory / str(version) if file is None else file.parent

    def _files(self, version: int, matches: Callable[[str], bool]) -> list[Path]:
        try:
            if self.place.file is not None:
                entries = [self.place.file]
            else:  # the directory is listed even for a plain name: without a listing there is no stamp
                entries = sorted(self._version_directory(version).iterdir())
            # Finder and other programs leave hidden files that are called like others (._model.onnx).
            files = [_inner_file(path) for path in entries if matches(path.name) and not path.name.startswith(".")]
            return [path for path in files if S_ISREG(_mode(path))]
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
                name = path.relative_to(self._version_directory(version)).as_posix()
                before = _entry(name, found)
                content = file.read()
                after = _entry(name, os.fstat(file.fileno()))
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


def unreadable(roots: Iterable[Root]) -> str | None:
    """The operating system's reason why a repository or a model's path cannot be read; None if all can be."""
    for root in roots:
        try:
            if isinstance(root, Path):
                with os.scandir(root):
                    pass
            else:
                for place in root.values():
                    _mode(place.file or place.base)  # a missing file is no error: the model is gone
        except OSError as error:
            return error.strerror or "unknown error"
    return None


def names(roots: Iterable[Root], *, log_problems: bool = False) -> list[str]:
    """The models in the repositories' directories and those that have a path, sorted.

    Args:
        roots: the repositories and models; a repository that cannot be read has no models.
        log_problems: log unreadable directories and misplaced files.
    """
    found: set[str] = set()
    for root in roots:
        found |= _names_in(root, log_problems) if isinstance(root, Path) else root.keys()
    return sorted(found)


def _names_in(directory: Path, log_problems: bool) -> set[str]:
    """The models in a repository's directory."""
    try:
        entries = list(directory.iterdir())  # unlike os.DirEntry, Path.is_dir() accepts a link to itself
    except OSError as error:
        if log_problems:
            log.error("the repository '%s' cannot be read: %s", directory, error.strerror)
        return set()
    found = set()
    for entry in entries:
        # An entry without a readable status may be a model: it is not gone, and find() gives the reason.
        if NAME.fullmatch(entry.name) and _may_be_dir(entry):
            found.add(entry.name)
        elif log_problems and not entry.name.startswith(".") and (_is_dir(entry) or entry.name.endswith(".onnx")):
            log.warning(
                "'%s' is not served: a model is NAME/1/model.onnx, NAME of letters, digits, _ . -; "
                "other layouts are served by their path (fastinfer serve PATH)",
                entry.name,
            )
    if log_problems and (version := next((name for name in found if _is_version(directory / name)), None)):
        log.warning(
            "'%s' looks like a model's directory with the version %s, not like a repository: serve it as "
            "'fastinfer serve %s', or give the directory above it",
            directory, version, directory,
        )  # fmt: skip
    return found


def _is_version(directory: Path) -> bool:
    """Whether a directory is that of a model's version, and not of a model."""
    if not VERSION.fullmatch(directory.name):
        return False
    try:
        entries = list(directory.iterdir())
    except OSError:
        return False
    return any(each.suffix == ".onnx" for each in entries) and not any(VERSION.fullmatch(each.name) for each in entries)


def find(roots: Sequence[Root], name: str) -> ModelFiles:
    """A model's files; the first repository that has the name wins.

    Raises:
        UnknownModelError: there is no such model.
        NoVersionError: it has no version.
        ApiError: 400 if the name is reserved, a repository that may have it cannot be read, or the directory is too
            large or has a link to a directory above it.
    """
    if name in RESERVED_NAMES:
        raise ApiError(400, f"a model cannot be called '{name}'")
    if not NAME.fullmatch(name):
        raise UnknownModelError(name)
    for root in roots:
        place = ModelPath(root / name) if isinstance(root, Path) else root.get(name)
        if place is None:
            continue
        try:
            mode = _mode(place.file or place.base)
            if place.file is not None and S_ISREG(mode):
                return _look_at_file(place, place.file, name)
            if place.file is None and S_ISDIR(mode):
                return _look_at(place, name)
            problem = unreadable([root]) if isinstance(root, Path) else None
        except OSError as error:
            raise ApiError(400, f"model '{name}' cannot be read: {error.strerror}") from error
        if problem is not None:  # a later repository may have the name, but must not take precedence
            raise ApiError(400, f"model '{name}' is not found: a model repository cannot be read: {problem}")
    raise UnknownModelError(name, names(roots))


def _inner_file(path: Path) -> Path:
    """The file that a path means: in a directory called ``model.onnx``, the file of that name."""
    return path / _INNER_FILE if path.suffix == ".onnx" and _is_dir(path) else path


def _look_at(place: ModelPath, name: str) -> ModelFiles:
    """The files of the model with directories of versions. ApiError 400, OSError."""
    entries = list(place.base.iterdir())
    # Raises if an entry's type is unknown: otherwise a served version would count as gone.
    versions = [entry for entry in entries if VERSION.fullmatch(entry.name) and S_ISDIR(_mode(entry))]
    walk = _Walk(place.base, name)
    stamps = {int(entry.name): walk.stamp(entry) for entry in sorted(versions)}
    if not versions:
        if not _is_ensemble(place.base, name):
            raise NoVersionError(name, next((entry.name for entry in sorted(entries) if entry.suffix == ".onnx"), ""))
        stamps = {1: ()}  # it has no files besides its configuration, and some programs keep no empty directories
    shared = tuple(each for entry in sorted(entries) if _is_shared(entry) for each in walk.stamp(entry, entry.name))
    return _files(name, place, stamps, shared)


def _look_at_file(place: ModelPath, file: Path, name: str) -> ModelFiles:
    """The files that a load of a single model file reads. ApiError 400, OSError."""
    walk = _Walk(file.parent, name)
    located = sorted(_external_files(file, _entry(file.name, file.stat())))
    stamp = tuple(each for part in (file.name, *located) for each in walk.stamp(file.parent / part, part))
    shared: Stamp = ()
    if (directory := place.directory) is not None:
        parts = (*model_config.FILES, _WARM_UP, *_label_files(directory, name))
        shared = tuple(each for part in parts for each in walk.stamp(directory / part, part))
    return _files(name, place, {1: stamp}, shared)


def _files(name: str, place: ModelPath, stamps: dict[int, Stamp], shared: Stamp) -> ModelFiles:
    marks = {0: fingerprint(shared), **{version: fingerprint(stamp) for version, stamp in stamps.items()}}
    return ModelFiles(name, place, stamps, shared, marks)


@lru_cache(_MAX_SCANNED)
def _external_files(file: Path, entry: StampEntry) -> frozenset[str]:  # noqa: ARG001 - a changed file is read again
    """The external data of a model file, as paths relative to its directory. OSError."""
    content = disk.read(file, limits.MAX_MODEL_FILE_BYTES)
    return external_files(content) if len(content) <= limits.MAX_MODEL_FILE_BYTES else frozenset()


def _label_files(directory: Path, name: str) -> list[str]:
    """The label files that a model's configuration names; none if it cannot be used, because no load reads them."""
    try:
        config = model_config.load(directory, name)
    except ConfigError:
        return []
    return config.label_files if config else []


def _is_ensemble(directory: Path, name: str) -> bool:
    """Whether a model's configuration is that of an ensemble. ApiError 400 if it cannot be used."""
    try:
        config = model_config.load(directory, name)
    except ConfigError as error:
        raise ApiError(400, f"model '{name}': {error}") from error
    return config is not None and config.ensemble_scheduling is not None


def find_all(roots: Sequence[Root], *, log_problems: bool = False) -> dict[str, ModelFiles | ApiError]:
    """All models by name, each with its files or its error; ``log_problems`` as in :func:`names`."""
    found: dict[str, ModelFiles | ApiError] = {}
    for name in names(roots, log_problems=log_problems):
        try:
            found[name] = find(roots, name)
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
            if entry.name == OUTPUT:  # what sessions write is not part of the model
                continue
            self._visit(entry, f"{name}/{entry.name}".lstrip("/"), depth + 1, found)


def _dangling(path: Path, name: str) -> Stamp:
    """The stamp of a broken or cyclic link; empty if there is no link."""
    try:
        return (_entry(name, path.lstat()),)
    except OSError:
        return ()  # it was removed after the listing
