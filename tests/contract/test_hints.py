"""What a newcomer gets wrong, and the sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import pytest
from support import Server, serving, wait_for


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model, ``digits``."""
    directory = tmp_path_factory.mktemp("models")
    add(directory, "digits")
    return directory


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with serving(repository=repository) as server:
        yield server


def add(repository: Path, name: str, config: str = "", content: bytes | None = None) -> Path:
    """Adds a model to a repository; returns its directory."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(content or onnx_models.identity("FP32", ["batch", 4]))
    if config:
        (repository / name / "config.toml").write_text(config)
    return repository / name


def reason(server: Server, name: str) -> str:
    """Why a model of the repository is not served."""
    return next(each["reason"] for each in server.post("/v2/repository/index").json if each["name"] == name)


# --- Parameters and options without effect ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "meant"),
    [
        ("intra_op_threds = 2", "; did you mean 'intra_op_threads'?"),
        ("allow_spining = true", "; did you mean 'allow_spinning'?"),
        ('graph-optimization-level = "all"', "; did you mean 'graph_optimization_level'?"),
        ("colour = 3", ""),
    ],
)
def test_a_parameter_of_the_configuration_without_effect(tmp_path: Path, parameter: str, meant: str) -> None:
    add(tmp_path, "m", f"[parameters]\n{parameter}\n")
    with serving("--no-strict-readiness", "--allow-empty", repository=tmp_path) as server:
        name = parameter.partition(" ")[0]
        assert server.post("/v2/models/m/load").error == f"model 'm': parameters: '{name}' has no effect{meant}"
        assert f"'{name}' has no effect" in reason(server, "m")


def test_a_parameter_of_a_configuration_that_comes_with_a_load(server: Server) -> None:
    config = json.dumps({"parameters": {"inter_op_thread": {"string_value": "1"}}})
    answer = server.post("/v2/models/digits/load", {"parameters": {"config": config}})
    assert answer.status == 400
    assert answer.error.endswith("'inter_op_thread' has no effect; did you mean 'inter_op_threads'?")


def test_a_parameter_of_a_load_is_free_but_a_misspelt_one_is_logged(server: Server) -> None:
    assert server.post("/v2/models/digits/load", {"intra_op_thread": 1, "colour": 3}).json["name"] == "digits-0"
    wait_for(lambda: "model 'digits': parameter 'intra_op_thread' of the load has no effect; did you" in server.log)
    assert "colour" not in server.log
    server.load("workers/fake", {"delay-ms": 1})
    wait_for(lambda: "worker 'fake': parameter 'delay-ms' of the load has no effect; did you mean" in server.log)


def test_a_variable_that_is_no_option(repository: Path) -> None:
    variables = {"FASTINFER_MAX_BODY_BYTE": "1", "FASTINFER_COLOUR": "1", "fastinfer_log_levels": "1"}
    of_kubernetes = {"FASTINFER_SERVICE_HOST": "10.0.0.1", "FASTINFER_PORT_8000_TCP_PROTO": "tcp",
                     "FASTINFER_GPU_SERVICE_PORT": "8000"}  # fmt: skip
    with serving(repository=repository, env=variables | of_kubernetes) as server:
        no_option = "there is no option for the environment variable"
        wait_for(lambda: server.log.count(no_option) == 3)
        assert f"{no_option} FASTINFER_MAX_BODY_BYTE; did you mean 'FASTINFER_MAX_BODY_BYTES'?" in server.log
        assert f"{no_option} fastinfer_log_levels; did you mean 'FASTINFER_LOG_LEVEL'?" in server.log


def test_a_configuration_with_another_spelling(tmp_path: Path) -> None:
    (add(tmp_path, "beside", "max_batch_size = 2") / "CONFIG.PBTXT").write_text("max_batch_size: 3")
    (add(tmp_path, "alone") / "Config.toml").write_text("max_batch_size = 3")
    with serving(repository=tmp_path) as server:
        assert server.get("/v2/models/beside/config").json["max_batch_size"] == 2
        assert server.get("/v2/models/alone/config").json["max_batch_size"] == 64
        is_not_read = "is not read, because its name is not"
        wait_for(lambda: f"model 'beside': 'CONFIG.PBTXT' {is_not_read} 'config.pbtxt'" in server.log)
        wait_for(lambda: f"model 'alone': 'Config.toml' {is_not_read} 'config.toml'" in server.log)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("[dynamic_batching]\npreferred_batch_sizes = [2]",
         "unknown field 'dynamic_batching.preferred_batch_sizes'; did you mean 'preferred_batch_size'?"),
        ("[[input]]\nname = 'x'\ndata_type = 'FP32'\ndim = [4]", "unknown field 'input[0].dim'; did you mean 'dims'?"),
        ("[[model_warmup]]\ninputs.x = { data_type = 'FP32', dims = [4], zero_date = true }",
         "unknown field 'model_warmup[0].inputs.x.zero_date'; did you mean 'zero_data'?"),
        ("[optimization.graph]\nlvel = 1", "unknown field 'optimization.graph.lvel'; did you mean 'level'?"),
    ],
)  # fmt: skip
def test_a_misspelt_field_inside_a_table(server: Server, repository: Path, config: str, sentence: str) -> None:
    file = repository / "digits" / "config.toml"
    file.write_text(config)
    try:
        assert server.post("/v2/models/digits/load").error == f"model 'digits': config.toml: {sentence}"
    finally:
        file.unlink()
