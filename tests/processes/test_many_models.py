"""Many models on one server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import REPOSITORY, inference, serving, tensor, wait_for

COUNT = 30  # more than the log names one by one


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in range(COUNT):
        shutil.copytree(REPOSITORY / "identity_fp32", tmp_path / f"m{number}")
    return tmp_path


@pytest.mark.parametrize("processes", ["0", "2"])
def test_all_are_loading_from_the_first_answer_and_all_are_served(repository: Path, processes: str) -> None:
    body = inference(tensor("INPUT0", [1, 2], "FP32", [1.5, -2]))
    with serving("--processes", processes, repository=repository, wait=False) as server:
        first = server.post("/v2/repository/index").json
        assert len(first) == COUNT
        assert {entry["state"] for entry in first} <= {"LOADING", "READY"}
        server.wait_ready()
        assert {entry["state"] for entry in server.post("/v2/repository/index").json} == {"READY"}
        for number in range(COUNT):
            assert server.infer(f"m{number}", body).json["outputs"][0]["data"] == [1.5, -2]
        for number in range(COUNT):
            counted = server.get(f"/v2/models/m{number}/stats").json["model_stats"][0]
            assert counted["inference_count"] == 1


@pytest.mark.parametrize("processes", ["0", "1"])
def test_the_log_does_not_name_each(repository: Path, processes: str) -> None:
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"broken")
    with serving("--processes", processes, "--no-strict-readiness", repository=repository) as server:
        wait_for(lambda: f"ready: {COUNT} models" in server.log)
        assert "'m7'" not in server.log
        assert "model 'broken' is not served" in server.log
        server.post("/v2/models/m7/unload")  # one change is news
        wait_for(lambda: "'m7' is unloaded" in server.log)
        server.load("models/m7")
        wait_for(lambda: "'m7' version 1: " in server.log)
        server.stop()
        assert "'m8'" not in server.log
