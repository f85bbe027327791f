"""Models given by path: finds what a path holds, the file to serve, and the model's name.

    repository      NAME/1/model.onnx
    model           1/model.onnx, with a configuration beside the versions
    flat            one model file, with its configuration beside it
    file            model.onnx

Reads the disk once, when the options are read; :mod:`fastinfer.repository.files` then follows the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from fastinfer.base import disk, limits
from fastinfer.base.validation import shown

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
RESERVED_NAMES = frozenset({"stats"})  # /v2/models/stats is an endpoint of its own

Layout = Literal["auto", "repository", "model", "flat"]

_MODEL_FILE = "model.onnx"  # the one that is served if there are several
_SETTINGS = "model-settings.json"  # of MLServer
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]|^[.-]")
_MEANINGLESS = re.compile(r"\d*|model|inference|onnx|output_model", re.IGNORECASE)  # file and directory names
_DEPTH = 2  # folders below a flat directory in which its model file is searched, as olive writes model/model.onnx
_SHOWN = 5  # names in an error
_WORDS = {"repository": "a repository", "model": "a model's directory", "flat": "a flat directory"}


class PathError(ValueError):
    """A path that cannot be served; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class ModelPath:
    """Where the files of one model are.

    Attributes:
        directory: the directory with the configuration, labels and warm-up data; None: there is none.
        file: the model file of the only version; None: the directory has a directory for each version.
    """

    directory: Path | None
    file: Path | None = None

    @property
    def base(self) -> Path:
        """The model's directory, or the one that its file is in."""
        if self.directory is not None:
            return self.directory
        assert self.file is not None
        return self.file.parent


ModelPaths = Mapping[str, ModelPath]
Root = Path | ModelPaths
"""A repository's directory, or models by name."""


def read_roots(given: Iterable[tuple[str | None, Path]], layout: Layout) -> tuple[Root, ...]:
    """Find the models of paths, each with a name or None.

    Returns:
        The models, then the repositories among the paths.

    Raises:
        PathError: a path is not servable, or two models have the same name.
    """
    models: dict[str, ModelPath] = {}
    repositories: list[Root] = []
    for name, path in given:
        try:
            found = _find(Path(os.path.normpath(path.absolute())), path, layout)
        except OSError as error:
            raise PathError(f"'{path}' cannot be read: {error.strerror}") from None
        if found is None and name is not None:
            raise PathError(f"'{path}' is a repository of models and can have no name; give it without '{name}='")
        if found is None:
            repositories.append(path)
            continue
        model, own_name = found
        name = name or own_name
        if name in RESERVED_NAMES:
            raise PathError(f"a model cannot be called '{name}'; give it another name: --model NAME={path}")
        if name in models:
            places = f"'{models[name].file or models[name].directory}' and '{model.file or model.directory}'"
            raise PathError(f"two models are called '{name}', {places}; give one another name: --model NAME=PATH")
        models[name] = model
    return (*([models] if models else []), *repositories)


def split_option(text: str) -> tuple[str | None, Path]:
    """Split ``NAME=PATH``; a text without a name is a path. PathError if the name is not valid."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        return None, Path(text)
    if not NAME.fullmatch(name):
        raise PathError(f"{shown(name)} is not a model's name: 1 to 128 letters, digits, _ . -")
    return name, Path(path)


def _find(path: Path, given: Path, layout: Layout) -> tuple[ModelPath, str] | None:
    """Return the model of an absolute path and its name; None if the path is a repository. PathError, OSError."""
    if path.is_file():
        _check_file(path, given)
        return ModelPath(None, path), _name_of(path)
    if not path.is_dir():
        raise PathError(f"there is no directory or file '{given}'")
    with os.scandir(path):  # raises if it cannot be read, because it would count as empty
        pass
    kind = _layout_of(path, given) if layout == "auto" else layout
    if kind == "repository":
        return None
    if kind == "model":
        return ModelPath(path), _name_of(path)
    file, name = _flat_model(path, given)
    return ModelPath(path, file), name or _name_of(file)


# --- Names ------------------------------------------------------------------------------------------------------------


def _name_of(path: Path) -> str:
    """Return a model's name: the path's last part that means something."""
    stem = path.stem if path.suffix == ".onnx" else path.name
    parts = (stem, *(parent.name for parent in path.parents))
    return _valid(next((part for part in parts if not _MEANINGLESS.fullmatch(part)), "model"))


def _valid(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)[:128]


# --- Layouts ----------------------------------------------------------------------------------------------------------


def _layout_of(directory: Path, given: Path) -> Layout:
    """Return the layout of a directory. PathError if it may be several."""
    folders = _folders(directory)
    evidence: dict[Layout, Path | None] = {
        "repository": next((inner for each in folders for inner in _versions(_folders(each))), None),
        "model": next(iter(_versions(folders)), None),
        "flat": next(iter(_onnx_files(directory)), None),
    }
    found = {layout: path.relative_to(directory) for layout, path in evidence.items() if path is not None}
    if len(found) > 1:
        may_be = " or ".join(f"{_WORDS[layout]} ('{path}')" for layout, path in found.items())
        raise PathError(f"'{given}' may be {may_be}; say which with --layout {'|'.join(found)}")
    if found:
        return next(iter(found))
    return "flat" if _entries(directory) else "repository"  # an empty repository may get its models later


def _versions(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if VERSION.fullmatch(folder.name)]


def _folders(directory: Path) -> list[Path]:
    return [entry for entry in _entries(directory) if _is(Path.is_dir, entry)]


def _onnx_files(directory: Path) -> list[Path]:
    return [entry for entry in _entries(directory) if entry.suffix == ".onnx" and _is(Path.is_file, entry)]


def _is(kind: Callable[[Path], bool], entry: Path) -> bool:
    """Whether an entry is of a kind; False if that cannot be read, because one bad entry must not hide the others."""
    try:
        return kind(entry)
    except OSError:
        return False


def _entries(directory: Path) -> list[Path]:
    """Return what is in a directory, without hidden files; nothing if the directory cannot be read."""
    try:
        return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


# --- Model files ------------------------------------------------------------------------------------------------------


def _check_file(file: Path, given: Path) -> None:
    """PathError if a file is not an ONNX model, by its name."""
    if file.suffix == ".onnx":
        return
    if file.suffix == ".ort":
        raise PathError(
            f"'{given}' is in ONNX Runtime's own format, which is not served, because the graph that decides about "
            "batches is not in it; give the .onnx file that it was made from"
        )
    if models := _ovms_models(file):
        raise PathError(f"'{given}' is a configuration of OpenVINO Model Server; give its models: {models}")
    raise PathError(f"'{given}' is not a model: the name of a model file ends in .onnx")


def _flat_model(directory: Path, given: Path) -> tuple[Path, str | None]:
    """Return the model file of a flat directory, and the name that its settings give the model."""
    name, file = _mlserver_settings(directory, given)
    return file or _model_file(directory, given, _DEPTH), name


def _model_file(directory: Path, given: Path, depth: int) -> Path:
    """Return the only model file, or ``model.onnx``; searched in the directories below if there is none."""
    files = _onnx_files(directory)
    if len(files) > 1:
        files = [file for file in files if file.name == _MODEL_FILE] or files
    if len(files) > 1:
        names = _listed(file.name for file in files)
        raise PathError(f"'{given}' has several .onnx files ({names}); give the path of each that is to be served")
    if files:
        return files[0]
    below = _with_model_files(directory, depth)
    if len(below) > 1:
        names = _listed(str(each.relative_to(directory)) for each in below)
        raise PathError(f"'{given}' has models in several directories ({names}); give each as --model NAME=PATH")
    if below:
        return _model_file(below[0], given, 0)
    for entry in _entries(directory):
        if entry.suffix == ".ort":
            _check_file(entry, given / entry.name)
    raise PathError(f"there is no model in '{given}': neither NAME/1/model.onnx, nor 1/model.onnx, nor an .onnx file")


def _with_model_files(directory: Path, depth: int) -> list[Path]:
    """Return the nearest directories below one that have a model file."""
    found: list[Path] = []
    for folder in _folders(directory) if depth else ():
        found += [folder] if _onnx_files(folder) else _with_model_files(folder, depth - 1)
    return found


def _listed(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:_SHOWN]) + (", ..." if len(first) > _SHOWN else "")


# --- Configurations of other servers ----------------------------------------------------------------------------------


def _mlserver_settings(directory: Path, given: Path) -> tuple[str | None, Path | None]:
    """Return the name and the model file that MLServer's settings give. PathError if they name no ONNX file here."""
    path = directory / _SETTINGS
    if not path.is_file():
        return None, None
    where = f"'{given / _SETTINGS}'"
    settings = _read_json(path)
    if settings is None:
        raise PathError(f"{where} is not a JSON object that can be read")
    parameters = settings.get("parameters")
    uri = parameters.get("uri") if isinstance(parameters, dict) else None
    name = settings.get("name")
    name = _valid(name) if isinstance(name, str) and name else None
    if not isinstance(uri, str):
        return name, None
    file = Path(os.path.normpath(directory / uri))
    if "://" in uri or not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(directory)):
        raise PathError(f"{where} names {shown(uri)}, which is not in the model's directory")
    if file.is_dir():
        return name, _model_file(file, given, 0)
    if file.suffix != ".onnx" or not file.is_file():
        raise PathError(f"{where} names {shown(uri)}, which is not an .onnx file")
    return name, file


def _ovms_models(file: Path) -> str:
    """Return the models of OpenVINO Model Server's configuration as options; empty if the file is none."""
    settings = _read_json(file) if file.suffix == ".json" else None
    entries = (settings or {}).get("model_config_list")
    configs = [entry.get("config") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    models = [(each.get("name"), each.get("base_path")) for each in configs if isinstance(each, dict)]
    return " ".join(f"--model {name}={path}" for name, path in models[:_SHOWN] if name and path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = orjson.loads(disk.read(path, limits.MAX_CONFIG_BYTES))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
