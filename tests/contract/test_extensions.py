"""Part B3 and B4: the repository's index, unloading chains, effective configurations; and what is not there."""

import contextlib
import json
import shutil

import onnx_models
import pytest
from support import REPOSITORY, inference, serving, tensor, wait_for

PAIR = inference(tensor("INPUT0", [1, 16], "INT32", [1] * 16), tensor("INPUT1", [1, 16], "INT32", [2] * 16))
INDEX = "/v2/repository/index"


def ready(server, name):
    return server.get(f"/v2/models/{name}/ready").status == 200


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
    server.load("workers/echo")
    server.load("models/simple", {"batch_size": 4})
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
    own_server.load("models/two_versions/versions/1")
    assert index(own_server)["two_versions"] == [("1", "READY", "")]
    own_server.load("models/two_versions")
    assert index(own_server)["two_versions"] == [("1", "READY", ""), ("2", "READY", "")]


@pytest.mark.parametrize("body", ["{", "[]", "[null]", '"ready"', {"ready": 1}, {"ready": "true"}, {"ready": []}])
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
        server.load("models/broken")
        assert index(server)["broken"] == [("1", "READY", "")]
        server.post("/v2/models/misconfigured/unload")
        assert index(server)["misconfigured"] == [("1", "UNAVAILABLE", "unloaded")]
        server.load("models/simple", {"next": "broken"})
        server.post("/v2/models/broken/unload")  # simple-0 holds it
        # A model that is served and whose new files do not load is still served.
        (repository / "broken" / "1" / "model.onnx").write_bytes(b"nothing again")
        assert server.post("/v2/models/broken/load").status == 400
        assert index(server)["broken"] == [("1", "READY", "")]
        # What goes with the chain that held it is unloaded, whatever became of its reload.
        assert server.post("/v2/models/simple-0/unload").status == 200
        assert index(server)["broken"] == [("1", "UNAVAILABLE", "unloaded")]


def test_the_index_tells_of_what_is_loading_and_unloading(tmp_path):
    repository = tmp_path / "models"
    (repository / "endless" / "1").mkdir(parents=True)
    (repository / "endless" / "1" / "model.onnx").write_bytes(onnx_models.endless())
    (repository / "endless" / "config.toml").write_text(onnx_models.ENDLESS_LOAD)
    with (
        serving("--load", "all", "--load-run-timeout-s", "600", repository=repository, wait=False) as server,
        contextlib.closing(server.connect()) as client,
    ):
        wait_for(lambda: index(server).get("endless") == [("1", "LOADING", "")])
        assert index(server, {"ready": True}) == {}
        assert server.get("/v2/models/endless/config").status == 503
        server.load("workers/fake", {"delay_ms": 60_000})
        client.request("POST", "/v2/models/fake/infer", json.dumps(PAIR))
        wait_for(lambda: 'fastinfer_requests_in_flight{model="fake",version="1"} 1' in server.metrics())
        server.post("/v2/workers/fake/unload")
        assert index(server)["fake"] == [("1", "UNLOADING", "")]
        client.close()
        wait_for(lambda: "fake" not in index(server))


# --- Unloading chains -------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(own_server):
    """fake -> fake-0 -> echo-like fake-1, each with a load of its own."""
    own_server.load("workers/fake")
    own_server.load("workers/fake", {"next": "fake"})
    own_server.load("workers/fake", {"next": "fake-0"})
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
    chain.load("workers/fake", {"next": "fake-0", "another": 1})
    chain.load("workers/fake", {"share": False})
    chain.post("/v2/repository/models/fake-1/unload", dependents)
    assert loaded(chain) == ["fake", "fake-0", "fake-2"]  # fake-2 needs fake-0
    chain.post("/v2/repository/models/fake-2/unload", dependents)
    assert loaded(chain) == ["fake"]  # it was loaded twice
    chain.post("/v2/repository/models/fake/unload", dependents)
    assert loaded(chain) == []


def test_a_load_that_is_left_keeps_the_chain(chain):
    chain.load("workers/fake", {"next": "fake-0", "share": False})
    chain.post("/v2/repository/models/fake-1/unload", {"parameters": {"unload_dependents": True}})
    assert loaded(chain) == ["fake", "fake-0", "fake-1"]


def test_a_load_of_what_only_a_chain_keeps_counts(chain):
    """As long as nothing else keeps it, ``share`` has nothing to share: the client's load is the first again."""
    assert chain.post("/v2/models/fake-0/unload").status == 200
    chain.load("workers/fake", {"next": "fake"})
    chain.post("/v2/models/fake-1/unload")
    assert loaded(chain) == ["fake", "fake-0"]
    chain.post("/v2/models/fake-0/unload")
    assert loaded(chain) == ["fake"]


def test_a_successor_keeps_its_only_version(chain):
    assert chain.post("/v2/models/fake/versions/1/unload").status == 200
    assert chain.infer("fake-1", PAIR).status == 200
    chain.post("/v2/models/fake-1/unload", {"unload_dependents": True})
    assert loaded(chain) == []


@pytest.mark.parametrize(
    "body",
    ["{", "[]", {"unload_dependents": 1}, {"parameters": {"unload_dependents": "yes"}}, {"parameters": []},
     {"parameters": [None]}, {"parameters": None, "unload_dependents": True},
     {"parameters": {}, "unload_dependents": True}],
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
    server.load("models/simple", {"batch_size": 4, "timeout": 2, "instances": 1, "intra_op_threads": 1, "mine": "x"})
    config = server.get("/v2/models/simple-0/config").json
    assert (config["name"], config["max_batch_size"]) == ("simple-0", 4)
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2000
    assert config["instance_group"][0]["count"] == 1
    assert config["parameters"] == {"intra_op_threads": {"string_value": "1"}, "mine": {"string_value": "x"}}


def test_built_in_workers_have_a_configuration(own_server):
    server = own_server
    server.load("workers/echo_multi", {"batch_size": 8, "instances": 3})
    config = server.get("/v2/models/echo_multi/versions/1/config").json
    assert (config["platform"], config["max_batch_size"]) == ("echo_multi", 0)  # one item is one request
    assert [(of["name"], of["data_type"], of["dims"]) for of in config["output"]] == [
        ("output0", "TYPE_UINT32", [1]), ("output1", "TYPE_UINT32", [4]), ("output2", "TYPE_UINT32", [3]),
    ]  # fmt: skip
    assert config["instance_group"][0]["count"] == 3
    server.load("workers/fake", {"delay_ms": 0.5})
    assert server.get("/v2/models/fake/config").json["input"] == []


def test_the_configuration_of_a_chain_has_the_last_stages_outputs(own_server):
    server = own_server
    server.load("workers/base64_encode", {"format": "jpeg"})
    server.load("workers/invert_image", {"next": "base64_encode"})
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
    server.load("repository/models/simple", {"parameters": {"config": json.dumps(TRITONS)}})
    config = server.get("/v2/models/simple/config").json
    for key in ("max_batch_size", "instance_group", "version_policy"):
        assert config[key] == TRITONS[key]
    assert config["optimization"].items() >= TRITONS["optimization"].items()
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    # What is told can be given back, and is told again.
    server.load("repository/models/simple", {"parameters": {"config": json.dumps(config)}})
    assert server.get("/v2/models/simple/config").json == config
    assert server.get("/v2/models").json["models"] == ["simple"]
    server.load("repository/models/simple")
    assert server.get("/v2/models/simple/config").json["max_batch_size"] == 64


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"config": '{"name":"other"}'}, '"other" is not the name'),
        ({"config": '{"max_batch_size":-1}'}, "max_batch_size"),
        ({"config": '{"input":[{"name":"X","data_type":"TYPE_INT32","dims":[16]}]}'}, "'X'"),
        ({"config": "[]"}, "must be a table of fields"),
        ({"config": {"max_batch_size": 4}}, "must be a string of JSON"),
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
        "binary_tensor_data", "classification", "model_configuration", "model_repository",
        "model_repository(unload_dependents)", "parameters", "statistics",
    ]  # fmt: skip


def test_without_model_control_everything_can_still_be_read():
    with serving("--model-control", "none", "--load", "simple") as server:
        assert index(server)["simple"] == [("1", "READY", "")]
        assert server.get("/v2/models/simple/config").status == 200
        assert server.get("/v2/models/simple/stats").status == 200
        for path in ("/v2/repository/models/simple/load", "/v2/repository/models/simple/unload"):
            for body in (None, {"parameters": {"unload_dependents": True}}, "{"):
                answer = server.post(path, body)
                assert answer.status == 403
                assert "--model-control none" in answer.error
