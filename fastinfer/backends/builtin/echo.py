"""``echo`` and ``echo_multi``: the simplest workers, for testing clients."""

from __future__ import annotations

import numpy as np

from fastinfer.backends.builtin.item import Item
from fastinfer.tensor.signature import Signature
from fastinfer.tensor.tensor import Tensor, TensorSpec


class Echo:
    """Adds one; 4294967295 becomes 0."""

    platform = "echo"
    inline = True
    signature = Signature([TensorSpec("input", "UINT32", [1])], [TensorSpec("output", "UINT32", [1])], positional=True)

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:  # noqa: ARG002
        return [Tensor.from_numpy("output", inputs[0].numpy() + np.uint32(1))]


class EchoMulti:
    """Repeats the three values of two inputs until three outputs are full."""

    platform = "echo_multi"
    inline = True
    signature = Signature(
        [TensorSpec("input0", "UINT32", [1]), TensorSpec("input1", "UINT32", [2])],
        [
            TensorSpec("output0", "UINT32", [1]),
            TensorSpec("output1", "UINT32", [4]),
            TensorSpec("output2", "UINT32", [3]),
        ],
        positional=True,
    )

    def compute(self, inputs: list[Tensor], item: Item | None = None) -> list[Tensor]:  # noqa: ARG002
        values = np.resize(np.concatenate([tensor.numpy() for tensor in inputs]), 8)
        parts = np.split(values, [1, 5])
        return [Tensor.from_numpy(spec.name, part) for spec, part in zip(self.signature.outputs, parts, strict=True)]
