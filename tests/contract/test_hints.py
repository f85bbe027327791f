"""What a newcomer gets wrong, and the sentence that says what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_models
import pytest
from support import Server, inference, serving, tensor, wait_for


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


# --- Names and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digit", "Digits", "dgits", "digtis"])
def test_a_misspelt_model(server: Server, name: str) -> None:
    for answer in (server.get(f"/v2/models/{name}"), server.infer(name, {})):
        assert answer.status == 404
        assert answer.error == f"Request for unknown model: '{name}' is not found; did you mean 'digits'?"
    answer = server.post(f"/v2/models/{name}/load")
    assert answer.status == 400
    assert answer.error == f"no model '{name}' in the repository; did you mean 'digits'?"
    assert server.get("/v2/models/resnet").error == "Request for unknown model: 'resnet' is not found"


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/v1/models/digits:predict", ": this server speaks the V2 protocol, POST /v2/models/digits/infer"),
        ("GET", "/v1/models/digits", ": this server speaks the V2 protocol, POST /v2/models/digits/infer"),
        ("POST", "/v1/completions", ": this server speaks the V2 protocol, POST /v2/models/NAME/infer"),
        ("POST", "/v2/model/digits/infer", "; did you mean '/v2/models/digits/infer'?"),
        ("POST", "/v2/models/digits/inference", "; did you mean '/v2/models/digits/infer'?"),
        ("POST", "/v2/models/digits/predict", "; did you mean '/v2/models/digits/infer'?"),
        ("GET", "/v2/models/digits/version/1", "; did you mean '/v2/models/digits/versions/1'?"),
        ("GET", "/v2/healthy/ready", "; did you mean '/v2/health/ready'?"),
        ("GET", "/models/digits", "; did you mean '/v2/models/digits'?"),
        ("GET", "/metric", "; did you mean '/metrics'?"),
        ("GET", "/v2/health", ""),
        ("GET", "/wp-login.php", ""),
        ("GET", "/v2/zzz/" + "a" * 3000, ""),
    ],
)
def test_a_path_that_is_nearly_one(server: Server, method: str, path: str, hint: str) -> None:
    answer = server.request(method, path)
    assert answer.status == 404
    assert answer.error == f"no such path{hint}"


@pytest.mark.parametrize(
    ("inputs", "outputs", "sentence"),
    [
        ("X", "y", "unexpected inference input 'X' for model 'digits'; did you mean 'x'?"),
        ("x", "Y", "unexpected inference output 'Y' for model 'digits'; did you mean 'y'?"),
        ("image", "y", "unexpected inference input 'image' for model 'digits'"),
    ],
)
def test_a_misspelt_input_or_output(server: Server, inputs: str, outputs: str, sentence: str) -> None:
    body = inference(tensor(inputs, [1, 4], "FP32", [0] * 4), outputs=[{"name": outputs}])
    assert server.infer("digits", body).error == sentence


# --- Bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "the body is empty, and an inference request is JSON"),
        ("  \n", "the body is empty, and an inference request is JSON"),
        ("inputs=%5B1%5D&model=digits", "the body is form data, but an inference request is JSON"),
        ('--b0\r\nContent-Disposition: form-data; name="inputs"\r\n\r\n1\r\n--b0--\r\n', "is multipart form data"),
        ("<request/>", "the body is XML or HTML"),
        ('{"instances":[[1,2,3,4]]}', "'inputs' is missing: 'instances' is of the V1 protocol"),
        ('{"signature_name":"x","instances":null}', "'inputs' is missing: 'instances' is of the V1 protocol"),
        ('{"input":[]}', "'inputs' is missing"),
    ],
)
@pytest.mark.parametrize("padding", [0, 100_000])
def test_a_body_that_is_no_request(server: Server, body: str, words: str, padding: int) -> None:
    answer = server.infer("digits", body + " " * padding)  # a large body is read on another thread
    assert answer.status == 400
    assert words in answer.error


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("float32", "use FP32"), ("float", "use FP32"), ("fp32", "use FP32"), ("TYPE_FP32", "use FP32"),
        ("torch.float16", "use FP16"), ("int64", "use INT64"), ("tensor(int64)", "use INT64"), ("uint8", "use UINT8"),
        ("STRING", "use BYTES"), ("str", "use BYTES"), ("object", "use BYTES"), ("double", "use FP64"),
        ("boolean", "use BOOL"), ("bfloat16", "use BF16"), ("FP23", "did you mean 'FP32'?"),
    ],
)  # fmt: skip
def test_the_word_of_another_library_for_a_datatype(server: Server, word: str, meant: str) -> None:
    answer = server.infer("digits", inference(tensor("x", [1, 4], word, [0] * 4)))
    assert answer.error == f'inputs[0].datatype: "{word}" is not a datatype; {meant}'


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "run 'git lfs pull'"),
        (b"<!doctype html><title>Sign in</title>", "the file is a web page"),
        (onnx_models.mlp()[:-1000], "the file is cut: it has"),
        (b"PK\3\4" + bytes(100), "export it to ONNX"),
        (b"", "the model is empty"),
        (b"\0" * 100, "does not load"),
    ],
)
def test_a_file_that_is_no_model(server: Server, repository: Path, content: bytes, words: str) -> None:
    file = repository / "digits" / "1" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(content)
    try:
        answer = server.post("/v2/models/digits/load")
        assert answer.status == 400
        assert answer.error.startswith("model 'digits' does not load: ")
        assert words in answer.error
        body = inference(tensor("x", [1, 4], "FP32", [0] * 4))
        assert server.infer("digits", body).status == 200  # the old one serves on
    finally:
        file.write_bytes(good)


def test_a_models_directory_given_as_a_repository(tmp_path: Path) -> None:
    directory = add(tmp_path, "digits")
    with serving("--allow-empty", "--no-strict-readiness", repository=directory) as server:
        wait_for(lambda: f"'{directory}' looks like a model's directory with the version 1" in server.log)
        assert f"serve it as 'fastinfer serve {directory}'" in server.log
        assert reason(server, "1").endswith("named by a positive integer; move 'model.onnx' into the directory '1'")


def test_a_port_in_use(server: Server, repository: Path) -> None:
    for processes in ("0", "1"):
        command = [sys.executable, "-m", "fastinfer", "serve", "--port", str(server.port), "--processes", processes,
                   "--model-repository", str(repository)]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        pids = [server.process.pid, *server.serving_pids()]
        in_use = f"cannot listen on 127.0.0.1:{server.port}: Address already in use by process "
        assert in_use in ended.stderr
        assert int(re.search(r"by process (\d+) \(.*fastinfer", ended.stderr)[1]) in pids
