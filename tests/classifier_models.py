"""Small classifiers in the forms in which scikit-learn, LightGBM and XGBoost models are exported, as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx_models import value

ML = "ai.onnx.ml"
NAMES = ["setosa", "versicolor", "virginica"]
NUMBERS = [-5, 5, 15]


def scored(name: str, key: int = TensorProto.STRING) -> ValueInfoProto:
    """An output of ZipMap: a sequence of maps."""
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(kind))


def zip_map(scores: str, name: str, labels: Sequence[str] | Sequence[int] = NAMES) -> NodeProto:
    kind = "strings" if isinstance(labels[0], str) else "int64s"
    return helper.make_node("ZipMap", [scores], [name], name="Zip", domain=ML, **{f"classlabels_{kind}": labels})


def linear(labels: Sequence[str] | Sequence[int] = NAMES, outputs: Sequence[str] = ("label", "raw")) -> NodeProto:
    """A linear classifier of four features ``x``."""
    random = np.random.default_rng(1)
    kind = "strings" if isinstance(labels[0], str) else "ints"
    return helper.make_node(
        "LinearClassifier",
        ["x"],
        list(outputs),
        domain=ML,
        coefficients=random.standard_normal(4 * len(labels)).tolist(),
        intercepts=random.standard_normal(len(labels)).tolist(),
        multi_class=0,
        post_transform="LOGISTIC",
        **{f"classlabels_{kind}": labels},
    )


def trees(labels: Sequence[str] | Sequence[int] = NUMBERS, outputs: Sequence[str] = ("label", "raw")) -> NodeProto:
    """An ensemble of one stump for each class, over four features ``x``."""
    kind = "strings" if isinstance(labels[0], str) else "int64s"
    count = len(labels)
    binary = count == 2  # the scores are then those of one class
    leaves = [(tree, leaf) for tree in range(count) for leaf in (1, 2)]
    return helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        list(outputs),
        domain=ML,
        nodes_treeids=[tree for tree in range(count) for _ in range(3)],
        nodes_nodeids=[0, 1, 2] * count,
        nodes_featureids=[each for tree in range(count) for each in (tree, 0, 0)],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * count,
        nodes_values=[0.25, 0, 0] * count,
        nodes_truenodeids=[1, 0, 0] * count,
        nodes_falsenodeids=[2, 0, 0] * count,
        class_treeids=[tree for tree, _ in leaves],
        class_nodeids=[leaf for _, leaf in leaves],
        class_ids=[0 if binary else tree for tree, _ in leaves],
        class_weights=[0.3 * tree + 0.7 * leaf - 1.2 for tree, leaf in leaves],
        post_transform="LOGISTIC" if binary else "SOFTMAX",
        **{f"classlabels_{kind}": labels},
    )


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
    opset: int | None = 17,
    ml_opset: int = 1,
    others: Sequence[str] = (),
) -> ModelProto:
    """A model with operators of ``ai.onnx.ml``; opset None: only those."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid(ML, ml_opset), *(helper.make_opsetid(domain, 1) for domain in others)]
    if opset is not None:
        opsets.append(helper.make_opsetid("", opset))
    made: ModelProto = helper.make_model(
        graph, ir_version=8 if opset is None or opset > 12 else 4, opset_imports=opsets
    )
    return made


def features(name: str = "x") -> ValueInfoProto:
    return value(name, "FP32", [None, 4])


def sklearn(opset: int = 17) -> ModelProto:
    """As of skl2onnx: a classifier with text labels, its scores normalized."""
    nodes = [
        linear(),
        helper.make_node("Normalizer", ["raw"], ["p"], domain=ML, norm="L1"),
        helper.make_node("Identity", ["label"], ["output_label"]),
        zip_map("p", "output_probability"),
    ]
    return model(nodes, [features()], [value("output_label", "BYTES", [None]), scored("output_probability")], (), opset)


def lightgbm() -> ModelProto:
    """As of onnxmltools for LightGBM: old operators, and labels of the shape ``[1]``, although there is one a row."""
    nodes = [
        trees(NUMBERS, ("l", "raw")),
        helper.make_node("Identity", ["raw"], ["p"]),
        helper.make_node("Cast", ["l"], ["label"], to=TensorProto.INT64),
        zip_map("p", "probabilities", NUMBERS),
    ]
    outputs = [value("label", "INT64", [1]), scored("probabilities", TensorProto.INT64)]
    return model(nodes, [features()], outputs, (), 9)


def lightgbm_binary() -> ModelProto:
    """As of onnxmltools for a LightGBM booster of two classes."""
    nodes = [trees([0, 1], ("l", "raw")), helper.make_node("Identity", ["l"], ["label"]), zip_map("raw", "p", [0, 1])]
    return model(nodes, [features()], [value("label", "INT64", [1]), scored("p", TensorProto.INT64)], (), 9)


def xgboost() -> ModelProto:
    """As of onnxmltools for XGBoost: a tensor of scores, and only operators of ai.onnx.ml."""
    node = trees(NUMBERS, ("label", "probabilities"))
    outputs = [value("label", "INT64", [None]), value("probabilities", "FP32", [None, 3])]
    return model([node], [features()], outputs, opset=None)


def xgboost_zipped() -> ModelProto:
    """As of an XGBoost model in a pipeline of skl2onnx, but without operators of the standard domain."""
    nodes = [trees(NUMBERS, ("label", "raw")), zip_map("raw", "probabilities", NUMBERS)]
    outputs = [value("label", "INT64", [None]), scored("probabilities", TensorProto.INT64)]
    return model(nodes, [features()], outputs, opset=None)


def columns() -> ModelProto:
    """As of a pipeline over columns of their own: a number, two texts, a whole number."""
    weights = np.random.default_rng(2).standard_normal((1 + 2 + 3 + 2, 2)).astype(np.float32)
    words = {"sex": ["female", "male"], "port": ["C", "Q", "S"]}
    nodes = [
        helper.make_node("Scaler", ["age"], ["scaled"], domain=ML, offset=[40.0], scale=[0.1]),
        *(
            helper.make_node("OneHotEncoder", [name], [f"hot {name}"], domain=ML, cats_strings=known, zeros=1)
            for name, known in words.items()
        ),
        helper.make_node("OneHotEncoder", ["deck"], ["hot deck"], domain=ML, cats_int64s=[1, 2], zeros=1),
        *(helper.make_node("Reshape", [f"hot {name}", f"as {name}"], [f"flat {name}"]) for name in (*words, "deck")),
        helper.make_node("Concat", ["scaled", "flat sex", "flat port", "flat deck"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "w"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["p"], axis=1),
        helper.make_node("ArgMax", ["p"], ["at"], axis=1, keepdims=0),
        helper.make_node("ArrayFeatureExtractor", ["names", "at"], ["named"], domain=ML),
        helper.make_node("Reshape", ["named", "one"], ["label"]),
        zip_map("p", "probability", ["dead", "survived"]),
    ]
    constants = {
        "w": weights,
        "as sex": np.array([-1, 2]),
        "as port": np.array([-1, 3]),
        "as deck": np.array([-1, 2]),
        "one": np.array([-1]),
    }
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    initializers.append(helper.make_tensor("names", TensorProto.STRING, [2], [b"dead", b"survived"]))
    datatypes = {"age": "FP32", "sex": "BYTES", "port": "BYTES", "deck": "INT64"}
    inputs = [value(name, datatype, [None, 1]) for name, datatype in datatypes.items()]
    return model(nodes, inputs, [value("label", "BYTES", [None]), scored("probability")], initializers)


def text(locale: str = "C.UTF-8") -> ModelProto:
    """As of TfidfVectorizer with a classifier: a text becomes lower case, words, their weights, then scores."""
    words = {"awful": -2.0, "bad": -1.0, "fun": 1.0, "good": 1.5, "great": 2.5}
    vectorize = helper.make_node(
        "TfIdfVectorizer", ["words"], ["weights"], mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0,
        ngram_counts=[0], ngram_indexes=list(range(5)), pool_strings=list(words),
    )  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["text", "flat"], ["texts"]),
        helper.make_node("StringNormalizer", ["texts"], ["lower"], case_change_action="LOWER", locale=locale),
        helper.make_node(
            "Tokenizer", ["lower"], ["words"], domain="com.microsoft", mark=0, mincharnum=1, pad_value="#",
            tokenexp="[a-z]+",
        ),
        vectorize,
        helper.make_node(
            "LinearClassifier", ["weights"], ["label", "p"], domain=ML, intercepts=[0.1, -0.1],
            coefficients=[*(-each for each in words.values()), *words.values()], post_transform="SOFTMAX",
            classlabels_strings=["neg", "pos"],
        ),
        zip_map("p", "probability", ["neg", "pos"]),
    ]  # fmt: skip
    flat = numpy_helper.from_array(np.array([-1]), "flat")
    outputs = [value("label", "BYTES", [None]), scored("probability")]
    return model(nodes, [value("text", "BYTES", [None, 1])], outputs, [flat], others=["com.microsoft"])
