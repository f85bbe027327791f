"""A backend of another package: found by its entry point, asked by name, and no danger to anything else."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from support import Server, inference, serving, tensor

BACKEND = """
    import asyncio
    import json
    import numpy as np
    from time import monotonic_ns
    from fastinfer.backends.backend import Loaded
    from fastinfer.backends.parameters import Parameters
    from fastinfer.base.errors import ApiError
    from fastinfer.tensor.message import BatchResult
    from fastinfer.tensor.signature import Signature
    from fastinfer.tensor.tensor import Tensor, TensorSpec

    class AffineParameters(Parameters):
        offset: float = 0.0

    class AffineModel:
        platform = "affine"

        def __init__(self, factor, offset):
            self.factor, self.offset = factor, offset
            specs = [TensorSpec(name, "FP32", [-1, 2]) for name in "xy"]
            self.signature = Signature(specs[:1], specs[1:], batched=True, max_batch_size=4)

        def start(self, requests, done):
            began = monotonic_ns()
            arrays = [request.inputs[0].numpy() * self.factor + self.offset for request in requests]
            outputs = [[Tensor.from_numpy("y", array.astype(np.float32))] for array in arrays]
            done(BatchResult(outputs, 0, monotonic_ns() - began, 0))
            return None

        def close(self):
            pass

    class AffineBackend:
        name = "affine"
        aliases = ()
        pattern = "*.affine"
        parameters = AffineParameters

        def __init__(self, context):
            self.context = context

        async def load(self, source):
            def read(content):
                try:
                    return json.loads(content)["factor"]
                except ValueError as error:
                    raise ApiError(400, f"model '{source.name}' is no JSON") from error
            factor = await source.read(read)
            return Loaded(AffineModel(factor, source.parameters.offset), rows=4)

        def close(self):
            print("affine is closed", flush=True)

    class FailingBackend(AffineBackend):
        def __init__(self, context):
            raise RuntimeError("no licence")
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory of packages, as pip leaves it."""
    packages = tmp_path / "packages"
    (packages / "affine-1.0.dist-info").mkdir(parents=True)
    (packages / "affine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: affine\nVersion: 1.0\n")
    (packages / "affine-1.0.dist-info" / "entry_points.txt").write_text(
        "[fastinfer.backends]\naffine = affine:AffineBackend\nbroken = affine_broken:Backend\n"
        "failing = affine:FailingBackend\n"
    )
    (packages / "affine.py").write_text(textwrap.dedent(BACKEND))
    (packages / "affine_broken.py").write_text("raise RuntimeError('not for this machine')")
    return packages


def model(repository: Path, name: str, config: str, content: str = '{"factor": 3}', file: str = "m.affine") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.toml").write_text(config)
    (repository / name / "1" / file).write_text(content)


def infer(server: Server, name: str) -> list[float]:
    answer = server.infer(name, inference(tensor("x", [1, 2], "FP32", [1, 2])))
    assert answer.status == 200, answer.body
    data: list[float] = answer.json["outputs"][0]["data"]
    return data


def test_it_serves_the_models_that_name_it(installed: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    model(repository, "plain", "backend = 'affine'")
    model(repository, "moved", "backend = 'affine'\nparameters = { offset = 0.5 }")
    with serving("--processes", "2", repository=repository, env={"PYTHONPATH": str(installed)}) as server:
        assert infer(server, "plain") == [3, 6]
        assert infer(server, "moved") == [3.5, 6.5]
        assert server.get("/v2/models/plain").json["platform"] == "affine"
        assert server.get("/v2/models/plain/config").json["backend"] == "affine"
        answer = server.infer("plain", inference(tensor("x", [1, 3], "FP32", [1, 2, 3])))
        assert answer.status == 400
        (repository / "plain" / "1" / "m.affine").write_text('{"factor": 4}')
        server.load("models/plain")
        assert infer(server, "plain") == [4, 8]
        answer = server.post("/v2/models/plain/load", {"offset": "much"})
        assert answer.status == 400
        assert "offset" in answer.json["error"]
        server.stop()
        assert server.log.count("affine is closed") == 2


@pytest.mark.parametrize(
    ("config", "content", "sentence"),
    [
        ("backend = 'broken'", "", "model 'm': backend: 'broken' cannot be made: not for this machine"),
        ("backend = 'failing'", "", "model 'm': backend: 'failing' cannot be made: no licence"),
        ("backend = 'other'", "",
         "model 'm': backend: \"other\" is not served here; use affine or broken or failing or onnxruntime or python"),
        ("backend = 'affine'", "no json", "model 'm' is no JSON"),
        ("", "{}", "model 'm' version 1 has no .onnx file"),
        ("backend = 'python'", "{}", "model 'm' version 1 has no file 'model.py'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_harms_nobody(
    installed: Path, tmp_path: Path, config: str, content: str, sentence: str
) -> None:
    repository = tmp_path / "models"
    model(repository, "m", config, content)
    model(repository, "good", "backend = 'affine'")
    with serving("--load", "good", repository=repository, env={"PYTHONPATH": str(installed)}) as server:
        answer = server.post("/v2/models/m/load")
        assert (answer.status, answer.json["error"]) == (400, sentence)
        assert infer(server, "good") == [3, 6]
