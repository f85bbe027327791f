"""Reads docs/models.md: its sections, and the blocks in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
TEXT = DOCUMENT.read_text()

_HEADING = re.compile(r"^## (.+)$", re.M)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: ``sh``: commands, one a line; ``python``: a program, or the next part of it; ``json``: the answer to
            the request before; ``text``: what the command before prints.
    """

    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.text.splitlines() if line]


@dataclass(frozen=True)
class Section:
    """A section with the way from a framework to a served model."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def commands(self) -> list[str]:
        return [line for block in self.blocks if block.language == "sh" for line in block.lines]

    @property
    def requirements(self) -> tuple[str, ...]:
        """What its line ``pip install …`` installs."""
        (line,) = [line for line in self.commands if line.startswith("pip install ")]
        return tuple(shlex.split(line)[2:])


def _sections() -> dict[str, Section]:
    _, *parts = _HEADING.split(TEXT)
    found = {}
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        section = Section(title, tuple(Block(*block) for block in _BLOCK.findall(text)))
        if any(line.startswith("pip install ") for line in section.commands):
            found[title] = section
    return found


SECTIONS = _sections()
"""By title, those that install a framework."""

CHECKED = [line for line in TEXT.splitlines() if re.match(r"(ok|FAILED) +\w+/1 ", line)]
"""What the document says that ``fastinfer check`` prints."""
