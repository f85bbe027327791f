"""Models whose files are links, or lie beside others."""

from __future__ import annotations

from pathlib import Path

import layouts
from support import Server, inference, serving, tensor


def answer(server: Server, name: str) -> list[float]:
    """The answer to a row of zeros: the sum of the weights, four times."""
    answer = server.infer(name, inference(tensor("x", [1, 4], "FP32", [0] * 4)))
    assert answer.status == 200, answer.body
    data: list[float] = answer.json["outputs"][0]["data"]
    return data


def cache(directory: Path, weight: float, revision: str) -> None:
    """Adds a revision to a cache of Hugging Face, and lets ``main`` lead to it."""
    layouts.write_external(directory / "new" / "model.onnx", weight, one_file=True)
    (directory / "blobs").mkdir(exist_ok=True)
    snapshot = directory / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file in (directory / "new").iterdir():
        digest = f"{revision}{len(file.name)}"
        file.rename(directory / "blobs" / digest)
        (snapshot / file.name).symlink_to(f"../../blobs/{digest}")
    (directory / "refs").unlink(missing_ok=True)
    (directory / "refs").symlink_to(snapshot)


def test_a_cache_of_hugging_face_is_served_and_followed(tmp_path: Path) -> None:
    cache(tmp_path, 1, "aa")
    with serving("--model", f"cached={tmp_path}/refs/model.onnx", repository=None) as server:
        assert answer(server, "cached") == [1] * 4
        cache(tmp_path, 2, "bb")
        server.load("models/cached")
        assert answer(server, "cached") == [2] * 4


def test_weights_outside_of_the_repository_are_refused_or_allowed(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for name in ("inside", "outside", "hard"):
        layouts.write_external(repository / name / "1" / "model.onnx", 3, one_file=False)
    (repository / "store").mkdir()
    for name, target in (("inside", repository / "store" / "w"), ("outside", tmp_path / "w")):
        weights = repository / name / "1" / "w0"
        weights.rename(target)
        weights.symlink_to(target)
    (tmp_path / "second").hardlink_to(repository / "hard" / "1" / "w0")
    allows_that = "outside of the model repository; --allow-linked-weights allows that"
    with serving("--no-strict-readiness", repository=repository) as server:
        assert answer(server, "inside") == [3] * 4
        for name, what in (("outside", "is a link to a file"), ("hard", "has a second name (a hard link)")):
            error = server.post(f"/v2/models/{name}/load").error
            assert error == f"model '{name}' does not load: the model's file 'w0' {what} {allows_that}"
    with serving("--allow-linked-weights", "--load", "inside", "outside", "hard", repository=repository) as server:
        assert [answer(server, name) for name in ("inside", "outside", "hard")] == [[3] * 4] * 3


def test_the_model_file_is_chosen_by_its_name(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    layouts.write(version / "model.onnx", 1)
    for other, weight in (("model_quantized.onnx", 2), ("decoder.onnx", 3)):
        layouts.write(version / other, weight)
    for hidden in ("._model.onnx", ".model.onnx.swp", "._other.onnx"):
        (version / hidden).write_bytes(b"\0\5\26\7")
    layouts.write(tmp_path / "hidden" / "1" / "network.onnx", 4)
    (tmp_path / "hidden" / "1" / "._network.onnx").write_bytes(b"\0\5\26\7")
    (tmp_path / "hidden" / "._config.toml").write_bytes(b"\0\5\26\7")
    layouts.write(tmp_path / "two" / "1" / "a.onnx")
    layouts.write(tmp_path / "two" / "1" / "b.onnx")
    with serving("--no-strict-readiness", repository=tmp_path) as server:
        assert answer(server, "m") == [1] * 4
        assert answer(server, "hidden") == [4] * 4
        assert server.get("/v2/models/hidden/config").json["default_model_filename"] == "network.onnx"
        error = server.post("/v2/models/two/load").error
        assert "has several .onnx files, none of them model.onnx, and no default_model_filename" in error
        (tmp_path / "m" / "config.toml").write_text('default_model_filename = "decoder.onnx"')
        server.load("models/m")
        assert answer(server, "m") == [3] * 4
