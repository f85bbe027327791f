"""Models given by their path: the layouts of other tools, names, reloads and polling."""

import json
import subprocess
import sys

import layouts
import pytest
from support import inference, serving, tensor, wait_for

ONES = inference(tensor("x", [1, 4], "FP32", [1, 1, 1, 1]))

# By layout: what is given for it, relative to its directory, and the name that it gets.
SERVED = {
    layouts.triton: ("", "triton"),
    layouts.triton_directory: ("", "multi_file"),
    layouts.openvino: ("", "openvino"),
    layouts.mlserver: ("", "ml_server"),
    layouts.zoo: ("zoo-net", "zoo-net"),
    layouts.optimum: ("optimum", "optimum"),
    layouts.olive: ("olive", "olive"),
    layouts.one_external_file: ("one_weight_file.onnx", "one_weight_file"),
    layouts.many_external_files: ("many_weight_files.onnx", "many_weight_files"),
}


def answer(server, name):
    """The sum of 1 and the model's weights; None if it is not served."""
    found = server.infer(name, ONES)
    return found.json["outputs"][0]["data"][0] if found.status == 200 else None


def fastinfer(*arguments, **keywords):
    return subprocess.run(
        [sys.executable, "-m", "fastinfer", *map(str, arguments)], capture_output=True, text=True, **keywords
    )


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A server of all layouts at once, in two processes."""
    paths = []
    for layout, (path, _) in SERVED.items():
        directory = tmp_path_factory.mktemp(layout.__name__)
        layout(directory)
        paths.append(str(directory / path))
    mount = tmp_path_factory.mktemp("kserve")
    layouts.kserve(mount)
    options = ["--model-name", "named", "--model-path", str(mount / "mnt" / "models"), "--processes", "2"]
    with serving(*paths, *options, repository=None, cwd=mount) as server:
        yield server


@pytest.mark.parametrize("name", [*(name for _, name in SERVED.values()), "named"])
def test_a_layout_is_served(everything, name):
    assert answer(everything, name) == 2
    assert everything.get(f"/v2/models/{name}").json["versions"] == ["1"]


def test_a_model_by_its_path_is_unloaded_and_loaded_like_any_other(everything):
    for name in ("many_weight_files", "named", "olive"):
        assert everything.post(f"/v2/repository/models/{name}/unload").status == 200
        assert answer(everything, name) is None
        index = everything.post("/v2/repository/index").json
        assert [entry["state"] for entry in index if entry["name"] == name] == ["UNAVAILABLE"]
        assert everything.post(f"/v2/repository/models/{name}/load").status == 200
        assert answer(everything, name) == 2


def test_a_process_that_replaces_another_serves_the_same(everything):
    everything.replace()
    for _ in range(8):
        assert {answer(everything, name) for _, name in SERVED.values()} == {2}


def test_check_takes_the_same_arguments(tmp_path):
    for layout in (layouts.triton, layouts.optimum, layouts.kserve, layouts.many_external_files):
        layout(tmp_path)
    mount = tmp_path / "mnt" / "models"
    paths = [tmp_path / "triton", tmp_path / "optimum"]
    options = ["--model", f"m={tmp_path / 'many_weight_files.onnx'}", "--model-name", "n", "--model-path", mount]
    done = fastinfer("check", *paths, *options)
    assert (done.returncode, done.stderr) == (0, "")
    results = [line.split()[:2] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert results == [["ok", f"{name}/1"] for name in ("m", "n", "optimum", "triton")]


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_file_in_the_runtimes_own_format_is_refused(tmp_path, command):
    layouts.ort(tmp_path)
    for path in (tmp_path / "small.ort", tmp_path):
        done = fastinfer(command, path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(
            f"fastinfer: '{tmp_path / 'small.ort'}' is in ONNX Runtime's own format, which is"
        )
        assert done.stderr.count("\n") == 1


def test_a_configuration_of_another_server_is_no_model(tmp_path):
    layouts.openvino(tmp_path)
    done = fastinfer("check", tmp_path / "config.json")
    assert done.returncode == 2
    assert done.stderr.endswith(f"give its models: --model openvino={tmp_path / 'openvino'}\n")


def test_a_load_reads_no_label_file_beside_a_model_that_is_only_a_file(tmp_path):
    layouts.write(tmp_path / "m.onnx")
    (tmp_path / "secrets.txt").write_text("one\ntwo\nthree\nfour\n")
    config = {"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4], "label_filename": "secrets.txt"}]}
    with serving(str(tmp_path / "m.onnx"), repository=None) as server:
        refused = server.post("/v2/models/m/load", {"parameters": {"config": json.dumps(config)}})
        assert (refused.status, refused.error) == (
            400,
            "model 'm' is a file without a directory, and has no label files",
        )


# --- Which repositories are served ------------------------------------------------------------------------------------


def test_the_default_repository_is_served_only_without_paths(tmp_path):
    layouts.triton(tmp_path / "model-repository")
    layouts.write(tmp_path / "own.onnx")
    with serving("own.onnx", repository=None, cwd=tmp_path) as server:
        assert server.get("/v2/models").json["models"] == ["own"]
    with serving("--model", "own.onnx", repository=tmp_path / "model-repository", cwd=tmp_path) as server:
        assert server.get("/v2/models").json["models"] == ["own", "triton"]


# --- Files that change ------------------------------------------------------------------------------------------------


def test_a_load_reads_the_file_again(tmp_path):
    layouts.write(tmp_path / "m.onnx", 1)
    with serving(str(tmp_path / "m.onnx"), repository=None) as server:
        layouts.write(tmp_path / "m.onnx", 2)
        assert answer(server, "m") == 2
        assert server.post("/v2/models/m/load").status == 200
        assert answer(server, "m") == 3
        (tmp_path / "m.onnx").unlink()
        assert server.post("/v2/models/m/load").status == 400
        assert answer(server, "m") == 3


def test_polling_follows_the_file_and_nothing_beside_it(tmp_path):
    for name in ("a", "flat/b"):
        layouts.write_external(tmp_path / f"{name}.onnx", 1, one_file=True)
    options = ["--model-control", "poll", "--poll-interval-s", "0.1"]
    with serving(str(tmp_path / "a.onnx"), str(tmp_path / "flat"), *options, repository=None) as server:
        loads = server.log.count("version 1: ")
        for name in ("config.toml", "log.txt", "flat/log.txt", "flat/other.onnx"):
            (tmp_path / name).write_text("nonsense")
        for number, name in enumerate(("a", "flat/b"), 1):
            layouts.write(tmp_path / f"{name}.onnx", 2)
            wait_for(lambda: answer(server, name[-1]) == 3)  # noqa: B023
            wait_for(lambda: server.log.count("version 1: ") == loads + number)  # noqa: B023


def test_polling_follows_external_data_and_configuration(tmp_path):
    layouts.write_external(tmp_path / "m.onnx", 1, one_file=True)
    options = ["--model-control", "poll", "--poll-interval-s", "0.1"]
    with serving(str(tmp_path), *options, repository=None) as server:
        data = tmp_path / "m.onnx.data"
        (tmp_path / "new").write_bytes(b"\0" * data.stat().st_size)
        (tmp_path / "new").rename(data)
        wait_for(lambda: answer(server, "m") == 1)
        (tmp_path / "config.toml").write_text("max_batch_size = 3\n")
        wait_for(lambda: server.get("/v2/models/m/config").json["max_batch_size"] == 3)


def test_polling_follows_a_file_that_goes_and_comes(tmp_path):
    for name in ("a", "b"):
        layouts.write(tmp_path / f"{name}.onnx", 1)
    options = ["--model-control", "poll", "--poll-interval-s", "0.1"]
    with serving(str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), *options, repository=None) as server:
        (tmp_path / "a.onnx").unlink()
        wait_for(lambda: answer(server, "a") is None)
        layouts.write(tmp_path / "a.onnx", 5)
        wait_for(lambda: answer(server, "a") == 6)
        assert answer(server, "b") == 2


# --- Wrong paths ------------------------------------------------------------------------------------------------------


def test_two_models_of_one_name_are_an_error_at_start(tmp_path):
    for place in ("x", "y"):
        layouts.write(tmp_path / place / "same.onnx")
    done = fastinfer("serve", tmp_path / "x" / "same.onnx", tmp_path / "y")
    assert (done.returncode, done.stdout) == (2, "")
    assert "two models are called 'same'" in done.stderr
    assert "--model NAME=PATH" in done.stderr
