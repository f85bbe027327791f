"""Part B3 to B5: the repository's index, effective configurations, statistics, and what is not there."""

import contextlib
import json
import shutil
import time

import onnx_models
import pytest
from support import REPOSITORY, inference, serving, tensor, wait_for

PAIR = inference(tensor("INPUT0", [1, 16], "INT32", [1] * 16), tensor("INPUT1", [1, 16], "INT32", [2] * 16))
INDEX = "/v2/repository/index"
DURATIONS = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"]


def ready(server, name):
    return server.get(f"/v2/models/{name}/ready").status == 200


def load(server, path, parameters=None):
    answer = server.post(f"/v2/{path}/load", parameters)
    assert answer.status == 200, answer.body


# --- Index ------------------------------------------------------------------------------------------------------------


def index(server, body=None):
    """The entries by name: version, state and reason of each."""
    answer = server.post(INDEX, body)
    assert answer.status == 200, answer.body
    assert all(list(entry) == ["name", "version", "state", "reason"] for entry in answer.json)
    assert answer.json == sorted(answer.json, key=lambda entry: (entry["name"], int(entry["version"] or 0)))
    found = {}
    for entry in answer.json:
        found.setdefault(entry["name"], []).append((entry["version"], entry["state"], entry["reason"]))
    return found


def test_the_index_tells_what_is_loaded_and_what_could_be(own_server):
    server = own_server
    load(server, "workers/echo")
    load(server, "models/simple", {"batch_size": 4})
    assert index(server) == {
        **{name: [("1", "UNAVAILABLE", "unloaded")]
           for name in ("convnet", "digits", "identity_bytes", "identity_fp32")},
        "two_versions": [("1", "UNAVAILABLE", "unloaded"), ("2", "UNAVAILABLE", "unloaded")],
        **{name: [("1", "READY", "")] for name in ("echo", "simple", "simple-0")},
    }  # fmt: skip
    only_ready = {name: [("1", "READY", "")] for name in ("echo", "simple", "simple-0")}
    assert index(server, {"ready": True}) == only_ready
    assert index(server, {"ready": False}) == index(server, "{}") == index(server, " ") == index(server)
    for name in ("simple", "echo"):
        server.post(f"/v2/models/{name}/unload")
    assert index(server)["simple"] == [("1", "UNAVAILABLE", "unloaded")]
    assert "echo" not in index(server)


def test_the_index_tells_each_version(own_server):
    load(own_server, "models/two_versions/versions/1")
    assert index(own_server)["two_versions"] == [("1", "READY", "")]
    load(own_server, "models/two_versions")
    assert index(own_server)["two_versions"] == [("1", "READY", ""), ("2", "READY", "")]


@pytest.mark.parametrize("body", ["{", "[]", "null", '"ready"', {"ready": 1}, {"ready": "true"}, {"ready": None}])
def test_what_the_index_cannot_be_asked(server, body):
    answer = server.post(INDEX, body)
    assert answer.status == 400
    assert answer.error


def test_the_index_is_asked_by_post(server):
    answer = server.get(INDEX)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert server.post(INDEX + "/?x=1").status == 200


def test_the_index_tells_why_a_model_is_not_there(tmp_path):
    repository = tmp_path / "models"
    for name in ("broken", "misconfigured"):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.onnx").write_bytes(b"nothing")
    (repository / "misconfigured" / "config.toml").write_text("nonsense = 1")
    (repository / "empty").mkdir()
    shutil.copytree(REPOSITORY / "simple", repository / "simple")
    shutil.copytree(REPOSITORY / "simple", repository / "stats")
    with serving("--load", "simple", repository=repository) as server:
        before = index(server)
        assert before["broken"] == before["misconfigured"] == [("1", "UNAVAILABLE", "unloaded")]
        assert before["empty"] == [("", "UNAVAILABLE", before["empty"][0][2])]
        assert "has no version" in before["empty"][0][2]
        assert before["stats"] == [("", "UNAVAILABLE", "a model cannot be called 'stats'")]
        reasons = {}
        for name in ("broken", "misconfigured", "unheard-of"):
            answer = server.post(f"/v2/repository/models/{name}/load")
            assert answer.status == 400
            reasons[name] = answer.error
        after = index(server)
        assert after["broken"] == [("1", "UNAVAILABLE", reasons["broken"])]
        assert after["misconfigured"] == [("1", "UNAVAILABLE", reasons["misconfigured"])]
        assert str(tmp_path) not in json.dumps(after)
        assert "unheard-of" not in after
        # A load that works forgets it; so does an unload.
        shutil.copy(REPOSITORY / "simple" / "1" / "model.onnx", repository / "broken" / "1" / "model.onnx")
        load(server, "models/broken")
        assert index(server)["broken"] == [("1", "READY", "")]
        server.post("/v2/models/misconfigured/unload")
        assert index(server)["misconfigured"] == [("1", "UNAVAILABLE", "unloaded")]
        # A model that is served and whose new files do not load is still served.
        (repository / "broken" / "1" / "model.onnx").write_bytes(b"nothing again")
        assert server.post("/v2/models/broken/load").status == 400
        assert index(server)["broken"] == [("1", "READY", "")]


def test_the_index_tells_of_what_is_loading_and_unloading(tmp_path):
    repository = tmp_path / "models"
    (repository / "endless" / "1").mkdir(parents=True)
    (repository / "endless" / "1" / "model.onnx").write_bytes(onnx_models.endless())
    with (
        serving("--load", "all", "--load-run-timeout-s", "600", repository=repository, wait=False) as server,
        contextlib.closing(server.connect()) as client,
    ):
        wait_for(lambda: index(server).get("endless") == [("1", "LOADING", "")])
        assert index(server, {"ready": True}) == {}
        assert server.get("/v2/models/endless/config").status == 503
        load(server, "workers/fake", {"delay_ms": 60_000})
        client.request("POST", "/v2/models/fake/infer", json.dumps(PAIR))
        wait_for(lambda: 'fastinfer_requests_in_flight{model="fake",version="1"} 1' in page(server))
        server.post("/v2/workers/fake/unload")
        assert index(server)["fake"] == [("1", "UNLOADING", "")]
        client.close()
        wait_for(lambda: "fake" not in index(server))


def page(server):
    return server.get("/metrics").body.decode()


# --- Unloading chains -------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(own_server):
    """fake -> fake-0 -> echo-like fake-1, each with a load of its own."""
    load(own_server, "workers/fake")
    load(own_server, "workers/fake", {"next": "fake"})
    load(own_server, "workers/fake", {"next": "fake-0"})
    return own_server


def loaded(server):
    return [name for name in server.get("/v2/models").json["models"] if name.startswith("fake")]


@pytest.mark.parametrize("body", [None, {}, {"unload_dependents": False}, {"parameters": {"unload_dependents": False}}])
def test_an_unload_leaves_successors_that_were_loaded(chain, body):
    assert chain.post("/v2/repository/models/fake-1/unload", body).status == 200
    assert loaded(chain) == ["fake", "fake-0"]


@pytest.mark.parametrize("body", [{"unload_dependents": True}, {"parameters": {"unload_dependents": True}}])
def test_an_unload_may_take_the_whole_chain(chain, body):
    assert chain.post("/v2/repository/models/fake-1/unload", body).json == {"name": "fake-1", "unload": True}
    assert loaded(chain) == []


def test_the_last_version_takes_the_chain_too(chain):
    assert chain.post("/v2/models/fake-1/versions/1/unload", {"unload_dependents": True}).status == 200
    assert loaded(chain) == []


def test_successors_stay_that_others_need_or_have_loaded(chain):
    dependents = {"parameters": {"unload_dependents": True}}
    load(chain, "workers/fake", {"next": "fake-0", "another": 1})
    load(chain, "workers/fake", {"share": False})
    chain.post("/v2/repository/models/fake-1/unload", dependents)
    assert loaded(chain) == ["fake", "fake-0", "fake-2"]  # fake-2 needs fake-0
    chain.post("/v2/repository/models/fake-2/unload", dependents)
    assert loaded(chain) == ["fake"]  # it was loaded twice
    chain.post("/v2/repository/models/fake/unload", dependents)
    assert loaded(chain) == []


def test_a_load_that_is_left_keeps_the_chain(chain):
    load(chain, "workers/fake", {"next": "fake-0", "share": False})
    chain.post("/v2/repository/models/fake-1/unload", {"parameters": {"unload_dependents": True}})
    assert loaded(chain) == ["fake", "fake-0", "fake-1"]


def test_a_successor_keeps_its_only_version(chain):
    assert chain.post("/v2/models/fake/versions/1/unload").status == 200
    assert chain.infer("fake-1", PAIR).status == 200
    chain.post("/v2/models/fake-1/unload", {"unload_dependents": True})
    assert loaded(chain) == []


@pytest.mark.parametrize(
    "body",
    ["{", "[]", {"unload_dependents": 1}, {"parameters": {"unload_dependents": "yes"}}, {"parameters": []},
     {"parameters": None}, {"parameters": {}, "unload_dependents": True}],
)  # fmt: skip
def test_unloads_that_are_wrong_change_nothing(own_server, body):
    answer = own_server.post("/v2/repository/models/simple/unload", body)
    assert answer.status == 400
    assert answer.error
    assert ready(own_server, "simple")


# --- Configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2/models/simple/config", "/v2/models/simple/versions/1/config/?x"])
def test_the_configuration_of_a_model_without_one(server, path):
    config = server.get(path).json
    assert list(config)[:8] == [
        "name", "platform", "backend", "runtime", "version_policy", "max_batch_size", "input", "output",
    ]  # fmt: skip
    assert [config[key] for key in ("name", "platform", "backend", "max_batch_size", "default_model_filename")] == [
        "simple", "onnxruntime_onnx", "onnxruntime", 64, "model.onnx",
    ]  # fmt: skip
    assert [(of["name"], of["data_type"], of["dims"]) for of in (*config["input"], *config["output"])] == [
        (name, "TYPE_INT32", [16]) for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    ]
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert [(group["name"], group["kind"], group["count"]) for group in config["instance_group"]] == [
        ("simple_0", "KIND_CPU", 1)
    ]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0


def test_the_configuration_fits_the_metadata(server):
    for name in server.get("/v2/models").json["models"]:
        config, metadata = server.get(f"/v2/models/{name}/config").json, server.get(f"/v2/models/{name}").json
        batch = [-1] if config["max_batch_size"] else []
        for told, shown in (("input", "inputs"), ("output", "outputs")):
            assert [(of["name"], batch + of["dims"]) for of in config[told]] == [
                (of["name"], of["shape"]) for of in metadata[shown]
            ]
            types = [of["data_type"].replace("STRING", "BYTES").removeprefix("TYPE_") for of in config[told]]
            assert types == [of["datatype"] for of in metadata[shown]]


def test_the_configuration_says_what_the_load_has_said(own_server):
    server = own_server
    load(server, "models/simple", {"batch_size": 4, "timeout": 2, "instances": 1, "intra_op_threads": 1, "mine": "x"})
    config = server.get("/v2/models/simple-0/config").json
    assert (config["name"], config["max_batch_size"]) == ("simple-0", 4)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert config["instance_group"][0]["count"] == 1
    assert config["parameters"] == {"intra_op_threads": {"string_value": "1"}, "mine": {"string_value": "x"}}


def test_built_in_workers_have_a_configuration(own_server):
    server = own_server
    load(server, "workers/echo_multi", {"batch_size": 8, "instances": 3})
    config = server.get("/v2/models/echo_multi/versions/1/config").json
    assert (config["platform"], config["max_batch_size"]) == ("echo_multi", 0)  # one item is one request
    assert [(of["name"], of["data_type"], of["dims"]) for of in config["output"]] == [
        ("output0", "TYPE_UINT32", [1]), ("output1", "TYPE_UINT32", [4]), ("output2", "TYPE_UINT32", [3]),
    ]  # fmt: skip
    assert config["instance_group"][0]["count"] == 3
    load(server, "workers/fake", {"delay_ms": 0.5})
    assert server.get("/v2/models/fake/config").json["input"] == []


def test_the_configuration_of_a_chain_has_the_last_stages_outputs(own_server):
    server = own_server
    load(server, "workers/base64_encode", {"format": "jpeg"})
    load(server, "workers/invert_image", {"next": "base64_encode"})
    config = server.get("/v2/models/invert_image/config").json
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert [(of["data_type"], of["dims"]) for of in config["output"]] == [("TYPE_STRING", [1])]
    assert config["parameters"] == {"next": {"string_value": "base64_encode"}}


# What Triton 2.51 itself tells of this model, as people keep it and give it back.
TRITONS = {
    "name": "simple", "platform": "onnxruntime_onnx", "backend": "onnxruntime", "runtime": "",
    "version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 8,
    "input": [{"name": name, "data_type": "TYPE_INT32", "format": "FORMAT_NONE", "dims": [16], "is_shape_tensor": False,
               "allow_ragged_batch": False, "optional": False, "is_non_linear_format_io": False}
              for name in ("INPUT0", "INPUT1")],
    "output": [{"name": name, "data_type": "TYPE_INT32", "dims": [16], "label_filename": "", "is_shape_tensor": False,
                "is_non_linear_format_io": False} for name in ("OUTPUT0", "OUTPUT1")],
    "batch_input": [], "batch_output": [],
    "optimization": {"priority": "PRIORITY_DEFAULT", "input_pinned_memory": {"enable": True},
                     "output_pinned_memory": {"enable": True}, "gather_kernel_buffer_threshold": 0,
                     "eager_batching": False},
    "dynamic_batching": {"preferred_batch_size": [8], "max_queue_delay_microseconds": 100, "preserve_ordering": False,
                         "priority_levels": 0, "default_priority_level": 0, "priority_queue_policy": {}},
    "instance_group": [{"name": "mine", "kind": "KIND_CPU", "count": 2, "gpus": [], "secondary_devices": [],
                        "profile": [], "passive": False, "host_policy": ""}],
    "default_model_filename": "model.onnx", "cc_model_filenames": {}, "metric_tags": {}, "parameters": {},
    "model_warmup": [], "model_transaction_policy": {"decoupled": False},
}  # fmt: skip


def test_tritons_configuration_may_be_given_with_a_load(own_server):
    server = own_server
    load(server, "repository/models/simple", {"parameters": {"config": json.dumps(TRITONS)}})
    config = server.get("/v2/models/simple/config").json
    for key in ("max_batch_size", "instance_group", "version_policy"):
        assert config[key] == TRITONS[key]
    assert config["optimization"].items() >= TRITONS["optimization"].items()
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    # What is told can be given back, and is told again.
    load(server, "repository/models/simple", {"parameters": {"config": json.dumps(config)}})
    assert server.get("/v2/models/simple/config").json == config
    assert server.get("/v2/models").json["models"] == ["simple"]
    load(server, "repository/models/simple")
    assert server.get("/v2/models/simple/config").json["max_batch_size"] == 64


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"config": '{"name":"other"}'}, '"other" is not the name'),
        ({"config": '{"max_batch_size":-1}'}, "max_batch_size"),
        ({"config": '{"input":[{"name":"X","data_type":"TYPE_INT32","dims":[16]}]}'}, "'X'"),
        ({"config": "[]"}, "must be a table of fields"),
        ({"config": {"max_batch_size": 4}}, "must be a string that holds JSON"),
        ({"config": "{}", "file:1/model.onnx": "AAAA"}, "files cannot be given with a load"),
        ({"file:model.onnx": ""}, "files cannot be given with a load"),
    ],
)
def test_overrides_that_are_refused(own_server, parameters, words):
    before = own_server.get("/v2/models/simple/config").json
    answer = own_server.post("/v2/repository/models/simple/load", {"parameters": parameters})
    assert answer.status == 400
    assert words in answer.error
    assert own_server.get("/v2/models/simple/config").json == before


# --- Statistics -------------------------------------------------------------------------------------------------------


def statistics(server, path):
    answer = server.get(path)
    assert answer.status == 200, answer.body
    assert list(answer.json) == ["model_stats"]
    for entry in answer.json["model_stats"]:
        assert list(entry) == [
            "name", "version", "last_inference", "inference_count", "execution_count", "inference_stats",
            "batch_stats", "memory_usage",
        ]  # fmt: skip
        assert list(entry["inference_stats"]) == DURATIONS
        assert all(list(duration) == ["count", "ns"] for duration in entry["inference_stats"].values())
    return answer.json["model_stats"]


def counts(server, model):
    (entry,) = statistics(server, f"/v2/models/{model}/stats")
    return {name: duration["count"] for name, duration in entry["inference_stats"].items()}


def test_an_inference_is_counted(own_server):
    server = own_server
    began = time.time() * 1000
    rows = inference(tensor("INPUT0", [3, 16], "INT32", [1] * 48), tensor("INPUT1", [3, 16], "INT32", [1] * 48))
    assert server.infer("simple", PAIR).status == server.infer("simple", rows).status == 200
    (entry,) = statistics(server, "/v2/models/simple/stats")
    assert (entry["name"], entry["version"], entry["inference_count"], entry["execution_count"]) == (
        "simple",
        "1",
        4,
        2,
    )
    assert began - 1000 <= entry["last_inference"] <= time.time() * 1000 + 1000
    durations = entry["inference_stats"]
    for name in DURATIONS:
        assert durations[name]["count"] == (0 if name in ("fail", "cache_hit", "cache_miss") else 2)
    assert durations["success"]["ns"] >= durations["compute_infer"]["ns"] > 0
    assert [line["batch_size"] for line in entry["batch_stats"]] == [1, 3]
    assert all(line[part]["count"] == 1 for line in entry["batch_stats"]
               for part in ("compute_input", "compute_infer", "compute_output"))  # fmt: skip
    assert statistics(server, "/v2/models/simple/versions/1/stats") == [entry]


def test_statistics_of_all_models_and_of_all_versions(own_server):
    server = own_server
    load(server, "models/two_versions")
    load(server, "workers/echo")
    every = statistics(server, "/v2/models/stats")
    assert [(entry["name"], entry["version"]) for entry in every] == [
        ("echo", "1"), ("simple", "1"), ("two_versions", "1"), ("two_versions", "2"),
    ]  # fmt: skip
    assert statistics(server, "/v2/models/two_versions/stats") == every[2:]
    assert statistics(server, "/v2/models/two_versions/versions/2/stats") == every[3:]
    server.post("/v2/models/two_versions/unload")
    assert [entry["name"] for entry in statistics(server, "/v2/models/stats/")] == ["echo", "simple"]


WRONG = {
    "no JSON": b"{",
    "no JSON, decoded on another thread": b'{"inputs":[],"x":"' + b"x" * 200_000,
    "not UTF-8": b'{"inputs":[],"id":"\xff"}',
    "a missing input": json.dumps(inference(PAIR["inputs"][0])).encode(),
    "another type": json.dumps(inference(tensor("INPUT0", [1, 16], "FP32", [0] * 16), PAIR["inputs"][1])).encode(),
    "shared memory": b'{"inputs":[],"parameters":{"shared_memory_region":"r"}}',
    "too many rows": json.dumps(
        inference(*[tensor(name, [700_000, 0], "INT32", []) for name in ("INPUT0", "INPUT1")])
    ).encode(),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_request_that_is_refused_counts_as_a_failure(own_server, wrong):
    for number in (1, 2):
        assert own_server.infer("simple", WRONG[wrong]).status == 400
        assert counts(own_server, "simple") == {**dict.fromkeys(DURATIONS, 0), "fail": number}
    assert 'fastinfer_failures_total{cause="client",model="simple",version="1"} 2' in page(own_server)
    assert own_server.infer("simple", PAIR).status == 200
    assert counts(own_server, "simple")["success"] == 1


def test_a_wrong_header_counts_as_a_failure(own_server):
    fields = {"Inference-Header-Content-Length": "x"}
    assert own_server.request("POST", "/v2/models/simple/infer", PAIR, fields).status == 400
    assert counts(own_server, "simple")["fail"] == 1


def test_what_a_chain_refuses_is_the_first_stages_failure(own_server):
    server = own_server
    load(server, "workers/fake")
    load(server, "workers/echo", {"next": "fake"})
    assert server.infer("echo", b"{").status == 400
    assert server.infer("echo", inference(tensor("x", [2], "UINT32", [1, 2]))).status == 400
    assert (counts(server, "echo")["fail"], counts(server, "fake")["fail"]) == (2, 0)


def test_failures_of_a_model_are_counted(own_server):
    load(own_server, "workers/fake", {"error_rate": 1})
    assert own_server.infer("fake", PAIR).status == 500
    assert counts(own_server, "fake")["fail"] == 1


def test_zero_rows_are_a_success_without_a_run(own_server):
    nothing = inference(tensor("INPUT0", [0, 16], "INT32", []), tensor("INPUT1", [0, 16], "INT32", []))
    assert own_server.infer("simple", nothing).status == 200
    (entry,) = statistics(own_server, "/v2/models/simple/stats")
    assert entry["inference_stats"]["success"]["count"] == 1
    assert (entry["inference_count"], entry["execution_count"], entry["batch_stats"]) == (0, 0, [])


# --- What is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["config", "stats"])
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nope", "Request for unknown model: 'nope' is not found"),
        ("nope/versions/1", "Request for unknown model: 'nope' is not found"),
        ("simple/versions/7", "Request for unknown model: 'simple' version 7 is not found"),
    ],
)
def test_unknown_models(server, what, target, sentence):
    answer = server.get(f"/v2/models/{target}/{what}")
    assert (answer.status, answer.error) == (404, sentence)


@pytest.mark.parametrize("path", ["/v2/models/simple/config", "/v2/models/simple/stats", "/v2/models/stats"])
def test_they_are_only_read(server, path):
    answer = server.post(path, {})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    head = server.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")


NOT_SERVED = [
    ("GET", "/v2/systemsharedmemory/status"),
    ("GET", "/v2/systemsharedmemory/region/r/status"),
    ("POST", "/v2/systemsharedmemory/region/r/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("POST", "/v2/cudasharedmemory/region/r/register"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/models/simple/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("POST", "/v2/models/simple/generate"),
    ("POST", "/v2/repository/mine/index"),
    ("GET", "/v2/models/stats/ready"),
    ("POST", "/v2/models/stats/infer"),
    ("POST", "/v2/models/stats/load"),
]


@pytest.mark.parametrize(("method", "path"), NOT_SERVED)
def test_extensions_that_are_not_served(server, method, path):
    answer = server.request(method, path, {} if method == "POST" else None)
    assert (answer.status, answer.error) == (404, "no such path")


def test_the_extensions_that_work_are_listed(server):
    assert server.get("/v2").json["extensions"] == [
        "binary_tensor_data", "model_configuration", "model_repository", "model_repository(unload_dependents)",
        "parameters", "statistics",
    ]  # fmt: skip


def test_without_model_control_everything_can_still_be_read():
    with serving("--model-control", "none", "--load", "simple") as server:
        assert index(server)["simple"] == [("1", "READY", "")]
        assert server.get("/v2/models/simple/config").status == 200
        assert counts(server, "simple")["success"] == 0
        for path in ("/v2/repository/models/simple/load", "/v2/repository/models/simple/unload"):
            for body in (None, {"parameters": {"unload_dependents": True}}, "{"):
                answer = server.post(path, body)
                assert answer.status == 403
                assert "--model-control none" in answer.error
