"""The steps of an ensemble, from its configuration. It has no engine: see :mod:`fastinfer.schedule.ensemble`."""

from __future__ import annotations

from pathlib import Path

from fastinfer.backends.labels import labels_of
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.schedule.wiring import Step, Wiring
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import TensorSpec


def wiring_of(directory: Path, config: ModelConfig) -> Wiring:
    """The steps of an ensemble, checked by their names. Runs on a load thread. ApiError 400."""
    if config.ensemble_scheduling is None:
        raise ValueError(f"'{config.name}' is no ensemble")
    batched = bool(config.max_batch_size)
    rows = (-1,) if batched else ()
    inputs, outputs = (
        [TensorSpec(tensor.name, tensor.datatype, (*rows, *tensor.dims)) for tensor in tensors]
        for tensors in (config.inputs, config.outputs)
    )
    labels = labels_of(directory, config)
    most = config.max_batch_size or 0
    signature = Signature(
        inputs, outputs, batched=batched, max_batch_size=most, max_batch_size_configured=batched, labels=labels
    )
    steps = [
        Step(number, step.model_name, step.version, step.input_map, step.output_map)
        for number, step in enumerate(config.ensemble_scheduling.step, 1)
    ]
    try:
        if any(step.model == config.name for step in steps):
            raise ApiError(400, f"'{config.name}' is a step of itself")
        return Wiring(signature, steps)
    except ApiError as error:
        raise ApiError(error.status, f"ensemble '{config.name}': {error.message}") from error
