"""A model's configuration in its three notations, and what is refused with which sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastinfer.config.model import ConfigError, ModelConfig, load
from fastinfer.config.model_schema import DATATYPES, NOT_SUPPORTED, triton_datatype


def write(tmp_path: Path, text: str | bytes, file: str = "config.toml") -> Path:
    directory = tmp_path / "m"
    directory.mkdir(exist_ok=True)
    (directory / file).write_bytes(text.encode() if isinstance(text, str) else text)
    return directory


def read(tmp_path: Path, text: str | bytes, file: str = "config.toml") -> ModelConfig:
    config = load(write(tmp_path, text, file), "m")
    assert config is not None
    return config


def refusal(tmp_path: Path, text: str | bytes, file: str = "config.toml") -> str:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text, file), "m")
    assert caught.value.status == 400
    assert str(tmp_path) not in str(caught.value)
    return str(caught.value)


# --- The notations ----------------------------------------------------------------------------------------------------

TOML = """
platform = "onnxruntime_onnx"
max_batch_size = 8
version_policy = { specific = { versions = [1, 3] } }
default_model_filename = "net.onnx"

[[input]]
name = "x"
data_type = "TYPE_FP32"
dims = [3, 224, 224]
format = "FORMAT_NCHW"

[[input]]
name = "y"
data_type = "TYPE_STRING"
dims = [-1]

[[output]]
name = "o"
data_type = "TYPE_FP16"
dims = [1000]
label_filename = "labels.txt"

[dynamic_batching]
preferred_batch_size = [4, 8]
max_queue_delay_microseconds = 100
priority_levels = 3
default_priority_level = 2
default_queue_policy = { max_queue_size = 5, default_timeout_microseconds = 7 }

[[instance_group]]
count = 2
kind = "KIND_CPU"

[[instance_group]]
count = 1

[optimization.graph]
level = 1

[parameters]
intra_op_thread_count = "2"
mine = { string_value = "v" }

[[model_warmup]]
name = "w"
batch_size = 2
[model_warmup.inputs]
x = { data_type = "TYPE_FP32", dims = [3, 224, 224], random_data = true }
y = { data_type = "TYPE_STRING", dims = [1], input_data_file = "y.bin" }
"""

PBTXT = """
platform: "onnxruntime_onnx"
max_batch_size: 8
version_policy: { specific: { versions: [1, 3] } }
default_model_filename: "net.onnx"
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] format: FORMAT_NCHW },
  { name: "y", data_type: TYPE_STRING, dims: -1 }
]
output { name: "o" data_type: TYPE_FP16 dims: 1000 label_filename: "labels.txt" }  # a comment
dynamic_batching {
  preferred_batch_size: [4, 8]
  max_queue_delay_microseconds: 100
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 5 default_timeout_microseconds: 7 }
}
instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 } ]
optimization { graph { level: 1 } }
parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
parameters: { key: "mine" value: { string_value: "v" } }
model_warmup [ {
  name: "w" batch_size: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [3, 224, 224] random_data: true } }
  inputs { key: "y" value { data_type: TYPE_STRING dims: 1 input_data_file: "y.bin" } }
} ]
"""


def test_toml_and_protobuf_text_say_the_same(tmp_path: Path) -> None:
    config = read(tmp_path, TOML)
    other = tmp_path / "other"
    other.mkdir()
    assert read(other, PBTXT, "config.pbtxt") == config


def test_what_the_fields_come_to(tmp_path: Path) -> None:
    config = read(tmp_path, TOML)
    assert config.name == "m"
    assert config.max_batch_size == 8
    assert [(tensor.name, tensor.datatype, tensor.dims) for tensor in config.inputs] == [
        ("x", "FP32", (3, 224, 224)),
        ("y", "BYTES", (-1,)),
    ]
    assert config.outputs[0].label_filename == "labels.txt"
    batching = config.dynamic_batching
    assert batching.preferred_batch_size == (4, 8)
    assert (batching.max_queue_size, batching.default_timeout_microseconds) == (5, 7)
    assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
    assert config.instances == 3
    assert config.parameters == {"intra_op_thread_count": "2", "mine": "v"}
    assert config.worker_parameters == {
        "graph_optimization_level": "extended",
        "intra_op_threads": "2",
        "mine": "v",
    }
    assert config.model_warmup[0].inputs["x"].random_data
    assert config.select_versions([3, 2, 1]) == [1, 3]


def test_without_a_file_there_is_no_configuration(tmp_path: Path) -> None:
    assert load(tmp_path, "m") is None


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    for file in ("config.toml", "config.pbtxt"):
        config = read(tmp_path, "", file)
        assert config == ModelConfig(name="m")
        assert config.max_batch_size is None
        assert config.instances == 1
        (tmp_path / "m" / file).unlink()


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (
            'name = "m"\nplatform = "onnx_onnxv1"\n[[inputs]]\nname = "a"\ndatatype = "FP32"\nshape = [28, 1]\n'
            '[[outputs]]\nname = "b"\ndatatype = "STRING"\nshape = [10]\n[parameters]\nk = 3',
            "config.toml",
        ),
        (
            'name: "m"\nplatform: "onnx_onnxv1"\ninputs [{ name: "a" datatype: "FP32" shape: [28, 1] }]\n'
            'outputs [{ name: "b" datatype: "STRING" shape: [10] }]\n'
            'parameters: { key: "k" value: { int64_param: 3 } }',
            "config.pbtxt",
        ),
    ],
)
def test_the_spelling_of_the_amd_inference_server(tmp_path: Path, text: str, file: str) -> None:
    config = read(tmp_path, text, file)
    assert [(t.name, t.datatype, t.dims) for t in config.inputs] == [("a", "FP32", (28, 1))]
    assert [(t.name, t.datatype, t.dims) for t in config.outputs] == [("b", "BYTES", (10,))]
    assert config.parameters == {"k": 3}


def test_every_datatype_in_every_notation(tmp_path: Path) -> None:
    for datatype in DATATYPES:
        triton = triton_datatype(datatype)
        for text, file in (
            (f'input = [{{ name = "a", data_type = "{triton}", dims = [] }}]', "config.toml"),
            (f'input {{ name: "a" data_type: {triton} dims: [] }}', "config.pbtxt"),
            (f'input {{ name: "a" datatype: "{datatype}" dims: [] }}', "config.pbtxt"),
        ):
            assert read(tmp_path, text, file).inputs[0].datatype == datatype
            (tmp_path / "m" / file).unlink()


def test_the_datatypes_are_those_of_the_data_plane() -> None:
    datatype = pytest.importorskip("fastinfer.tensor.datatype")
    assert sorted(datatype.NAMES) == sorted(DATATYPES)


@pytest.mark.parametrize(
    ("text", "existing", "chosen"),
    [
        ("", [1, 2, 10], [10]),
        ('version_policy = "all"', [10, 1, 2], [1, 2, 10]),
        ('version_policy = "latest"', [1, 2], [2]),
        ("version_policy = { all = {} }", [1, 2], [1, 2]),
        ("version_policy = {}", [1, 2], [2]),
        ("version_policy = { latest = { num_versions = 2 } }", [1, 2, 10], [2, 10]),
        ("version_policy = { latest = { num_versions = 9 } }", [1, 2], [1, 2]),
        ("version_policy = { specific = { versions = [1, 7] } }", [1, 2], [1]),
        ('version_policy = "all"', [], []),
        ("", [], []),
    ],
)
def test_version_policies(tmp_path: Path, text: str, existing: list[int], chosen: list[int]) -> None:
    assert read(tmp_path, text).select_versions(existing) == chosen


def test_a_single_preferred_size_needs_no_list(tmp_path: Path) -> None:
    config = read(tmp_path, "dynamic_batching = { preferred_batch_size = 4 }")
    assert config.dynamic_batching.preferred_batch_size == (4,)


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("maxbatch_size = 1", "unknown field 'maxbatch_size'; did you mean 'max_batch_size'?"),
        ("[dynamic_batching]\nfoo = 1", "unknown field 'dynamic_batching.foo'"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP32'\ndims = [1]\nfoo = 1", "unknown field 'input[0].foo'"),
        ("[optimization.cuda]\ngraphs = 1", "optimization.cuda.graphs: must be true or false"),
        ("[dynamic_batching.default_queue_policy]\ntimeout_action = 'DEFER'",
         "dynamic_batching.default_queue_policy.timeout_action: must be 'REJECT' or 'DELAY', got \"DEFER\""),
        ("[dynamic_batching]\npriority_levels = 1\ndefault_priority_level = 1\npriority_queue_policy = { 2 = {} }",
         "dynamic_batching: priority_queue_policy names priority 2 of 1"),
        ("[[instance_group]]\ngpus = [-1]", "instance_group[0].gpus[0]: must be at least 0"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP32'\ndims = [-1]\nreshape = { shape = [1] }",
         "input[0]: the dims [-1] and the reshape's [1] have different numbers of open dimensions"),
        ("metric_tags = { le = 'x' }", "metric_tags: \"le\" cannot be the name of a metric's label"),
        ("[sequence_batching]", "field 'sequence_batching' is not supported"),
        ("name = 'other'", "name: \"other\" is not the name of the model's directory, 'm'"),
        ("name = 3", "name: 3 is not the name"),
        ("platform = ['onnx']", 'platform: must be text, got ["onnx"]'),
        ("max_batch_size = -1", "max_batch_size: must be at least 0, got -1"),
        ("max_batch_size = true", "max_batch_size: must be a whole number, got true"),
        ("max_batch_size = 1.5", "max_batch_size: must be a whole number, got 1.5"),
        ("max_batch_size = 9999999999", "max_batch_size: must be at most 1000000"),
        ("max_batch_size = 99999999999999999999999999", "max_batch_size: "),
        ("max_batch_size = 4\n[dynamic_batching]\npreferred_batch_size = [2, 8]",
         "dynamic_batching.preferred_batch_size 8 is above max_batch_size 4"),
        ("[dynamic_batching]\npreferred_batch_size = 0",
         "dynamic_batching.preferred_batch_size[0]: must be at least 1"),
        ("[dynamic_batching]\npriority_levels = 2", "dynamic_batching: default_priority_level must be from 1 to 2"),
        ("[dynamic_batching]\npriority_levels = 2\ndefault_priority_level = 3",
         "dynamic_batching: default_priority_level 3 is above priority_levels 2"),
        ("[dynamic_batching]\nmax_queue_size = 1\ndefault_queue_policy = { max_queue_size = 2 }",
         "dynamic_batching: max_queue_size is set twice, to different values"),
        ("[[instance_group]]\ncount = 0", "instance_group[0].count: must be at least 1, got 0"),
        ("[instance_group]\ncount = 1", "instance_group: must be a list"),
        ("version_policy = 'some'", 'version_policy: must be "all", "latest" or a table, got "some"'),
        ("version_policy = { all = {}, latest = {} }", "version_policy: must have one of latest, all and specific"),
        ("version_policy = { specific = { versions = [] } }", "version_policy.specific.versions: has 0 entries"),
        ("version_policy = { specific = { versions = [0] } }",
         "version_policy.specific.versions[0]: must be at least 1"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP33'\ndims = [1]",
         "input[0].data_type: \"FP33\" is not a data type; did you mean 'FP32'?"),
        ("[[input]]\nname = 'a'\ndims = [1]", "input[0].data_type: is required"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP32'\ndims = [-2]", "input[0].dims[0]: must be at least -1, got -2"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP32'\ndims = [1]\nshape = [1]",
         "input[0]: dims and shape are the same field; keep one of them"),
        ("[[input]]\nname = ''\ndata_type = 'FP32'\ndims = [1]",
         "input[0].name: must be a name of printable characters"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP32'\ndims = [1]\noptional = 1",
         "input[0].optional: must be true or false"),
        ("[[input]]\nname = 'a'\ndata_type = 'FP32'\ndims = [1]\nformat = 'FORMAT_NCHW'",
         "input[0]: the format FORMAT_NCHW"),
        ("input = []\ninputs = []", "input and inputs are the same field; keep one of them"),
        ("input = [{name='a',data_type='FP32',dims=[1]},{name='a',data_type='FP32',dims=[1]}]",
         "input 'a' is listed twice"),
        ("default_model_filename = '../../etc/passwd'",
         "default_model_filename: must be a file's name, without a directory"),
        ("default_model_filename = '..'", "default_model_filename: must be a file's name"),
        ("parameters = { a = [1] }", "parameters: 'a' must be text, a number, true or false"),
        ("parameters = { a = nan }", "parameters: 'a' must be a finite number"),
        ("parameters = { a = { b = 1 } }", "parameters: 'a' must have one of string_value"),
        ("parameters = 3", "parameters: must be a table"),
        ("[[model_warmup]]\ninputs = { a = { data_type = 'FP32', dims = [1] } }",
         "model_warmup[0].inputs.a: must have exactly one"),
        ("[[model_warmup]]\ninputs = { a = { data_type = 'FP32', dims = [-1], zero_data = true } }",
         "model_warmup[0].inputs.a: dims must not hold -1 here"),
        ("[[model_warmup]]\ninputs = { a = { data_type = 'FP32', dims = [1], input_data_file = '/etc/passwd' } }",
         "model_warmup[0].inputs.a.input_data_file: must be a file's name"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal(tmp_path, text).startswith(f"config.toml: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n\nfoo: 1", "config.pbtxt, line 3: unknown field 'foo'"),
        ("max_batchsize: 1", "config.pbtxt, line 1: unknown field 'max_batchsize'; did you mean 'max_batch_size'?"),
        ("dynamic_batching {\n foo: 1 }", "config.pbtxt, line 2: unknown field 'foo'"),
        ("sequence_batching { }", "config.pbtxt, line 1: field 'sequence_batching' is not supported"),
        ("max_batch_size: 1\nmax_batch_size: 2",
         "config.pbtxt, line 2: Message type \"ModelConfig\" should not have multiple"),
        ("instance_group { kind: KIND_TPU }", "config.pbtxt, line 1: "),
        ("max_batch_size: -1", "config.pbtxt: max_batch_size: must be at least 0, got -1"),
        ("version_policy { all {} latest {} }", "config.pbtxt: version_policy: must have one of"),
        ("{{{", "config.pbtxt, line 1: "),
        ("input {", "config.pbtxt, line 1: "),
        ('input { name: "a" data_type: "FP32" dims: 1 }', "config.pbtxt, line 1: "),
        ('input { name: "a" data_type: TYPE_INVALID dims: 1 }', "config.pbtxt: input[0].data_type: "),
        ("[type.googleapis.com/x.Y] { }", "config.pbtxt, line 1: "),
        ("input {" * 30_000, "config.pbtxt, line 1: "),
        ("input {" * 50_000, "config.pbtxt: is larger than 256 KiB"),
        ("max_batch_size: " + "9" * 100_000, "config.pbtxt"),
    ],
)  # fmt: skip
def test_refusals_of_protobuf_text(tmp_path: Path, text: str, sentence: str) -> None:
    message = refusal(tmp_path, text, "config.pbtxt")
    assert message.startswith(sentence)
    assert len(message.encode()) <= 512


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"\n\na = = 1", "config.toml, line 3: Invalid value"),
        (b"a = 1\na = 2", "config.toml: Cannot overwrite a value"),
        (b"a = 1\n# \xff", "config.toml, line 2: is not UTF-8 text"),
        (b"a = " + b"[" * 3000, "config.toml: is nested too deeply"),
        (b".".join([b"a"] * 100_000) + b" = 1", "config.toml, line 1: is longer than 4 KiB"),
        (b"a = 1\n" + b".".join([b"a"] * 17) + b" = 1", "config.toml, line 2: a key has more than 16 parts"),
        (b"x = {" + b" . ".join([b"'a b'"] * 17) + b" = 1}", "config.toml, line 1: a key has more than 16 parts"),
        (b"[" + b".".join([b"a"] * 17) + b"]", "config.toml, line 1: a key has more than 16 parts"),
        (b".".join([b"a"] * 16) + b" = 1", "config.toml: unknown field 'a'"),
        (b"max_batch_size = " + b"9" * 4000 + b"9" * 50, "config.toml: max_batch_size: "),
        (b"#" * (1 << 18) + b"\n", "config.toml: is larger than 256 KiB"),
        (b"\0", "config.toml, line 1: "),
    ],
)
def test_hostile_toml(tmp_path: Path, text: bytes, sentence: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(sentence)
    assert len(message.encode()) <= 512


def test_both_files_at_once(tmp_path: Path) -> None:
    write(tmp_path, "", "config.pbtxt")
    assert refusal(tmp_path, "") == "config.toml: there is also a config.pbtxt; keep one of them"


def test_what_is_no_file(tmp_path: Path) -> None:
    directory = tmp_path / "m"
    (directory / "config.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.toml: is not a regular file"):
        load(directory, "m")
    (directory / "config.toml").rmdir()
    os.mkfifo(directory / "config.toml")  # nobody writes: opening it must not wait
    with pytest.raises(ConfigError, match=r"config\.toml: is not a regular file"):
        load(directory, "m")
    (directory / "config.toml").unlink()
    (directory / "config.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"config\.toml: cannot be read: No such file or directory"):
        load(directory, "m")


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("max_batch_size = 3")
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "config.toml").symlink_to("../elsewhere")
    config = load(directory, "m")
    assert config is not None
    assert config.max_batch_size == 3


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_reads_back(tmp_path: Path) -> None:
    config = read(tmp_path, TOML)
    text = config.to_triton_json()
    assert ModelConfig.from_json(text.decode(), "m").to_triton_json() == text
    body = orjson.loads(text)
    assert list(body)[:6] == ["name", "platform", "backend", "runtime", "version_policy", "max_batch_size"]
    assert body["input"][1]["data_type"] == "TYPE_STRING"
    assert body["output"][0]["label_filename"] == "labels.txt"
    assert body["parameters"]["mine"] == {"string_value": "v"}
    assert body["version_policy"] == {"specific": {"versions": [1, 3]}}
    assert body["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 5
    assert body["instance_group"][0]["count"] == 2


def test_what_a_triton_server_tells_can_be_given_back() -> None:
    tensor = {"name": "x", "data_type": "TYPE_INT32", "format": "FORMAT_NONE", "dims": [16], "is_shape_tensor": False,
              "allow_ragged_batch": False, "optional": False, "is_non_linear_format_io": False}  # fmt: skip
    output = {"name": "y", "data_type": "TYPE_INT32", "dims": [16], "label_filename": "", "is_shape_tensor": False,
              "is_non_linear_format_io": False}  # fmt: skip
    group = {"name": "simple", "kind": "KIND_CPU", "count": 2, "gpus": [], "secondary_devices": [], "profile": [],
             "passive": False, "host_policy": ""}  # fmt: skip
    body = {
        "name": "simple", "platform": "onnxruntime_onnx", "backend": "onnxruntime", "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}}, "max_batch_size": 64, "input": [tensor], "output": [output],
        "batch_input": [], "batch_output": [],
        "optimization": {"priority": "PRIORITY_DEFAULT", "input_pinned_memory": {"enable": True},
                         "output_pinned_memory": {"enable": True}, "gather_kernel_buffer_threshold": 0,
                         "eager_batching": False},
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": "100",
                             "preserve_ordering": False, "priority_levels": 0, "default_priority_level": 0,
                             "priority_queue_policy": {}},
        "instance_group": [group], "default_model_filename": "model.onnx", "cc_model_filenames": {}, "metric_tags": {},
        "parameters": {}, "model_warmup": [], "response_cache": {"enable": False},
        "model_transaction_policy": {"decoupled": False},
    }  # fmt: skip
    config = ModelConfig.from_json(orjson.dumps(body).decode(), "simple")
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 100


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "config, line 1: is not JSON"),
        ("{", "config, line 1: is not JSON"),
        ("[]", "config: must be a table of fields"),
        ("null", "config: must be a table of fields"),
        ('{"foo": 1}', "config: unknown field 'foo'"),
        ('{"max_batch_size": NaN}', "config, line 1: is not JSON"),
        ('{"max_batch_size": 1e400}', "config"),
        ('{"ensemble_scheduling": {}}', "config: ensemble_scheduling.step: is required"),
        ("[" * 40_000, "config, line 1: is not JSON"),
        ("[" * 100_000, "config: has more than 50000 values"),
        ("[" + "1," * 50_000 + "1]", "config: has more than 50000 values"),
        ('{"input": [' + "{}," * 1024 + "{}]}", "config: input: has 1025 entries, at most 1024 are allowed"),
        ('{"parameters": {' + ",".join(f'"{i}": 1' for i in range(1025)) + "}}", "config: parameters: has 1025"),
        ("{" + ",".join(f'"{i}": 1' for i in range(1025)) + "}", "config: has 1025 entries, at most 1024 are allowed"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "config: is larger than 1 MiB"),
        ('{"\\ud800": 1}', "config"),
        ("\ud800", "config"),
    ],
)
def test_refusals_of_json(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_json(text, "m")
    assert caught.value.message.startswith(sentence)
    caught.value.body()


class Spec(NamedTuple):
    name: str
    datatype: str
    shape: tuple[int, ...]
    open_rank: bool = False
    batch_axis: int = 0

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape if self.open_rank else self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]


class Loaded(NamedTuple):
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    batched: bool
    max_request_rows: int
    optional_inputs: tuple[Spec, ...] = ()


def test_the_effective_configuration(tmp_path: Path) -> None:
    config = read(tmp_path, "[[output]]\nname = 'o'\ndata_type = 'FP32'\ndims = [10]\nlabel_filename = 'l.txt'")
    inputs, outputs = (Spec("x", "FP32", (-1, 64)),), (Spec("o", "FP32", (-1, 10)),)
    body = orjson.loads(config.effective(Loaded(inputs, outputs, True, 64)).to_triton_json())
    assert body["max_batch_size"] == 64
    assert (body["input"][0]["name"], body["input"][0]["dims"]) == ("x", [64])
    assert (body["output"][0]["dims"], body["output"][0]["label_filename"]) == ([10], "l.txt")
    assert "dynamic_batching" in body
    body = orjson.loads(config.effective(Loaded(inputs, outputs, False, 0)).to_triton_json())
    assert (body["max_batch_size"], body["input"][0]["dims"]) == (0, [-1, 64])
    assert "dynamic_batching" not in body


def test_optional_inputs_follow_the_others_with_their_whole_shape(tmp_path: Path) -> None:
    config = read(tmp_path, "[[input]]\nname = 'w'\ndata_type = 'FP32'\ndims = [4]\noptional = true")
    assert config.inputs[0].optional
    loaded = Loaded(
        (Spec("x", "FP32", (-1, 64)),), (Spec("y", "FP32", (-1, 10)),), True, 64, (Spec("w", "FP32", (4,)),)
    )
    shown = config.effective(loaded).to_triton_json()
    entries = [(each["name"], each["dims"], each["optional"]) for each in orjson.loads(shown)["input"]]
    assert entries == [("x", [64], False), ("w", [4], True)]
    assert ModelConfig.from_json(shown.decode(), "m").to_triton_json() == shown


@pytest.mark.parametrize(
    ("groups", "instances", "shown"),
    [
        ("", 1, [("e_0", "KIND_CPU", 1)]),
        ("[[instance_group]]\ncount = 2\n[[instance_group]]\nname = 'n'", 3,
         [("e_0", "KIND_CPU", 2), ("n", "KIND_CPU", 1)]),
        ("[[instance_group]]\ncount = 2\n[[instance_group]]\nname = 'n'", 2, [("e_0", "KIND_CPU", 2)]),
        ("", 65_536, [("e_0", "KIND_CPU", 65_536)]),
    ],
)  # fmt: skip
def test_the_instances_of_an_endpoint(
    tmp_path: Path, groups: str, instances: int, shown: list[tuple[str, str, int]]
) -> None:
    body = orjson.loads(read(tmp_path, groups).running("e", instances).to_triton_json())
    assert body["name"] == "e"
    assert [(group["name"], group["kind"], group["count"]) for group in body["instance_group"]] == shown


def test_preferred_sizes_are_checked_against_what_the_graph_allows(tmp_path: Path) -> None:
    config = read(tmp_path, "dynamic_batching = { preferred_batch_size = 128 }")
    specs = (Spec("x", "FP32", (-1, 64)),)
    with pytest.raises(ConfigError, match="preferred_batch_size 128 is above max_batch_size 64"):
        config.effective(Loaded(specs, specs, True, 64))
    assert config.effective(Loaded(specs, specs, True, 128)).max_batch_size == 128


@pytest.mark.parametrize(("level", "word"), [(-1, "basic"), (0, None), (1, "extended"), (2, "none")])
def test_levels_of_graph_optimization(tmp_path: Path, level: int, word: str | None) -> None:
    config = read(tmp_path, f"optimization = {{ graph = {{ level = {level} }} }}")
    assert config.worker_parameters.get("graph_optimization_level") == word


def test_a_parameter_wins_over_the_level(tmp_path: Path) -> None:
    text = 'optimization = { graph = { level = 1 } }\nparameters = { graph_optimization_level = "basic" }'
    assert read(tmp_path, text).worker_parameters == {"graph_optimization_level": "basic"}


def test_a_built_in_worker_has_a_configuration_too() -> None:
    body = orjson.loads(ModelConfig(name="echo", platform="echo").to_triton_json())
    assert (body["name"], body["platform"]) == ("echo", "echo")


# --- Anything at all --------------------------------------------------------------------------------------------------

_FIELDS = st.sampled_from([*ModelConfig.model_fields, "input", "output", "dims", "name", "x", *sorted(NOT_SUPPORTED)])
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab\0\n\xe4", max_size=4) | st.just("TYPE_FP32"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_FIELDS, _JSON, max_size=5))
def test_any_json_is_read_or_refused_with_a_sentence(values: dict[str, Any]) -> None:
    try:
        text = orjson.dumps(values).decode()
    except TypeError:  # integers beyond 64 bits
        return
    try:
        config = ModelConfig.from_json(text, "m")
    except ConfigError as error:
        assert error.message.startswith("config")
    else:
        assert ModelConfig.from_json(config.to_triton_json().decode(), "m").to_triton_json() == config.to_triton_json()
