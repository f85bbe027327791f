"""Coverage-guided fuzzing of what reads strangers' bytes: the decoder, the reader of binary tensors, the HTTP layer.

    make fuzz-guided ARGS="--seconds 600"                   all targets, in a build that tells which paths are walked
    python -m tests.fuzz.guided --replay                    the corpus alone, in any build

An input that walks a new path is kept, and changed in its turn. The corpus (``corpus/TARGET/``) holds inputs that
together walk all paths that were found; ``--keep`` writes it anew, with the smallest ones. A failing input is written
beside it as ``failed-*``, and ends the run. tests/unit/test_fuzz.py replays the corpus.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).with_name("corpus")
MAP_BYTES = 1 << 16
MAX_BYTES = 4096


# --- Coverage --------------------------------------------------------------------------------------------------------


class Coverage:
    """The edges that were walked, as coverage.cpp counts them; it is loaded before everything else."""

    def __init__(self, how_often: bool = True) -> None:
        self._how_often = how_often
        self._library = ctypes.CDLL(None)
        if not hasattr(self._library, "fuzz_learn"):
            sys.exit("this build does not tell its paths: make fuzz-guided")
        self._seen = ctypes.create_string_buffer(MAP_BYTES)
        self.found = 0

    def walk(self, target: Target, data: bytes) -> int:
        """Checks an input; how much it walked that none before it has."""
        self._library.fuzz_forget()
        target.check(data)
        new: int = self._library.fuzz_learn(self._seen, self._how_often)
        self.found += new
        return new


# --- Inputs ----------------------------------------------------------------------------------------------------------


def changed(source: random.Random, data: bytes, target: Target, others: list[bytes]) -> bytes:
    """An input near another one."""
    text = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 4, 8))):
        at = source.randrange(len(text) + 1)
        end = min(len(text), at + source.choice((1, 1, 2, 4, 16, 64)))
        kind = source.randrange(8)
        if kind == 0 and at < len(text):
            text[at] ^= 1 << source.randrange(8)
        elif kind == 1 and at < len(text):
            text[at] = source.randrange(256)
        elif kind == 2:
            text[at:at] = bytes(source.choices(range(256), k=source.choice((1, 2, 8))))
        elif kind == 3:
            del text[at:end]
        elif kind == 4:
            text[at:at] = text[at:end] * source.choice((1, 1, 2, 16))
        elif kind == 5:
            other = source.choice(others)
            start = source.randrange(len(other) + 1)
            text[at:end] = other[start : start + source.choice((4, 16, 64, 256))]
        else:
            text[at : source.choice((at, end))] = source.choice(target.tokens)
    return bytes(text[:MAX_BYTES])


def saved(target: Target) -> list[bytes]:
    """The committed corpus of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target.name).glob("[0-9a-f]*"))]


def checked(target: Target, data: bytes, coverage: Coverage | None = None) -> int:
    """Checks an input, and writes it down where it fails."""
    try:
        if coverage is not None:
            return coverage.walk(target, data)
        target.check(data)
        return 0
    except BaseException:
        path = CORPUS / target.name / f"failed-{hashlib.sha256(data).hexdigest()[:16]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{target.name}: wrong with {path}", file=sys.stderr)
        raise


def fuzz(target: Target, seconds: float, source: random.Random) -> list[bytes]:
    """Looks for paths for so long; the inputs that walk them."""
    coverage = Coverage()
    corpus: list[bytes] = []
    for data in [*target.seeds, *saved(target)]:
        if checked(target, data, coverage) or not corpus:
            corpus.append(data)
    count, end, shown = 0, time.monotonic() + seconds, 0.0
    while (now := time.monotonic()) < end:
        data = changed(source, source.choice(corpus[-50:] if source.random() < 0.5 else corpus), target, corpus)
        count += 1
        if checked(target, data, coverage):
            corpus.append(data)
        if now - shown > 10:
            shown = now
            print(f"{target.name}: {count} inputs, {len(corpus)} kept, {coverage.found} paths", flush=True)
    print(f"{target.name}: {count} inputs, {len(corpus)} kept, {coverage.found} paths, none wrong", flush=True)
    return corpus


def keep(target: Target, corpus: Iterable[bytes]) -> None:
    """Writes the corpus anew: of small inputs those that add a path, less those whose paths the later ones walk too."""
    directory = CORPUS / target.name
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("[0-9a-f]*"):
        path.unlink()
    inputs = sorted(set(corpus), key=len)
    for _ in range(2):
        coverage = Coverage(how_often=False)
        inputs = [data for data in inputs if coverage.walk(target, data)][::-1]
    for data in inputs:
        (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def replay(target: Target) -> int:
    """Checks the seeds and the committed corpus; how many inputs that were."""
    inputs = [*target.seeds, *saved(target)]
    for data in inputs:
        checked(target, data)
    return len(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, action="append", help="one of the targets (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", action="store_true", help="write the corpus anew")
    parser.add_argument("--replay", action="store_true", help="check the corpus only")
    arguments = parser.parse_args()
    if not arguments.replay:
        print(f"seed {arguments.seed}", flush=True)
    for name in arguments.target or TARGETS:
        target = TARGETS[name]()
        try:
            if arguments.replay:
                print(f"{name}: {replay(target)} inputs, none wrong")
                continue
            corpus = fuzz(target, arguments.seconds, random.Random(arguments.seed))
            if arguments.keep:
                keep(target, corpus)
        finally:
            target.close()


if __name__ == "__main__":
    main()
