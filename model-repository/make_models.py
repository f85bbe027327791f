"""Makes the models of this directory: `python model-repository/make_models.py [DIRECTORY]`.

Needs the `models` extra (onnx, scikit-learn). Running it again gives the same bytes; only the trained weights of
`digits` may differ a little on another kind of processor. Nothing here is used by the server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
OPSET = 17
IR_VERSION = 8  # the one that opset 17 came with: old runtimes can read the files, too
BATCH = "batch"  # one symbolic first dimension on every input and output: the sign that rows are independent
Dims = Sequence[int | str]


class Spec(NamedTuple):
    """An input or output: `onnx_type` is one of TensorProto's, `dims` holds numbers and names of free dimensions."""

    name: str
    onnx_type: int
    dims: Dims


# --- A graph, written down -------------------------------------------------------------------------------------------


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its first output; `inputs` and `outputs` are names with spaces between them."""
    return helper.make_node(kind, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


def model(
    name: str,
    inputs: Sequence[Spec],
    outputs: Sequence[Spec],
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[Any]] | None = None,
) -> onnx.ModelProto:
    """The checked model."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(array, weight) for weight, array in (weights or {}).items()],
    )
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastinfer",
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def save(made: onnx.ModelProto, directory: Path, version: int = 1, config: str = "") -> None:
    """Writes `directory/<version>/model.onnx` and, where there is one, `directory/config.toml`."""
    (directory / str(version)).mkdir(parents=True, exist_ok=True)
    (directory / str(version) / "model.onnx").write_bytes(made.SerializeToString(deterministic=True))
    if config:
        (directory / "config.toml").write_text(config)


def weights(shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Untrained weights: multiples of 1/128 in [-1, 1), scaled so that a layer keeps the size of its inputs."""
    steps = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.float32) / 128
    fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return (steps * np.float32(1.7 / np.sqrt(fan_in))).astype(np.float32)


def mlp(
    name: str, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]], source: str, target: str
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Gemm and Relu, Gemm and Relu, ... Gemm: the nodes and the weights from tensor `source` to tensor `target`."""
    nodes, values = [], {}
    for i, (matrix, bias) in enumerate(layers, 1):
        last = i == len(layers)
        values |= {f"{name}_weights_{i}": matrix, f"{name}_bias_{i}": bias}
        result = target if last else f"{name}_sum_{i}"
        nodes.append(node("Gemm", f"{source} {name}_weights_{i} {name}_bias_{i}", result))
        if not last:
            source = f"{name}_hidden_{i}"
            nodes.append(node("Relu", result, source))
    return nodes, values


# --- digits: the one that was really trained -------------------------------------------------------------------------

SAMPLE_DIGIT, SAMPLE_ID = 7, "a seven"


class Digits(NamedTuple):
    """scikit-learn's 1,797 handwritten digits (8x8 pixels, 0 to 16), split once and for all."""

    train_pixels: NDArray[np.float64]
    test_pixels: NDArray[np.float64]
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]


def digits_data() -> Digits:
    """Three quarters to train with, one quarter (450 digits) held out, every digit with its share."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    return Digits(*train_test_split(pixels, labels, test_size=450, random_state=0, stratify=labels))


def digits_model() -> tuple[onnx.ModelProto, int]:
    """The trained classifier, and how many of the 450 held-out digits scikit-learn's own prediction gets right."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    data = digits_data()
    classifier = MLPClassifier((64, 32), max_iter=1000, random_state=0)
    with threadpool_limits(1):  # the number of threads changes the order of additions
        classifier.fit(data.train_pixels / 16, data.train_labels)
        correct = int((classifier.predict(data.test_pixels / 16) == data.test_labels).sum())
    layers = [
        (matrix.astype(np.float32), bias.astype(np.float32))
        for matrix, bias in zip(classifier.coefs_, classifier.intercepts_, strict=True)
    ]
    nodes, values = mlp("layer", layers, "scaled", "scores")
    values["sixteenth"] = np.float32([1 / 16])
    return (
        model(
            "digits",
            [Spec("pixels", TensorProto.FLOAT, [BATCH, 64])],
            [Spec("label", TensorProto.INT64, [BATCH, 1]), Spec("probabilities", TensorProto.FLOAT, [BATCH, 10])],
            [
                node("Mul", "pixels sixteenth", "scaled"),
                *nodes,
                node("ArgMax", "scores", "label", axis=1, keepdims=1),
                node("Softmax", "scores", "probabilities", axis=1),
            ],
            values,
        ),
        correct,
    )


DIGITS_CONFIG = """\
# Which digit is it? 8x8 pixels of 0 (paper) to 16 (ink), row by row, as in scikit-learn's digits dataset.
# A 64-64-32-10 perceptron that gets {correct} of the 450 digits that it never saw in training right,
# an accuracy of {accuracy:.3f}.
platform = "onnxruntime_onnx"
max_batch_size = 64
"""


def digits_sample() -> str:
    """A request, on one line, for the first held-out seven."""
    data = digits_data()
    first = int(np.flatnonzero(data.test_labels == SAMPLE_DIGIT)[0])
    pixels = [int(pixel) for pixel in data.test_pixels[first]]
    tensor = {"name": "pixels", "shape": [1, 64], "datatype": "FP32", "data": pixels}
    return json.dumps({"id": SAMPLE_ID, "inputs": [tensor]}, separators=(",", ":")) + "\n"


# --- the others ------------------------------------------------------------------------------------------------------


def simple() -> onnx.ModelProto:
    """Triton's first example: a sum and a difference."""
    dims = [BATCH, 16]
    return model(
        "simple",
        [Spec("INPUT0", TensorProto.INT32, dims), Spec("INPUT1", TensorProto.INT32, dims)],
        [Spec("OUTPUT0", TensorProto.INT32, dims), Spec("OUTPUT1", TensorProto.INT32, dims)],
        [node("Add", "INPUT0 INPUT1", "OUTPUT0"), node("Sub", "INPUT0 INPUT1", "OUTPUT1")],
    )


def identity(name: str, onnx_type: int) -> onnx.ModelProto:
    """What comes in goes out, in any number of rows and columns."""
    dims = [BATCH, "columns"]
    return model(
        name,
        [Spec("INPUT0", onnx_type, dims)],
        [Spec("OUTPUT0", onnx_type, dims)],
        [node("Identity", "INPUT0", "OUTPUT0")],
    )


def convnet() -> onnx.ModelProto:
    """Two strided convolutions over an image, an average, ten scores. Untrained: it is here for its size and speed."""
    return model(
        "convnet",
        [Spec("image", TensorProto.FLOAT, [BATCH, 3, 224, 224])],
        [Spec("scores", TensorProto.FLOAT, [BATCH, 10])],
        [
            node("Conv", "image kernels_1", "features_1", strides=[8, 8], kernel_shape=[8, 8]),
            node("Relu", "features_1", "active_1"),
            node("Conv", "active_1 kernels_2", "features_2", strides=[2, 2], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            node("Relu", "features_2", "active_2"),
            node("GlobalAveragePool", "active_2", "averages"),
            node("Flatten", "averages", "flat"),
            node("Gemm", "flat matrix bias", "scores"),
        ],
        {
            "kernels_1": weights([16, 3, 8, 8], 1),
            "kernels_2": weights([96, 16, 3, 3], 2),
            "matrix": weights([96, 10], 3),
            "bias": np.arange(10, dtype=np.float32) / 10,
        },
    )


def multiply(name: str, factor: int) -> onnx.ModelProto:
    """`answer = number * factor`: tells which version answered."""
    return model(
        name,
        [Spec("number", TensorProto.INT32, [BATCH, 1])],
        [Spec("answer", TensorProto.INT32, [BATCH, 1])],
        [node("Mul", "number factor", "answer")],
        {"factor": np.int32([factor])},
    )


TWO_VERSIONS_CONFIG = """\
# Version 1 multiplies by 10, version 2 by 100; both are served.
platform = "onnxruntime_onnx"
version_policy = { all = {} }
"""


def make(directory: Path) -> None:
    """Writes every model of this repository into `directory`."""
    trained, correct = digits_model()
    save(trained, directory / "digits", config=DIGITS_CONFIG.format(correct=correct, accuracy=correct / 450))
    (directory / "digits" / "sample.json").write_text(digits_sample())
    save(simple(), directory / "simple")
    save(identity("identity_fp32", TensorProto.FLOAT), directory / "identity_fp32")
    save(identity("identity_bytes", TensorProto.STRING), directory / "identity_bytes")
    save(convnet(), directory / "convnet")
    save(multiply("two_versions", 10), directory / "two_versions", 1, TWO_VERSIONS_CONFIG)
    save(multiply("two_versions", 100), directory / "two_versions", 2)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    make(target)
    for path in sorted(target.glob("*/*/model.onnx")):
        print(f"{path.stat().st_size:10,} bytes  {path.relative_to(target)}")
