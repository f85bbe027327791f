"""Makes the models that only benchmarks and slow tests need: `python bench/make_models.py DIRECTORY [NAME...]`.

About 50 MB, so they are not committed. Needs the `models` extra. Deterministic, like the bundled ones.

    mlp              FP32 [-1,64] through 256 and 256 to 10: a run of a few microseconds
    mlp_large        FP32 [-1,1024] through three layers of 2048 to 1000: batching pays tenfold
    identity_<type>  [-1,-1], one for each datatype: bool, uint8, ... bf16, fp32, fp64, bytes
    pipeline         two numbers and two texts through what scikit-learn's converter makes of a ColumnTransformer
                     (imputer, scaler, one-hot encoders) and a logistic regression; no dimension has a name
    slow             FP32 [-1,1], answers its input after about 200 ms of one core's work, whatever the number of rows

Only by their names, because they need the extra `extensions` (the operators of onnxruntime-extensions):

    text_embedding   BYTES [1], a text, to FP32 [1,256]: the tokenizer is in the graph
    jpeg_classifier  UINT8 [-1], the bytes of a JPEG file, to a class and its scores: the decoder is in the graph
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
bundled: Any = SimpleNamespace(**runpy.run_path(str(ROOT / "model-repository" / "make_models.py")))

DATATYPES = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "bytes": TensorProto.STRING,
}
SLOW_STEPS, SLOW_SIZE = 190, 384  # matrix products, each of 57 million multiplications: near 1 ms on a recent core


def perceptron(name: str, *sizes: int) -> ModelProto:
    """An untrained multi-layer perceptron of these layer sizes."""
    layers: list[tuple[Any, Any]] = [
        (bundled.weights([inner, outer], seed), np.arange(outer, dtype=np.float32) / outer)
        for seed, (inner, outer) in enumerate(pairwise(sizes))
    ]
    nodes, values = bundled.mlp("layer", layers, "input", "output")
    return bundled.model(
        name,
        [bundled.Spec("input", TensorProto.FLOAT, [bundled.BATCH, sizes[0]])],
        [bundled.Spec("output", TensorProto.FLOAT, [bundled.BATCH, sizes[-1]])],
        nodes,
        values,
    )


def product_chain(name: str, steps: int) -> ModelProto:
    """Answers its input after so many matrix products of about a millisecond each, whatever the number of rows.

    They start from the number of rows, so that no optimiser can do them beforehand.
    """
    node = bundled.node
    nodes = [
        node("Shape", "input", "rows", start=0, end=1),
        node("Cast", "rows", "rows_fp32", to=TensorProto.FLOAT),
        node("Mul", "rows_fp32 zero", "nothing"),
        node("Add", "matrix nothing", "state_0"),
    ]
    for i in range(steps):
        nodes += [node("MatMul", f"state_{i} matrix", f"product_{i}"), node("Tanh", f"product_{i}", f"state_{i + 1}")]
    nodes += [
        node("ReduceMean", f"state_{steps}", "mean", keepdims=0),
        node("Mul", "mean zero", "still_nothing"),
        node("Add", "input still_nothing", "output"),
    ]
    return bundled.model(
        name,
        [bundled.Spec("input", TensorProto.FLOAT, [bundled.BATCH, 1])],
        [bundled.Spec("output", TensorProto.FLOAT, [bundled.BATCH, 1])],
        nodes,
        {"matrix": bundled.weights([SLOW_SIZE, SLOW_SIZE], 7), "zero": np.array([0], np.float32)},
    )


CONTRIB, EXTENSIONS = "ai.onnx.contrib", "com.microsoft.extensions"  # domains of onnxruntime-extensions
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "un", "##aff", "##able", "##s", "hello", "world")
WIDTH = 256  # of an embedding


def extended(name: str, inputs: list[Any], outputs: list[Any], nodes: list[Any], values: dict[str, Any]) -> ModelProto:
    """A model with operators of onnxruntime-extensions, which the checker of `bundled.model` does not know."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(array, key) for key, array in values.items()],
    )
    opsets = [helper.make_opsetid(*each) for each in (("", 17), (CONTRIB, 1), (EXTENSIONS, 1))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="fastinfer")


def text_embedding() -> ModelProto:
    """Words to vectors, two layers for each word, and the mean, scaled to length 1. Untrained."""
    node = bundled.node
    vocabulary = "\n".join((*SPECIAL, *WORDS))
    nodes, values = bundled.mlp(
        "layer", [(bundled.weights([WIDTH, 1024], 1), np.zeros(1024, np.float32)),
                  (bundled.weights([1024, WIDTH], 2), np.zeros(WIDTH, np.float32))], "vectors", "features",
    )  # fmt: skip
    return extended(
        "text_embedding",
        [bundled.Spec("text", TensorProto.STRING, [1])],
        [bundled.Spec("embedding", TensorProto.FLOAT, [1, WIDTH])],
        [
            node("BertTokenizer", "text", "ids types mask", domain=CONTRIB, vocab_file=vocabulary, do_lower_case=1),
            node("Gather", "table ids", "vectors"),
            *nodes,
            node("ReduceMean", "features", "mean", axes=[0], keepdims=1),
            node("LpNormalization", "mean", "embedding", axis=1, p=2),
        ],
        {"table": bundled.weights([len(SPECIAL) + len(WORDS), WIDTH], 3), **values},
    )


def jpeg_classifier() -> ModelProto:
    """Decodes, scales to 64 x 64, and applies two convolutions, an average and ten scores. Untrained."""
    node = bundled.node
    return extended(
        "jpeg_classifier",
        [bundled.Spec("image", TensorProto.UINT8, ["bytes"])],
        [bundled.Spec("class", TensorProto.INT64, [1]), bundled.Spec("scores", TensorProto.FLOAT, [1, 10])],
        [
            node("DecodeImage", "image", "pixels", domain=EXTENSIONS),
            node("Cast", "pixels", "numbers", to=TensorProto.FLOAT),
            node("Mul", "numbers scale", "scaled"),
            node("Transpose", "scaled", "planes", perm=[2, 0, 1]),
            node("Unsqueeze", "planes first", "batch"),
            helper.make_node("Resize", ["batch", "", "", "sizes"], ["small"], name="small", mode="linear"),
            node("Conv", "small kernels_1", "features_1", strides=[2, 2], kernel_shape=[5, 5]),
            node("Relu", "features_1", "active_1"),
            node("Conv", "active_1 kernels_2", "features_2", strides=[2, 2], kernel_shape=[3, 3]),
            node("Relu", "features_2", "active_2"),
            node("GlobalAveragePool", "active_2", "averages"),
            node("Flatten", "averages", "flat"),
            node("Gemm", "flat matrix", "scores"),
            node("ArgMax", "scores", "class", axis=1, keepdims=0),
        ],
        {
            "scale": np.array(1 / 255, np.float32),
            "first": np.array([0], np.int64),
            "sizes": np.array([1, 3, 64, 64], np.int64),
            "kernels_1": bundled.weights([16, 3, 5, 5], 1),
            "kernels_2": bundled.weights([32, 16, 3, 3], 2),
            "matrix": bundled.weights([32, 10], 3),
        },
    )


EXTENDED: dict[str, Callable[[], ModelProto]] = {"text_embedding": text_embedding, "jpeg_classifier": jpeg_classifier}


def column_pipeline(name: str) -> ModelProto:
    """A classifier of passengers by age, fare, sex and port, as scikit-learn's converter writes it."""
    ml, node = "ai.onnx.ml", bundled.node
    ports = [b"C", b"Q", b"S"]
    scores = [0.6, 0.9, -2.5, 0.3, 0.2, 0.1, -0.4]
    nodes = [
        node("Concat", "age fare", "numbers", axis=1),
        node("OneHotEncoder", "sex", "sexes", domain=ml, cats_strings=[b"female", b"male"], zeros=1),
        node("OneHotEncoder", "port", "ports", domain=ml, cats_strings=ports, zeros=1),
        node("Concat", "sexes ports", "columns", axis=-1),
        node("Imputer", "numbers", "whole", domain=ml, imputed_value_floats=[28.0, 14.5], replaced_value_float=np.nan),
        node("Reshape", "columns shape", "texts"),
        node("Scaler", "whole", "scaled", domain=ml, offset=[29.5, 33.0], scale=[0.07, 0.02]),
        node("Concat", "scaled texts", "features", axis=1),
        node(
            "LinearClassifier", "features", "label probabilities", domain=ml, classlabels_ints=[0, 1],
            coefficients=[-score for score in scores] + scores, intercepts=[-0.5, 0.5], post_transform=b"LOGISTIC",
        ),
    ]  # fmt: skip
    kinds = {"age": TensorProto.FLOAT, "fare": TensorProto.FLOAT, "sex": TensorProto.STRING, "port": TensorProto.STRING}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(column, kind, [None, 1]) for column, kind in kinds.items()],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ],
        [numpy_helper.from_array(np.array([-1, 5], np.int64), "shape")],
    )
    opsets = [helper.make_opsetid("", bundled.OPSET), helper.make_opsetid(ml, 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=bundled.IR_VERSION)


MODELS: dict[str, Callable[[], ModelProto]] = {
    "mlp": partial(perceptron, "mlp", 64, 256, 256, 10),
    "mlp_large": partial(perceptron, "mlp_large", 1024, 2048, 2048, 2048, 1000),
    "pipeline": partial(column_pipeline, "pipeline"),
    "slow": partial(product_chain, "slow", SLOW_STEPS),
    **{f"identity_{name}": partial(bundled.identity, f"identity_{name}", kind) for name, kind in DATATYPES.items()},
}


def make(directory: Path, names: list[str] | None = None) -> None:
    """Writes the named models, or all of MODELS, into `directory`, which then is a model repository."""
    for name in names or MODELS:
        config = "extensions = true\n" if name in EXTENDED else ""
        bundled.save((EXTENDED.get(name) or MODELS[name])(), directory / name, config=config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the models that benchmarks and slow tests need.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join((*MODELS, *EXTENDED))}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {*MODELS, *EXTENDED}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    make(arguments.directory, arguments.names)
