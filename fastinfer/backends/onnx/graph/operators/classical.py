"""Operators of ``ai.onnx.ml``: linear models, tree ensembles, preparation of features."""

from __future__ import annotations

from fastinfer.backends.onnx.graph.dims import ONE, Dim, product
from fastinfer.backends.onnx.graph.operators.call import ML, Call, require_free, require_same_rows, rule, unary
from fastinfer.backends.onnx.graph.values import Mixes, Value, moved, reshape


def _table(call: Call) -> Value:
    """Return the input: a matrix with a row of features for each row of the batch. Mixes if its rows are not that."""
    x = call.need(0)
    if x.axis is not None and (x.rank != 2 or x.axis != 0):
        raise Mixes("takes the batch dimension for features")
    return x


@rule("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", domains=[ML])
def _classifier(call: Call) -> list[Value]:
    x = _table(call)
    rows = x.known_dims[0]
    return [moved(x, [rows]), moved(x, [rows, call.symbols.any_size()])]


@rule("LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor", "TreeEnsemble", domains=[ML])
def _regressor(call: Call) -> list[Value]:
    x = _table(call)
    targets = {"SVMRegressor": 1}.get(call.op_type, call.integer("targets", 0) or call.integer("n_targets", 0))
    return [moved(x, [x.known_dims[0], Dim(targets) if targets else call.symbols.any_size()])]


@rule("Imputer", "Normalizer", "Scaler", domains=[ML])
def _features(call: Call) -> list[Value]:
    _table(call)
    return unary(call)


@rule("FeatureVectorizer", domains=[ML])
def _feature_vectorizer(call: Call) -> list[Value]:
    values = [value for value in call.inputs if value is not None]
    require_same_rows(*values)
    for value in values:
        if value.axis is not None and (value.rank != 2 or value.axis != 0):
            raise Mixes("takes the batch dimension for features")
    return [moved(values[0], [values[0].known_dims[0], call.symbols.any_size()])]


@rule("OneHotEncoder", domains=[ML])
def _one_hot_encoder(call: Call) -> list[Value]:
    x = call.need(0)
    numbers = call.integers("cats_int64s")
    words = call.attributes["cats_strings"].strings if "cats_strings" in call.attributes else []
    return [moved(x, [*x.known_dims, Dim(len(numbers or words)) if numbers or words else call.symbols.any_size()])]


@rule("ArrayFeatureExtractor", domains=[ML])
def _array_feature_extractor(call: Call) -> list[Value]:
    x, indices = call.need(0), call.need(1)
    if x.is_free and indices.axis is not None and all(dim == ONE for dim in x.known_dims[:-1]):
        # Each row's index selects from one vector; the results are in one row.
        ones = [ONE] * max(x.rank - 1, 1)
        return [reshape(indices, [*ones, product(indices.known_dims)], call.symbols, zero_copies=False)]
    require_free(call, 1)
    if x.axis is not None and (x.rank < 2 or x.axis == x.rank - 1):
        raise Mixes("selects rows")
    return [moved(x, [*x.known_dims[:-1], call.symbols.any_size()])]


@rule("TfIdfVectorizer")
def _tf_idf(call: Call) -> list[Value]:
    x = _table(call)
    return [moved(x, [*x.known_dims[:-1], call.symbols.any_size()])]
