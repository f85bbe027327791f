"""Models that say little of their shapes, and inputs that only the model's operators can judge."""

import json
import threading

import numpy as np
import onnx_models
import pytest
from onnx import helper, numpy_helper
from support import inference, serving, tensor

value, node = onnx_models.value, helper.make_node


def one_node(op, inputs, out=("y", "FP32", None), weights=None, **attributes):
    """A model of one operator; ``inputs``: datatypes and shapes by name."""
    specs = [value(name, *spec) for name, spec in inputs.items()]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    return onnx_models.model(
        [node(op, [*inputs, *(weights or {})], ["y"], **attributes)], specs, [value(*out)], constants
    )


def lstm():
    weights = [numpy_helper.from_array(np.ones((1, 8, 2), np.float32), name) for name in ("w", "r")]
    return onnx_models.model(
        [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2)],
        [value("x", "FP32", ["steps", "items", 2])],
        [value("y", "FP32", None)],
        weights,
    )


ANY = ("FP32", None)
MODELS = {
    "any": one_node("Neg", {"x": ANY}),
    "product": one_node("MatMul", {"a": ANY, "b": ANY}),
    "batches": one_node("Neg", {"x": ANY}),
    "reshape": one_node("Reshape", {"x": ("FP32", [4]), "to": ("INT64", ["rank"])}),
    "sum": one_node("Add", {"a": ("FP32", ["batch", 2]), "b": ("FP32", ["n", 2])}, ("y", "FP32", ["batch", 2])),
    "items": onnx_models.identity("FP32", ("batch", 3)),
    "sequence": onnx_models.identity("FP32", ("steps", 3)),
    "gather": onnx_models.gather_rows(),
    "expand": one_node("Expand", {"x": ("FP32", [3]), "to": ("INT64", ["rank"])}),
    "tile": one_node("Tile", {"x": ("FP32", [3]), "times": ("INT64", [1])}),
    "gemm": one_node("Gemm", {"a": ("FP32", ["n", "k"]), "b": ("FP32", ["l", "m"])}),
    "divide": onnx_models.divide(),
    "lstm": lstm(),
    "largest": one_node("ArgMax", {"x": ("FP32", ["n", "m"])}, ("y", "INT64", None), axis=1),
    "means": one_node("ReduceMean", {"x": ("FP32", ["n", "m"])}, axes=[1]),
    "joined": one_node("Concat", {"a": ("FP32", ["n", 2]), "b": ("FP32", ["m", 2])}, ("y", "FP32", ["l", 2]), axis=0),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
    (directory / "batches" / "config.toml").write_text("max_batch_size = 4\n")
    with serving(repository=directory) as running:
        yield running


def fp32(name, shape, data=None):
    count = int(np.prod(shape))
    return tensor(name, shape, "FP32", list(range(count)) if data is None else data)


def output_of(answer):
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    return output["shape"], output["data"]


# --- An open rank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[], [1], [3], [0], [2, 0], [2, 3], [1, 2, 1, 2, 1], [1, 0, 2, 1, 3], [1, 2] * 4])
def test_an_input_of_open_rank_takes_any_shape(server, shape):
    data = [1.5 * i for i in range(int(np.prod(shape)))]
    for _ in range(4):
        assert output_of(server.infer("any", inference(fp32("x", shape, data)))) == (shape, [-each for each in data])
        assert negated_binary(server, shape, data) == (shape, [-each for each in data])


def negated_binary(server, shape, data):
    content = np.float32(data).tobytes()
    given = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": len(content)}}
    header = json.dumps(inference(given, parameters={"binary_data_output": True})).encode()
    size = {"Inference-Header-Content-Length": str(len(header))}
    answer = server.request("POST", "/v2/models/any/infer", header + content, size)
    assert answer.status == 200, answer.body
    size = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.body[:size])["outputs"]
    return output["shape"], np.frombuffer(answer.body[size:], "<f4").tolist()


def test_what_the_operators_refuse_is_the_clients(server):
    assert output_of(server.infer("product", inference(fp32("a", [2, 3]), fp32("b", [3])))) == ([2], [5, 14])
    for a, b in (([2, 3], [4, 5]), ([2], [3]), ([], [3])):
        answer = server.infer("product", inference(fp32("a", a), fp32("b", b)))
        assert (answer.status, answer.error.startswith("the model cannot run on these inputs: ")) == (400, True)
        assert "matmul_helper" not in answer.error


def test_metadata_of_an_open_rank(server):
    entry = {"datatype": "FP32", "shape": [-1], "parameters": {"open_rank": True}}
    metadata = server.get("/v2/models/any").json
    assert (metadata["inputs"], metadata["outputs"]) == ([{"name": "x", **entry}], [{"name": "y", **entry}])
    metadata = server.get("/v2/models/reshape").json
    assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [4]}
    assert metadata["outputs"] == [{"name": "y", **entry}]
    for name in ("any", "batches"):
        config = server.get(f"/v2/models/{name}/config").json
        assert [each["dims"] for each in (*config["input"], *config["output"])] == [[-1], [-1]]
        server.load(f"repository/models/{name}", {"parameters": {"config": json.dumps(config)}})
    server.load("repository/models/batches", {"parameters": {"config": json.dumps({"max_batch_size": 4})}})


def test_the_first_dimension_of_an_open_rank_is_the_batch_where_one_is_configured(server):
    for shape in ([3], [2, 2], [4, 1, 2], [0, 2]):
        data = list(range(int(np.prod(shape))))
        answered, negative = output_of(server.infer("batches", inference(fp32("x", shape, data))))
        assert (answered[0], negative) == (shape[0], [-each for each in data])
    answer = server.infer("batches", inference(fp32("x", [5, 2])))
    assert (answer.status, answer.error) == (400, "inference request batch-size must be <= 4 for 'batches'")
    answer = server.infer("batches", inference(fp32("x", [])))
    assert (answer.status, "Expected [...], got []" in answer.error) == (400, True)


def test_requests_of_different_ranks_at_the_same_time(server):
    shapes = [[1], [2], [1, 2], [2, 1], [1, 1, 2], [2, 2]] * 8
    answers = [None] * len(shapes)

    def ask(place):
        answers[place] = output_of(server.infer("batches", inference(fp32("x", shapes[place]))))

    clients = [threading.Thread(target=ask, args=(place,)) for place in range(len(shapes))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for shape, answer in zip(shapes, answers, strict=True):
        assert answer == (shape, [-each for each in range(int(np.prod(shape)))])


@pytest.mark.parametrize("to", [[4], [2, 2], [1, 4, 1], [-1, 1], [4]])
def test_an_output_of_open_rank_has_the_rank_that_it_has(server, to):
    for _ in range(4):  # a run at least before small batches stand ready
        answer = server.infer("reshape", inference(fp32("x", [4]), tensor("to", [len(to)], "INT64", to)))
        assert output_of(answer) == ([4 if each < 0 else each for each in to], [0, 1, 2, 3])


# --- Refused by the runtime ------------------------------------------------------------------------------------------

REFUSED = {
    "gather": (tensor("index", [2], "INT64", [0, -9]),),
    "expand": (fp32("x", [3]), tensor("to", [2], "INT64", [2, 5])),
    "tile": (fp32("x", [3]), tensor("times", [1], "INT64", [-1])),
    "gemm": (fp32("a", [2, 3]), fp32("b", [4, 5])),
}


@pytest.mark.parametrize("model", REFUSED)
def test_an_invalid_argument_is_the_clients(server, model):
    def failures():
        (entry,) = server.get(f"/v2/models/{model}/stats").json["model_stats"]
        return entry["inference_stats"]["fail"]["count"]

    def page():
        name = f'fastinfer_failures_total{{cause="client",model="{model}",version="1"}} '
        return [float(line[len(name) :]) for line in server.metrics().splitlines() if line.startswith(name)]

    before, counted = failures(), page()
    answer = server.infer(model, inference(*REFUSED[model]))
    assert answer.status == 400
    assert answer.error.startswith("the model cannot run on these inputs: ")
    assert f"operator '{model.capitalize()}': " in answer.error
    for word in ("onnxruntime", ".cc", ".h:", "/", "::"):
        assert word not in answer.error
    assert (failures(), page()[0]) == (before + 1, (counted or [0])[0] + 1)


def test_other_failures_are_the_models(server):
    ones = tensor("a", [1, 1], "INT32", [1])
    answer = server.infer("divide", inference(ones, tensor("b", [1, 1], "INT32", [0])))
    assert (answer.status, answer.error.startswith("the model failed: ")) == (500, True)


def test_an_invalid_argument_of_a_later_stage_is_not_the_clients(tmp_path):
    with serving(repository=repository_of(tmp_path, gather=MODELS["gather"], plain=identity_of_indices())) as running:
        running.load("models/plain", {"next": "gather"})
        answer = running.infer("plain-0", inference(tensor("x", [2], "INT64", [1, 2])))
        assert output_of(answer) == ([2, 2], [2, 3, 4, 5])
        answer = running.infer("plain-0", inference(tensor("x", [2], "INT64", [1, 7])))
        assert answer.status == 500
        assert answer.error.startswith("the next stage refused the outputs: the model cannot run on these inputs: ")


def identity_of_indices():
    return onnx_models.identity("INT64", ("batch",))


def repository_of(directory, **models):
    for name, model in models.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(model)
    return directory


# --- No elements -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[0, 1, 2], [3, 0, 2], [0, 0, 2]])
def test_operators_that_end_the_process_do_not_get_inputs_without_elements(server, shape):
    (pid,) = server.serving_pids()
    answer = server.infer("lstm", inference(fp32("x", shape)))
    assert (answer.status, "input 'x' has no elements, and the operators LSTM" in answer.error) == (400, True)
    assert output_of(server.infer("lstm", inference(fp32("x", [1, 1, 2]))))[0] == [1, 1, 1, 2]
    assert server.serving_pids() == [pid]


def test_inputs_without_elements_are_answered_or_refused(server):
    answer = server.infer("largest", inference(fp32("x", [2, 0])))
    assert (answer.status, answer.error.startswith("the model cannot run on these inputs: ")) == (400, True)
    assert output_of(server.infer("largest", inference(fp32("x", [0, 2])))) == ([0, 1], [])
    assert output_of(server.infer("means", inference(fp32("x", [0, 3])))) == ([0, 1], [])
    answer = server.infer("joined", inference(fp32("a", [0, 2]), fp32("b", [1, 2])))
    assert output_of(answer) == ([1, 2], [0, 1])
    answer = server.infer("any", inference(fp32("x", [1, 0, 5])))
    assert output_of(answer) == ([1, 0, 5], [])


# --- Rows that do not match, and the item form -----------------------------------------------------------------------


def test_rows_that_do_not_match_run_as_they_are(server):
    assert server.get("/v2/models/sum/config").json["max_batch_size"] == 64
    for a, b in ((1, 3), (3, 1), (1, 700), (0, 1)):
        rows = a * b
        answer = server.infer("sum", inference(fp32("a", [a, 2]), fp32("b", [b, 2])))
        expected = (np.arange(2.0 * a).reshape(a, 2) + np.arange(2.0 * b).reshape(b, 2)).reshape(-1)
        assert output_of(answer) == ([rows, 2], expected.tolist())
    answer = server.infer("sum", inference(fp32("a", [2, 2]), fp32("b", [3, 2])))
    assert (answer.status, answer.error.startswith("the model cannot run on these inputs: ")) == (400, True)
    assert output_of(server.infer("sum", inference(fp32("a", [2]), fp32("b", [2])))) == ([2], [0, 2])


def test_rows_that_do_not_match_beside_others(server):
    pairs = [(1, 1), (1, 3), (2, 2), (3, 1), (1, 1), (5, 1)] * 10
    answers = [None] * len(pairs)

    def ask(place):
        a, b = pairs[place]
        body = inference(fp32("a", [a, 2], [place] * 2 * a), fp32("b", [b, 2], [1] * 2 * b))
        answers[place] = output_of(server.infer("sum", body))

    clients = [threading.Thread(target=ask, args=(place,)) for place in range(len(pairs))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for place, (a, b) in enumerate(pairs):
        assert answers[place] == ([max(a, b), 2], [place + 1] * 2 * max(a, b))


def test_only_a_dimension_that_is_named_like_a_batch_may_be_left_out(server):
    assert output_of(server.infer("items", inference(fp32("x", [3])))) == ([3], [0, 1, 2])
    answer = server.infer("sequence", inference(fp32("x", [3])))
    sentence = "unexpected shape for input 'x' for model 'sequence'. Expected [-1,3], got [3]"
    assert (answer.status, answer.error) == (400, sentence)
    assert output_of(server.infer("sequence", inference(fp32("x", [2, 3]))))[0] == [2, 3]


# --- Sparse tensors --------------------------------------------------------------------------------------------------


def test_a_model_with_a_sparse_output_is_refused_at_load(tmp_path):
    models = {"constant": onnx_models.sparse_constant(), "weight": onnx_models.sparse_weight(output=True)}
    models["inside"] = onnx_models.sparse_weight(output=False)
    with serving("--load", "inside", repository=repository_of(tmp_path, **models)) as running:
        assert output_of(running.infer("inside", inference(fp32("x", [2, 2])))) == ([2, 2], [0, 6, 2, 3])
        for name in ("constant", "weight"):
            answer = running.post(f"/v2/models/{name}/load")
            assert answer.status == 400
            assert answer.error.endswith("does not load: output 'w' is a sparse tensor; only tensors can be served")
