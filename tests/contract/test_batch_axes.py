"""Rows along other dimensions than the first, and inputs without rows, from outside."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_models
import pytest
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession
from support import inference, serving, tensor

STREAMS, STEPS = 16, 12
FEATURES, HIDDEN, LAYERS = 5, 6, 2


def recurrent(kind, rows="batch", state_rows="batch"):
    """Two layers that take and return their state ``[layers, rows, hidden]``, as PyTorch's exporter writes them."""
    gates = {"LSTM": 4, "GRU": 3}[kind]
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    random = np.random.default_rng(0)
    zero, one, two = (np.int64([each]) for each in range(3))
    constants = {"zero": zero, "one": one, "two": two, "first": np.int64([0])}
    nodes = [helper.make_node("Transpose", ["x"], ["s0"], perm=[1, 0, 2])]
    for layer in range(LAYERS):
        width = FEATURES if layer == 0 else HIDDEN
        for name, shape in {"w": (gates * HIDDEN, width), "r": (gates * HIDDEN, HIDDEN)}.items():
            constants[f"{name}{layer}"] = random.standard_normal((1, *shape)).astype("f4") / 2
        given = [f"{state}{layer}" for state in states]
        ends = ["zero", "one", "two"][layer : layer + 2]
        nodes += [
            helper.make_node("Slice", [state, *ends, "first"], [part])
            for state, part in zip(states, given, strict=True)
        ]
        made = [f"{state}n{layer}" for state in states]
        inputs = [f"s{layer}", f"w{layer}", f"r{layer}", "", "", *given]
        nodes.append(helper.make_node(kind, inputs, [f"o{layer}", *made], hidden_size=HIDDEN))
        nodes.append(helper.make_node("Squeeze", [f"o{layer}", "one"], [f"s{layer + 1}"]))
    nodes.append(helper.make_node("Transpose", [f"s{LAYERS}"], ["y"], perm=[1, 0, 2]))
    nodes += [helper.make_node("Concat", [f"{s}n{i}" for i in range(LAYERS)], [f"{s}n"], axis=0) for s in states]
    shape = [LAYERS, state_rows, HIDDEN]
    return onnx_models.model(
        nodes,
        [onnx_models.value("x", "FP32", [rows, "time", FEATURES])]
        + [onnx_models.value(state, "FP32", shape) for state in states],
        [onnx_models.value("y", "FP32", [rows, "time", HIDDEN])]
        + [onnx_models.value(f"{state}n", "FP32", shape) for state in states],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )


def shifted():
    """``y = x + at``, and ``z``, the same with the rows along the second dimension; ``at`` is a scalar."""
    x, at = onnx_models.value("x", "FP32", ["n", 3]), onnx_models.value("at", "FP32", [])
    y, z = onnx_models.value("y", "FP32", ["n", 3]), onnx_models.value("z", "FP32", [3, "n"])
    nodes = [helper.make_node("Add", ["x", "at"], ["y"]), helper.make_node("Transpose", ["y"], ["z"])]
    return onnx_models.model(nodes, [x, at], [y, z])


def write(repository, name, model, config=""):
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model)
    if config:
        (repository / name / ("config.pbtxt" if ":" in config else "config.toml")).write_text(config)


def ask(server, model, feeds):
    inputs = [tensor(name, list(a.shape), "FP32", a.ravel().tolist()) for name, a in feeds.items()]
    answer = server.infer(model, inference(*inputs))
    assert answer.status == 200, answer.body
    return {each["name"]: np.float32(each["data"]).reshape(each["shape"]) for each in answer.json["outputs"]}


def runs(server, model):
    (stats,) = server.get(f"/v2/models/{model}/stats").json["model_stats"]
    return stats["execution_count"], stats["inference_count"], {each["batch_size"] for each in stats["batch_stats"]}


def axes(server, model):
    config = server.get(f"/v2/models/{model}/config").json
    return config["max_batch_size"], {each["name"]: each.get("batch_axis", 0) for each in config["input"]}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("names", [("batch", "batch"), (None, None), ("input_0", "state_1")], ids=str)
def test_streams_with_their_states_share_runs(tmp_path, kind, names):
    model = recurrent(kind, *names)
    write(tmp_path, "m", model)
    session = InferenceSession(model)
    states = [each.name for each in session.get_inputs()][1:]
    random = np.random.default_rng(1)
    steps = random.standard_normal((STREAMS, STEPS, 1, 3, FEATURES)).astype("f4")

    def alone(stream):
        state = {name: np.zeros((LAYERS, 1, HIDDEN), "f4") for name in states}
        for step in steps[stream]:
            y, *new = session.run(None, {"x": step, **state})
            state = dict(zip(states, new, strict=True))
            yield y

    with serving(repository=tmp_path) as server:

        def stream(number):
            state = {name: np.zeros((LAYERS, 1, HIDDEN), "f4") for name in states}
            answers = []
            for step in steps[number]:
                answer = ask(server, "m", {"x": step, **state})
                state = {name: answer[f"{name}n"] for name in states}
                answers.append(answer["y"])
            return answers

        assert axes(server, "m") == (64, {"x": 0} | dict.fromkeys(states, 1))
        with ThreadPoolExecutor(STREAMS) as streams:
            answers = list(streams.map(stream, range(STREAMS)))
        executions, rows, sizes = runs(server, "m")
    for number, each in enumerate(answers):
        for answer, expected in zip(each, alone(number), strict=True):
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    assert rows == STREAMS * STEPS
    assert executions < rows
    assert max(sizes) > 1


def test_a_request_of_many_rows_runs_in_slices(tmp_path):
    model = recurrent("GRU")
    write(tmp_path, "m", model)
    rows = 150
    random = np.random.default_rng(1)
    feeds = {
        "x": random.standard_normal((rows, 3, FEATURES)).astype("f4"),
        "h": random.standard_normal((LAYERS, rows, HIDDEN)).astype("f4"),
    }
    with serving(repository=tmp_path) as server:
        answer = ask(server, "m", feeds)
        empty = ask(server, "m", {"x": feeds["x"][:0], "h": feeds["h"][:, :0]})
        assert runs(server, "m")[0] == 3
        refused = server.infer("m", inference(
            tensor("x", [1, 1, FEATURES], "FP32", [0] * FEATURES),
            tensor("h", [LAYERS, 2, HIDDEN], "FP32", [0] * LAYERS * 2 * HIDDEN),
        ))  # fmt: skip
    for name, expected in zip(["y", "hn"], InferenceSession(model).run(None, feeds), strict=True):
        np.testing.assert_allclose(answer[name], expected, rtol=1e-4, atol=1e-5)
    assert [empty["y"].shape, empty["hn"].shape] == [(0, 3, HIDDEN), (LAYERS, 0, HIDDEN)]
    assert refused.status == 400
    assert refused.error == "input 'h' batch size does not match other inputs for 'm'"


def test_an_item_has_no_batch_dimension_wherever_it_is(tmp_path):
    model = recurrent("GRU")
    write(tmp_path, "m", model)
    x, h = np.ones((1, 3, FEATURES), "f4"), np.ones((LAYERS, 1, HIDDEN), "f4")
    y, hn = InferenceSession(model).run(None, {"x": x, "h": h})
    with serving(repository=tmp_path) as server:
        answer = ask(server, "m", {"x": x[0], "h": h[:, 0]})
    np.testing.assert_allclose(answer["y"], y[0], rtol=1e-5)
    np.testing.assert_allclose(answer["hn"], hn[:, 0], rtol=1e-5)


def test_requests_share_a_run_if_they_give_the_same_value_of_an_input_without_rows(tmp_path):
    write(tmp_path, "m", shifted())
    write(tmp_path, "delayed", shifted(), "dynamic_batching = { max_queue_delay_microseconds = 300000 }")
    with serving(repository=tmp_path) as server:

        def stream(number):
            at = np.float32(number % 3)
            x = np.float32([[number, 0.5, -number]])
            answer = ask(server, "delayed", {"x": x, "at": at})
            np.testing.assert_array_equal(answer["y"], x + at)
            np.testing.assert_array_equal(answer["z"], (x + at).T)

        assert axes(server, "m") == (64, {"x": 0, "at": -1})
        with ThreadPoolExecutor(STREAMS) as streams:
            list(streams.map(stream, range(3 * STREAMS)))
        executions, rows, sizes = runs(server, "delayed")
        metadata = server.get("/v2/models/m").json
    assert rows == 3 * STREAMS
    assert executions < rows
    assert max(sizes) > 1
    assert [each["shape"] for each in metadata["outputs"]] == [[-1, 3], [3, -1]]


CONFIGURED = """
max_batch_size = 16
[[input]]
name = "x"
data_type = "TYPE_FP32"
dims = [4, 5]
[[input]]
name = "h"
data_type = "TYPE_FP32"
dims = [2, 6]
batch_axis = 1
"""
FOR_TRITON = """
max_batch_size: 16
parameters { key: "batch_axis.h" value { string_value: "1" } }
parameters { key: "batch_axis.hn" value { string_value: "1" } }
"""


def test_the_configuration_says_where_the_rows_are(tmp_path):
    model = recurrent("GRU", "a", "b")
    write(tmp_path, "toml", model, CONFIGURED.replace("4, 5", "-1, 5"))
    write(tmp_path, "pbtxt", model, FOR_TRITON)
    with serving(repository=tmp_path) as server:
        for name in ("toml", "pbtxt"):
            assert axes(server, name) == (16, {"x": 0, "h": 1})
            shown = server.get(f"/v2/models/{name}/config").json
            assert [each["dims"] for each in shown["input"]] == [[-1, FEATURES], [LAYERS, HIDDEN]]
            assert [each.get("batch_axis") for each in shown["output"]] == [None, 1]
            answer = ask(server, name, {"x": np.ones((2, 1, 5), "f4"), "h": np.ones((2, 2, 6), "f4")})
            assert answer["hn"].shape == (2, 2, 6)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("parameters = { 'batch_axis.z' = 1 }", "gives a batch_axis for 'z', which the graph does not have"),
        ("parameters = { 'batch_axis.h' = -1 }", "input 'h' needs a batch_axis: it is not fixed and small"),
        ("parameters = { 'batch_axis.h' = 3 }", "batch_axis 3 is no dimension of 'h'"),
        ("parameters = { 'batch_axis.h' = 16 }", "must be a dimension: -1 to 15"),
        ("parameters = { 'batch_axis.hn' = 0 }", "batch_axis of output 'hn' is 0, but its rows are along dimension 1"),
        ("parameters = { 'batch_axis.hn' = -1 }", "batch_axis -1 is no dimension of 'hn'"),
        ("max_batch_size = 4\nparameters = { 'batch_axis.h' = 0 }", "needs an open first dimension, but 'h'"),
        ("max_batch_size = 4\nparameters = { 'batch_axis.h' = 2 }", "needs an open dimension 2, but 'h'"),
    ],
    ids=[
        "unknown",
        "an open input without rows",
        "too large",
        "beyond all",
        "not as proven",
        "an output without rows",
        "fixed",
        "fixed inner",
    ],
)
def test_wrong_axes_are_refused(tmp_path, config, sentence):
    write(tmp_path, "m", recurrent("GRU"), config)
    with serving("--load", "none", repository=tmp_path) as server:
        answer = server.post("/v2/models/m/load")
        assert answer.status == 400
        assert sentence in answer.error
