"""Finds the known name that a misspelt one was meant to be, in a time that does not depend on how many are known."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

_LONGEST = 40  # characters that are compared, because the time is quadratic in them
_NEIGHBOURS = 4  # names that are compared on each side of the place where the misspelt one would be
_ALIKE = 0.6  # the least ratio of equal characters: difflib's default


class Near:
    """Known names, prepared for several searches.

    A misspelling nearly always leaves the beginning or the end of a name intact. So the candidates are its neighbours
    in the order of the alphabet, read forwards and backwards.

    Args:
        known: the names.
    """

    def __init__(self, known: Iterable[str]) -> None:
        names = {_fold(name): name for name in known}
        self._forwards = sorted(names.items())
        self._backwards = sorted((folded[::-1], name) for folded, name in names.items())

    def to(self, wrong: str) -> str | None:
        """Return the most similar name; None if none is similar."""
        folded = _fold(wrong)
        rated = [(_ratio(folded, _fold(name)), name) for name in self._candidates(folded)]
        ratio, name = max(rated, default=(0.0, ""))
        return name if ratio >= _ALIKE else None

    def _candidates(self, folded: str) -> Iterator[str]:
        found: dict[str, None] = {}
        for names, key in ((self._forwards, folded), (self._backwards, folded[::-1])):
            place = bisect_left(names, (key, ""))
            found |= dict.fromkeys(name for _, name in names[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS])
        return iter(found)


def _fold(name: str) -> str:
    """Return what is compared of a name: upper case and the kind of a separator make no difference."""
    return name[:_LONGEST].lower().translate(_SEPARATORS)


_SEPARATORS = str.maketrans("-. ", "___")


def _ratio(wrong: str, name: str) -> float:
    matcher = SequenceMatcher(None, wrong, name, autojunk=False)
    if matcher.real_quick_ratio() < _ALIKE or matcher.quick_ratio() < _ALIKE:
        return 0.0
    return matcher.ratio()


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'port'?`` if a known name is similar, else an empty string."""
    return as_question(Near(known).to(wrong))


def as_question(name: str | None) -> str:
    """Return ``; did you mean 'port'?``, or an empty string for None."""
    return "" if name is None else f"; did you mean '{name}'?"
