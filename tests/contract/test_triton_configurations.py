"""Configurations as people write them for Triton's ONNX Runtime backend: all that mean something on a CPU are served.

Each is of a kind that public repositories have, in words of its own, with a tiny graph of the same inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_models
import pytest
from onnx import helper, numpy_helper
from support import Server, inference, serving, tensor, wait_for

OPEN = 3  # elements of an open dimension that is not the batch


@dataclass(frozen=True)
class Case:
    """A configuration, and the inputs and outputs of its graph: ``NAME DATATYPE DIM,DIM...``, N for an open batch."""

    config: str
    inputs: str = "x FP32 N,4"
    outputs: str = "y FP32 N,2"


IMAGE, CLASSES = "image FP32 N,3,8,8", "scores FP32 N,10"
IMAGE_CONFIG = """
input [ { name: "image" data_type: TYPE_FP32 dims: [ 3, 8, 8 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 10 ] } ]
"""
BERT = "input_ids INT64 N,?; attention_mask INT64 N,?; token_type_ids INT64 N,?"


def image(rest: str, rows: int = 8) -> Case:
    """An image classifier with further fields."""
    return Case(f'platform: "onnxruntime_onnx"\nmax_batch_size: {rows}\n{IMAGE_CONFIG}\n{rest}', IMAGE, CLASSES)


CASES: dict[str, Case] = {
    # --- Names, notations, files
    "platform": image(""),
    "backend": Case(f'backend: "onnxruntime"\nmax_batch_size: 16{IMAGE_CONFIG}', IMAGE, CLASSES),
    "named": Case(f'name: "named"\nbackend: "onnxruntime"\nmax_batch_size: 4{IMAGE_CONFIG}', IMAGE, CLASSES),
    "almost_nothing": Case('backend: "onnxruntime"\nmax_batch_size: 32'),
    "commas": Case(
        'name: "commas"; platform: "onnxruntime_onnx"; max_batch_size : 4,\n# an input\ninput: [\n  {\n\t name: "x",\n'
        "\t data_type: TYPE_FP32,\n\t dims: [ 4 ]\n  }\n]\n"
        'output: { name: "y", data_type: TYPE_FP32, dims: 2 }'),
    "file": image('default_model_filename: "model.onnx"'),
    "nothing_else": image('runtime: ""\nmodel_transaction_policy { decoupled: false }'),
    "labels": Case(
        'platform: "onnxruntime_onnx"\nmax_batch_size: 0\n'
        'input { name: "image" data_type: TYPE_FP32 dims: [ -1, 3, 8, 8 ] }\n'
        'output { name: "scores" data_type: TYPE_FP32 dims: [ -1, 10 ] label_filename: "classes.txt" }',
        IMAGE, CLASSES),
    # --- Versions
    "specific_version": image("version_policy: { specific { versions: 1 } }"),
    "all_versions": image("version_policy { all { } }"),
    "two_versions": image("version_policy: { latest { num_versions: 2 } }"),
    # --- GPUs
    "gpu": image("instance_group [ { count: 1 kind: KIND_GPU gpus: [ 0 ] } ]"),
    "gpus": image("instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]"),
    "gpu_by_kind": image("instance_group { kind: KIND_GPU }"),
    "both_kinds": image("instance_group [ { kind: KIND_GPU count: 1 gpus: 0 }, { kind: KIND_CPU count: 2 } ]"),
    "groups": image("instance_group [ { count: 4 kind: KIND_CPU name: \"cpu\" } ]"),
    "tensorrt": image("""
        optimization { execution_accelerators { gpu_execution_accelerator : [ {
          name : "tensorrt"
          parameters { key: "precision_mode" value: "FP16" }
          parameters { key: "max_workspace_size_bytes" value: "1073741824" }
          parameters { key: "trt_engine_cache_enable" value: "true" }
        } ] } }"""),
    "openvino": image('optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }'),
    "cuda_provider": image('optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" } ] } }'
                           '\nparameters { key: "cudnn_conv_algo_search" value: { string_value: "1" } }\n'
                           'parameters { key: "gpu_mem_limit" value: { string_value: "4294967200" } }'),
    "cuda_graphs": image("""
        optimization { cuda { graphs: true busy_wait_events: true graph_spec {
          batch_size: 4 input { key: "image" value { dim: [ 3, 8, 8 ] } } graph_lower_bound { batch_size: 1 } } } }"""),
    "profile": image('instance_group [ { kind: KIND_GPU profile: [ "0" ] host_policy: "numa_0" '
                     'secondary_devices [ { kind: KIND_NVDLA device_id: 0 } ] } ]'),
    "rate_limit": image('instance_group [ { count: 1 rate_limiter { resources [ { name: "R1" count: 4 }, '
                        '{ name: "R2" global: true count: 2 } ] priority: 2 } } ]'),
    "optimized": image("optimization { priority: PRIORITY_MAX gather_kernel_buffer_threshold: 2 eager_batching: true "
                       "graph { level: 1 } }"),
    "pinned": image("optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }"),
    # --- Batches and queues
    "dynamic": image("dynamic_batching { }"),
    "preferred": image("dynamic_batching {\n preferred_batch_size: [ 4, 8 ]\n max_queue_delay_microseconds: 100\n}"),
    "preferred_one": image("dynamic_batching { preferred_batch_size: 8 preserve_ordering: true }"),
    "priorities": image("dynamic_batching { priority_levels: 3 default_priority_level: 2 }"),
    "queue": image("""dynamic_batching { default_queue_policy {
        timeout_action: REJECT default_timeout_microseconds: 5000000
        allow_timeout_override: true max_queue_size: 64 } }"""),
    "delay": image("""dynamic_batching { default_queue_policy {
        timeout_action: DELAY default_timeout_microseconds: 100000 allow_timeout_override: false } }"""),
    "queues": image("""dynamic_batching { priority_levels: 2 default_priority_level: 2
        priority_queue_policy { key: 1 value: { max_queue_size: 4 default_timeout_microseconds: 900000 } }
        priority_queue_policy { key: 2 value: { timeout_action: DELAY default_timeout_microseconds: 1000 } } }"""),
    "unbatched_dynamic": Case(
        'backend: "onnxruntime"\nmax_batch_size: 0\n'
        'input: [ { name: "input_ids", data_type: TYPE_INT64, dims: [ -1, 6 ] } ]\n'
        'output: [ { name: "pooled", data_type: TYPE_FP16, dims: [ -1 ] } ]\n'
        "dynamic_batching { max_queue_delay_microseconds: 10 }\ninstance_group [ { count: 4 kind: KIND_GPU } ]",
        "input_ids INT64 N,6", "pooled FP16 N"),
    "cache": image("response_cache { enable: true }"),
    "tags": image('metric_tags { key: "team" value: "search" }\nmetric_tags { key: "stage" value: "canary" }'),
    # --- Shapes
    "reshaped_input": Case(
        'platform: "onnxruntime_onnx"\nmax_batch_size : 0\n'
        'input [ { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 8, 8 ] '
        "reshape { shape: [ 1, 3, 8, 8 ] } } ]\n"
        'output [ { name: "fc6_1" data_type: TYPE_FP32 dims: [ 10 ] reshape { shape: [ 1, 10, 1, 1 ] } } ]',
        "data_0 FP32 1,3,8,8", "fc6_1 FP32 1,10,1,1"),
    "reshaped_rows": Case(
        'backend: "onnxruntime"\nmax_batch_size: 8\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 12 ] reshape { shape: [ 3, 4 ] } } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]',
        "x FP32 N,3,4", "y FP32 N"),
    "reshaped_scalar": Case(
        'backend: "onnxruntime"\nmax_batch_size: 0\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] },'
        ' { name: "threshold" data_type: TYPE_FP32 dims: [ 1 ] reshape { shape: [ ] } } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]',
        "x FP32 4; threshold FP32 ", "y FP32 2"),
    "reshaped_open": Case(
        'backend: "onnxruntime"\nmax_batch_size: 4\n'
        'input [ { name: "audio" data_type: TYPE_FP32 dims: [ -1 ] reshape { shape: [ 1, -1 ] } } ]\n'
        'output [ { name: "logits" data_type: TYPE_FP32 dims: [ -1, 2, 5 ] reshape { shape: [ -1, 10 ] } } ]',
        "audio FP32 N,1,?", "logits FP32 N,?,10"),
    "one_row": Case(
        'platform: "onnxruntime_onnx"\nmax_batch_size: 1\n' + IMAGE_CONFIG, "image FP32 1,3,8,8", "scores FP32 1,10"),
    "row_by_row": Case(
        'platform: "onnxruntime_onnx"\nmax_batch_size: 8\n' + IMAGE_CONFIG + "dynamic_batching { }",
        "image FP32 1,3,8,8", "scores FP32 1,10"),
    "detector": Case(
        'backend: "onnxruntime"\ninput [ { name: "images" data_type: TYPE_FP32 dims: [ 1, 3, 16, 16 ] } ]\n'
        'output [ { name: "output0" data_type: TYPE_FP32 dims: [ 1, 84, 6 ] } ]',
        "images FP32 1,3,16,16", "output0 FP32 1,84,6"),
    "channels_last": Case(
        'platform: "onnxruntime_onnx"\nmax_batch_size: 4\n'
        'input [ { name: "input_images:0" data_type: TYPE_UINT8 format: FORMAT_NHWC dims: [ -1, -1, 3 ] } ]\n'
        'output [ { name: "feature/Sigmoid:0" data_type: TYPE_FP32 dims: [ -1, -1, 1 ] } ]',
        "input_images:0 UINT8 N,?,?,3", "feature/Sigmoid:0 FP32 N,?,?,1"),
    "bert": Case(
        'name: "bert"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 64\ninput [\n'
        + ",\n".join(f'{{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}'
                     for name in ("input_ids", "attention_mask", "token_type_ids"))
        + ']\noutput [ { name: "last_hidden_state" data_type: TYPE_FP32 dims: [ -1, 16 ] },\n'
        '{ name: "pooler_output" data_type: TYPE_FP32 dims: [ 16 ] } ]\n'
        "dynamic_batching { max_queue_delay_microseconds: 5000 }",
        BERT, "last_hidden_state FP32 N,?,16; pooler_output FP32 N,16"),
    "bert_whole": Case(
        'backend: "onnxruntime"\nmax_batch_size: 0\ninput [\n'
        '{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1, -1 ] },\n'
        '{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1, -1 ] },\n'
        '{ name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1, -1 ] } ]\n'
        'output [ { name: "embedding" data_type: TYPE_FP32 dims: [ -1, 16 ] } ]',
        BERT, "embedding FP32 N,16"),
    "strings": Case(
        'backend: "onnxruntime"\nmax_batch_size: 0\n'
        'input [ { name: "text" data_type: TYPE_STRING dims: [ -1, 1 ] } ]\n'
        'output [ { name: "label" data_type: TYPE_INT64 dims: [ -1 ] } ]',
        "text BYTES N,1", "label INT64 N"),
    "datatypes": Case(
        'backend: "onnxruntime"\nmax_batch_size: 2\n'
        'input [ { name: "a" data_type: TYPE_FP16 dims: [ 2 ] }, { name: "b" data_type: TYPE_BOOL dims: [ 2 ] },'
        ' { name: "c" data_type: TYPE_INT8 dims: [ 2 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP64 dims: [ 1 ] } ]',
        "a FP16 N,2; b BOOL N,2; c INT8 N,2", "y FP64 N,1"),
    # --- Parameters and warm-up
    "threads": image('parameters { key: "intra_op_thread_count" value: { string_value: "2" } }\n'
                     'parameters { key: "inter_op_thread_count" value: { string_value: "1" } }'),
    "warm": image("""model_warmup [ { name: "zeros" batch_size: 4
        inputs { key: "image" value: { data_type: TYPE_FP32 dims: [ 3, 8, 8 ] zero_data: true } } } ]"""),
    "warm_reshaped": Case(
        'backend: "onnxruntime"\nmax_batch_size: 8\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 12 ] reshape { shape: [ 3, 4 ] } } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]\n'
        'model_warmup { name: "random" batch_size: 2 count: 2 '
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: 12 random_data: true } } }',
        "x FP32 N,3,4", "y FP32 N,2"),
}  # fmt: skip

REFUSED = {
    "sequences": image("sequence_batching { max_sequence_idle_microseconds: 5000000 }"),
    "agents": image('model_repository_agents { agents [ { name: "checksum" } ] }'),
    "decoupled": image("model_transaction_policy { decoupled: true }"),
    "ragged": Case('max_batch_size: 4\ninput { name: "x" data_type: TYPE_FP32 dims: 4 allow_ragged_batch: true }'),
    "passive": image("instance_group { passive: true }"),
    "wrong_reshape": Case('max_batch_size: 4\n'
                          'input { name: "x" data_type: TYPE_FP32 dims: 5 reshape { shape: [ 2, 2 ] } }'),
    "other_reshape": Case('max_batch_size: 4\n'
                          'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [ 2, 2 ] } }'),
    "priority": image("dynamic_batching { priority_levels: 1 default_priority_level: 1 "
                      "priority_queue_policy { key: 2 value { } } }"),
    "tag": image('metric_tags { key: "model" value: "x" }'),
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    name: str
    datatype: str
    dims: tuple[str, ...]

    @property
    def shape(self) -> list[int | str | None]:
        return ["batch" if dim == "N" else None if dim == "?" else int(dim) for dim in self.dims]

    @property
    def row(self) -> list[int]:
        """The dimensions after the batch, if there is one."""
        return [OPEN if dim == "?" else int(dim) for dim in self.dims if dim != "N"]


def specs(text: str) -> list[Spec]:
    """Reads ``NAME DATATYPE DIM,DIM; ...``."""
    parts = [each.strip().split(" ") for each in text.split(";")]
    return [Spec(name, datatype, tuple(dims[0].split(",")) if dims else ()) for name, datatype, *dims in parts]


def graph(case: Case) -> bytes:
    """A model with these inputs and outputs; an output's rows are those of the first input, its elements are 1."""
    inputs, outputs = specs(case.inputs), specs(case.outputs)
    nodes = [helper.make_node("Shape", [inputs[0].name], ["shape"]),
             helper.make_node("Slice", ["shape", "zero", "one"], ["rows"])]  # fmt: skip
    constants = [numpy_helper.from_array(np.array([number]), name) for number, name in enumerate(("zero", "one"))]
    for number, spec in enumerate(outputs):
        constants.append(numpy_helper.from_array(np.array(spec.row, np.int64), f"row{number}"))
        parts = ["rows", f"row{number}"] if "N" in spec.dims else [f"row{number}"]
        one = helper.make_tensor("one", onnx_models.ONNX_TYPES[spec.datatype], [1], [1])
        nodes += [helper.make_node("Concat", parts, [f"dims{number}"], axis=0),
                  helper.make_node("ConstantOfShape", [f"dims{number}"], [spec.name], value=one)]  # fmt: skip
    return onnx_models.model(
        nodes,
        [onnx_models.value(each.name, each.datatype, each.shape) for each in inputs],
        [onnx_models.value(each.name, each.datatype, each.shape) for each in outputs],
        constants,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    for name, case in {**CASES, **REFUSED}.items():
        for version in ("1", "2") if name in ("all_versions", "two_versions") else ("1",):
            (repository / name / version).mkdir(parents=True)
            (repository / name / version / "model.onnx").write_bytes(graph(case))
        (repository / name / "config.pbtxt").write_text(case.config)
        (repository / name / "classes.txt").write_text("\n".join(f"class {number}" for number in range(10)))
    with serving("--no-strict-readiness", repository=repository) as server:
        yield server


def value(datatype: str) -> Any:
    return {"BYTES": "a", "BOOL": True}.get(datatype, 1)


def ask(server: Server, name: str, rows: int) -> dict[str, Any]:
    """An inference request of this many rows, as the metadata describes it; returns the outputs by name."""
    metadata = server.get(f"/v2/models/{name}").json
    batched = bool(server.get(f"/v2/models/{name}/config").json["max_batch_size"])
    tensors = []
    for each in metadata["inputs"]:
        shape = [OPEN if dim == -1 else dim for dim in each["shape"]]
        if batched:
            shape[0] = rows
        data = [value(each["datatype"])] * int(np.prod(shape))
        tensors.append(tensor(each["name"], shape, each["datatype"], data))
    answer = server.infer(name, inference(*tensors))
    assert answer.status == 200, answer.body
    return {each["name"]: each for each in answer.json["outputs"]}


def test_there_are_enough() -> None:
    assert len(CASES) >= 46


@pytest.mark.parametrize("name", CASES)
def test_it_serves(server: Server, name: str) -> None:
    config = server.get(f"/v2/models/{name}/config")
    assert config.status == 200, server.post(f"/v2/models/{name}/load").body
    rows = min(config.json["max_batch_size"] or 1, 2)
    outputs = ask(server, name, rows)
    metadata = server.get(f"/v2/models/{name}").json
    assert list(outputs) == [each["name"] for each in metadata["outputs"]]
    for each in metadata["outputs"]:
        shape = outputs[each["name"]]["shape"]
        assert len(shape) == len(each["shape"])
        assert all(dim in (shown, -1) or shown == -1 for dim, shown in zip(shape, each["shape"], strict=True))
        assert not config.json["max_batch_size"] or shape[0] == rows


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(server: Server, name: str) -> None:
    answer = server.post(f"/v2/models/{name}/load")
    assert answer.status == 400
    words = {
        "sequences": "field 'sequence_batching' is not supported",
        "agents": "field 'model_repository_agents' is not supported",
        "decoupled": "model_transaction_policy.decoupled",
        "ragged": "input[0].allow_ragged_batch",
        "passive": "instance_group[0].passive",
        "wrong_reshape": "the dims [5] and the reshape's [2, 2] have different numbers of elements",
        "other_reshape": "input 'x' has the shape [4], but is configured as [2, 2]",
        "priority": "priority_queue_policy names priority 2 of 1",
        "tag": '"model" cannot be the name of a metric\'s label',
    }
    assert words[name] in answer.error


# --- What the fields do -----------------------------------------------------------------------------------------------


def test_devices_that_are_not_here_are_named_in_one_warning(server: Server) -> None:
    warning = "runs on the CPU; these fields have no effect:"
    fields = {
        "gpu": "instance_group.kind KIND_GPU, instance_group.gpus",
        "cuda_provider": "parameters.cudnn_conv_algo_search, parameters.gpu_mem_limit, "
        "optimization.execution_accelerators",
        "optimized": "optimization.gather_kernel_buffer_threshold, optimization.eager_batching, optimization.priority",
        "rate_limit": "instance_group.rate_limiter",
        "cache": "response_cache",
    }
    for name, named in fields.items():
        wait_for(lambda name=name, named=named: server.log.count(f"model '{name}' {warning} {named}\n") == 1)
    for name in ("platform", "pinned", "groups", "queues", "threads"):
        assert f"model '{name}' {warning}" not in server.log
    group = server.get("/v2/models/gpus/config").json["instance_group"]
    assert [(each["kind"], each["gpus"], each["count"]) for each in group] == [("KIND_CPU", [], 2)]


def test_a_reshape_is_seen_by_clients(server: Server) -> None:
    metadata = server.get("/v2/models/reshaped_rows").json
    assert [metadata[key][0]["shape"] for key in ("inputs", "outputs")] == [[-1, 12], [-1, 1]]
    config = server.get("/v2/models/reshaped_rows/config").json
    assert (config["input"][0]["dims"], config["input"][0]["reshape"]) == ([12], {"shape": [3, 4]})
    assert ask(server, "reshaped_rows", 3)["y"]["shape"] == [3, 1]
    assert ask(server, "reshaped_open", 2)["logits"]["shape"] == [2, OPEN, 2, 5]
    assert ask(server, "reshaped_input", 1)["fc6_1"]["shape"] == [10]
    answer = server.infer("reshaped_rows", inference(tensor("x", [1, 3, 4], "FP32", [1] * 12)))
    assert answer.error == "unexpected shape for input 'x' for model 'reshaped_rows'. Expected [-1,12], got [1,3,4]"
    assert ask(server, "reshaped_scalar", 1)["y"]["shape"] == [2]


def test_a_fixed_batch_runs_row_by_row(server: Server) -> None:
    config = server.get("/v2/models/row_by_row/config").json
    assert config["max_batch_size"] == 8
    before = server.get("/v2/models/row_by_row/stats").json["model_stats"][0]["execution_count"]
    assert ask(server, "row_by_row", 5)["scores"]["shape"] == [5, 10]
    after = server.get("/v2/models/row_by_row/stats").json["model_stats"][0]["execution_count"]
    assert after - before == 5
    answer = server.infer("row_by_row", inference(tensor("image", [9, 3, 8, 8], "FP32", [1] * 9 * 192)))
    assert answer.error == "inference request batch-size must be <= 8 for 'row_by_row'"


def test_tags_are_labels_of_the_metrics(server: Server) -> None:
    ask(server, "tags", 1)
    labels = 'model="tags",version="1",stage="canary",team="search"'
    lines = [line for line in server.metrics().splitlines() if 'model="tags"' in line]
    assert lines
    assert all(labels in line for line in lines)
    assert server.get("/v2/models/tags/config").json["metric_tags"] == {"team": "search", "stage": "canary"}


def test_scalars_are_sent_in_any_form(server: Server) -> None:
    x = tensor("x", [4], "FP32", [1, 2, 3, 4])
    for threshold in (
        tensor("threshold", [1], "FP32", [0.5]),
        tensor("threshold", [], "FP32", [0.5]),
        tensor("threshold", [], "FP32", 0.5),
        tensor("threshold", [1], "FP32", 0.5),
        {"data": 0.5, "name": "threshold", "shape": [1], "datatype": "FP32"},
    ):
        answer = server.infer("reshaped_scalar", inference(x, threshold))
        assert answer.status == 200, (threshold, answer.body)
    answer = server.infer("reshaped_scalar", inference(x, tensor("threshold", [2], "FP32", [0.5, 1])))
    assert answer.status == 400
