"""A model's class, wherever it runs: makes it of the source, calls it, and checks what it returns.

Used in the model's own process, or on a thread of the server's. Nothing here knows which.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastinfer.backends.python import InvalidInput
from fastinfer.tensor.datatype import numpy_dtype
from fastinfer.tensor.tensor import Tensor

MODEL = "Model"  # the class's name
_MAX_REASON = 4096  # characters of an exception's text
_MAX_TRACE = 16_384


class HostedError(Exception):
    """The model has failed, or has refused its inputs.

    Attributes:
        status: 400 or 500.
        reason: one sentence, which may still hold paths.
        trace: the traceback, for the log; empty if there is none.
    """

    def __init__(self, status: int, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = _printable(reason[:_MAX_REASON])
        self.trace = _printable(trace[-_MAX_TRACE:])


@dataclass(frozen=True, slots=True)
class Described:
    """An input or output as the configuration declares it; -1 stands for any dimension."""

    name: str
    datatype: str
    shape: Sequence[int]


class HostedModel:
    """An instance of a model's class.

    Args:
        source: the content of ``model.py``.
        path: of that file, for tracebacks.
        module: the module's name, unique in this process.
        config: what the class's ``load`` gets, besides ``directory``.
        outputs: what ``infer`` must return.

    Raises:
        HostedError: the code cannot be run, or its ``load`` fails.
    """

    def __init__(
        self, source: bytes, path: Path, module: str, config: Mapping[str, Any], outputs: Sequence[Described]
    ) -> None:
        self._outputs = outputs
        self._module = module
        try:
            made_of = sys.modules[module] = ModuleType(module)  # where dataclasses and pickles look for it
            made_of.__file__ = str(path)
            exec(compile(source, str(path), "exec"), made_of.__dict__)
            made = getattr(made_of, MODEL, None)
            if not isinstance(made, type) or not callable(getattr(made, "infer", None)):
                raise HostedError(500, f"has no class {MODEL} with a method infer")
            self._model = made()
            if callable(getattr(made, "load", None)):
                self._model.load({**config, "directory": str(path.parent)})
        except BaseException as error:
            sys.modules.pop(module, None)
            raise error if isinstance(error, HostedError) else _failure(error) from None

    def infer(self, inputs: dict[str, NDArray[Any]], rows: int | None) -> list[Tensor]:
        """Runs one batch.

        Args:
            inputs: arrays by name; BYTES as object arrays of ``bytes``, BF16 as uint16.
            rows: the first dimension that every output must have; None: the model is not batched.

        Returns:
            The outputs in the declared order.

        Raises:
            HostedError: the model has failed, or its outputs are not those that are declared.
        """
        try:
            outputs = self._model.infer(inputs)
        except BaseException as error:
            raise _failure(error) from None
        if not isinstance(outputs, Mapping):
            raise HostedError(500, f"infer returned {type(outputs).__name__}, not a dict of arrays")
        if unknown := sorted(str(name) for name in outputs.keys() - {each.name for each in self._outputs}):
            raise HostedError(500, f"infer returned the output '{unknown[0]}', which is not declared")
        return [_checked(each, outputs, rows) for each in self._outputs]

    def close(self) -> None:
        """Calls the class's ``close``, if there is one."""
        sys.modules.pop(self._module, None)
        close = getattr(self._model, "close", None)
        if callable(close):
            close()


def _checked(declared: Described, outputs: Mapping[str, Any], rows: int | None) -> Tensor:
    name = declared.name
    if name not in outputs:
        raise HostedError(500, f"infer did not return the output '{name}'")
    try:
        array = np.asarray(outputs[name])
        if declared.datatype == "BYTES":
            array = array.astype(object, copy=False)
            other = next((each for each in array.flat if not isinstance(each, str | bytes)), None)
            if other is not None:
                raise TypeError(f"{type(other).__name__} is neither bytes nor text")
        else:
            dtype = np.dtype(numpy_dtype(declared.datatype))
            array = array.astype(dtype, casting="same_kind", copy=False)
    except Exception as error:  # an array-like object may raise anything
        raise HostedError(500, f"output '{name}' cannot be made {declared.datatype}: {error}") from None
    fits = len(declared.shape) == array.ndim
    fits = fits and all(a in (-1, b) for a, b in zip(declared.shape, array.shape, strict=True))
    if not fits or (rows is not None and array.shape[0] != rows):
        expected = list(declared.shape) if rows is None else [rows, *declared.shape[1:]]
        raise HostedError(500, f"output '{name}' has the shape {list(array.shape)}, declared is {expected}")
    try:
        return Tensor.from_numpy(name, array, declared.datatype)
    except (TypeError, ValueError, MemoryError) as error:
        raise HostedError(500, f"output '{name}' cannot be sent: {error}") from None


def _printable(text: str) -> str:
    """Text that can be sent: without surrogates, which file names may hold."""
    return text.encode("utf-8", "replace").decode()


def _failure(error: BaseException) -> HostedError:
    """An exception of the model's code."""
    try:
        text = str(error).strip()
    except Exception:
        text = ""
    if isinstance(error, InvalidInput):
        return HostedError(400, text or "the inputs cannot be used")
    kind = type(error).__name__
    trace = "".join(traceback.format_exception(error))
    return HostedError(500, f"{kind}: {text}" if text else kind, trace)
