"""Why the content of a file is no ONNX model: common mistakes of downloads and exports, told from the first bytes."""

from __future__ import annotations

_POINTER = b"version https://git-lfs.github.com/spec/"
_BEGIN = 512  # bytes that are looked at
_MAX_FIELDS = 20_000  # of a model; functions and metadata are the ones that are repeated
_BEGINNINGS = {
    b"\x08": None,  # an ONNX file nearly always begins so: its ir_version
    b"PK\x03\x04": "a zip archive (PyTorch saves models so); export it to ONNX, or unpack it",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"\x89HDF": "an HDF5 file (Keras saves models so); export it to ONNX",
    b"\x80\x02": "a pickle (scikit-learn and PyTorch save models so); export it to ONNX",
    b"\x80\x04": "a pickle (scikit-learn and PyTorch save models so); export it to ONNX",
    b"\x80\x05": "a pickle (scikit-learn and PyTorch save models so); export it to ONNX",
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file is what git stores in place of a file in git-lfs."""
    return content.startswith(_POINTER)


def why_no_model(content: bytes) -> str | None:
    """Return what a file is instead of an ONNX model, and what to do; None if it may be one."""
    begin = content[:_BEGIN]
    if is_lfs_pointer(begin):
        return "the file is a git-lfs pointer, not the model: run 'git lfs pull'"
    kind = next((kind for start, kind in _BEGINNINGS.items() if begin.startswith(start)), None)
    if kind is not None:
        return f"the file is {kind}"
    if begin[4:8] == b"TFL3":
        return "the file is a TensorFlow Lite model; export it to ONNX"
    start = begin.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<error")):
        return "the file is a web page (or XML), not the model: the download got an error or a login page"
    if start.startswith((b'{"', b"{\n", b"{\r")):
        return "the file is JSON, not the model: the download got an error"
    if missing := _missing_bytes(content):
        return (
            f"the file is cut: it has {len(content):,} bytes, and at least {missing:,} are missing; download it again"
        )
    return None


def _missing_bytes(content: bytes) -> int:
    """Return how many bytes the last field of a message lacks; 0 if it is whole, or if it is no message."""
    at = 0
    for _ in range(_MAX_FIELDS):
        if at >= len(content):
            break
        tag, at = _varint(content, at)
        wire = tag & 7
        if not tag >> 3:  # no field has the number 0
            return 0
        if wire == _VARINT:
            _, at = _varint(content, at)
        elif wire == _BYTES:
            size, at = _varint(content, at)
            at += size
        elif wire in _SIZES:
            at += _SIZES[wire]
        else:
            return 0
    return min(max(0, at - len(content)), 1 << 40)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number and the place after it. One that is cut ends after the content."""
    number = 0
    for place in range(at, at + 10):
        if place >= len(content):
            return 0, len(content) + 1
        number |= (content[place] & 0x7F) << (7 * (place - at))
        if content[place] < 0x80:
            return number, place + 1
    return 7, at  # no number: an unknown wire type
