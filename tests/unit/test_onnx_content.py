"""Files that are called like a model and are none."""

from __future__ import annotations

import gzip
import pickle
from io import BytesIO
from zipfile import ZipFile

import onnx_models
import pytest

from fastinfer.backends.onnx.content import why_no_model


def zipped() -> bytes:
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "run 'git lfs pull'"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"\n\n  <HTML>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "the download got an error"),
        (b'{"error":"Repository not found"}', "JSON, not the model"),
        (zipped(), "a zip archive"),
        (gzip.compress(onnx_models.simple()), "compressed with gzip"),
        (pickle.dumps({"weights": [1.0]}), "a pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model"),
    ],
)  # fmt: skip
def test_another_kind_of_file(content: bytes, words: str) -> None:
    assert words in (why_no_model(content) or "")


@pytest.mark.parametrize("model", [onnx_models.simple(), onnx_models.mlp(), onnx_models.identity("BYTES")])
def test_a_model(model: bytes) -> None:
    assert why_no_model(model) is None


def test_a_download_that_was_cut() -> None:
    model = onnx_models.mlp()
    graph = model.index(b"graph")  # the graph is one field, which ends with the file or nearly so
    for size in (len(model) // 2, len(model) - 20, graph + 100):
        reason = why_no_model(model[:size])
        assert reason is not None, size
        assert reason.startswith(f"the file is cut: it has {size:,} bytes, and at least ")
        assert reason.endswith(" are missing; download it again")


@pytest.mark.parametrize(
    "content", [b"", b"\x08", b"\xff" * 100, b"\x0b" * 10, bytes(1000), b"\x12\xff\xff\xff\xff\x7f"]
)
def test_what_the_runtime_judges(content: bytes) -> None:
    why_no_model(content)  # does not raise, whatever it says
