"""Finds the files with a model's external data, also behind links, and refuses those that a model may not read.

ONNX Runtime reads external data only from regular files below one directory, and no links out of it. So a model whose
weights are links (a cache of Hugging Face, DVC) is given to it with the names of the files that the links lead to. They
must be in a repository, or in the directory that the model file itself leads to, so that a model cannot read any file;
``--allow-linked-weights`` allows all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from fastinfer.backends.onnx.content import is_lfs_pointer
from fastinfer.backends.onnx.graph.external import external_files
from fastinfer.backends.onnx.ort import OrtError
from fastinfer.base import disk, limits

_POINTER_BYTES = 1024  # a git-lfs pointer is smaller
_OUTSIDE = "outside of the model repository; --allow-linked-weights allows that"


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's external data is.

    Attributes:
        names: the files' names in ``folder``, by their names in the model, which they replace; empty: they are equal.
        folder: where the files are.
    """

    names: Mapping[str, str]
    folder: Path


def find_weights(model: bytes, path: Path, roots: Iterable[Path], *, allow_links: bool) -> Weights | None:
    """Find a model's external data.

    Args:
        model: the content of the model file.
        path: the model file.
        roots: the repositories and the directories of models: links may lead into them.
        allow_links: links may lead anywhere.

    Returns:
        None if the model has no external data behind links; the session then finds it beside the model file.

    Raises:
        OrtError: a file may not be read, or is none.
    """
    beside, resolved = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent
    files = {name: _file(name, beside, resolved) for name in sorted(external_files(model))}
    allowed = None if allow_links else [resolved, *(Path(os.path.realpath(root)) for root in roots)]
    second_names = False
    for name, file in files.items():
        if file is not None:
            second_names |= _check(name, file, linked=file != beside / name, allowed=allowed)
    if all(file in (None, beside / name) for name, file in files.items()):
        return Weights({}, path.parent) if second_names else None
    found = {name: file for name, file in files.items() if file is not None}
    for name in files.keys() - found.keys():  # it must not be searched in another folder
        raise OrtError(f"the model's file '{name}' is missing")
    folder = Path(os.path.commonpath([file.parent for file in found.values()]))
    if not _is_allowed(folder, allowed):
        raise OrtError(f"the model's files are links to several places {_OUTSIDE}")
    return Weights({name: str(file.relative_to(folder)) for name, file in found.items()}, folder)


def _file(name: str, *directories: Path) -> Path | None:
    """Return the file that a name leads to, in the first directory that has it; None if it is missing."""
    places = (directory / name for directory in directories)
    return next((Path(os.path.realpath(place)) for place in places if place.exists()), None)


def _is_allowed(path: Path, allowed: Sequence[Path] | None) -> bool:
    return allowed is None or any(path.is_relative_to(directory) for directory in allowed)


def _check(name: str, file: Path, *, linked: bool, allowed: Sequence[Path] | None) -> bool:
    """Check that a file may be read; returns whether it has a second name. OrtError if it may not.

    ``allowed``: the directories that links may lead to; None: any.
    """
    status = file.stat()
    if not S_ISREG(status.st_mode):
        raise OrtError(f"the model's file '{name}' is not a regular file")
    if status.st_size < _POINTER_BYTES and is_lfs_pointer(disk.read(file, _POINTER_BYTES)):
        raise OrtError(f"the model's file '{name}' is a git-lfs pointer, not the weights: run 'git lfs pull'")
    if linked and not _is_allowed(file, allowed):
        raise OrtError(f"the model's file '{name}' is a link to a file {_OUTSIDE}")
    if status.st_nlink > 1 and allowed is not None and _names_in(allowed, status) < status.st_nlink:
        raise OrtError(f"the model's file '{name}' has a second name (a hard link) {_OUTSIDE}")
    return status.st_nlink > 1


def _names_in(directories: Sequence[Path], file: os.stat_result) -> int:
    """Return how many names a file has in some directories, of their first entries."""
    found: set[Path] = set()
    left = limits.MAX_MODEL_FILES
    for directory in directories:
        for parent, _, names in os.walk(directory):
            for name in names[:left]:
                entry = Path(parent, name)
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    if os.path.samestat(entry.lstat(), file):
                        found.add(entry)
            left -= len(names)
            if left <= 0:
                return len(found)
    return len(found)
