"""Answers under load are those of a request alone, whether a model's rows are apart or not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from support import serving

CLIENTS, REQUESTS = 16, 12
LARGE = 150  # rows of one request: more than two batches


def constants(seed, **shapes):
    random = np.random.default_rng(seed)
    return [numpy_helper.from_array(random.standard_normal(s).astype("f4"), name) for name, s in shapes.items()]


def classifier(node, **shapes):
    """A small classifier; ``node`` makes ``h`` of its input ``x``, with constants of these ``shapes``."""
    x, y = onnx_models.value("x", "FP32", ["rows", 24]), onnx_models.value("y", "FP32", ["rows", 10])
    bounds = [numpy_helper.from_array(np.float32(bound), name) for name, bound in (("low", -1), ("high", 1))]
    weights = [*constants(3, w=(24, 10), **shapes), *bounds]
    output = helper.make_node("MatMul", ["h", "w"], ["y"])
    return onnx_models.model([node, output], [x], [y], weights)


def dynamic_int8(tmp_path):
    """What onnxruntime's quantizer makes of a classifier: one scale for all rows."""
    plain, quantized = tmp_path / "plain.onnx", tmp_path / "int8.onnx"
    plain.write_bytes(classifier(helper.make_node("Clip", ["x", "low", "high"], ["h"])))
    quantize_dynamic(plain, quantized, weight_type=QuantType.QInt8)
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(quantized).graph.node}
    return quantized.read_bytes()


def largest_of_all(_):
    """Each number less the largest one of all rows at its place."""
    x, y = onnx_models.value("x", "FP32", ["rows", 24]), onnx_models.value("y", "FP32", ["rows", 24])
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Cast", ["c"], ["i"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["i"], ["m"], keepdims=0, axes=[0]),
        helper.make_node("Sub", ["i", "m"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    bounds = [numpy_helper.from_array(np.float32(bound), name) for name, bound in (("low", 0), ("high", 1e6))]
    return onnx_models.model(nodes, [x], [y], bounds)


def plain(_):
    return classifier(helper.make_node("Add", ["x", "b"], ["h"]), b=(24,))


MODELS = {"int8": (dynamic_int8, False), "largest": (largest_of_all, False), "plain": (plain, True)}


@pytest.mark.parametrize("name", MODELS)
def test_concurrent_and_large_requests_are_answered_like_single_ones(tmp_path, name):
    make, batched = MODELS[name]
    model = make(tmp_path)
    path = tmp_path / "repository" / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model)
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(model, options)
    random = np.random.default_rng(0)
    # Every client has rows of a scale of its own, from 0.001 to 1000.
    batches = [
        (random.standard_normal((random.integers(1, 4), 24)) * 10.0 ** random.integers(-3, 4)).astype("f4")
        for _ in range(CLIENTS * REQUESTS)
    ]
    batches.append((random.standard_normal((LARGE, 24)) * np.logspace(-3, 3, LARGE)[:, None]).astype("f4"))
    with serving(repository=path.parents[2]) as server:

        def ask(rows):
            tensor = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
            answer = server.post("/v2/models/m/infer", {"inputs": [tensor]})
            output = answer.json["outputs"][0]
            return np.array(output["data"], dtype="f4").reshape(output["shape"])

        with ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(ask, batches))
        assert (server.get("/v2/models/m/config").json["max_batch_size"] > 0) is batched
    for rows, answer in zip(batches, answers, strict=True):
        expected = session.run(None, {"x": rows})[0]
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_an_output_that_is_declared_as_one_row_has_a_row_for_each(tmp_path):
    """Some exporters of trees declare the labels so."""
    x, y = onnx_models.value("x", "FP32", ["rows", 3]), onnx_models.value("y", "FP32", [1, 3])
    path = tmp_path / "m" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(onnx_models.model([helper.make_node("Neg", ["x"], ["y"])], [x], [y]))
    with serving(repository=tmp_path) as server:
        assert server.get("/v2/models/m").json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]

        def ask(rows):
            data = list(range(3 * rows))
            tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 3], "data": data}
            (output,) = server.post("/v2/models/m/infer", {"inputs": [tensor]}).json["outputs"]
            assert (output["shape"], output["data"]) == ([rows, 3], [-value for value in data])

        with ThreadPoolExecutor(CLIENTS) as clients:
            assert len(list(clients.map(ask, [1, 2, 3, 150] * 20))) == 80
