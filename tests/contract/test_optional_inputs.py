"""Inputs that a request may leave out: initializers that an input overrides, and inputs of an optional type."""

import json
import struct
import threading
from itertools import product

import numpy as np
import onnx_models
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import inference, serving, tensor

value, node = onnx_models.value, helper.make_node


def sized():
    """``y`` is ``x`` in the shape ``to``, whose default is [2, 2]: the work of a request depends on its value."""
    nodes = [node("ConstantOfShape", ["to"], ["zeros"]), node("Add", ["x", "zeros"], ["y"])]
    to = numpy_helper.from_array(np.int64([2, 2]), "to")
    return onnx_models.model(
        nodes, [value("x", "FP32", [1]), value("to", "INT64", ["rank"])], [value("y", "FP32", None)], [to]
    )


def texts():
    """``z`` is the optional ``text``, by default "none", of any shape."""
    text = helper.make_tensor("text", TensorProto.STRING, [], [b"none"])
    nodes = [node("Identity", ["text"], ["z"]), node("Neg", ["x"], ["y"])]
    inputs = [value("x", "FP32", [2]), value("text", "BYTES", None)]
    return onnx_models.model(nodes, inputs, [value("z", "BYTES", None), value("y", "FP32", [2])], [text])


def broadcast():
    """``y = x + bias``, where the default of ``bias`` is 1 and any shape may be given."""
    bias = numpy_helper.from_array(np.float32([1]), "bias")
    inputs = [value("x", "FP32", ["batch", 4]), value("bias", "FP32", None)]
    return onnx_models.model([node("Add", ["x", "bias"], ["y"])], inputs, [value("y", "FP32", ["batch", 4])], [bias])


def renamed_outputs():
    """Outputs ``x`` and ``bias`` for the model ``defaults``."""
    nodes = [node("Neg", ["a"], ["x"]), node("ReduceSum", ["a", "axes"], ["bias"], keepdims=0)]
    axes = numpy_helper.from_array(np.int64([0]), "axes")
    return onnx_models.model(
        nodes,
        [value("a", "FP32", ["batch", 4])],
        [value("x", "FP32", ["batch", 4]), value("bias", "FP32", [4])],
        [axes],
    )


DECLARED = """
max_batch_size = 4
[[input]]
name = "bias"
data_type = "TYPE_FP32"
dims = [4]
optional = true
[[model_warmup]]
name = "with a bias"
[model_warmup.inputs]
x = { data_type = "FP32", dims = [4], zero_data = true }
bias = { data_type = "FP32", dims = [4], random_data = true }
"""
DELAYED = """
max_batch_size = 8
dynamic_batching = { preferred_batch_size = [8], max_queue_delay_microseconds = 60_000_000 }
"""
DECLARED_PBTXT = """
max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "scale" data_type: TYPE_FP32 dims: [ 4 ] optional: true }
]
"""
MODELS = {
    "defaults": (onnx_models.with_defaults(), ""),
    "declared": (onnx_models.with_defaults(), DECLARED),
    "shown": (onnx_models.with_defaults(), ""),
    "delayed": (onnx_models.with_defaults(), DELAYED),
    "whole": (onnx_models.with_defaults(), "max_batch_size = 0\n"),
    "fixed": (onnx_models.with_defaults([4]), ""),
    "any": (broadcast(), ""),
    "old": (onnx_models.with_defaults(ir_version=3), ""),
    "optional": (onnx_models.optional_bias(), ""),
    "lone": (onnx_models.optional_input(), ""),
    "sized": (sized(), ""),
    "texts": (texts(), ""),
    "pair": (renamed_outputs(), ""),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    for name, (model, config) in MODELS.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
        (directory / name / "config.toml").write_text(config)
    (directory / "declared_pbtxt" / "1").mkdir(parents=True)
    (directory / "declared_pbtxt" / "1" / "model.onnx").write_bytes(onnx_models.with_defaults())
    (directory / "declared_pbtxt" / "config.pbtxt").write_text(DECLARED_PBTXT)
    with serving(repository=directory) as running:
        yield running


@pytest.fixture(scope="module")
def runtime():
    """Sessions of ONNX Runtime itself."""
    sessions = {name: onnxruntime.InferenceSession(model) for name, (model, _) in MODELS.items()}

    def run(model, arrays):
        return sessions[model].run(None, arrays)

    return run


def fp32(name, array):
    array = np.asarray(array, np.float32)
    return tensor(name, list(array.shape), "FP32", array.ravel().tolist())


def output_of(answer, name="y"):
    assert answer.status == 200, answer.body
    (output,) = [each for each in answer.json["outputs"] if each["name"] == name]
    return np.asarray(output["data"], np.float32).reshape(output["shape"])


def ask_binary(server, model, arrays):
    """Send FP32 arrays after the JSON; the answer's only output comes back so, too."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = header + b"".join(array.tobytes() for array in arrays.values())
    answer = server.request(
        "POST", f"/v2/models/{model}/infer", body, {"Inference-Header-Content-Length": str(len(header))}
    )
    assert answer.status == 200, answer.body
    size = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.body[:size])["outputs"]
    return np.frombuffer(answer.body[size:], "<f4").reshape(output["shape"])


# --- What clients are shown ------------------------------------------------------------------------------------------


def test_optional_inputs_are_shown_after_the_others(server):
    optional = {"datatype": "FP32", "shape": [4], "parameters": {"optional": True}}
    metadata = server.get("/v2/models/defaults").json
    needed = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    assert metadata["inputs"] == [needed, {"name": "scale", **optional}, {"name": "bias", **optional}]
    assert [each["name"] for each in server.get("/v2/models/old").json["inputs"]] == ["x"]
    (_, bias) = server.get("/v2/models/any").json["inputs"]
    assert (bias["shape"], bias["parameters"]) == ([-1], {"open_rank": True, "optional": True})
    (_, bias) = server.get("/v2/models/optional").json["inputs"]
    assert (bias["shape"], bias["parameters"]) == ([-1, 4], {"optional": True})
    (only,) = server.get("/v2/models/lone").json["inputs"]
    assert only == {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"optional": True}}


@pytest.mark.parametrize("model", ["shown", "declared", "declared_pbtxt", "whole"])
def test_the_configuration_has_them_and_can_be_given_back(server, model):
    config = server.get(f"/v2/models/{model}/config").json
    assert config["max_batch_size"] == {"shown": 64, "whole": 0}.get(model, 4)
    assert [(each["name"], each["optional"]) for each in config["input"]] == [
        ("x", False), ("scale", True), ("bias", True),
    ]  # fmt: skip
    assert config["input"][1]["dims"] == [4]
    server.load(f"repository/models/{model}", {"parameters": {"config": json.dumps(config)}})
    assert server.get(f"/v2/models/{model}/config").json["input"] == config["input"]


def test_only_what_the_graph_can_do_without_is_optional(server):
    for name, sentence in (
        ("x", "input 'x' is configured as optional, but the graph needs it"),
        ("z", "the configuration names input 'z', the graph does not"),
    ):
        given = {"name": name, "data_type": "TYPE_FP32", "dims": [-1, 4], "optional": True}
        answer = server.post(
            "/v2/repository/models/defaults/load", {"parameters": {"config": json.dumps({"input": [given]})}}
        )
        assert (answer.status, answer.error) == (400, f"model 'defaults': {sentence}")
    given = {"name": "bias", "data_type": "TYPE_FP32", "dims": [5], "optional": True}
    answer = server.post(
        "/v2/repository/models/defaults/load", {"parameters": {"config": json.dumps({"input": [given]})}}
    )
    assert "input 'bias' has the shape [4], but is configured as [5]" in answer.error
    answer = server.post(
        "/v2/repository/models/lone/load", {"parameters": {"config": json.dumps({"max_batch_size": 4})}}
    )
    assert answer.error == "model 'lone': max_batch_size needs an input that every request gives"


def test_a_warm_up_may_have_optional_inputs(server):
    config = server.get("/v2/models/declared/config").json
    config["model_warmup"][0]["inputs"]["bias"]["dims"] = [5]
    answer = server.post("/v2/repository/models/declared/load", {"parameters": {"config": json.dumps(config)}})
    assert answer.status == 400
    assert "invalid dimensions for input: bias" in answer.error


# --- Answers ---------------------------------------------------------------------------------------------------------


GIVEN = [
    *product(("defaults", "declared", "whole", "fixed"), ((), ("bias",), ("scale",), ("bias", "scale"))),
    *product(("optional", "any"), ((), ("bias",))),
]


@pytest.mark.parametrize(("model", "given"), GIVEN)
def test_answers_are_the_runtimes(server, runtime, model, given):
    random = np.random.default_rng(1)
    for rows in (1, 3, 1, 2):
        arrays = {"x": random.standard_normal((rows, 4) if model != "fixed" else 4, np.float32)}
        shape = (rows, 4) if model == "optional" else 4
        arrays |= {name: random.standard_normal(shape, np.float32) for name in given}
        (expected,) = runtime(model, arrays)
        answered = output_of(server.infer(model, inference(*(fp32(*each) for each in reversed(arrays.items())))))
        assert (answered.shape, answered.tobytes()) == (expected.shape, expected.tobytes())
        answered = ask_binary(server, model, arrays)
        assert (answered.shape, answered.tobytes()) == (expected.shape, expected.tobytes())


def test_requests_with_and_without_at_the_same_time(server, runtime):
    """Each gets its own answer, whichever optional inputs it gives."""
    failures = []

    def client(number):
        random = np.random.default_rng(number)
        for turn in range(30):
            arrays = {"x": random.standard_normal((1 + number % 3, 4), np.float32)}
            for name in ("bias", "scale"):
                if (number + turn) % 2 and random.random() < 0.6:
                    arrays[name] = random.standard_normal(4, np.float32)
            (expected,) = runtime("defaults", arrays)
            if turn % 3:
                answered = ask_binary(server, "defaults", arrays)
            else:
                answered = output_of(server.infer("defaults", inference(*(fp32(*each) for each in arrays.items()))))
            if answered.tobytes() != expected.tobytes():
                failures.append((number, turn, list(arrays)))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert failures == []


def test_the_others_share_a_batch_and_one_that_gives_an_input_does_not_wait_for_it(server):
    """Eight rows are a full batch, for which requests of this model wait; one that runs alone waits for nobody."""
    answers = []

    def ask(*inputs):
        answers.append(output_of(server.infer("delayed", inference(*inputs))).tolist())

    x = fp32("x", [[1, 1, 1, 1]])
    clients = [threading.Thread(target=ask, args=(x,)) for _ in range(7)]
    for client in clients:
        client.start()
    for _ in range(3):
        ask(x, fp32("bias", [9, 9, 9, 9]))
    assert answers == [[[10] * 4]] * 3
    clients.append(threading.Thread(target=ask, args=(x,)))
    clients[-1].start()
    for client in clients:
        client.join()
    assert answers[3:] == [[[1, 2, 3, 4]]] * 8
    (entry,) = server.get("/v2/models/delayed/stats").json["model_stats"]
    runs = {each["batch_size"]: each["compute_infer"]["count"] for each in entry["batch_stats"]}
    assert runs == {1: 3, 8: 1}


def test_an_item_may_lack_the_batch_dimension_but_a_default_has_none(server):
    item = server.infer("defaults", inference(fp32("x", [1, 1, 1, 1]), fp32("bias", [4, 3, 2, 1])))
    assert output_of(item).tolist() == [5, 4, 3, 2]
    item = server.infer("any", inference(fp32("x", [1, 1, 1, 1]), fp32("bias", [5])))
    assert output_of(item).tolist() == [6, 6, 6, 6]
    # A bias of three rows gives one item three rows, none of which can be left out.
    item = server.infer("any", inference(fp32("x", [1, 1, 1, 1]), fp32("bias", [[1], [2], [3]])))
    assert output_of(item).tolist() == [[2] * 4, [3] * 4, [4] * 4]


def test_many_rows_run_in_slices_only_without_an_optional_input(server, runtime):
    x = np.random.default_rng(2).standard_normal((300, 4), np.float32)
    for given in ({}, {"bias": np.float32([4, 3, 2, 1])}):
        (expected,) = runtime("defaults", {"x": x, **given})
        assert ask_binary(server, "defaults", {"x": x, **given}).tobytes() == expected.tobytes()
    answer = server.infer("declared", inference(fp32("x", x[:5]), fp32("bias", [1, 2, 3, 4])))
    assert (answer.status, answer.error) == (400, "inference request batch-size must be <= 4 for 'declared'")


def test_no_rows_are_no_rows(server):
    for given in ((), (fp32("bias", [1, 1, 1, 1]),)):
        answer = server.infer("defaults", inference(tensor("x", [0, 4], "FP32", []), *given))
        assert output_of(answer).shape == (0, 4)


def test_a_model_that_needs_no_input_at_all(server):
    assert server.infer("lone", {"inputs": []}).json["outputs"][0]["data"] == [False]
    assert server.infer("lone", inference(fp32("x", [1, 2]))).json["outputs"][0]["data"] == [True]


def test_texts_and_scalars_have_defaults_too(server):
    def ask(*given):
        answer = server.infer("texts", inference(fp32("x", [1, 2]), *given))
        (text,) = [each for each in answer.json["outputs"] if each["name"] == "z"]
        return text["shape"], text["data"]

    for _ in range(3):
        assert ask() == ([], ["none"])
        assert ask(tensor("text", [], "BYTES", ["one"])) == ([], ["one"])
        assert ask(tensor("text", [2, 1], "BYTES", ["grün", ""])) == ([2, 1], ["grün", ""])
        assert ask(tensor("text", [0], "BYTES", [])) == ([0], [])


def test_a_value_that_decides_the_work_may_be_given(server):
    for to in ([2, 2], [3], [2, 1, 4], [500, 2000], [2, 2]):
        answer = server.infer("sized", inference(fp32("x", [5]), tensor("to", [len(to)], "INT64", to)))
        assert output_of(answer).shape == tuple(to)
        assert output_of(server.infer("sized", inference(fp32("x", [5])))).tolist() == [[5, 5], [5, 5]]
    answer = server.infer("sized", inference(fp32("x", [5]), tensor("to", [1], "INT64", [-7])))
    assert (answer.status, answer.error.startswith("the model cannot run on these inputs: ")) == (400, True)


def test_a_raw_request_gives_the_input_that_is_needed(server):
    body = struct.pack("<4f", 1, 1, 1, 1)
    answer = server.request("POST", "/v2/models/defaults/infer", body, {"Inference-Header-Content-Length": "0"})
    size = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.body[size:], "<f4").tolist() == [1, 2, 3, 4]


def test_classes_of_a_request_with_an_optional_input(server):
    wanted = [{"name": "y", "parameters": {"classification": 1}}]
    x, bias = fp32("x", [[0, 0, 0, 0], [0, 0, 0, 9]]), fp32("bias", [0, 7, 0, 0])
    answer = server.infer("defaults", inference(x, bias, outputs=wanted))
    assert answer.json["outputs"][0]["data"] == ["7.000000:1", "9.000000:3"]
    answer = server.infer("defaults", inference(x, outputs=wanted))
    assert answer.json["outputs"][0]["data"] == ["3.000000:3", "12.000000:3"]


# --- Chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_takes_the_first_stages_optional_inputs(server):
    server.load("workers/fake")
    server.load("models/defaults", {"next": "fake"})
    names = [each["name"] for each in server.get("/v2/models/defaults-0").json["inputs"]]
    assert names == ["x", "scale", "bias"]
    x = fp32("x", [[1, 1, 1, 1]])
    assert output_of(server.infer("defaults-0", inference(x))).tolist() == [[1, 2, 3, 4]]
    assert output_of(server.infer("defaults-0", inference(x, fp32("bias", [0] * 4)))).tolist() == [[1, 1, 1, 1]]


def test_a_stage_gives_the_following_one_its_optional_inputs_by_name(server):
    server.load("models/pair", {"next": "defaults"})
    answer = server.infer("pair-0", inference(fp32("a", [[1, 2, 3, 4], [1, 2, 3, 5]])))
    assert output_of(answer).tolist() == [[1, 2, 3, 5], [1, 2, 3, 4]]


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "sentence"),
    [
        ("defaults", [fp32("bias", [1] * 4)],
         "expected number of inputs between 1 and 3 but got 1 inputs for model 'defaults'. Got input(s) ['bias'], but "
         "missing required input(s) ['x']. Please provide all required input(s)."),
        ("defaults", [fp32("x", [[1] * 4]), fp32("bias", [1] * 5)],
         "unexpected shape for input 'bias' for model 'defaults'. Expected [4], got [5]"),
        ("defaults", [fp32("x", [[1] * 4]), fp32("bias", [[1] * 4])],
         "unexpected shape for input 'bias' for model 'defaults'. Expected [4], got [1,4]"),
        ("defaults", [fp32("x", [[1] * 4]), tensor("bias", [4], "FP64", [1] * 4)],
         "inference input 'bias' data-type is 'FP64', but model 'defaults' expects 'FP32'"),
        ("defaults", [fp32("x", [[1] * 4]), fp32("other", [1] * 4)],
         "unexpected inference input 'other' for model 'defaults'"),
        ("defaults", [fp32("x", [[1] * 4]), fp32("bias", [1] * 4), fp32("bias", [1] * 4)],
         "input 'bias' is given twice"),
        ("whole", [fp32("x", [[1] * 4]), fp32("bias", [1] * 3)],
         "unexpected shape for input 'bias' for model 'whole'. Expected [4], got [3]"),
        ("old", [fp32("x", [[1] * 4]), fp32("bias", [1] * 4)], "unexpected inference input 'bias' for model 'old'"),
        ("old", [],
         "expected 1 inputs but got 0 inputs for model 'old'. Got input(s) [], but missing required input(s) ['x']. "
         "Please provide all required input(s)."),
    ],
)  # fmt: skip
def test_refusals(server, model, inputs, sentence):
    answer = server.infer(model, inference(*inputs))
    assert (answer.status, answer.error) == (400, sentence)


def test_what_cannot_be_served_says_so_at_load(tmp_path):
    models = {
        "float8": (onnx_models.element_output(TensorProto.FLOAT8E4M3FN, declared=False), "output 'y' is FLOAT8E4M3FN"),
        "complex": (onnx_models.element_input(TensorProto.COMPLEX64), "input 'x' is COMPLEX64"),
        "int4": (onnx_models.element_input(TensorProto.INT4), "input 'x' is INT4"),
        "branches": (onnx_models.sparse_branches(True, True), "output 'w' is a sparse tensor"),
        "loop": (onnx_models.sparse_loop(), "output 'w' is a sparse tensor"),
    }
    for name, (model, _) in models.items():
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").write_bytes(model)
    with serving("--load", "none", repository=tmp_path) as running:
        for name, (_, reason) in models.items():
            answer = running.post(f"/v2/models/{name}/load")
            assert answer.status == 400
            assert answer.error.startswith(f"model '{name}' does not load: {reason}; ")
