"""Symbolic dimensions: products of a number and symbols, one of which is the batch size.

A dimension of a value in a graph is a whole number (``768``), or a product of whole numbers and of symbols for sizes
that a request chooses (``12 * batch * seq``). Another expression (``seq - 1``) becomes a new symbol, the same one for
equal expressions, if it does not depend on the batch size. If it does, :class:`DependsOnBatch` is raised.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

BATCH_SYMBOL = "batch size"
_MAX_SYMBOLS = 64  # in a product, because a hostile graph could double them with each operator
_OPAQUE = "?"  # prefix of the symbols of results that may be negative
_FILLED = "s"  # prefix of the symbols of sizes that are 0 only if a dimension of the request is 0
_FRACTION = "?/"  # prefix of the symbols of results that may be fractions
_MAX_NUMBER = 2**31  # 32-bit integers overflow here, and the type of a number is not known


class DependsOnBatch(Exception):
    """A number depends on the batch size, and not as a product."""


@dataclass(frozen=True, slots=True)
class Dim:
    """A product.

    Attributes:
        factor: its integer factor; the symbols are not negative, unless they are opaque.
        symbols: sorted; a symbol may occur more than once.
    """

    factor: int
    symbols: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "*".join([*([str(self.factor)] if self.factor != 1 or not self.symbols else []), *self.symbols])

    @property
    def number(self) -> int | None:
        """Its value, or None if it is symbolic."""
        return None if self.symbols and self.factor else self.factor

    @property
    def batches(self) -> int:
        """How often the batch size is a factor."""
        return self.symbols.count(BATCH_SYMBOL)

    @property
    def is_size(self) -> bool:
        """Whether it cannot be negative."""
        return self.factor >= 0 and not any(symbol.startswith(_OPAQUE) for symbol in self.symbols)

    @property
    def is_filled(self) -> bool:
        """Whether it is at least 1 if no dimension of the request is 0."""
        return self.factor > 0 and all(each == BATCH_SYMBOL or each.startswith(_FILLED) for each in self.symbols)

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole number."""
        return not any(symbol.startswith(_FRACTION) for symbol in self.symbols)

    def __mul__(self, other: Dim) -> Dim:
        factor = _bounded(self.factor * other.factor)
        if len(self.symbols) + len(other.symbols) > _MAX_SYMBOLS:
            raise OverflowError("a product of too many symbols")
        return Dim(factor, tuple(sorted(self.symbols + other.symbols)) if factor else ())

    def over(self, other: Dim) -> Dim | None:
        """Return the quotient if the division is exact for all values of the symbols; else None."""
        mine, theirs = Counter(self.symbols), Counter(other.symbols)
        if not other.factor or self.factor % other.factor or not theirs <= mine:
            return None
        return Dim(self.factor // other.factor, tuple(sorted((mine - theirs).elements())))


ONE = Dim(1)
BATCH = Dim(1, (BATCH_SYMBOL,))


def product(dims: Iterable[Dim]) -> Dim:
    """Multiply dimensions; the empty product is 1."""
    return reduce(Dim.__mul__, dims, ONE)


class Symbols:
    """Makes the symbols of one graph; equal expressions get the same symbol."""

    def __init__(self) -> None:
        self._known: dict[object, str] = {}

    def size(self, of: object, *, filled: bool = False) -> Dim:
        """Return an unknown size; equal keys return the same one."""
        begin = _FILLED if filled else "d"
        return Dim(1, (self._known.setdefault(("size", of), f"{begin}{len(self._known)}"),))

    def any_size(self) -> Dim:
        """Return an unknown size that equals no other."""
        return self.size(len(self._known))

    def opaque(self, of: object, *operands: object, whole: bool = True) -> Dim:
        """Return an unknown result. DependsOnBatch if the batch size is a factor of an operand."""
        for operand in operands:
            if isinstance(operand, Dim) and operand.batches:
                raise DependsOnBatch
        begin = _OPAQUE if whole else _FRACTION
        return Dim(1, (self._known.setdefault((of, whole, *operands), f"{begin}{len(self._known)}"),))

    # --- Arithmetic with numbers (int, float, bool) and dimensions ----------------------------------------------------

    def apply(self, name: str, exact: Callable[..., Any], *operands: Any) -> Any:
        """Apply an operator: to numbers exactly; otherwise the result is a product if possible, else a new symbol."""
        operands = tuple(_plain(operand) for operand in operands)
        if not any(isinstance(operand, Dim) for operand in operands):
            result = exact(*operands)
            if name in _ARITHMETIC and isinstance(result, float) and not _is_exact(name, operands, result):
                return self.opaque(name, *operands, whole=False)
            return _narrow(result) if name in _ARITHMETIC else _bounded(result)
        if name == "Identity":
            return operands[0]
        if not all(_is_whole(operand) for operand in operands):
            return self.opaque(name, *operands, whole=name in _TO_WHOLE)
        if name == "Mul":
            factors = [_whole(operand) for operand in operands]
            if all(factor is not None for factor in factors):
                return _plain(product(factor for factor in factors if factor is not None))
        elif name == "Div":
            above, below = (_whole(operand) for operand in operands)
            quotient = above.over(below) if above is not None and below is not None else None
            if quotient is not None and quotient.number is None:
                return _plain(quotient)
            return self._quotient(*operands)
        elif name == "Mod":
            return self.opaque(name, *operands, len(self._known))  # an attribute chooses the sign of the result
        elif name in ("Add", "Sub") and _plain(operands[1]) == 0:
            return operands[0]
        elif name == "Add" and operands[0] == 0:
            return operands[1]
        elif name in ("Floor", "Ceil", "Round") or (name == "Abs" and operands[0].is_size):
            return operands[0]
        elif name in ("Max", "Min"):
            return operands[0] if len(set(operands)) == 1 else self.opaque(name, *operands)
        elif name in _COMPARISONS:
            known = _compared(name, *operands)
            if known is not None:
                return known
        return self.opaque(name, *operands)

    def truncated(self, operand: Dim) -> Dim:
        """Convert a dimension to a whole number."""
        return operand if operand.is_whole else self.opaque("truncated", operand)

    def _quotient(self, above: Any, below: Any) -> Dim:
        """Return a quotient that is not a product. A number among the operands has the type of both."""
        if isinstance(above, Dim) and isinstance(below, Dim):
            return self.opaque("Div", above, below, len(self._known), whole=False)
        return self.opaque("Div", above, below, whole=not isinstance(above, float) and not isinstance(below, float))


_ARITHMETIC = frozenset({"Abs", "Add", "Div", "Mul", "Neg", "Sub"})
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_TO_WHOLE = _COMPARISONS | {"And", "Ceil", "Floor", "Not", "Or", "Round"}


def _is_whole(value: Any) -> bool:
    return value.is_whole if isinstance(value, Dim) else value == value and abs(value) < 2**63 and int(value) == value


def _is_exact(name: str, operands: tuple[Any, ...], result: float) -> bool:
    """Whether 32-bit floating point represents a result exactly; otherwise the runtime rounds it."""
    values = [Fraction(operand) for operand in operands]
    if name in ("Abs", "Neg"):
        return True
    left, right = values
    exact = {"Add": left + right, "Sub": left - right, "Mul": left * right}.get(name)
    if exact is None:
        exact = left / right
    return exact == Fraction(result) and float(np.float32(result)) == result


def _narrow(value: Any) -> Any:
    """Check a result of arithmetic. OverflowError: it may exceed 32 bits."""
    if isinstance(value, int) and not -_MAX_NUMBER <= value < _MAX_NUMBER:
        raise OverflowError("a number is too large")
    return value


def _bounded(value: Any) -> Any:
    """Check a number. OverflowError: it exceeds the runtime's 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise OverflowError("a number is too large")
    return value


def _plain(value: Any) -> Any:
    """Replace a dimension without symbols by its number."""
    if isinstance(value, Dim) and value.number is not None:
        return value.number
    return value


def _whole(value: Any) -> Dim | None:
    if isinstance(value, Dim):
        return value
    return Dim(int(value)) if value == value and abs(value) < 2**53 and int(value) == value else None


def _compared(name: str, left: Any, right: Any) -> bool | None:
    """Return the result of a comparison if it is the same for all values of the symbols; else None."""
    if left == right:
        return name in ("Equal", "LessOrEqual", "GreaterOrEqual")
    for low, high, greater in ((right, left, True), (left, right, False)):  # a negative number against a size
        if isinstance(high, Dim) and high.is_size and not isinstance(low, Dim) and low < 0:
            return {"Equal": False, "Less": not greater, "LessOrEqual": not greater}.get(name, greater)
    return None
