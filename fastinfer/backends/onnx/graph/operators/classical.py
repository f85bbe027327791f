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
    return [moved(x, [rows]), moved(x, [rows, _scores(call)])]


def _scores(call: Call) -> Dim:
    """Return the number of scores of a row: one for each class, if that is known."""
    names = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
    given = [call.attributes[name] for name in names if name in call.attributes]
    labels = max((len(each.ints) or len(each.strings) for each in given), default=0)
    sums = {"TreeEnsembleClassifier": labels, "LinearClassifier": len(call.reals("intercepts") or [])}
    # One sum for two classes is the score of the second; the first one's is its complement.
    known = labels > 1 and (sums.get(call.op_type) == labels or (labels == 2 and sums.get(call.op_type) == 1))
    return Dim(labels) if known else call.symbols.any_size()


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
    selected = product(indices.known_dims)
    kept = x.known_dims[:-1] if x.rank > 1 else (ONE,)
    if x.is_free and indices.axis is not None:
        # Each row's index selects from the same vectors: the results of all rows are along the last axis.
        flat = reshape(indices, [selected], call.symbols, zero_copies=False)
        return [Value((*kept, *flat.known_dims), len(kept), flat.before, flat.after)]
    require_free(call, 1)
    if x.axis is not None and (x.rank < 2 or x.axis == x.rank - 1):
        raise Mixes("selects rows")
    return [moved(x, [*kept, selected])]


@rule("TfIdfVectorizer")
def _tf_idf(call: Call) -> list[Value]:
    x = _table(call)
    return [moved(x, [*x.known_dims[:-1], call.symbols.any_size()])]
