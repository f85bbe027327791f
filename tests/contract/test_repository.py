"""Part A1 and A3: loading and unloading, identities and names, files that change, model control."""

import concurrent.futures
import json
import math
import shutil
import subprocess
import sys
import time

import onnx_models
import pytest
from support import REPOSITORY, inference, serving, tensor, wait_for

ECHO = inference(tensor("anything", [1], "UINT32", [41]))


def worker(server, name, parameters=None, verb="load"):
    answer = server.post(f"/v2/workers/{name}/{verb}", parameters)
    assert answer.status == 200, answer.body
    if verb == "load":
        assert answer.headers["content-type"] == "text/html"
        return answer.body.decode()
    return answer.json


def models(server):
    return server.get("/v2/models").json["models"]


def ready(server, name):
    return server.get(f"/v2/models/{name}/ready").status


def first_output(answer):
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"]


def test_the_golden_sequence(own_server):
    server = own_server
    before = models(server)
    assert worker(server, "echo") == "echo"
    assert worker(server, "echo") == "echo"
    assert worker(server, "echo", {"max_buffer_num": 100}) == "echo-0"
    assert worker(server, "echo", {"max_buffer_num": 100, "share": False}) == "echo-0"
    assert models(server) == sorted([*before, "echo", "echo-0"])
    for name in ("echo", "echo-0"):
        assert ready(server, name) == 200
        assert first_output(server.infer(name, ECHO)) == [42]
    for _ in range(2):
        assert worker(server, "echo", verb="unload") == {"name": "echo", "unload": True}
    assert ready(server, "echo") == 404
    assert worker(server, "echo-0", verb="unload")["unload"]
    assert ready(server, "echo-0") == 200
    assert worker(server, "echo-0", verb="unload")["unload"]
    assert ready(server, "echo-0") == 404
    assert models(server) == before


def test_worker_names_are_lower_cased_and_models_are_not(own_server):
    assert worker(own_server, "ECHO") == "echo"
    assert own_server.post("/v2/models/SIMPLE/load").status == 400


@pytest.mark.parametrize("family", ["/v2/models/", "/v2/repository/models/"])
def test_models_are_loaded_and_unloaded_under_both_families(own_server, family):
    server = own_server
    assert ready(server, "digits") == 404
    assert server.post(family + "digits/load").json == {"name": "digits", "load": True}
    assert ready(server, "digits") == 200
    assert server.post(family + "digits/load", {"parameters": {}}).json == {"name": "digits", "load": True}
    assert server.post(family + "digits/load", {"batch_size": 4}).json == {"name": "digits-0", "load": True}
    assert server.post(family + "digits/unload").json == {"name": "digits", "unload": True}
    assert (ready(server, "digits"), ready(server, "digits-0")) == (404, 200)
    assert server.post(family + "digits-0/unload").status == 200
    assert server.post(family + "never-heard-of/unload").json == {"name": "never-heard-of", "unload": True}


def test_versions_are_loaded_and_unloaded_one_by_one(own_server):
    server = own_server
    base = "/v2/repository/models/two_versions"
    assert server.post(base + "/versions/1/load").status == 200
    assert server.get("/v2/models/two_versions").json["versions"] == ["1"]
    assert server.post(base + "/load").status == 200
    assert server.get("/v2/models/two_versions").json["versions"] == ["1", "2"]
    assert server.post(base + "/versions/2/unload").status == 200
    assert server.get("/v2/models/two_versions").json["versions"] == ["1"]
    assert ready(server, "two_versions/versions/2") == 404
    assert server.post(base + "/versions/1/unload").status == 200
    assert ready(server, "two_versions") == 404
    assert server.post(base + "/versions/9/load").status == 400


def test_an_endpoint_of_another_kind_does_not_give_its_name_away(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "echo")
    with serving(repository=tmp_path) as server:
        assert ready(server, "echo") == 200
        answer = server.post("/v2/workers/echo/load")
        assert answer.status == 400
        assert "echo" in answer.error


def test_a_model_cannot_be_called_stats(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "stats")
    with serving("--load", "none", repository=tmp_path) as server:
        assert server.post("/v2/repository/models/stats/load").status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/models/nope/load", None),
        ("/v2/workers/nope/load", None),
        ("/v2/workers/onnx/load", None),
        ("/v2/workers/onnx/load", {"model": "../simple"}),
        ("/v2/workers/cplusplus/load", {"model": "nope"}),
        ("/v2/models/digits/load", "{"),
        ("/v2/models/digits/load", "[1]"),
        ("/v2/models/digits/load", {"batch_size": 0}),
        ("/v2/models/digits/load", {"batch_size": [1]}),
        ("/v2/models/digits/load", {"next": "nope"}),
        ("/v2/models/digits/load", {"next": "simple"}),
        ("/v2/models/digits/load", {"parameters": {}, "batch_size": 4}),
        ("/v2/models/digits/load", {"parameters": {"file:1/model.onnx": "AAAA"}}),
        ("/v2/models/digits/load", {"parameters": {"config": "{"}}),
        ("/v2/models/digits/load", {"parameters": {"config": '{"nonsense": 1}'}}),
    ],
)
def test_loads_that_fail_change_nothing(own_server, path, body):
    before = models(own_server)
    answer = own_server.post(path, body)
    assert answer.status == 400
    assert answer.error
    assert models(own_server) == before


@pytest.mark.parametrize("path", ["models/simple/load", "models/nope/unload", "workers/echo/load", "repository/index"])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_bodies_are_as_deep_as_all_json_may_be(own_server, path, opening, closing):
    def answer(depth):
        inner = opening * (depth - 2) + "1" + closing * (depth - 2)
        return own_server.post(f"/v2/{path}", f'{{"parameters":{{"unknown":{inner}}}}}')

    before = models(own_server)
    for depth in (101, 102, 500, 1024):
        refused = answer(depth)
        assert (refused.status, refused.error) == (400, "the body is nested deeper than 100 levels")
    assert answer(1025).status == 400
    assert answer(100).status == (400 if path.endswith("/load") else 200)
    assert models(own_server) == before


def test_the_onnx_worker_serves_a_model_of_the_repository(own_server):
    assert worker(own_server, "onnx", {"model": "identity_fp32"}) == "onnx"
    assert first_output(own_server.infer("onnx", inference(tensor("INPUT0", [1, 2], "FP32", [1, 2])))) == [1.0, 2.0]


def test_cplusplus_is_an_alias(own_server):
    assert worker(own_server, "cplusplus", {"model": "echo"}) == "cplusplus"
    assert first_output(own_server.infer("cplusplus", ECHO)) == [42]


def test_the_built_in_workers(own_server):
    server = own_server
    for name in ("echo_multi", "invert_image", "base64_encode", "base64_decode", "fake"):
        assert worker(server, name) == name
    multi = inference(tensor("a", [1], "UINT32", [3]), tensor("b", [2], "UINT32", [2, 7]))
    outputs = server.infer("echo_multi", multi).json["outputs"]
    assert [output["data"] for output in outputs] == [[3], [2, 7, 3, 2], [7, 3, 2]]
    pixels = [*range(0, 240, 10)]
    image = inference(tensor("image", [2, 4, 3], "UINT8", pixels))
    assert first_output(server.infer("invert_image", image)) == [255 - value for value in pixels]
    text = first_output(server.infer("base64_encode", image))
    back = server.infer("base64_decode", inference(tensor("x", [1], "BYTES", text))).json["outputs"][0]
    assert (back["shape"], back["data"]) == ([2, 4, 3], pixels)
    wrong = server.infer("base64_decode", inference(tensor("x", [1], "BYTES", ["!!!!"])))
    assert wrong.status == 400
    same = server.infer("fake", inference(tensor("a", [2], "FP64", [1.5, 2.5]), tensor("b", [1], "BYTES", ["x"]))).json
    assert [(output["name"], output["data"]) for output in same["outputs"]] == [("a", [1.5, 2.5]), ("b", ["x"])]


def test_a_chain_shows_its_own_inputs_and_the_last_stages_outputs(own_server):
    server = own_server
    assert worker(server, "base64_encode") == "base64_encode"
    assert worker(server, "invert_image", {"next": "base64_encode"}) == "invert_image"
    metadata = server.get("/v2/models/invert_image").json
    assert [spec["datatype"] for spec in (*metadata["inputs"], *metadata["outputs"])] == ["UINT8", "BYTES"]
    image = inference(tensor("image", [1, 1, 3], "UINT8", [1, 2, 3]))
    answer = server.infer("invert_image", image).json
    assert answer["model_name"] == "invert_image"
    # The chain keeps its successor loaded, and lets go of it with itself.
    worker(server, "base64_encode", verb="unload")
    assert server.infer("invert_image", image).json == answer
    worker(server, "invert_image", verb="unload")
    assert (ready(server, "invert_image"), ready(server, "base64_encode")) == (404, 404)


def test_a_configuration_given_with_the_load(own_server):
    server = own_server
    rows = inference(tensor("INPUT0", [3, 16], "INT32", [0] * 48), tensor("INPUT1", [3, 16], "INT32", [0] * 48))
    config = json.dumps({"max_batch_size": 2})
    answer = server.post("/v2/repository/models/simple/load", {"parameters": {"config": config}})
    assert answer.json == {"name": "simple", "load": True}
    refused = server.infer("simple", rows)
    assert (refused.status, refused.error) == (400, "inference request batch-size must be <= 2 for 'simple'")
    assert server.post("/v2/repository/models/simple/load").status == 200
    assert server.infer("simple", rows).status == 200


def test_changed_files_are_swapped_in_and_broken_ones_are_not(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY / "two_versions", repository / "m")
    (repository / "m" / "config.toml").unlink(missing_ok=True)
    new = tmp_path / "new"
    shutil.copytree(repository / "m" / "1", new)
    shutil.rmtree(repository / "m" / "1")
    with serving(repository=repository) as server:
        spec = server.get("/v2/models/m").json["inputs"][0]
        body = inference(tensor(spec["name"], [abs(dim) for dim in spec["shape"]], spec["datatype"],
                                [2] * abs(math.prod(spec["shape"]))))  # fmt: skip
        old = server.infer("m", body).json["outputs"]
        file = next((repository / "m" / "2").glob("*.onnx"))
        good = next(new.glob("*.onnx")).read_bytes()
        file.write_bytes(b"no model at all")
        assert server.post("/v2/models/m/load").status == 400
        assert server.infer("m", body).json["outputs"] == old
        file.write_bytes(good)
        assert server.post("/v2/models/m/load").status == 200
        assert server.infer("m", body).json["outputs"] != old


def test_model_control_none():
    with serving("--model-control", "none", "--load", "simple") as server:
        for path in ("/v2/models/digits/load", "/v2/models/simple/unload", "/v2/workers/echo/load",
                     "/v2/workers/echo/unload", "/v2/repository/models/simple/load"):  # fmt: skip
            answer = server.post(path)
            assert answer.status == 403
            assert answer.error
        assert models(server) == ["simple"]


def test_model_control_poll_follows_the_disk(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY / "simple", repository / "simple")
    with serving("--model-control", "poll", "--poll-interval-s", "0.1", repository=repository) as server:
        shutil.copytree(REPOSITORY / "digits", repository / "digits")
        wait_for(lambda: ready(server, "digits") == 200)
        shutil.rmtree(repository / "simple")
        wait_for(lambda: ready(server, "simple") == 404)
        assert models(server) == ["digits"]


def test_a_model_that_fails_at_start_keeps_the_server_unready_until_it_works_or_goes(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY / "simple", repository / "simple")
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"nothing")
    with serving(repository=repository, wait=False) as server:
        wait_for(lambda: ready(server, "simple") == 200)
        answer = server.get("/v2/health/ready")
        assert answer.status == 503
        assert answer.json["ready"] is False
        assert "broken" in answer.json["error"]
        assert str(tmp_path) not in answer.json["error"]
        assert server.get("/v2/health/live").status == 200
        assert ready(server, "broken") == 503
        assert models(server) == ["simple"]
        server.post("/v2/models/broken/unload")
        assert server.get("/v2/health/ready").status == 200
        # A failed experiment does not take a serving server out of rotation.
        assert server.post("/v2/models/broken/load").status == 400
        assert server.get("/v2/health/ready").status == 200


def test_only_what_is_asked_for_is_loaded_at_start():
    with serving("--load", "none") as server:
        assert models(server) == []
        assert server.get("/v2/health/ready").status == 200
    with serving("--load", "simple", "--load", "digits") as server:
        assert models(server) == ["digits", "simple"]


def test_loads_and_unloads_from_many_threads(own_server):
    def churn(number):
        name, kind = ("digits", "models") if number % 2 else ("echo", "workers")
        for _ in range(10):
            assert own_server.post(f"/v2/{kind}/{name}/load").status == 200
            assert own_server.post(f"/v2/{kind}/{name}/unload").status == 200

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    assert models(own_server) == ["simple"]
    assert own_server.get("/v2/health/ready").status == 200


def test_a_chain_of_batched_models(own_server):
    server = own_server
    assert server.post("/v2/models/simple/load", {"next": "simple"}).json["name"] == "simple-0"
    for shape in ([16], [1, 16], [3, 16]):
        count = 16 * (shape[0] if len(shape) > 1 else 1)
        body = inference(tensor("INPUT0", shape, "INT32", [5] * count), tensor("INPUT1", shape, "INT32", [2] * count))
        outputs = server.infer("simple-0", body).json["outputs"]
        # (5 + 2) and (5 - 2) go by position into the second stage: their sum and their difference.
        assert [(output["shape"], set(output["data"])) for output in outputs] == [(shape, {10}), (shape, {4})]


def test_a_chain_from_a_batched_model_into_a_worker_without_batches(own_server):
    server = own_server
    assert worker(server, "fake") == "fake"
    assert server.post("/v2/models/simple/load", {"next": "fake"}).json["name"] == "simple-0"
    item = inference(tensor("INPUT0", [16], "INT32", [5] * 16), tensor("INPUT1", [16], "INT32", [2] * 16))
    outputs = server.infer("simple-0", item).json["outputs"]
    assert [(output["shape"], set(output["data"])) for output in outputs] == [([16], {7}), ([16], {3})]


def test_a_repository_that_is_not_there_is_told():
    found = subprocess.run(
        [sys.executable, "-m", "fastinfer", "serve", "--port", "0", "--model-repository", "/nowhere"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 1
    assert "there is no directory '/nowhere'" in found.stderr


def test_clients_cannot_unload_a_successor_from_under_its_chain(own_server):
    server = own_server
    server.post("/v2/models/simple/load", {"next": "simple"})
    for _ in range(3):
        server.post("/v2/models/simple/unload")
    assert (ready(server, "simple"), ready(server, "simple-0")) == (200, 200)
    server.post("/v2/models/simple-0/unload")
    assert (ready(server, "simple"), ready(server, "simple-0")) == (404, 404)


def test_two_kinds_of_endpoints_never_get_one_name(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "echo-0")
    with serving("--load", "none", repository=tmp_path) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        worker(server, "echo")
        for number in range(10):
            loads = [
                pool.submit(server.post, "/v2/workers/echo/load", {"number": number}),
                pool.submit(server.post, "/v2/models/echo-0/load"),
            ]
            first, second = (load.result() for load in loads)
            assert first.status == 200
            if second.status == 200:
                assert first.body != b"echo-0"
            for name in models(server):
                if name != "echo":
                    server.post(f"/v2/models/{name}/unload")


def test_a_poll_keeps_what_a_load_configured(tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(REPOSITORY / "simple", repository / "simple")
    rows = inference(tensor("INPUT0", [3, 16], "INT32", [0] * 48), tensor("INPUT1", [3, 16], "INT32", [0] * 48))
    with serving("--model-control", "poll", "--poll-interval-s", "0.1", repository=repository) as server:
        config = json.dumps({"max_batch_size": 2})
        server.post("/v2/models/simple/load", {"parameters": {"config": config}})
        version = next((repository / "simple" / "1").glob("*.onnx"))
        version.write_bytes(version.read_bytes())
        time.sleep(0.5)
        assert server.infer("simple", rows).status == 400
        assert server.stop() == 0


def test_a_signal_ends_loads_too(tmp_path):
    (tmp_path / "endless" / "1").mkdir(parents=True)
    (tmp_path / "endless" / "1" / "model.onnx").write_bytes(onnx_models.endless())
    (tmp_path / "endless" / "config.toml").write_text(onnx_models.ENDLESS_LOAD)
    with serving(repository=tmp_path, wait=False) as server:
        wait_for(lambda: ready(server, "endless") == 503)
        time.sleep(0.3)
        assert server.stop() == 0


def test_links_in_a_model_lead_nowhere(tmp_path):
    shutil.copytree(REPOSITORY / "simple", tmp_path / "simple")
    for number in range(3):
        (tmp_path / "simple" / "1" / f"loop{number}").symlink_to(".")
    for directory in (tmp_path, tmp_path / "simple", tmp_path / "simple" / "1"):
        (directory / "2").symlink_to("2")  # to itself
    with serving(repository=tmp_path) as server:
        assert ready(server, "simple") == 200


@pytest.mark.parametrize("place", ["1/up", "2", "warmup"])
def test_a_link_to_the_whole_disk_is_refused(tmp_path, place):
    """It is not walked: the answer comes before anybody could."""
    for name in ("simple", "other"):
        shutil.copytree(REPOSITORY / "simple", tmp_path / name)
    (tmp_path / "other" / place).symlink_to("/")
    with serving(repository=tmp_path, wait=False) as server:
        wait_for(lambda: ready(server, "simple") == 200)
        answer = server.post("/v2/models/other/load")
        assert answer.status == 400
        assert answer.error == (
            f"model 'other': '{place.rpartition('/')[2]}' is a link to a directory above the model's own"
        )
        (tmp_path / "other" / place).unlink()
        assert server.post("/v2/models/other/load").status == 200
