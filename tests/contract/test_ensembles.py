"""Ensembles over the socket: graphs of models, what fails in them, and what happens to their steps meanwhile."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
from ensembles import (
    diamond,
    ensemble,
    linear,
    outer,
    plus,
    step,
    tensors,
    times,
    write_basic,
    write_ensemble,
    write_model,
    write_python,
)
from support import Answer, Server, inference, serving, tensor, wait_for

PBTXT = """
name: "written"
platform: "ensemble"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "times" model_version: -1
      input_map { key: "x" value: "middle" }
      output_map { key: "y" value: "y" } },
    { model_name: "plus" model_version: 1
      input_map { key: "x" value: "x" }
      output_map { key: "y" value: "middle" } }
  ]
}
"""
OBEYS = """
import time
import numpy as np
class Model:
    def infer(self, inputs):
        x = inputs["x"]
        if x[0, 0] == 13: raise RuntimeError("thirteen")
        if x[0, 0] == 99: time.sleep(30)
        return {"y": x * 10}
"""
OBEYS_CONFIG = """
max_batch_size = 8
input = [{ name = "x", data_type = "FP32", dims = [4] }]
output = [{ name = "y", data_type = "FP32", dims = [4] }]
"""
LABELLED = """
[[output]]
name = "y"
data_type = "TYPE_FP32"
dims = [4]
label_filename = "labels.txt"
[[input]]
name = "x"
data_type = "TYPE_FP32"
dims = [4]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ensembles")
    write_basic(root)
    write_ensemble(root, "linear", linear())
    write_ensemble(root, "diamond", diamond())
    write_ensemble(root, "outer", outer())
    (root / "written").mkdir()
    (root / "written" / "1").mkdir()
    (root / "written" / "config.pbtxt").write_text(PBTXT)
    write_model(root, "narrow", times(3), "max_batch_size = 2\n")
    write_ensemble(root, "wide", linear("narrow", "plus"))
    write_model(root, "fixed", plus(5, shape=[2, 4]))
    fixed = ensemble(
        tensors("x", dims=(-1, 4)), tensors("y", dims=(-1, 4)), step("fixed", {"x": "x"}, {"y": "y"}), max_batch_size=0
    )
    write_ensemble(root, "unbatched", fixed)
    write_model(root, "labelled", plus(0), LABELLED)
    (root / "labelled" / "labels.txt").write_text("a\nb\nc\nd\n")
    write_ensemble(root, "classes", linear("plus", "labelled"))
    write_python(root, "code", OBEYS, OBEYS_CONFIG)
    write_ensemble(root, "coded", linear("plus", "code"))
    write_ensemble(root, "second", linear("code", "plus"))
    workers = ensemble(
        tensors("n", dims=(1,), datatype="UINT32"),
        tensors("m", dims=(1,), datatype="UINT32"),
        step("echo", {"input": "n"}, {"output": "once"}),
        step("fake", {"anything": "once"}, {"anything": "again"}),
        step("echo", {"input": "again"}, {"output": "m"}),
        max_batch_size=0,
    )
    write_ensemble(root, "workers", workers)
    write_model(root, "endless", onnx_models.endless(rest=(4,)))
    forever = ensemble(
        tensors("x"),
        tensors("y", "z"),
        step("endless", {"x": "x"}, {"y": "y"}),
        step("endless", {"x": "x"}, {"y": "z"}),
    )
    write_ensemble(root, "forever", forever)
    return root


@pytest.fixture(scope="module")
def graphs(repository: Path) -> Iterator[Server]:
    with serving("--allow-python-models", repository=repository) as running:
        yield running


def x(rows: Any, **more: Any) -> dict[str, Any]:
    array = np.array(rows, np.float32)
    return inference(tensor("x", [*array.shape], "FP32", array.tolist()), **more)


def outputs(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer.json["outputs"]}


ROW = [[1, 2, 3, 4]]


# --- Graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "written"])
def test_a_step_gets_the_outputs_of_the_one_before(graphs, name):
    answer = graphs.infer(name, x(ROW))
    assert outputs(answer)["y"].tolist() == [[4, 6, 8, 10]]
    assert answer.json["model_name"] == name


def test_branches_and_a_join(graphs):
    found = outputs(graphs.infer("diamond", x([[1, 2, 3, 4], [0, 0, 0, 5]])))
    assert list(found) == ["sum", "difference", "left"]
    assert found["sum"].tolist() == [[4, 7, 10, 13], [1, 1, 1, 16]]
    assert found["difference"].tolist() == [[0, -1, -2, -3], [1, 1, 1, -4]]
    assert found["left"].tolist() == [[2, 3, 4, 5], [1, 1, 1, 6]]


def test_requested_outputs(graphs):
    answer = graphs.infer("diamond", x(ROW, outputs=[{"name": "left"}, {"name": "sum"}]))
    assert [each["name"] for each in answer.json["outputs"]] == ["left", "sum"]
    refused = graphs.infer("diamond", x(ROW, outputs=[{"name": "right"}]))
    assert (refused.status, refused.error) == (400, "unexpected inference output 'right' for model 'diamond'")


def test_an_ensemble_as_a_step_of_another(graphs):
    assert outputs(graphs.infer("outer", x(ROW)))["y"].tolist() == [[10, 16, 22, 28]]


def test_workers_as_steps(graphs):
    answer = graphs.infer("workers", inference(tensor("n", [1], "UINT32", [40])))
    assert outputs(answer)["m"].tolist() == [42]


def test_a_python_model_as_a_step(graphs):
    assert outputs(graphs.infer("coded", x(ROW)))["y"].tolist() == [[20, 30, 40, 50]]


def test_a_request_of_more_rows_than_a_batch_of_a_step(graphs):
    rows = np.arange(28).reshape(7, 4)
    assert outputs(graphs.infer("wide", x(rows)))["y"].tolist() == (rows * 3 + 1).tolist()
    refused = graphs.infer("narrow", x(rows))
    assert (refused.status, refused.error) == (400, "inference request batch-size must be <= 2 for 'narrow'")


def test_a_request_without_rows(graphs):
    assert graphs.infer("diamond", inference(tensor("x", [0, 4], "FP32", []))).json["outputs"][0]["shape"] == [0, 4]


def test_a_request_without_the_batch_dimension(graphs):
    assert outputs(graphs.infer("diamond", x([1, 2, 3, 4])))["sum"].tolist() == [4, 7, 10, 13]


def test_an_ensemble_without_batches(graphs):
    assert outputs(graphs.infer("unbatched", x([[1] * 4, [2] * 4])))["y"].tolist() == [[6] * 4, [7] * 4]
    refused = graphs.infer("unbatched", x([[1] * 4]))
    assert refused.status == 400
    assert refused.error == (
        "step 1 ('fixed') of ensemble 'unbatched': unexpected shape for input 'x' for model 'fixed'. "
        "Expected [2,4], got [1,4]"
    )


def test_binary_data(graphs):
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}},
            ],
            "outputs": [{"name": "sum", "parameters": {"binary_data": True}}],
        }
    ).encode()
    body = head + struct.pack("<4f", 1, 2, 3, 4)
    answer = graphs.post("/v2/models/diamond/infer", body, **{"Inference-Header-Content-Length": str(len(head))})
    assert answer.status == 200
    assert struct.unpack("<4f", answer.body[-16:]) == (4, 7, 10, 13)


def test_classes_have_the_labels_of_the_step(graphs):
    answer = graphs.infer("classes", x(ROW, outputs=[{"name": "y", "parameters": {"classification": 2}}]))
    assert answer.json["outputs"][0]["data"] == ["5.000000:3:d", "4.000000:2:c"]


def test_many_requests_get_the_answers_of_the_steps_by_hand(graphs):
    values = np.random.default_rng(3).standard_normal((64, 3, 4)).astype(np.float32)

    def by_hand(rows: Any) -> list[Any]:
        left, right = (outputs(graphs.infer(name, x(rows)))["y"] for name in ("plus", "times"))
        inputs = [tensor(name, [3, 4], "FP32", each.tolist()) for name, each in (("a", left), ("b", right))]
        return outputs(graphs.infer("join", inference(*inputs)))["difference"].tolist()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda rows: outputs(graphs.infer("diamond", x(rows))), values))
    assert [each["difference"].tolist() for each in answers] == list(map(by_hand, values))


# --- What clients see -------------------------------------------------------------------------------------------------


def test_metadata_and_configuration(graphs):
    metadata = graphs.get("/v2/models/written").json
    assert metadata == {
        "name": "written",
        "versions": ["1"],
        "platform": "ensemble",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
    }
    config = graphs.get("/v2/models/written/config").json
    assert (config["platform"], config["backend"], config["max_batch_size"]) == ("ensemble", "", 8)
    assert config["ensemble_scheduling"]["step"][1] == {
        "model_name": "plus",
        "model_version": 1,
        "model_namespace": "",
        "input_map": {"x": "x"},
        "output_map": {"y": "middle"},
    }
    assert "dynamic_batching" not in config
    assert graphs.post("/v2/models/written/load", {"config": json.dumps(config)}).status == 200
    assert graphs.get("/v2/models/written/config").json == config
    assert graphs.get("/v2/models/written/ready").json == {"name": "written", "ready": True}
    assert {"name": "written", "version": "1", "state": "READY", "reason": ""} in graphs.post(
        "/v2/repository/index"
    ).json


def test_statistics_count_the_ensemble_and_its_steps(repository):
    with serving("--load", "diamond", repository=repository) as server:
        assert server.infer("diamond", x([[1] * 4, [2] * 4])).status == 200
        stats = {each["name"]: each for each in server.get("/v2/models/stats").json["model_stats"]}
        for name in ("diamond", "plus", "times", "join"):
            assert (stats[name]["inference_count"], stats[name]["execution_count"]) == (2, 1), name
            assert stats[name]["inference_stats"]["success"]["count"] == 1
        infer = {name: stats[name]["inference_stats"]["compute_infer"]["ns"] for name in stats}
        assert infer["diamond"] == infer["plus"] + infer["times"] + infer["join"]


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_step_that_fails_is_named(graphs):
    answer = graphs.infer("coded", x([[12, 0, 0, 0]]))
    assert (answer.status, answer.error) == (
        500,
        "step 2 ('code') of ensemble 'coded': the model failed: RuntimeError: thirteen",
    )
    assert graphs.infer("coded", x(ROW)).status == 200


def test_a_request_that_does_not_fit_the_ensemble(graphs):
    wrong = graphs.infer("diamond", x([[1, 2, 3]]))
    assert wrong.status == 400
    assert wrong.error == "unexpected shape for input 'x' for model 'diamond'. Expected [-1,4], got [1,3]"
    many = graphs.infer("written", x([[0] * 4] * 9))
    assert (many.status, many.error) == (400, "inference request batch-size must be <= 8 for 'written'")


def running(server: Server, *names: str) -> int:
    page = server.metrics()
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in page.splitlines()
        for name in names
        if line.startswith("fastinfer_requests_in_flight{") and f'"{name}"' in line
    )


def test_a_deadline_ends_all_steps(graphs):
    answer = graphs.infer("forever", x(ROW, parameters={"timeout": 200_000}))
    assert (answer.status, answer.error) == (504, "Request timeout expired")
    wait_for(lambda: running(graphs, "forever", "endless") == 0)


def test_a_client_that_leaves_ends_all_steps(graphs):
    connection = graphs.connect()
    connection.request("POST", "/v2/models/forever/infer", json.dumps(x(ROW)))
    wait_for(lambda: running(graphs, "endless") == 2)
    connection.close()
    wait_for(lambda: running(graphs, "forever", "endless") == 0)


def test_a_step_that_waits_for_another_is_not_run_after_the_deadline(graphs):
    before = counted(graphs, "plus")
    answer = graphs.infer("second", x([[99, 0, 0, 0]], parameters={"timeout": 300_000}))
    assert (answer.status, answer.error) == (504, "Request timeout expired")
    assert counted(graphs, "plus") == before


def counted(server: Server, name: str) -> int:
    return server.get(f"/v2/models/{name}/stats").json["model_stats"][0]["execution_count"]


# --- Loads ------------------------------------------------------------------------------------------------------------


def with_steps(*steps: dict[str, Any], outs: tuple[str, ...] = ("y",), **more: Any) -> dict[str, Any]:
    return ensemble(tensors("x"), tensors(*outs), *steps, **more)


A = step("plus", {"x": "x"}, {"y": "m"})
B = step("times", {"x": "m"}, {"y": "y"})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            with_steps(step("plus", {"x": "x"}, {"y": "middle"}), step("times", {"x": "midle"}, {"y": "y"})),
            "ensemble 'linear': step 2 ('times') takes 'midle', which nothing makes; did you mean 'middle'?",
        ),
        (
            with_steps(step("join", {"a": "x", "b": "y"}, {"sum": "m"}), B),
            "ensemble 'linear': the steps form a cycle: step 1 ('join') -> step 2 ('times') -> step 1 ('join')",
        ),
        (
            with_steps(A, step("plus", {"x": "x"}, {"y": "m"}), B),
            "ensemble 'linear': tensor 'm' is made twice, by step 1 ('plus') and by step 2 ('plus')",
        ),
        (
            with_steps(step("plus", {"x": "x"}, {"y": "x"}), B),
            "ensemble 'linear': tensor 'x' is made twice, as an input and by step 1 ('plus')",
        ),
        (with_steps(A, B, outs=("y", "z")), "ensemble 'linear': output 'z' is made by no step"),
        (with_steps(A, B, outs=("x",)), "ensemble 'linear': output 'x' is made by no step"),
        (
            ensemble(tensors("x", "unused"), tensors("y"), A, B),
            "ensemble 'linear': input 'unused' is taken by no step",
        ),
        (
            with_steps(step("plus", {"x": "x", "w": "x"}, {"y": "m"}), B),
            "ensemble 'linear': step 1 ('plus') has no input 'w'; the model has 'x'",
        ),
        (
            with_steps(A, step("times", {"x": "m"}, {"out": "y"})),
            "ensemble 'linear': step 2 ('times') has no output 'out'; the model has 'y'",
        ),
        (
            with_steps(A, step("join", {"a": "m"}, {"sum": "y"})),
            "ensemble 'linear': input 'b' of step 2 ('join') is not in its input_map",
        ),
        (
            with_steps(A, step("whole", {"x": "m"}, {"y": "y"})),
            "ensemble 'linear': tensor 'm', made by step 1 ('plus'), is FP32, but input 'x' of step 2 ('whole') is "
            "INT64",
        ),
        (
            with_steps(A, step("six", {"x": "m"}, {"y": "y"})),
            "ensemble 'linear': tensor 'm', made by step 1 ('plus'), has the shape [-1, 4], but input 'x' of step 2 "
            "('six') has [-1, 6]",
        ),
        (
            ensemble(tensors("x", datatype="INT64"), tensors("y"), A, B),
            "ensemble 'linear': tensor 'x', an input, is INT64, but input 'x' of step 1 ('plus') is FP32",
        ),
        (
            ensemble(tensors("x"), tensors("y", dims=(5,)), A, B),
            "ensemble 'linear': tensor 'y', made by step 2 ('times'), has the shape [-1, 4], but the ensemble's output "
            "'y' has [-1, 5]",
        ),
        (
            with_steps(A, step("nobody", {"x": "m"}, {"y": "y"})),
            "step 'nobody' of ensemble 'linear' is not served: no model 'nobody' in the repository",
        ),
        (
            with_steps(A, step("times", {"x": "m"}, {"y": "y"}, version=7)),
            "step 'times' of ensemble 'linear' is not served: model 'times' has no version 7",
        ),
        (with_steps(step("linear", {"x": "x"}, {"y": "y"})), "ensemble 'linear': 'linear' is a step of itself"),
        (
            with_steps(step("around", {"x": "x"}, {"y": "y"})),
            "step 'around' of ensemble 'linear' is not served: 'linear' is a step of itself: "
            "linear -> around -> linear",
        ),
    ],
)
def test_a_wrong_graph_is_refused_at_load(wrong_graphs, config, reason):
    parameters = {"parameters": {"config": json.dumps(config)}}
    answer = wrong_graphs.post("/v2/repository/models/linear/load", parameters)
    assert (answer.status, answer.error) == (400, reason)
    assert wrong_graphs.get("/v2/models/linear").status == 404


@pytest.fixture(scope="module")
def wrong_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("wrong")
    write_basic(root)
    write_model(root, "whole", plus(1, "INT64"))
    write_model(root, "six", plus(1, shape=["batch", 6]))
    write_ensemble(root, "linear", linear())
    write_ensemble(root, "around", with_steps(step("linear", {"x": "x"}, {"y": "y"})))
    with serving("--load", "none", repository=root) as server:
        yield server


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dynamic_batching": {}}, "an ensemble has no dynamic_batching of its own; set it for the models of its"),
        ({"backend": "onnxruntime"}, "is of the platform 'ensemble', but the model has the backend \"onnxruntime\""),
        ({"output": []}, "an ensemble must list its outputs"),
        ({"ensemble_scheduling": {"step": []}}, "ensemble_scheduling.step: has 0 entries, at least 1 are needed"),
        (
            {"ensemble_scheduling": {"step": [step("many", {str(i): "x" for i in range(1000)}, {"y": "y"})] * 5}},
            "ensemble_scheduling: the steps take and make 5005 tensors, at most 4096 are allowed",
        ),
        ({"ensemble_scheduling": None}, "an ensemble needs ensemble_scheduling, with its steps"),
    ],
)  # fmt: skip
def test_a_configuration_that_no_ensemble_can_have(wrong_graphs, change, reason):
    config = {key: each for key, each in {**linear(), **change}.items() if each is not None}
    answer = wrong_graphs.post("/v2/models/linear/load", {"config": json.dumps(config)})
    assert answer.status == 400
    assert reason in answer.error


def test_two_ensembles_that_are_steps_of_each_other_end_nothing_at_start(tmp_path):
    write_basic(tmp_path)
    write_ensemble(tmp_path, "chicken", linear("plus", "egg"))
    write_ensemble(tmp_path, "egg", linear("plus", "chicken"))
    with serving("--no-strict-readiness", repository=tmp_path) as server:
        assert server.infer("plus", x(ROW)).status == 200
        reasons = {each["name"]: each["reason"] for each in server.post("/v2/repository/index").json}
        assert "'chicken' is a step of itself: chicken -> egg -> chicken" in reasons["chicken"]


def test_a_step_that_is_unloaded_makes_the_ensemble_unready(repository):
    with serving("--load", "outer", repository=repository) as server:
        assert server.get("/v2/models").json["models"] == ["diamond", "join", "linear", "outer", "plus", "times"]
        server.post("/v2/models/join/unload")
        answer = server.infer("diamond", x(ROW))
        reason = "ensemble 'diamond' is not ready: the model of step 1 ('join') is not loaded"
        assert (answer.status, answer.error) == (503, reason)
        assert answer.headers["retry-after"] == "1"
        ready = server.get("/v2/models/diamond/ready")
        assert (ready.status, ready.error) == (503, reason)
        around = server.get("/v2/models/outer/ready")
        assert (around.status, around.error) == (503, reason)
        entries = {each["name"]: each for each in server.post("/v2/repository/index").json}
        assert (entries["diamond"]["state"], entries["diamond"]["reason"]) == ("UNAVAILABLE", reason)
        assert server.infer("linear", x(ROW)).status == 200
        server.load("models/outer")
        assert server.infer("outer", x(ROW)).status == 200


def test_a_step_that_is_replaced_by_another_signature(tmp_path):
    write_basic(tmp_path)
    write_ensemble(tmp_path, "linear", linear())
    with serving("--load", "linear", repository=tmp_path) as server:
        write_model(tmp_path, "times", plus(1, shape=["batch", 6]))
        server.load("models/times")
        ready = server.get("/v2/models/linear/ready")
        assert ready.status == 503
        assert ready.error == (
            "ensemble 'linear' is not ready: tensor 'middle', made by step 1 ('plus'), has the shape [-1, 4], but "
            "input 'x' of step 2 ('times') has [-1, 6]"
        )
        write_model(tmp_path, "times", times(5))
        server.load("models/times")
        assert outputs(server.infer("linear", x(ROW)))["y"].tolist() == [[10, 15, 20, 25]]


def test_unload_dependents_unloads_the_steps(repository):
    with serving("--load", "outer", repository=repository) as server:
        server.post("/v2/repository/models/linear/unload", {"parameters": {"unload_dependents": True}})
        assert server.get("/v2/models").json["models"] == ["diamond", "join", "outer"]


def test_an_ensemble_that_is_unloaded_finishes_its_requests(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "models")
    code = OBEYS.replace("time.sleep(30)", "time.sleep(1)")
    write_python(tmp_path / "models", "code", code, OBEYS_CONFIG)
    with serving("--allow-python-models", "--load", "second", repository=tmp_path / "models") as server:
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(server.infer("second", x([[99, 0, 0, 0]]))))
        thread.start()
        wait_for(lambda: running(server, "code") == 1)
        for name in ("second", "code", "plus"):
            server.post(f"/v2/models/{name}/unload")
        thread.join()
        assert outputs(answers[0])["y"].tolist() == [[991, 1, 1, 1]]
        assert server.get("/v2/models").json["models"] == []


def test_an_ensemble_in_another_finishes_the_requests_of_that(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "models")
    write_python(tmp_path / "models", "code", OBEYS.replace("time.sleep(30)", "time.sleep(1)"), OBEYS_CONFIG)
    write_ensemble(tmp_path / "models", "inner", {**linear(), "max_batch_size": 3})
    write_ensemble(tmp_path / "models", "around", linear("code", "inner"))
    with serving("--allow-python-models", "--load", "around", repository=tmp_path / "models") as server:
        answers: list[Answer] = []
        rows = [[99, 0, 0, 0]] * 8  # the inner ensemble runs them in slices
        thread = threading.Thread(target=lambda: answers.append(server.infer("around", x(rows))))
        thread.start()
        wait_for(lambda: running(server, "code") == 1)
        for name in ("plus", "times", "inner", "around", "code"):
            server.post(f"/v2/models/{name}/unload")
        thread.join()
        assert outputs(answers[0])["y"].tolist() == [[1982, 2, 2, 2]] * 8
        wait_for(lambda: server.post("/v2/repository/index", {"ready": True}).json == [])


def test_a_chain_with_an_ensemble_in_it(repository):
    with serving("--load", "linear", repository=repository) as server:
        server.load("models/plus", {"next": "linear"})
        assert outputs(server.infer("plus-0", x(ROW)))["y"].tolist() == [[6, 8, 10, 12]]
        server.load("models/linear", {"next": "times"})
        assert outputs(server.infer("linear-0", x(ROW)))["y"].tolist() == [[8, 12, 16, 20]]


def test_polling_follows_an_ensemble_and_its_steps(tmp_path):
    write_basic(tmp_path)
    with serving("--model-control", "poll", "--poll-interval-s", "0.2", repository=tmp_path) as server:
        write_model(tmp_path, "late", times(7))
        write_ensemble(tmp_path, "linear", linear("plus", "late"))
        wait_for(lambda: server.get("/v2/models/linear/ready").status == 200)
        assert outputs(server.infer("linear", x(ROW)))["y"].tolist() == [[14, 21, 28, 35]]
        shutil.rmtree(tmp_path / "late")
        wait_for(lambda: server.get("/v2/models/linear/ready").status == 503)
        write_model(tmp_path, "late", times(3))
        wait_for(lambda: server.get("/v2/models/linear/ready").status == 200)
        write_ensemble(tmp_path, "linear", linear("late", "late"))
        wait_for(lambda: server.infer("linear", x(ROW)).json["outputs"][0]["data"] == [9, 18, 27, 36])
