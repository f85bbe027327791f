"""Where the files of a session's options may be: libraries to load, and files to write.

A library is code that runs in the server, so only whoever may change the model's directory, or gives the server its
options, decides what is loaded or written. A path is resolved, links followed, and must then be in the model's
directory or below a path of ``--allow-library``; the resolved path is the one that is opened. (Whoever can replace
parts of it meanwhile can write into these directories, and thereby put any code there anyhow.)

What is written goes into the directory ``.output`` of the version, which is not part of the model: a change there is no
reason to load it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from stat import S_IFREG, S_ISDIR, S_ISREG

from fastinfer.base.errors import ApiError
from fastinfer.base.validation import shown

OUTPUT = ".output"
_EXTENSIONS = "onnxruntime_extensions"


@dataclass(frozen=True, slots=True)
class Places:
    """The directories of one version of a model.

    Attributes:
        version: the directory of the version's model file; relative paths start there.
        model: the model's directory; the same for a model without directories of versions.
        allowed: the files and directories that the server's options allow beside these.
    """

    version: Path
    model: Path
    allowed: Sequence[Path] = ()

    def library(self, name: str, given: str) -> str:
        """Resolve the path of a library. Relative ones are searched in the version's and in the model's directory.

        Args:
            name: the option, for errors.
            given: its value.

        Raises:
            ApiError: 400, there is no such file, or it is not in an allowed place.
        """
        return self._existing(name, given, directory=False)

    def file(self, name: str, given: str) -> str:
        """Resolve the path of a file to read. ApiError 400."""
        return self._existing(name, given, directory=False)

    def folder(self, name: str, given: str) -> str:
        """Resolve the path of a directory to read from. ApiError 400."""
        return self._existing(name, given, directory=True)

    def output(self, name: str, given: str) -> str:
        """Resolve the path of a file to write; makes its directory if it is the version's ``.output``. ApiError 400."""
        _check_text(name, given)
        path = Path(os.path.normpath(self.version / given))
        own = path.parent == Path(os.path.normpath(self.version)) / OUTPUT
        folder = self._output_folder(name) if own else Path(os.path.realpath(path.parent))
        target = folder / path.name
        if not own and not self._is_allowed(target):
            raise ApiError(
                400,
                f"{name}: {shown(given)} is not a place to write to; files are written in the version's directory "
                f"'{OUTPUT}' or in a directory that is given with --allow-library",
            )
        _check_writable(name, given, target)
        return str(target)

    def _output_folder(self, name: str) -> Path:
        """Make the directory of the version's output. ApiError 400 if it leads elsewhere, or cannot be made."""
        folder = Path(os.path.realpath(self.version)) / OUTPUT
        try:
            folder.mkdir(exist_ok=True)
            is_directory = S_ISDIR(folder.lstat().st_mode)
        except OSError as error:
            raise ApiError(400, f"{name}: the directory '{OUTPUT}' cannot be made: {error.strerror}") from None
        if not is_directory:
            raise ApiError(400, f"{name}: '{OUTPUT}' is a link")
        return folder

    def path(self, name: str, given: str) -> str:
        """Resolve the path of a file or directory that is there, or of a file to write. ApiError 400."""
        _check_text(name, given)
        there = self._find(given)
        return (
            self.output(name, given) if there is None else self._existing(name, given, directory=S_ISDIR(_mode(there)))
        )

    def _existing(self, name: str, given: str, *, directory: bool) -> str:
        _check_text(name, given)
        what = "directory" if directory else "file"
        path = self._find(given)
        if path is None:
            raise ApiError(400, f"{name}: there is no {what} {shown(given)} in the model's directory")
        if not (path.is_relative_to(os.path.realpath(self.model)) or self._is_allowed(path)):
            raise ApiError(
                400,
                f"{name}: {shown(given)} is not in the model's directory; allow it with the server's option "
                "--allow-library",
            )
        if not (S_ISDIR(_mode(path)) if directory else S_ISREG(_mode(path))):
            raise ApiError(400, f"{name}: {shown(given)} is not a {what}")
        return str(path)

    def _find(self, given: str) -> Path | None:
        """The resolved path, searched in the directories from the version's up to the model's; None: it is in none."""
        inside = self.version.is_relative_to(self.model)
        above = [each for each in self.version.parents if each.is_relative_to(self.model)] if inside else [self.model]
        found = (Path(os.path.realpath(start / given)) for start in (self.version, *above))
        return next((path for path in found if _mode(path)), None)

    def _is_allowed(self, path: Path) -> bool:
        return any(path.is_relative_to(os.path.realpath(each)) for each in self.allowed)


def _mode(path: Path) -> int:
    """``st_mode`` of a path; 0 if it is missing or unreachable."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _check_writable(name: str, given: str, target: Path) -> None:
    """ApiError 400 unless a file can be written, or replaced, without following a link."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        mode = S_IFREG
    except OSError as error:
        raise ApiError(400, f"{name}: {shown(given)} cannot be written: {error.strerror}") from None
    if not S_ISREG(mode):
        raise ApiError(400, f"{name}: {shown(given)} is there, and not a regular file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ApiError(400, f"{name}: {shown(given)} cannot be written: its directory is missing or read-only")


def _check_text(name: str, given: str) -> None:
    if not given or not given.isprintable():
        raise ApiError(400, f"{name}: {shown(given)} is not a path")


def extensions_library() -> str:
    """Find the library of the package onnxruntime-extensions, without importing it. ApiError 400 if it is missing."""
    spec = find_spec(_EXTENSIONS)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = sorted([*Path(folder).glob("_extensions_pydll*.so"), *Path(folder).glob("_extensions_pydll*.dylib")])
        if len(found) == 1:
            return str(found[0])
    raise ApiError(
        400,
        "extensions: the package onnxruntime-extensions is not installed: pip install 'fastinfer[extensions]'",
    )


def is_extensions(library: str) -> bool:
    """Whether a library's path is that of onnxruntime-extensions."""
    return Path(library).parent.name == _EXTENSIONS


def stamps(paths: Sequence[str]) -> tuple[tuple[str, int, int, int], ...]:
    """The state of files: inode, size and change time; a missing one has none."""
    found = []
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError:
            continue
        found.append((path, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)
