"""Makes the inputs of a model's warm-up runs from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.draws import ordinary_values
from fastinfer.base import disk, limits
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.config.model_schema import WarmupInput
from fastinfer.tensor.datatype import numpy_dtype
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec

DIRECTORY = "warmup"


def warm_ups(name: str, signature: Signature, config: ModelConfig, directory: Path) -> Iterator[list[Tensor]]:
    """Yield the inputs of each configured run, those that are optional only if the sample has them, once for each
    repetition.

    Args:
        name: the model's name, for messages.
        signature: of the model; if it is batched, a sample's dims lack the batch dimension, which is each input's
            ``batch_axis``, and which optional inputs do not have.
        config: the model's configuration.
        directory: the model's directory; its ``warmup/`` holds the data files.

    Raises:
        ApiError: 400 if a sample does not fit the inputs.
    """
    for sample in config.model_warmup:
        tensors = []
        specs = [(spec, signature.batched) for spec in signature.inputs]
        specs += [(spec, False) for spec in signature.optional_inputs if spec.name in sample.inputs]
        for spec, has_rows in specs:
            given = sample.inputs.get(spec.name)
            if given is None:
                raise ApiError(400, f"model '{name}': warm-up '{sample.name}' lacks input '{spec.name}'")
            shape = list(given.dims)
            if has_rows and spec.batch_axis >= 0:
                shape.insert(spec.batch_axis, max(sample.batch_size, 1))
            try:
                values = _values(spec, given, shape, directory / DIRECTORY)
            except ValueError as error:
                raise ApiError(400, f"model '{name}': {error}") from error
            tensors.append(Tensor.from_numpy(spec.name, values, spec.datatype))
        for _ in range(sample.count):
            yield tensors


def _values(spec: TensorSpec, given: WarmupInput, shape: list[int], directory: Path) -> NDArray[Any]:
    """Make one input. ValueError: it does not fit."""
    if given.datatype != spec.datatype:
        raise ValueError(f"input '{spec.name}' is {spec.datatype}, its warm-up {given.datatype}")
    dtype = np.dtype(numpy_dtype(spec.datatype))
    if math.prod(shape) * dtype.itemsize > limits.MAX_BODY_BYTES:
        raise ValueError(f"the warm-up of input '{spec.name}' is larger than {limits.MAX_BODY_BYTES >> 20} MiB")
    if given.zero_data:
        return np.full(shape, b"", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, dtype)
    if given.random_data:
        return ordinary_values(spec.datatype, shape, np.random.default_rng(0))
    try:
        most_bytes = limits.MAX_BODY_BYTES
        if spec.datatype != "BYTES":
            most_bytes = math.prod(shape) * dtype.itemsize
        data = disk.read(directory / given.input_data_file, most_bytes)
        if len(data) > most_bytes:
            raise ValueError("it is too large")
        if spec.datatype == "BYTES":
            return np.full(shape, data, dtype=object)
        return np.frombuffer(data, numpy_dtype(spec.datatype)).reshape(shape)
    except (OSError, ValueError):
        raise ValueError(f"the warm-up file '{given.input_data_file}' does not fit input '{spec.name}'") from None
