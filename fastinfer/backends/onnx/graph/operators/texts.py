"""Operators on texts: the first steps of a text classifier, as scikit-learn's converter writes them."""

from __future__ import annotations

from dataclasses import replace

from fastinfer.backends.onnx.graph.dims import ONE
from fastinfer.backends.onnx.graph.operators.call import MICROSOFT, ONNX, Call, rule, unary
from fastinfer.backends.onnx.graph.values import Mixes, Value

_KEEP_FILLING = frozenset({"Flatten", "Identity"})


@rule("StringNormalizer")
def _string_normalizer(call: Call) -> list[Value]:
    x = call.need(0)
    if x.axis is not None and "stopwords" in call.attributes and call.attributes["stopwords"].strings:
        raise Mixes("drops words from the list of all rows")
    return unary(call)


@rule("Tokenizer", domains=[MICROSOFT])
def _tokenizer(call: Call) -> list[Value]:
    x = call.need(0)
    if x.axis is not None and (x.axis != 0 or x.rank > 2 or any(dim != ONE for dim in x.known_dims[1:])):
        raise Mixes("takes several texts for a row")
    if call.integer("mark", 0) or "pad_value" not in call.attributes:
        raise Mixes("marks texts in a way that is not supported")
    made = replace(unary(call)[0], dims=(*x.known_dims, call.symbols.any_size()))
    return [made if x.axis is None else replace(made, filled_with=bytes(call.attributes["pad_value"].s))]


def filling_of(call: Call) -> bytes | None:
    """Return what the rows of an operator's output are filled up with. Mixes if it must not take filled rows."""
    filled = [value.filled_with for value in call.inputs if value is not None and value.filled_with is not None]
    if not filled:
        return None
    if call.domain == ONNX and call.op_type == "TfIdfVectorizer" and "pool_strings" in call.attributes:
        # Fillings are at the ends of rows, and no counted sequence of words has one.
        if filled[0] not in map(bytes, call.attributes["pool_strings"].strings):
            return None
    elif call.domain == ONNX and call.op_type in _KEEP_FILLING and call.integer("axis", 1) == 1:
        return filled[0]
    raise Mixes("takes rows of words that are filled up to the longest of all rows")
