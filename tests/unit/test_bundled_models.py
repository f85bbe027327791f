"""The bundled models are what their script makes, load, and answer what their README says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fastinfer.config import model as model_config

REPOSITORY = Path(__file__).parents[2] / "model-repository"
MODELS = sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("*/*/model.onnx"))
maker = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "make_models.py")))


def session(model: str | Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(REPOSITORY / model, providers=["CPUExecutionProvider"])


def answer(model: str, **inputs: Any) -> dict[str, Any]:
    run = session(model)
    return dict(zip([output.name for output in run.get_outputs()], run.run(None, inputs), strict=True))


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("models")
    maker.make(directory)
    return directory


def test_the_list_of_models() -> None:
    assert MODELS == [
        "convnet/1/model.onnx",
        "digits/1/model.onnx",
        "identity_bytes/1/model.onnx",
        "identity_fp32/1/model.onnx",
        "simple/1/model.onnx",
        "two_versions/1/model.onnx",
        "two_versions/2/model.onnx",
    ]


def test_the_script_makes_the_committed_files(remade: Path) -> None:
    made = sorted(path.relative_to(remade).as_posix() for path in remade.rglob("*") if path.is_file())
    committed = sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("*/**/*") if path.is_file())
    assert made == committed
    for path in made:
        if not path.startswith("digits/1/") and path != "digits/config.toml":  # trained: see the next test
            assert (remade / path).read_bytes() == (REPOSITORY / path).read_bytes(), path


def test_training_again_gives_the_same_graph_and_as_good_a_classifier(remade: Path) -> None:
    """Another kind of processor rounds differently while training, so the weights need not be equal to the last bit."""
    first, second = (onnx.load(root / "digits/1/model.onnx") for root in (REPOSITORY, remade))
    shapes = [[(weight.name, list(weight.dims)) for weight in made.graph.initializer] for made in (first, second)]
    assert shapes[0] == shapes[1]
    for made in (first, second):
        del made.graph.initializer[:]
    assert first == second
    pixels = maker.digits_data().test_pixels.astype(np.float32)
    labels = [
        session(root / "digits/1/model.onnx").run(["label"], {"pixels": pixels})[0] for root in (REPOSITORY, remade)
    ]
    assert np.mean(labels[0] == labels[1]) > 0.97


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_valid_readable_by_old_runtimes_and_batched(model: str) -> None:
    loaded = onnx.load(REPOSITORY / model)
    onnx.checker.check_model(loaded, full_check=True)
    assert loaded.ir_version <= 10
    assert [opset.version for opset in loaded.opset_import] == [17]
    run = session(model)
    for tensor in [*run.get_inputs(), *run.get_outputs()]:
        assert tensor.shape[0] == "batch"


@pytest.mark.parametrize("name", sorted({model.split("/")[0] for model in MODELS}))
def test_a_configuration_is_valid(name: str) -> None:
    config = model_config.load(REPOSITORY / name, name)
    assert (config is not None) == (name in ("digits", "two_versions"))
    if name == "two_versions":
        assert config is not None
        assert sorted(config.select_versions([1, 2])) == [1, 2]


def test_the_repository_is_small() -> None:
    sizes = {model: (REPOSITORY / model).stat().st_size for model in MODELS}
    assert max(sizes.values()) < 500_000
    assert sum(sizes.values()) < 2_000_000


def test_digits_is_as_accurate_as_its_configuration_says() -> None:
    comment = (REPOSITORY / "digits/config.toml").read_text()
    found = re.search(r"(\d+) of the 450 digits .*an accuracy of (0\.\d+)", comment, re.DOTALL)
    assert found
    data = maker.digits_data()
    out = answer("digits/1/model.onnx", pixels=data.test_pixels.astype(np.float32))
    correct = int((out["label"][:, 0] == data.test_labels).sum())
    assert correct == int(found[1])
    assert round(correct / 450, 3) == float(found[2]) > 0.97
    np.testing.assert_allclose(out["probabilities"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(out["probabilities"].argmax(axis=1), out["label"][:, 0])


def test_the_held_out_digits_are_not_trained_with() -> None:
    data = maker.digits_data()
    assert (len(data.train_labels), len(data.test_labels)) == (1347, 450)
    trained = {pixels.tobytes() for pixels in data.train_pixels}
    assert not any(pixels.tobytes() in trained for pixels in data.test_pixels)


def test_the_sample_is_a_held_out_seven_and_is_recognised() -> None:
    text = (REPOSITORY / "digits/sample.json").read_text()
    assert text.count("\n") == 1  # one line: curl -d @file drops line ends, and people read it with cat
    request = json.loads(text)
    assert request["id"] == "a seven"
    (tensor,) = request["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("pixels", "FP32", [1, 64])
    data = maker.digits_data()
    (place,) = np.flatnonzero((data.test_pixels == tensor["data"]).all(axis=1))
    assert data.test_labels[place] == 7
    out = answer("digits/1/model.onnx", pixels=np.array(tensor["data"], np.float32).reshape(tensor["shape"]))
    assert out["label"].tolist() == [[7]]
    assert out["probabilities"][0, 7] > 0.9


def test_simple_adds_and_subtracts() -> None:
    a, b = np.arange(32, dtype=np.int32).reshape(2, 16), np.full((2, 16), 3, np.int32)
    out = answer("simple/1/model.onnx", INPUT0=a, INPUT1=b)
    np.testing.assert_array_equal(out["OUTPUT0"], a + b)
    np.testing.assert_array_equal(out["OUTPUT1"], a - b)


def test_identities() -> None:
    numbers = np.array([[0.1, -0.0, np.inf], [np.nan, 1e-45, 3e38]], np.float32)
    assert answer("identity_fp32/1/model.onnx", INPUT0=numbers)["OUTPUT0"].tobytes() == numbers.tobytes()
    texts = np.array([["", "a"], ["ä", "x" * 1000]], object)
    assert answer("identity_bytes/1/model.onnx", INPUT0=texts)["OUTPUT0"].tolist() == texts.tolist()


def test_two_versions_answer_differently() -> None:
    number = np.array([[7], [-1]], np.int32)
    assert answer("two_versions/1/model.onnx", number=number)["answer"].tolist() == [[70], [-10]]
    assert answer("two_versions/2/model.onnx", number=number)["answer"].tolist() == [[700], [-100]]


@pytest.mark.parametrize("model", ["convnet/1/model.onnx", "digits/1/model.onnx"])
def test_rows_run_together_answer_like_rows_run_alone(model: str) -> None:
    run = session(model)
    (tensor,) = run.get_inputs()
    rows = np.random.default_rng(0).random((3, *tensor.shape[1:]), np.float32)
    together = run.run(None, {tensor.name: rows})
    for i in range(3):
        for one, all_of_them in zip(run.run(None, {tensor.name: rows[i : i + 1]}), together, strict=True):
            np.testing.assert_allclose(one[0], all_of_them[i], rtol=1e-5)
