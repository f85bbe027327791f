"""Loading: what a model's signature is, and when its rows may share a batch."""

import itertools
import logging
import os
import re

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import helper, numpy_helper

from fastinfer.backends.onnx import load as onnx_load
from fastinfer.backends.onnx import trial as onnx_trial
from fastinfer.backends.onnx.graph import outline
from fastinfer.backends.onnx.graph.rows import Proof
from fastinfer.backends.onnx.settings import SessionSettings
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ModelConfig
from fastinfer.config.server import ServerConfig

SERVER = ServerConfig(load_run_timeout_s=1)


def load(tmp_path, model, server=SERVER, **config):
    return loaded(tmp_path, model, server, **config).signature


def loaded(tmp_path, model, server=SERVER, **config):
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model)
    return onnx_load.load(path, model, ModelConfig(name="m", **config), "m", SessionSettings(), server)


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
        onnx_models.identity("FP32", (None, 3)),
        node_model("Softmax", axis=1),
    ],
    ids=["simple", "mlp", "bytes", "bool", "bf16", "rank-1", "unnamed", "softmax-1"],
)
def test_rows_that_are_independent_are_batched(tmp_path, model):
    signature = load(tmp_path, model)
    assert signature.batched
    assert (signature.max_batch_size, signature.max_batch_size_configured) == (64, False)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def slow():
    """A product of matrices, many times: seconds, in a graph that proves rows apart."""
    x, y = (onnx_models.value(name, "FP32", ["batch", 512, 512]) for name in "xy")
    names = ["x", *(f"p{i}" for i in range(999)), "y"]
    return onnx_models.model(
        [helper.make_node("MatMul", [a, "x"], [b]) for a, b in itertools.pairwise(names)], [x], [y]
    )


def minus_mean():
    """y = x - mean(x over the batch)."""
    x, y = onnx_models.value("x", "FP32", ["batch", 4]), onnx_models.value("y", "FP32", ["batch", 4])
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    return onnx_models.model(nodes, [x], [y])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (node_model("Softmax", axis=0), "operator 'Softmax' normalizes over the batch dimension"),
        (minus_mean(), "operator 'ReduceMean' reduces over the batch dimension"),
        (onnx_models.batch_mean(), "operator 'ReduceMean' reduces over the batch dimension"),
        (onnx_models.scalar_sum(), "operator 'ReduceSum' reduces over the batch dimension"),
        (onnx_models.identity("FP32", (2, 3)), "without an open first dimension"),
        (onnx_models.identity("FP32", ("n", "n")), "'n' is also another one"),
        (onnx_models.nonzero(), "operator 'NonZero' lists what it finds in all rows"),
        (onnx_models.endless(), "operator 'Loop' runs an unknown number of times"),
        (slow(), "took longer than 1 s"),
    ],
    ids=["softmax-0", "minus-mean", "mean", "sum", "fixed", "square", "nonzero", "endless", "slow"],
)
def test_rows_that_may_not_be_independent_are_not_batched_and_the_log_says_why(tmp_path, caplog, model, reason):
    caplog.set_level(logging.INFO)
    found = loaded(tmp_path, model)
    assert not found.signature.batched
    said = [record.getMessage() for record in caplog.records] + [f"model 'm' {note}" for note in found.notes]
    assert re.search(f"model 'm' is not batched: .*{reason}", said[-1])


def test_a_configured_batch_size_is_the_operators_word_and_only_warns(tmp_path, caplog):
    signature = load(tmp_path, node_model("Softmax", axis=0), max_batch_size=8)
    assert (signature.batched, signature.max_batch_size, signature.max_batch_size_configured) == (True, 8, True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "max_batch_size is 8, but operator 'Softmax' normalizes over the batch" in caplog.text
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


def test_outputs_that_are_declared_as_one_row_are_batched_if_they_are_not(tmp_path):
    declared = load(tmp_path, node_model("Relu", out=(1, 4)))
    assert declared.batched
    assert [spec.shape for spec in declared.outputs] == [(-1, 4)]


# --- The trial: what a wrong rule of the table lets through -----------------------------------------------------------


def coupled_by(*nodes, datatype="FP32", shape=("batch", 8), constants=()):
    x, y = onnx_models.value("x", datatype, shape), onnx_models.value("y", datatype, shape)
    return onnx_models.model([helper.make_node(op, ins, outs, **a) for op, ins, outs, a in nodes], [x], [y], constants)


LARGEST = coupled_by(
    ("ReduceMax", ["x"], ["m"], {"keepdims": 0}), ("Sub", ["x", "m"], ["y"], {}), datatype="INT64", shape=("batch", 64)
)
CLIPPED = coupled_by(
    ("Clip", ["x", "zero", "one"], ["c"], {}),
    ("DynamicQuantizeLinear", ["c"], ["q", "scale", "point"], {}),
    ("DequantizeLinear", ["q", "scale", "point"], ["y"], {}),
    constants=[constant("zero", np.float32(0)), constant("one", np.float32(1))],
)


@pytest.mark.parametrize("model", [LARGEST, CLIPPED, minus_mean()], ids=["largest", "clipped", "mean"])
def test_the_trial_finds_by_itself_what_the_graph_shows(tmp_path, monkeypatch, model):
    assert "operator" in loaded(tmp_path, model).why_alone
    monkeypatch.setattr(outline, "prove", lambda *_, **__: Proof(None))
    assert "output 'y' of a row depends on" in loaded(tmp_path, model).why_alone


def test_ids_stay_in_their_table_and_are_tried_up_to_its_end(tmp_path, monkeypatch):
    seen = []
    run = onnx_trial.Runs.run
    monkeypatch.setattr(onnx_trial.Runs, "run", lambda self, arrays: seen.append(arrays[0]) or run(self, arrays))
    table = np.arange(40, dtype=np.float32).reshape(20, 2)
    x, y = onnx_models.value("x", "INT64", ["batch", 64]), onnx_models.value("y", "FP32", ["batch", 64, 2])
    model = onnx_models.model([helper.make_node("Gather", ["t", "x"], ["y"])], [x], [y], [constant("t", table)])
    assert load(tmp_path, model).batched
    assert max(int(array.max()) for array in seen) == 19


def test_exact_batching_wants_the_same_bits_by_proof(tmp_path):
    exact = SERVER.model_copy(update={"batching": "exact"})
    assert load(tmp_path, onnx_models.simple(), exact).batched
    alone = loaded(tmp_path, onnx_models.mlp(), exact)
    assert not alone.signature.batched
    assert re.search("'(MatMul|Gemm)' may round a row otherwise in a batch", alone.why_alone)
    assert load(tmp_path, onnx_models.mlp(), exact, batching="auto").batched
    assert not load(tmp_path, onnx_models.mlp(), batching="exact").batched


def test_exact_batching_lets_requests_of_a_configured_model_run_alone(tmp_path):
    path = tmp_path / "1" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(onnx_models.mlp())
    for batching, combines in (("exact", False), ("auto", True)):
        config = ModelConfig(name="m", max_batch_size=8, batching=batching)
        loaded = onnx_load.load(path, path.read_bytes(), config, "m", SessionSettings(), SERVER)
        assert loaded.signature.batched
        assert loaded.combines is combines


# --- Files that would take the interpreter for long ------------------------------------------------------------------


def doubling(levels):
    """Functions of which each calls the one before it twice: as many operators as 2 to that power."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    functions = []
    for level in range(levels):
        op, domain = (f"F{level - 1}", "d") if level else ("Neg", "")
        nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in ("ab", "bc")]
        functions.append(helper.make_function("d", f"F{level}", ["a"], ["c"], nodes, opsets))
    x, y = (onnx_models.value(name, "FP32", ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node(f"F{levels - 1}", ["x"], ["y"], domain="d")], "g", [x], [y])
    made = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)
    return made.SerializeToString()


def test_functions_that_come_to_too_many_operators_are_refused(tmp_path):
    assert load(tmp_path, doubling(4)).batched
    with pytest.raises(ApiError, match="functions expand to more than 200000 operators"):
        load(tmp_path, doubling(40))


@pytest.mark.parametrize("count", [1024, 1025])
def test_as_many_inputs_as_a_request_may_have(tmp_path, count):
    names = [f"x{i}" for i in range(count)]
    inputs = [onnx_models.value(name, "FP32", ["batch", 1]) for name in names]
    model = onnx_models.model([helper.make_node("Sum", names, ["y"])], inputs, [onnx_models.value("y", "FP32", None)])
    if count > 1024:
        with pytest.raises(ApiError, match="has 1025 inputs, at most 1024"):
            load(tmp_path, model)
    else:
        assert len(load(tmp_path, model, max_batch_size=0).inputs) == count


@pytest.mark.parametrize("size", [4096, 4097])
def test_names_as_long_as_a_request_may_name(tmp_path, size):
    name = "x" * size
    values = [onnx_models.value(name, "FP32", ["batch", 1]), onnx_models.value("y", "FP32", ["batch", 1])]
    model = onnx_models.model([helper.make_node("Neg", [name], ["y"])], values[:1], values[1:])
    if size > 4096:
        with pytest.raises(ApiError, match=r"the name 'x{60}\.\.\.' is longer than 4096 bytes"):
            load(tmp_path, model)
    else:
        assert load(tmp_path, model).inputs[0].name == name


def test_a_graph_of_too_many_fields_is_served_without_a_proof(tmp_path):
    made = onnx.load_from_string(onnx_models.identity("FP32"))
    graph = made.graph.SerializeToString() + b"\x6a\x00" * 200_000  # value_info, empty
    made.ClearField("graph")
    model = made.SerializeToString() + b"\x3a" + varint(len(graph)) + graph
    assert not load(tmp_path, model).batched


def varint(value):
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def test_external_data_in_what_is_no_file_is_not_waited_for(tmp_path):
    made = onnx.load_from_string(onnx_models.mlp())
    onnx.external_data_helper.convert_model_to_external_data(made, location="weights", size_threshold=0)
    (tmp_path / "1").mkdir()
    os.mkfifo(tmp_path / "1" / "weights")
    with pytest.raises(ApiError, match="'weights' is not a regular file"):
        load(tmp_path, made.SerializeToString())


def test_a_file_of_the_runtimes_own_format_is_refused_by_name(tmp_path):
    with pytest.raises(ApiError, match=r"own format .*; give the .onnx file that it was made from"):
        load(tmp_path, b"\x18\0\0\0ORTM" + bytes(100))
