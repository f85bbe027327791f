"""Models whose answers tell which file they are, deployed through links in the ways that people do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_models
from support import inference, tensor

BODY = inference(tensor("x", [1, 1], "FP32", [0.0]))


def numbered(number: int) -> bytes:
    """``y = x + number``."""
    constant = onnx_models.numpy_helper.from_array(np.float32([number]), "number")
    tensors = [onnx_models.value(name, "FP32", ["batch", 1]) for name in "xy"]
    node = onnx_models.helper.make_node("Add", ["x", "number"], ["y"])
    return onnx_models.model([node], tensors[:1], tensors[1:], [constant])


def number_in(body: bytes) -> int:
    """Which file has answered :data:`BODY`."""
    return int(json.loads(body)["outputs"][0]["data"][0])


def write(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(numbered(number))
    return path


def swap(link: Path, target: Path) -> None:
    """Makes a link lead elsewhere, at once (``ln -sfn``)."""
    link.parent.mkdir(parents=True, exist_ok=True)
    beside = link.with_name(f".{link.name}.new")
    beside.symlink_to(target)
    beside.rename(link)


# Each puts release `number` of the model "m" in place below a directory; the repository is "models" in it.


def version_is_a_link(root: Path, number: int) -> None:
    write(root / "releases" / str(number) / "model.onnx", number)
    swap(root / "models" / "m" / "1", Path("../../releases") / str(number))


def version_is_a_chain_of_links(root: Path, number: int) -> None:
    write(root / "releases" / str(number) / "model.onnx", number)
    swap(root / "current", Path("releases") / str(number))
    if not (root / "models" / "m").exists():
        swap(root / "second", Path("current"))
        swap(root / "models" / "m" / "1", root / "second")


def model_is_a_link(root: Path, number: int) -> None:
    write(root / "releases" / str(number) / "1" / "model.onnx", number)
    swap(root / "models" / "m", Path("../releases") / str(number))


def repository_is_a_link(root: Path, number: int) -> None:
    write(root / "releases" / str(number) / "m" / "1" / "model.onnx", number)
    swap(root / "models", Path("releases") / str(number))


def directory_above_is_a_link(root: Path, number: int) -> None:
    write(root / "releases" / str(number) / "models" / "m" / "1" / "model.onnx", number)
    swap(root / "current", Path("releases") / str(number))
    if not (root / "models").exists():
        swap(root / "models", Path("current/models"))


def file_is_a_link(root: Path, number: int) -> None:
    file = write(root / "files" / f"{number}.onnx", number)
    swap(root / "models" / "m" / "1" / "model.onnx", file)


def config_map(root: Path, number: int) -> None:
    """As Kubernetes mounts one: what is seen are links through a link that is swapped."""
    model = root / "models" / "m"
    write(model / f"..{number}" / "1" / "model.onnx", number)
    swap(model / "..data", Path(f"..{number}"))
    if not (model / "1").exists():
        swap(model / "1", Path("..data/1"))
    for old in model.glob("..[0-9]*"):
        if old.name != f"..{number}":
            shutil.rmtree(old)


def content_behind_a_link(root: Path, number: int) -> None:
    """The link stays; what it leads to is replaced."""
    release = root / "releases" / "only"
    beside = write(release / ".new", number)
    beside.rename(release / "model.onnx")
    if not (root / "models" / "m").exists():
        swap(root / "models" / "m" / "1", release)


def content_in_place(root: Path, number: int) -> None:
    """The same inode, size and mtime."""
    file = root / "releases" / "only" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("r+b" if file.exists() else "wb") as open_file:
        open_file.write(numbered(number))
    os.utime(file, ns=(0, 0))
    if not (root / "models" / "m").exists():
        swap(root / "models" / "m" / "1", file.parent)


Deploy = Callable[[Path, int], None]
ATOMIC: list[Deploy] = [
    version_is_a_link,
    version_is_a_chain_of_links,
    model_is_a_link,
    repository_is_a_link,
    directory_above_is_a_link,
    file_is_a_link,
    config_map,
    content_behind_a_link,
]
ALL: list[Deploy] = [*ATOMIC, content_in_place]
