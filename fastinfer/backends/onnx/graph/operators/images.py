"""Operators on images ``[batch, channels, …]``: convolution, pooling, resizing, normalization by channel."""

from __future__ import annotations

from typing import Any

from fastinfer.backends.onnx.graph.dims import ONE, Dim
from fastinfer.backends.onnx.graph.operators.call import (
    MICROSOFT,
    ONNX,
    Call,
    added,
    axis_of,
    require_free,
    require_image,
    require_rows_first,
    require_untouched,
    rule,
    sizes_of,
    unary,
)
from fastinfer.backends.onnx.graph.values import Mixes, Value, moved


def _window(call: Call, size: Dim, at: int, count: int, kernel: int, transposed: bool = False) -> Dim:
    """Return the size of a convolution's or a pooling's output along a spatial axis."""
    strides, dilations = call.integers("strides") or [1] * count, call.integers("dilations") or [1] * count
    pads = call.integers("pads") or [0] * 2 * count
    padding = call.text("auto_pad", "NOTSET") or "NOTSET"
    whole = size.number
    if whole is None or max(len(strides), len(dilations)) != count or len(pads) != 2 * count or not strides[at]:
        return call.symbols.any_size()
    reach = dilations[at] * (kernel - 1) + 1
    if padding in ("SAME_UPPER", "SAME_LOWER"):
        return call.symbols.any_size() if transposed else Dim(-(-whole // strides[at]))
    padded = pads[at] + pads[at + count] if padding == "NOTSET" else 0
    if transposed:
        extra = (call.integers("output_padding") or [0] * count)[at]
        made = strides[at] * (whole - 1) + extra + reach - padded
    else:
        steps, rest = divmod(whole + padded - reach, strides[at])
        if steps < 0 or (rest and call.integer("ceil_mode", 0)):
            return call.symbols.any_size()
        made = steps + 1
    return Dim(made) if made >= 0 else call.symbols.any_size()


def convolved(call: Call, x: Value, weights: Value, *, transposed: bool = False) -> Value:
    require_image(x)
    count = x.rank - 2
    shape = weights.dims
    kernel = call.integers("kernel_shape") or (
        [dim.number or 0 for dim in shape[2:]] if shape is not None and all(dim.number for dim in shape[2:]) else []
    )
    dims = list(x.known_dims)
    dims[1] = call.symbols.any_size()
    if shape is not None and len(shape) == x.rank:
        dims[1] = shape[1] * Dim(call.integer("group", 1)) if transposed else shape[0]
    for i in range(count):
        known = len(kernel) == count and not (transposed and "output_shape" in call.attributes)
        dims[2 + i] = _window(call, dims[2 + i], i, count, kernel[i], transposed) if known else call.symbols.any_size()
    return moved(x, dims)


@rule("Conv", "ConvTranspose")
def _conv(call: Call) -> list[Value]:
    require_free(call, 1, 2)
    return [convolved(call, call.need(0), call.need(1), transposed=call.op_type == "ConvTranspose")]


@rule("FusedConv", domains=[MICROSOFT])
def _fused_conv(call: Call) -> list[Value]:
    made = _conv(call)
    summand = call.value(3)
    return made if summand is None else [added(call, made[0], summand)]


@rule("ConvInteger")
def _conv_integer(call: Call) -> list[Value]:
    require_free(call, 1, 2, 3)
    return [convolved(call, call.need(0), call.need(1))]


@rule("QLinearConv", domains=[ONNX, MICROSOFT])
def _qlinear_conv(call: Call) -> list[Value]:
    require_free(call, *range(1, 9))
    if call.integer("channels_last", 0):
        x = require_image(call.need(0))
        return [moved(x, [x.known_dims[0], *(call.symbols.any_size() for _ in range(x.rank - 1))])]
    return [convolved(call, call.need(0), call.need(3))]


@rule("DeformConv")
def _deform_conv(call: Call) -> list[Value]:
    x, offset, mask = call.need(0), call.need(2), call.value(4)
    require_free(call, 1, 3)
    require_rows_first(x, offset, mask)
    return [convolved(call, x, call.need(1))]


def _pooled(call: Call, x: Value) -> Value:
    require_image(x)
    kernel = call.integers("kernel_shape") or []
    if len(kernel) != x.rank - 2:
        raise Mixes("has no kernel_shape")
    last = call.integer("channels_last", 0)
    dims = list(x.known_dims)
    for i in range(len(kernel)):
        at = i + (1 if last else 2)
        dims[at] = _window(call, dims[at], i, len(kernel), kernel[i])
    return moved(x, dims)


@rule("AveragePool", "LpPool", "MaxPool")
def _pool(call: Call) -> list[Value]:
    return [_pooled(call, call.need(0))]  # MaxPool's second output has indices over all rows


@rule("QLinearAveragePool", "NhwcMaxPool", domains=[MICROSOFT])
def _quantized_pool(call: Call) -> list[Value]:
    require_free(call, *range(1, len(call.inputs)))
    x = require_image(call.need(0))
    return [moved(x, [x.known_dims[0], *(call.symbols.any_size() for _ in range(x.rank - 1))])]


@rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def _global_pool(call: Call) -> list[Value]:
    x = require_image(call.need(0))
    return [moved(x, [*x.known_dims[:2], *[ONE] * (x.rank - 2)])]


@rule("QLinearGlobalAveragePool", domains=[MICROSOFT])
def _quantized_global_pool(call: Call) -> list[Value]:
    require_free(call, 1, 2, 3, 4)
    x = require_image(call.need(0))
    if call.integer("channels_last", 0):
        return [moved(x, [x.known_dims[0], *[ONE] * (x.rank - 2), x.known_dims[-1]])]
    return [moved(x, [*x.known_dims[:2], *[ONE] * (x.rank - 2)])]


@rule("BatchNormalization")
def _batch_normalization(call: Call) -> list[Value]:
    x = call.need(0)
    if call.integer("training_mode", 0) or (call.opset < 14 and call.outputs > 1):
        raise Mixes("normalizes by the batch (its training form)")
    require_free(call, 1, 2, 3, 4)
    require_untouched(x, [1], "normalizes")
    return unary(call)


@rule("InstanceNormalization", "LRN", "GroupNormalization")
def _image_normalization(call: Call) -> list[Value]:
    require_free(call, 1, 2)
    require_image(call.need(0))
    return unary(call)


@rule("GroupNorm", domains=[MICROSOFT])
def _group_norm(call: Call) -> list[Value]:
    return _image_normalization(call)


@rule("MeanVarianceNormalization")
def _mean_variance(call: Call) -> list[Value]:
    x = call.need(0)
    require_untouched(x, [axis_of(x, axis) for axis in call.integers("axes") or [0, 2, 3]], "normalizes")
    return unary(call)


@rule("DepthToSpace", "SpaceToDepth")
def _depth_and_space(call: Call) -> list[Value]:
    x = require_image(call.need(0))
    size = Dim(call.integer("blocksize", 1))
    if x.rank != 4 or not size.factor:
        raise Mixes("takes a value that is not an image")
    n, depth, *area = x.known_dims
    if call.op_type == "DepthToSpace":
        made = depth.over(size * size) or call.symbols.any_size()
        return [moved(x, [n, made, *(dim * size for dim in area)])]
    return [moved(x, [n, depth * size * size, *(dim.over(size) or call.symbols.any_size() for dim in area)])]


@rule("Resize", "Upsample")
def _resize(call: Call) -> list[Value]:
    x = call.need(0)
    require_free(call, 1)
    scales_at, sizes_at = (2, 3) if call.op_type == "Resize" and call.opset >= 11 else (1, 9)
    sizes = call.value(sizes_at)
    axes = [axis_of(x, axis) for axis in call.integers("axes") or range(x.rank)]
    # Below rank 4 the runtime also interpolates over the first axes, and NaN times a weight of 0 is NaN.
    if call.text("mode", "nearest") != "nearest" and x.axis is not None and (x.axis != 0 or x.rank < 4):
        raise Mixes("interpolates over the batch dimension")
    dims = list(x.known_dims)
    content = call.content(sizes_at) if sizes is not None and sizes.dims != (Dim(0),) else None
    if content is not None:
        requested = sizes_of(content)
        if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            require_untouched(x, axes, "resizes")
            if any(size.batches for size in requested):
                raise Mixes("computes with the batch size")
            requested = [call.symbols.any_size() for _ in axes]
    else:
        scales: list[Any] | None = call.reals("scales") if call.op_type == "Upsample" and call.opset < 9 else None
        if scales is None:
            value = call.content(scales_at)
            scales = None if value is None else list(value.flat)
            if any(isinstance(scale, Dim) and scale.batches for scale in scales or ()):
                raise Mixes("computes with the batch size")
        if scales is None or len(scales) != len(axes):
            raise Mixes("has no scales")
        requested = []
        for axis, scale in zip(axes, scales, strict=True):
            size = dims[axis].number
            scaled = size * scale if size is not None and not isinstance(scale, Dim) else 0.5
            # The runtime rounds a fractional product in its own precision, so that size is unknown.
            whole = Dim(int(scaled)) if scaled == int(scaled) else call.symbols.any_size()
            requested.append(dims[axis] if scale == 1 else whole)
    if len(requested) != len(axes):
        raise Mixes("does not have a size for each axis")
    for axis, dim in zip(axes, requested, strict=True):
        if axis == x.axis and dim != dims[axis]:
            raise Mixes("resizes the batch dimension")
        dims[axis] = dim
    if any(dim.batches for i, dim in enumerate(dims) if i != x.axis):
        raise Mixes("computes with the batch size")
    return [moved(x, dims)]


@rule("GridSample", domains=[ONNX, MICROSOFT])
def _grid_sample(call: Call) -> list[Value]:
    x, grid = call.need(0), call.need(1)
    require_rows_first(x, grid)
    return [moved(x, [*x.known_dims[:2], *grid.known_dims[1:-1]])]
