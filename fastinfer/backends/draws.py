"""Random values for runs at load: trials and warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.tensor.datatype import numpy_dtype


@dataclass(frozen=True, slots=True)
class Draw:
    """The distribution of the three rows of one trial.

    Attributes:
        scales: the scale of each row's floating-point values.
        uniform: these are uniform from 0 to the scale, instead of normal.
        nan: the last row contains NaN.
        largest: integers are below this.
    """

    scales: tuple[float, float, float]
    uniform: bool
    nan: bool
    largest: int


ORDINARY = Draw((1, 1, 1), False, False, 2)


def ordinary_values(datatype: str, shape: Sequence[int], random: np.random.Generator) -> NDArray[Any]:
    """Draw standard normals for floating point; zeros and ones for the rest, so that indices are valid."""
    return draw_values(datatype, shape, random, ORDINARY, 0, 2)


def draw_values(
    datatype: str, shape: Sequence[int], random: np.random.Generator, draw: Draw, row: int, limit: int
) -> NDArray[Any]:
    """Draw the values of row ``row``, of any shape; integers are below ``limit``."""
    match datatype:
        case "FP16" | "FP32" | "FP64" | "BF16":
            drawn = random.random(shape) if draw.uniform else random.standard_normal(shape)
            drawn *= draw.scales[row]
            if draw.nan and row == len(draw.scales) - 1:
                drawn[random.random(shape) < 0.25] = np.nan
            if datatype == "BF16":
                return (drawn.astype("f4").view(np.uint32) >> 16).astype("u2")
            return drawn.astype(numpy_dtype(datatype))
        case "BYTES":
            texts = [str(number).encode() for number in random.integers(0, limit, shape).flat]
            return np.array(texts, dtype=object).reshape(shape)
        case "BOOL":
            return random.integers(0, 2, shape).astype(bool)
    dtype = numpy_dtype(datatype)
    # The smallest number of a type is excluded because dividing it by -1 ends the process.
    highest = min(limit - 1, int(np.iinfo(dtype).max))
    lowest = -highest if limit > np.iinfo(dtype).max and np.iinfo(dtype).min else 0
    if row == 1:  # row 1 has small numbers, row 2 large ones
        highest, lowest = max(highest // 100, min(1, highest)), 0
    elif row == 2:
        lowest = highest // 2
    return random.integers(lowest, highest, shape, dtype=np.int64, endpoint=True).astype(dtype)
