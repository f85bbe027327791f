"""Triton's stock client: health, metadata, configuration, statistics, and the control of models."""

from __future__ import annotations

import base64
import json
from contextlib import closing

import numpy as np
import pytest
from clients.triton import CLIENTS, address, assert_same, refusal, sent, wanted
from support import serving

from fastinfer import __version__

ROW = np.arange(16, dtype=np.int32)[None]
UNKNOWN = ("404", "Request for unknown model: 'nope' is not found")
UNKNOWN_VERSION = ("404", "Request for unknown model: 'simple' version 9 is not found")


def simple(client, rows=1, **options):
    """The sums that ``simple`` answers."""
    inputs = [sent(name, np.tile(ROW, (rows, 1))) for name in ("INPUT0", "INPUT1")]
    return client.infer("simple", inputs, **options).as_numpy("OUTPUT0")


def names(tensors, *fields):
    return [tuple(each[field] for field in fields) for each in tensors]


# --- Health and metadata ---------------------------------------------------------------------------------------------


def test_health(client):
    more = {"headers": {"X-Anything": "1"}, "query_params": {"a": [1, 2]}}
    for _ in range(3):  # the client never reads these bodies
        assert client.is_server_live() is client.is_server_live(**more) is True
        assert client.is_server_ready() is client.is_server_ready(**more) is True
        assert client.is_model_ready("two_versions") is client.is_model_ready("two_versions", "1", **more) is True
    assert client.is_model_ready("two_versions", "3") is client.is_model_ready("nope") is False
    assert client.is_model_ready("two_versions", "one") is client.is_model_ready("größe") is False


@pytest.mark.parametrize("form", ["sync", "aio"])
def test_a_server_that_is_not_ready(form, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"no model at all")
    with serving(repository=tmp_path, wait=False) as server, closing(CLIENTS[form](address(server))) as client:
        assert client.is_server_live() is True
        assert client.is_server_ready() is client.is_model_ready("broken") is False


def test_server_metadata(client):
    for more in ({}, {"headers": {"X-Anything": "1"}, "query_params": {"a": 1}}):
        metadata = client.get_server_metadata(**more)
        assert (metadata["name"], metadata["version"]) == ("fastinfer", __version__)
        assert {
            "binary_tensor_data", "classification", "model_configuration", "model_repository",
            "model_repository(unload_dependents)", "parameters", "statistics",
        } <= set(metadata["extensions"])  # fmt: skip
        assert not {"system_shared_memory", "trace", "logging", "sequence"} & set(metadata["extensions"])


def test_model_metadata(client):
    metadata = client.get_model_metadata("simple")
    assert metadata == client.get_model_metadata("simple", "1", headers={"X-Anything": "1"}, query_params={"a": 1})
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("simple", ["1"], "onnxruntime_onnx")
    assert metadata["inputs"][0] == {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]}
    assert names(metadata["outputs"], "name") == [("OUTPUT0",), ("OUTPUT1",)]
    assert client.get_model_metadata("two_versions", "1")["versions"] == ["1", "2"]
    assert len(client.get_model_metadata("every_datatype")["inputs"]) == 14  # above the size of what is compressed


def test_model_config(client):
    config = client.get_model_config("labelled")
    assert config == client.get_model_config("labelled", "1", headers={"X-Anything": "1"}, query_params={"a": 1})
    told = {key: config[key] for key in ("name", "platform", "backend", "max_batch_size")}
    assert told == {
        "name": "labelled", "platform": "onnxruntime_onnx", "backend": "onnxruntime", "max_batch_size": 8
    }  # fmt: skip
    assert names(config["input"], "name", "data_type", "dims") == [("x", "TYPE_FP32", [3])]
    assert names(config["output"], "name", "data_type", "dims") == [("y", "TYPE_FP32", [3])]
    assert config["output"][0]["label_filename"] == "labels.txt"
    assert config["instance_group"][0]["count"] == 1


def test_the_config_of_a_model_that_has_none(client):
    config = client.get_model_config("simple")
    assert config["max_batch_size"] == 64
    assert names(config["input"], "name", "data_type", "dims") == [
        ("INPUT0", "TYPE_INT32", [16]),
        ("INPUT1", "TYPE_INT32", [16]),
    ]
    scalar = client.get_model_config("scalar_bytes")
    assert (scalar["max_batch_size"], scalar["input"][0]["dims"]) == (0, [])
    assert scalar["input"][0]["data_type"] == "TYPE_STRING"


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_what_is_not_there(client, call):
    assert refusal(getattr(client, call), "nope") == UNKNOWN
    assert refusal(getattr(client, call), "nope", "1") == UNKNOWN
    assert refusal(getattr(client, call), "simple", "9") == UNKNOWN_VERSION


def test_log_settings_are_not_there(client):
    assert refusal(client.get_log_settings) == ("404", "no such path")
    assert refusal(client.update_log_settings, {"log_verbose_level": 1}) == ("404", "no such path")


# --- Statistics ------------------------------------------------------------------------------------------------------

COUNTERS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


def test_statistics(own_client):
    (before,) = own_client.get_inference_statistics("simple")["model_stats"]
    for rows in (1, 1, 3):
        simple(own_client, rows)
    assert refusal(own_client.infer, "simple", [])[0] == "400"
    (after,) = own_client.get_inference_statistics("simple", "1")["model_stats"]
    assert own_client.get_inference_statistics(query_params={"a": 1}) == {"model_stats": [after]}
    assert (after["name"], after["version"], after["memory_usage"]) == ("simple", "1", [])
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["last_inference"] > before["last_inference"]
    assert after["inference_stats"].keys() == COUNTERS
    assert all(each.keys() == {"count", "ns"} for each in after["inference_stats"].values())
    for key, number in {
        "success": 3,
        "fail": 1,
        "queue": 3,
        "compute_infer": 3,
        "cache_hit": 0,
        "cache_miss": 0,
    }.items():
        assert after["inference_stats"][key]["count"] - before["inference_stats"][key]["count"] == number, key
    batches = {each["batch_size"]: each for each in after["batch_stats"]}
    assert batches.keys() == {1, 3}
    assert (batches[1]["compute_infer"]["count"], batches[3]["compute_infer"]["count"]) == (2, 1)


def test_statistics_of_every_version(client):
    for each in ("1", "2"):
        client.infer("two_versions", [sent("number", np.ones((1, 1), np.int32))], each)
    stats = client.get_inference_statistics("two_versions")["model_stats"]
    assert names(stats, "name", "version") == [("two_versions", "1"), ("two_versions", "2")]
    everything = names(client.get_inference_statistics()["model_stats"], "name", "version")
    assert {("simple", "1"), ("two_versions", "1"), ("two_versions", "2"), ("rows_bf16", "1")} <= set(everything)


# --- The control of models -------------------------------------------------------------------------------------------


def index(client):
    return {each["name"]: (each.get("version"), each["state"]) for each in client.get_model_repository_index()}


def test_the_index(own_client):
    entries = own_client.get_model_repository_index(headers={"X-Anything": "1"}, query_params={"a": 1})
    assert all(isinstance(each[key], str) for each in entries for key in ("name", "version", "state", "reason"))
    found = index(own_client)
    assert found["simple"] == ("1", "READY")
    assert found["digits"][1] == "UNAVAILABLE"


def test_models_are_loaded_and_unloaded(own_client):
    for _ in range(2):
        assert not own_client.is_model_ready("digits")
        own_client.load_model("digits", headers={"X-Anything": "1"}, query_params={"a": 1})
        assert own_client.is_model_ready("digits")
        assert index(own_client)["digits"] == ("1", "READY")
        own_client.unload_model("digits")
        assert index(own_client)["digits"][1] == "UNAVAILABLE"
    own_client.load_model("two_versions")
    assert own_client.get_model_metadata("two_versions")["versions"] == ["1", "2"]
    own_client.unload_model("two_versions", unload_dependents=True)
    assert not own_client.is_model_ready("two_versions")
    own_client.unload_model("nope")
    assert refusal(own_client.infer, "digits", []) == ("404", "Request for unknown model: 'digits' is not found")


def test_a_configuration_is_given_with_the_load(own_client):
    assert_same(simple(own_client, 3), np.tile(2 * ROW, (3, 1)))
    own_client.load_model("simple", config=json.dumps({"max_batch_size": 2}))
    assert own_client.get_model_config("simple")["max_batch_size"] == 2
    assert refusal(simple, own_client, 3) == ("400", "inference request batch-size must be <= 2 for 'simple'")
    own_client.load_model("simple")
    assert_same(simple(own_client, 3), np.tile(2 * ROW, (3, 1)))


def test_the_configuration_that_is_told_may_be_given_back(own_client):
    told = own_client.get_model_config("simple")
    own_client.load_model("simple", config=json.dumps(told))
    assert own_client.get_model_config("simple") == told
    assert_same(simple(own_client), 2 * ROW)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("nope", {}, "'nope'"),
        ("simple", {"config": "{"}, "config"),
        ("simple", {"config": '{"nonsense": 1}'}, "nonsense"),
        ("simple", {"config": '{"max_batch_size": -1}'}, "max_batch_size"),
        ("digits", {"files": {"file:1/model.onnx": b"\0\1"}}, "files cannot be given with a load"),
        ("digits", {"config": "{}", "files": {"file:1/model.onnx": b"\0\1"}}, "files cannot be given with a load"),
    ],
)
def test_loads_that_fail(own_client, model, options, sentence):
    status, text = refusal(own_client.load_model, model, **options)
    assert status == "400"
    assert sentence in text
    assert base64.b64encode(b"\0\1").decode() not in text
    assert_same(simple(own_client), 2 * ROW)
    assert not own_client.is_model_ready("digits")


@pytest.mark.parametrize("form", ["sync", "aio"])
def test_control_may_be_off(form):
    off = ("403", "model control is off: the server was started with --model-control none")
    with (
        serving("--model-control", "none", "--load", "simple") as server,
        closing(CLIENTS[form](address(server))) as client,
    ):
        assert refusal(client.load_model, "simple") == refusal(client.unload_model, "simple") == off
        assert index(client)["simple"] == ("1", "READY")


# --- Classification --------------------------------------------------------------------------------------------------

SCORES = np.array([[0.5, -1.25, 8], [3, 2, 1]], np.float32)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_classes_with_labels(client, binary):
    result = client.infer("labelled", [sent("x", SCORES)], outputs=[wanted("y", binary, class_count=2)])
    assert result.get_output("y")["datatype"] == "BYTES"
    found = [[_text(each) for each in row] for row in result.as_numpy("y")]
    assert found == [["8.000000:2:bird", "0.500000:0:cat"], ["3.000000:0:cat", "2.000000:1:dog"]]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_classes_without_labels(client, count):
    result = client.infer("rows_fp32", [sent("x", SCORES[:1])], outputs=[wanted("y", class_count=count)])
    expected = ["8.000000:2", "0.500000:0", "-1.250000:1"][:count]
    assert [_text(each) for each in result.as_numpy("y")[0]] == expected
    assert result.as_numpy("y").shape == (1, len(expected))


def test_classes_beside_a_whole_output(client):
    outputs = [wanted("OUTPUT1", class_count=1), wanted("OUTPUT0")]
    result = client.infer("simple", [sent("INPUT0", ROW), sent("INPUT1", ROW * 0)], outputs=outputs)
    assert_same(result.as_numpy("OUTPUT0"), ROW)
    assert _text(result.as_numpy("OUTPUT1")[0, 0]) == "15:15"


def test_texts_have_no_classes(client):
    text = sent("x", np.array([[b"a", b"b"]], np.object_))
    status, sentence = refusal(client.infer, "rows_bytes", [text], outputs=[wanted("y", class_count=1)])
    assert (status, "BYTES" in sentence) == ("400", True), sentence
    assert refusal(client.infer, "rows_bytes", [text], outputs=[wanted("y", class_count=-1)])[0] == "400"


def _text(element):
    return element.decode() if isinstance(element, bytes) else element
