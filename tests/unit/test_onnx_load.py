"""Loading: what a model's signature is, and when its rows may share a batch."""

import logging
import re

import numpy as np
import onnx_models
import pytest
from onnx import helper

from fastinfer.config.model import ModelConfig
from fastinfer.config.server import ServerConfig
from fastinfer.errors import ApiError
from fastinfer.workers import onnx_load

SERVER = ServerConfig(load_run_timeout_s=1)


def load(tmp_path, model, **config):
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model)
    return onnx_load.load(path, ModelConfig(name="m", **config), "m", {}, SERVER)[1]


def node_model(op, shape=("batch", 4), out=None, datatype="FP32", **attributes):
    x, y = onnx_models.value("x", datatype, shape), onnx_models.value("y", datatype, out or shape)
    return onnx_models.model([helper.make_node(op, ["x"], ["y"], **attributes)], [x], [y])


@pytest.mark.parametrize(
    "model",
    [
        onnx_models.simple(),
        onnx_models.mlp(),
        onnx_models.identity("BYTES"),
        onnx_models.identity("BOOL"),
        onnx_models.identity("BF16"),
        onnx_models.identity("INT64", ("batch",)),
        node_model("Softmax", axis=1),
    ],
    ids=["simple", "mlp", "bytes", "bool", "bf16", "rank-1", "softmax-1"],
)
def test_rows_that_are_independent_are_batched(tmp_path, model):
    signature = load(tmp_path, model)
    assert signature.batched
    assert (signature.max_batch_size, signature.max_batch_size_configured) == (64, False)


def minus_mean():
    """y = x - mean(x over the batch)."""
    x, y = onnx_models.value("x", "FP32", ["batch", 4]), onnx_models.value("y", "FP32", ["batch", 4])
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    return onnx_models.model(nodes, [x], [y])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (node_model("Softmax", axis=0), "depends on the rows beside it"),
        (minus_mean(), "depends on the rows beside it"),
        (onnx_models.batch_mean(), "symbolic first dimension"),
        (onnx_models.scalar_sum(), "symbolic first dimension"),
        (onnx_models.identity("FP32", (2, 3)), "symbolic first dimension"),
        (onnx_models.identity("FP32", (None, 3)), "symbolic first dimension"),
        (onnx_models.nonzero(), "symbolic first dimension"),
        (onnx_models.endless(), "took longer than 1 s"),
    ],
    ids=["softmax-0", "minus-mean", "mean", "sum", "fixed", "unnamed", "nonzero", "endless"],
)
def test_rows_that_may_not_be_independent_are_not_batched_and_the_log_says_why(tmp_path, caplog, model, reason):
    caplog.set_level(logging.INFO)
    signature = load(tmp_path, model)
    assert not signature.batched
    assert caplog.records
    assert re.search(reason, caplog.records[-1].getMessage())


def test_a_configured_batch_size_is_the_operators_word_and_only_warns(tmp_path, caplog):
    signature = load(tmp_path, node_model("Softmax", axis=0), max_batch_size=8)
    assert (signature.batched, signature.max_batch_size, signature.max_batch_size_configured) == (True, 8, True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not load(tmp_path, onnx_models.simple(), max_batch_size=0).batched


def test_a_batch_size_needs_an_open_first_dimension(tmp_path):
    with pytest.raises(ApiError, match="open first dimension"):
        load(tmp_path, onnx_models.identity("FP32", (2, 3)), max_batch_size=8)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([{"name": "nope", "data_type": "TYPE_INT32", "dims": [16]}], "names input 'nope'"),
        ([{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [16]}], "is INT32, but configured as FP32"),
        ([{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [8]}], r"has the shape \[16\]"),
        ([{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [-1, 16]}], r"has the shape \[16\]"),
    ],
)
def test_a_configuration_that_does_not_fit_the_graph_is_refused(tmp_path, inputs, sentence):
    with pytest.raises(ApiError, match=sentence) as caught:
        load(tmp_path, onnx_models.simple(), max_batch_size=8, input=inputs)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda m: m[: len(m) // 2], lambda _: b"nothing"], ids=["empty", "cut", "text"]
)
def test_a_damaged_file_is_refused_without_its_path(tmp_path, damage):
    with pytest.raises(ApiError) as caught:
        load(tmp_path, damage(onnx_models.mlp()))
    assert caught.value.status == 400
    assert str(tmp_path) not in caught.value.message


def warmup(**given):
    inputs = {name: {"data_type": "TYPE_INT32", "dims": [16], **given} for name in ("INPUT0", "INPUT1")}
    return [{"name": "w", "batch_size": 2, "count": 2, "inputs": inputs}]


def test_warm_up_runs_what_is_configured(tmp_path):
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "rows").write_bytes(np.arange(32, dtype="<i4").tobytes())
    for given in ({"zero_data": True}, {"random_data": True}, {"input_data_file": "rows"}):
        load(tmp_path, onnx_models.simple(), max_batch_size=4, model_warmup=warmup(**given))
    for given in (
        {"input_data_file": "missing"},
        {"zero_data": True, "data_type": "TYPE_FP32"},
        {"zero_data": True, "dims": [3]},
    ):
        with pytest.raises(ApiError):
            load(tmp_path, onnx_models.simple(), max_batch_size=4, model_warmup=warmup(**given))


def test_a_warm_up_that_never_ends_is_ended(tmp_path):
    inputs = {"x": {"data_type": "TYPE_FP32", "dims": [4, 1], "zero_data": True}}
    with pytest.raises(ApiError, match="took too long"):
        load(tmp_path, onnx_models.endless(), max_batch_size=0, model_warmup=[{"name": "w", "inputs": inputs}])
