"""A model's directory that changes while it is looked at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fastinfer.config.model import ModelConfig
from fastinfer.errors import ApiError
from fastinfer.models import files


def test_a_version_that_goes_away_after_it_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "model" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"?")
    (version / "notes.txt").write_bytes(b"?")
    found = files.find([tmp_path], "model")
    assert found.model_file(1, ModelConfig(name="model")) == version / "model.onnx"
    shutil.rmtree(version)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)  # it was there when that was asked
    with pytest.raises(ApiError, match=r"has no \.onnx file") as raised:
        found.model_file(1, ModelConfig(name="model"))
    assert raised.value.status == 400


def test_a_copy_that_keeps_the_time_is_another_file(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"one")
    before = files.find([tmp_path], "m").versions[1]
    status = (version / "model.onnx").stat()
    (version / "model.onnx").write_bytes(b"two")  # in place: the inode and the size are the same
    os.utime(version / "model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files.find([tmp_path], "m").versions[1] != before
