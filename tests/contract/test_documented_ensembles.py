"""The example of docs/ensembles.md, word for word, in both notations."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper
from onnx_models import model, value
from support import inference, serving, tensor

DOCUMENT = (Path(__file__).parents[2] / "docs" / "ensembles.md").read_text()
FILE = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```$", re.M | re.S)
PBTXT = re.compile(r"^```\n(ensemble_scheduling.*?)^```$", re.M | re.S)
HEAD = """
platform: "ensemble"
max_batch_size: 64
input [ { name: "review" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "words" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def rate() -> bytes:
    """``scores = [3.5, words]``."""
    weights = [("w", np.array([[0, 1]], np.float32)), ("b", np.array([3.5, 0], np.float32))]
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["scores"])],
        [value("x", "FP32", ["batch", 1])],
        [value("scores", "FP32", ["batch", 2])],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )


def test_the_documented_ensemble(tmp_path: Path) -> None:
    files = dict(FILE.findall(DOCUMENT))
    assert sorted(files) == ["count/1/model.py", "count/config.toml", "review/config.toml"]
    (found,) = PBTXT.findall(DOCUMENT)
    files["other/config.pbtxt"] = HEAD + found
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "rate" / "1").mkdir(parents=True)
    (tmp_path / "rate" / "1" / "model.onnx").write_bytes(rate())
    with serving("--allow-python-models", "--load", "review,other", repository=tmp_path) as server:
        for name in ("review", "other"):
            body = inference(tensor("review", [2, 1], "BYTES", ["well done", "not what I had expected"]))
            scores, words = server.infer(name, body).json["outputs"]
            assert (scores["name"], scores["data"]) == ("scores", [3.5, 2.0, 3.5, 5.0])
            assert (words["name"], words["data"]) == ("words", [2.0, 5.0])
