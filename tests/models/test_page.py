"""The form of docs/models.md, and what it says about exports that need attention."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models.document import CHECKED, SECTIONS, Section
from models.reader import without_measures
from onnx import helper, numpy_helper
from onnx_models import identity, model, value

FRAMEWORKS = {"scikit-learn", "LightGBM", "XGBoost", "PyTorch", "TensorFlow, Keras", "Hugging Face"}
MOST_LINES = 5
MOST_MODEL_BYTES = 2**31 - 1


def test_there_is_a_section_for_each_framework() -> None:
    assert set(SECTIONS) == FRAMEWORKS


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_section_needs_at_most_five_lines_to_the_endpoint(section: Section) -> None:
    """The first program, which makes the model, is not counted."""
    exports = [block for block in section.blocks if block.language == "python"][1:]
    commands = [line for line in section.commands if not line.startswith("curl ")]
    assert len(commands) + sum(len(block.lines) for block in exports) <= MOST_LINES


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_section_ends_with_a_request_and_its_answer(section: Section) -> None:
    assert section.commands[-1].startswith("curl ")
    assert section.blocks[-1].language == "json"


def two_rows(path: Path) -> None:
    path.write_bytes(identity("FP32", [2, 4]))


def too_new(path: Path) -> None:
    x, y = value("x", "FP32", ["batch", 4]), value("y", "FP32", ["batch", 4])
    path.write_bytes(model([helper.make_node("Identity", ["x"], ["y"])], [x], [y], opset=99))


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_MODEL_BYTES + 1)  # without taking that space


def no_weights(path: Path) -> None:
    x, y = value("x", "FP32", ["batch", 4]), value("y", "FP32", ["batch", 4])
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    whole = onnx.load_from_string(model([helper.make_node("Add", ["x", "w"], ["y"])], [x], [y], [weights]))
    location = f"{path.name}.data"
    onnx.save(whole, path, save_as_external_data=True, location=location, size_threshold=0)
    path.with_name(location).unlink()


def zipped(path: Path) -> None:
    """A classifier of three classes, as skl2onnx and onnxmltools write it."""
    labels = [0, 1, 2]
    classify = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        coefficients=[1.0] * 12,
        intercepts=[0.0] * 3,
        classlabels_ints=labels,
        post_transform="SOFTMAX",
    )
    to_maps = helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=labels)
    maps = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, []))
    probabilities = helper.make_value_info("probabilities", helper.make_sequence_type_proto(maps))
    made = onnx.load_from_string(
        model([classify, to_maps], [value("x", "FP32", [None, 4])], [value("label", "INT64", [None]), probabilities])
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    path.write_bytes(made.SerializeToString())


ATTENTION: tuple[Callable[[Path], None], ...] = (two_rows, zipped, no_weights, too_large, too_new)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The lines that ``fastinfer check`` prints about the exports, comparable."""
    folder = tmp_path_factory.mktemp("exports")
    paths = [folder / f"{make.__name__}.onnx" for make in ATTENTION]
    for make, path in zip(ATTENTION, paths, strict=True):
        make(path)
    command = [sys.executable, "-m", "fastinfer", "check", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return {comparable(line) for line in done.stdout.splitlines()}


def comparable(line: str) -> str:
    return " ".join(without_measures(line).split())


@pytest.mark.parametrize("make", ATTENTION)
def test_an_export_that_needs_attention_is_described_as_documented(
    checked: set[str], make: Callable[[Path], None]
) -> None:
    (documented,) = [line for line in CHECKED if line.split()[1] == f"{make.__name__}/1"]
    assert comparable(documented) in checked, "\n".join(sorted(checked))


def test_every_documented_line_is_about_an_export_here() -> None:
    names = {make.__name__ for make in ATTENTION} | {"iris"}  # the one that `make test-models` checks
    assert {line.split()[1].removesuffix("/1") for line in CHECKED} == names
