"""Operators of sequence models: normalization, attention, recurrence."""

from __future__ import annotations

from fastinfer.backends.onnx.graph.dims import BATCH, ONE, Dim
from fastinfer.backends.onnx.graph.operators.call import (
    MICROSOFT,
    ONNX,
    Call,
    added,
    axis_of,
    require_free,
    require_rows_first,
    require_same_rows,
    require_scalars,
    require_untouched,
    rule,
    unary,
)
from fastinfer.backends.onnx.graph.values import Mixes, NeverRuns, Value, broadcast, free, moved


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_normalization(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 1, 2)
    axis = axis_of(x, call.integer("axis", -1))
    require_untouched(x, range(axis, x.rank), "normalizes")
    broadcast([x, *(value for value in call.inputs[1:3] if value is not None)], call.symbols)
    moments = moved(x, [*x.known_dims[:axis], *[ONE] * (x.rank - axis)])
    return [*unary(call), moments, moments]


rule("LayerNormalization", "SimplifiedLayerNormalization", domains=[MICROSOFT])(_layer_normalization)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domains=[MICROSOFT])
def _skip_layer_normalization(call: Call) -> list[Value]:
    x, skip = call.need(0), call.need(1)
    require_free(call, 2, 3, 4)
    require_untouched(x, [x.rank - 1], "normalizes")
    made = added(call, x, skip)
    moments = moved(x, [*x.known_dims[:-1], ONE])
    return [made, moments, moments, made]


@rule("EmbedLayerNormalization", domains=[MICROSOFT])
def _embed_layer_normalization(call: Call) -> list[Value]:
    ids, segments, mask, positions = call.need(0), call.value(1), call.value(7), call.value(8)
    require_free(call, 2, 3, 4, 5, 6)
    if positions is not None and positions.is_free and positions.rank == 2 and positions.known_dims[0] == ONE:
        positions = None  # the same positions for all rows
    require_rows_first(ids, segments, mask, positions)
    hidden = call.need(2).known_dims[-1]
    made = moved(ids, [*ids.known_dims, hidden])
    return [made, moved(ids, [ids.known_dims[0]]), made]


def _attention_mask(x: Value, value: Value | None) -> None:
    """Checks a mask or bias that is added to scores ``[batch, heads, queries, keys]``. Mixes."""
    if value is None or (value.is_free and value.dims is not None and (value.rank < 4 or value.dims[0] == ONE)):
        return
    if value.axis != 0 or value.rank != 4:
        raise Mixes("takes a mask that is not known to be one for each row")
    require_same_rows(x, value)


@rule("Attention", domains=[MICROSOFT])
def _contrib_attention(call: Call) -> list[Value]:
    x, mask, bias = call.need(0), call.value(3), call.value(5)
    require_free(call, 1, 2)
    _attention_mask(x, bias)
    if len(call.inputs) > 4 and any(call.value(at) is not None for at in (4, 6)):
        raise Mixes("is supported only without past keys")
    require_rows_first(x, mask)
    if mask is not None and mask.known_dims[0] != BATCH:
        raise Mixes("takes a mask that is not known to be one for each row")
    return [moved(x, [*x.known_dims[:-1], call.symbols.any_size()])]


@rule("QAttention", domains=[MICROSOFT])
def _quantized_attention(call: Call) -> list[Value]:
    x, mask = call.need(0), call.value(5)
    require_free(call, 1, 2, 4, 7)
    require_scalars(call, 3, 6)
    if call.value(8) is not None:
        raise Mixes("is supported only without past keys")
    require_rows_first(x, mask)
    if mask is not None and mask.known_dims[0] != BATCH:
        raise Mixes("takes a mask that is not known to be one for each row")
    return [moved(x, [*x.known_dims[:-1], call.symbols.any_size()])]


@rule("MultiHeadAttention", domains=[MICROSOFT])
def _multi_head_attention(call: Call) -> list[Value]:
    query, key, value, mask = call.need(0), call.value(1), call.value(2), call.value(4)
    require_free(call, 3)
    _attention_mask(query, call.value(5))
    if any(call.value(at) is not None for at in range(6, len(call.inputs))):
        raise Mixes("is supported only without past keys")
    require_rows_first(query, key, value, mask)
    if query.rank != 3 or (mask is not None and mask.known_dims[0] != BATCH):
        raise Mixes("takes packed queries, or a mask that is not known to be one for each row")
    return [moved(query, [*query.known_dims[:-1], call.symbols.any_size()])]


@rule("Attention")
def _attention(call: Call) -> list[Value]:
    query, key, value = call.need(0), call.need(1), call.need(2)
    _attention_mask(query, call.value(3))
    if any(call.value(at) is not None for at in range(4, len(call.inputs))):
        raise Mixes("is supported only without past keys")
    require_rows_first(query, key, value)
    return [moved(query, [*query.known_dims[:-1], call.symbols.any_size()])]


@rule("RotaryEmbedding", domains=[ONNX, MICROSOFT])
def _rotary_embedding(call: Call) -> list[Value]:
    tables = (1, 2) if call.domain == ONNX else (2, 3)
    positions = call.value(3 if call.domain == ONNX else 1)
    x = call.need(0)
    if positions is None:  # the tables then have an angle for each token of each row
        require_rows_first(x, *(call.need(at) for at in tables))
        return unary(call)
    require_free(call, *tables)
    if not (positions.is_free and positions.dims is not None and positions.rank < 2):
        require_rows_first(x, positions)
    require_rows_first(x)
    return unary(call)


# --- Recurrent -------------------------------------------------------------------------------------------------------


@rule("RNN", "GRU", "LSTM")
def _recurrent(call: Call) -> list[Value]:
    x, lengths = call.need(0), call.value(4)
    require_free(call, 1, 2, 3, 7)
    if call.integer("layout", 0):
        raise Mixes("has the batch dimension first (layout 1), which is not supported")
    if x.rank != 3:
        raise NeverRuns("takes a value that is not a sequence")
    if x.axis not in (None, 1):
        raise Mixes("takes the batch dimension for time")
    states = [call.value(5), call.value(6) if call.op_type == "LSTM" else None]
    for state, axis in ((lengths, 0), *((state, 1) for state in states)):
        place = (None if x.axis is None else axis, x.before, x.after)
        if state is not None and (state.axis, state.before, state.after) != place:
            raise Mixes("starts all rows from a state, or takes lengths, that are not one for each row")
    time, batch, _ = x.known_dims
    directions = Dim(2 if call.text("direction", "forward") == "bidirectional" else 1)
    hidden = Dim(call.integer("hidden_size", 0)) if "hidden_size" in call.attributes else call.symbols.any_size()
    whole = [time, directions, batch, hidden]
    last = [directions, batch, hidden]
    rows = x.axis is not None
    return [moved(x, whole, 2) if rows else free(whole), *[moved(x, last, 1) if rows else free(last)] * 2]
