"""A model's directory that changes while it is looked at."""

from __future__ import annotations

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
