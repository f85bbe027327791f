"""What a model's configuration tells the engine: each option is set, and its effect is observed from outside."""

import json
import os
import re
import shutil
from itertools import count
from pathlib import Path

import onnx_models
import pytest
from native_libraries import compiled, custom
from support import inference, serving, tensor, wait_for

ONES = inference(tensor("x", [1, 4], "FP32", [1, 1, 1, 1]))
LOGGED = "session.log_severity_level = 1\n"

# By model: its parameters in TOML, and what the engine's own log line about the session's options then says.
SEEN = {
    "arena_off": ("enable_mem_arena = false", "enable_cpu_mem_arena:0"),
    "arena_default": ("", "enable_cpu_mem_arena:1"),
    "arena_triton": ('enable_mem_arena = "0"', "enable_cpu_mem_arena:0"),
    "arena_engine": ("session.enable_cpu_mem_arena = 0", "enable_cpu_mem_arena:0"),
    "pattern_on": ('enable_mem_pattern = "1"', "enable_mem_pattern:1"),
    "pattern_default": ("", "enable_mem_pattern:0"),
    "parallel": ('execution_mode = "1"', "execution_mode:1"),
    "parallel_words": ('session.execution_mode = "ort_parallel"', "execution_mode:1"),
    "sequential": ("execution_mode = 0\ninter_op_threads = 2", "execution_mode:0"),
    "threads_zero": ("intra_op_threads = 0", "use_per_session_threads:0"),
    "threads_own": ("session.use_per_session_threads = true", "use_per_session_threads:1"),
    "level": ('session.graph_optimization_level = "enable_basic"', "graph_optimization_level:1"),
    "block": ("intra_op_threads = 2\nsession.dynamic_block_base = 4", "session.dynamic_block_base: 4"),
    "spin": ("intra_op_threads = 2\nsession.intra_op.spin_duration_us = 700", "session.intra_op.spin_duration_us: 700"),
    "denormal": ("session.set_denormal_as_zero = 1", "session.set_denormal_as_zero: 1"),
    "quoted": ('"session.disable_prepacking" = "1"', "session.disable_prepacking: 1"),
    "optimizers": (
        'optimization.disable_specified_optimizers = "ConstantFolding"',
        "optimization.disable_specified_optimizers: ConstantFolding",
    ),
    "mlas": ("mlas.use_lut_gemm = 1", "mlas.use_lut_gemm: 1"),
    "verbosity": ("session.log_verbosity_level = 3", "session_log_verbosity_level:3"),
    "azure": (
        'execution_providers = "AzureExecutionProvider"\nprovider.Azure.answer = "42"',
        "ep.azureexecutionprovider.answer: 42",
    ),
}


def write(root, name, parameters="", content=None, config=""):
    """A model; its configuration has `config` and these parameters. Returns its directory."""
    version = root / name / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(content or onnx_models.identity("FP32", ("batch", 4)))
    (root / name / "config.toml").write_text(f"{config}\n[parameters]\n{parameters}\n")
    return version.parent


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The log of a server with the models of SEEN, and what their configurations show."""
    root = tmp_path_factory.mktemp("seen")
    for name, (parameters, _) in SEEN.items():
        write(root, name, f'{parameters}\n{LOGGED}session.log_id = "log of {name}"')
    with serving(repository=root) as server:
        for name in SEEN:
            assert server.infer(name, ONES).json["outputs"][0]["data"] == [1, 1, 1, 1]
        wait_for(lambda: all(f"session_logid:log of {name} " in server.log for name in SEEN))
        yield server.log


@pytest.mark.parametrize("name", SEEN)
def test_the_engine_says_that_it_has_the_option(logged, name):
    line = re.search(rf".*Session Options .*session_logid:log of {name} .*", logged)
    assert line is not None
    assert SEEN[name][1] in line.group()


def test_the_same_as_protobuf_text(tmp_path):
    directory = write(tmp_path, "m")
    (directory / "config.toml").unlink()
    options = {
        "enable_mem_arena": "0", "execution_mode": "1", "inter_op_thread_count": "2", "intra_op_thread_count": "0",
        "session.disable_prepacking": "1", "session.log_severity_level": "1",
    }  # fmt: skip
    (directory / "config.pbtxt").write_text(
        "\n".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}' for k, v in options.items())
    )
    with serving(repository=tmp_path) as server:
        assert server.infer("m", ONES).status == 200
        wait_for(lambda: "Session Options " in server.log)
        line = next(each for each in server.log.splitlines() if "Session Options " in each)
        for part in ("enable_cpu_mem_arena:0", "execution_mode:1", "session.disable_prepacking: 1"):
            assert part in line


# --- Effects ----------------------------------------------------------------------------------------------------------


def test_files_that_the_engine_writes(tmp_path):
    """They lie in the version's directory `.output`, which is not part of the model: the server does not load again."""
    written = (
        'session.enable_profiling = ".output/profile"\nsession.optimized_model_filepath = ".output/optimized.onnx"\n'
        'session.collect_node_memory_stats_to_file = ".output/memory.csv"'
    )
    output = write(tmp_path, "m", written) / "1" / ".output"
    with serving("--model-control", "poll", "--poll-interval-s", "0.1", repository=tmp_path) as server:
        assert server.infer("m", ONES).status == 200
        assert (output / "optimized.onnx").stat().st_size > 0
        server.load("models/m")  # it finds the files unchanged
        write(tmp_path, "n")
        wait_for(lambda: server.infer("n", ONES).status == 200)  # the repository was scanned since
        assert len(list(output.glob(f"profile_{server.serving_pids()[0]}_*.json"))) == 1  # one session
        for _ in range(2):  # it was loaded twice
            assert server.post("/v2/models/m/unload").status == 200
        wait_for(lambda: (output / "memory.csv").exists())
        profile = next(output.glob("profile_*.json"))
        wait_for(lambda: profile.read_text().rstrip().endswith("]"))
    assert any(event.get("name") == "model_run" for event in json.loads(profile.read_text()))


def test_threads_run_on_the_processors_that_are_named(tmp_path):
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one processor")
    write(tmp_path, "m", 'intra_op_threads = 3\nsession.intra_op_thread_affinities = "2;1"')
    with serving(repository=tmp_path) as server:
        tasks = Path(f"/proc/{server.serving_pids()[0]}/task").iterdir()
        sets = [re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text())[1] for task in tasks]
        assert sets.count("0") == sets.count("1") == 1  # /proc counts from 0


def resident_mib(server):
    status = Path(f"/proc/{server.serving_pids()[0]}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) // 1024


@pytest.mark.parametrize(
    ("parameters", "shrinks"), [("", False), ('memory.enable_memory_arena_shrinkage = "cpu:0"', True)]
)
def test_an_arena_is_shrunk_after_each_run(tmp_path, parameters, shrinks):
    write(tmp_path, "m", parameters, onnx_models.wide_sum(64 << 20))
    with serving(repository=tmp_path) as server:
        before = resident_mib(server)
        for _ in range(3):
            assert server.infer("m", inference(tensor("x", [1, 1], "FP32", [1]))).json["outputs"][0]["data"] == [1]
        # Two blocks of 256 MiB; the arena never gives the first one back.
        assert (resident_mib(server) - before < 400) is shrinks


# --- Libraries --------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path):
    """A repository, and a directory beside it with the libraries."""
    root, beside = tmp_path / "models", tmp_path / "libraries"
    root.mkdir()
    beside.mkdir()
    for name in ("operators", "provider"):
        shutil.copy(compiled(name), beside)
    return root, beside


def operations(path):
    return f'[model_operations]\nop_library_filename = "{path}"'


@pytest.mark.parametrize("where", ["version", "model", "allowed directory", "allowed file"])
def test_custom_operators(places, where):
    root, beside = places
    library = beside / "liboperators.so"
    given = str(library) if "allowed" in where else "liboperators.so"
    directory = write(root, "m", content=custom(), config=operations(given))
    options = []
    if "allowed" in where:
        options = ["--allow-library", str(beside if "directory" in where else library)]
    else:
        shutil.copy(library, directory / "1" if where == "version" else directory)
    with serving(*options, repository=root) as server:
        assert server.infer("m", ONES).json["outputs"][0]["data"] == [2, 2, 2, 2]
        server.load("models/m", {"instances": 2})  # another session with the same library
        assert server.infer("m", ONES).json["outputs"][0]["data"] == [2, 2, 2, 2]
        assert server.get("/v2/models/m/config").json["max_batch_size"] == 0  # opaque, so each request runs alone


def test_a_configured_batch_size_batches_custom_operators(places):
    root, beside = places
    directory = write(root, "m", content=custom(), config=f"max_batch_size = 4\n{operations('liboperators.so')}")
    shutil.copy(beside / "liboperators.so", directory)
    with serving(repository=root) as server:
        two = inference(tensor("x", [2, 4], "FP32", list(range(8))))
        assert server.infer("m", two).json["outputs"][0]["data"] == [2 * i for i in range(8)]


def test_an_operator_does_not_end_the_process(places):
    root, beside = places
    shutil.copy(beside / "liboperators.so", write(root, "m", content=custom(), config=operations("liboperators.so")))
    with serving(repository=root) as server:
        before = server.serving_pids()
        answer = server.infer("m", inference(tensor("x", [1, 4], "FP32", [-1, 0, 0, 0])))
        assert "would have ended the process" in answer.error
        assert server.infer("m", ONES).json["outputs"][0]["data"] == [2, 2, 2, 2]
        assert server.serving_pids() == before


def test_protobuf_text_names_libraries(places):
    root, beside = places
    directory = write(root, "m", content=custom())
    shutil.copy(beside / "liboperators.so", directory / "1")
    (directory / "config.toml").unlink()
    (directory / "config.pbtxt").write_text('model_operations { op_library_filename: "liboperators.so" }')
    with serving(repository=root) as server:
        assert server.infer("m", ONES).json["outputs"][0]["data"] == [2, 2, 2, 2]
        shown = server.get("/v2/models/m/config").json["model_operations"]
        assert shown == {"op_library_filename": ["liboperators.so"]}


def test_an_execution_provider_of_a_library(places):
    root, beside = places
    idle = 'execution_providers = "Idle"\nprovider_library.Idle = "libprovider.so"'
    for name, parameters in (("works", ""), ("refuses", '\nprovider.Idle.refuse = "as it is told to"')):
        shutil.copy(beside / "libprovider.so", write(root, name, idle + parameters))
    with serving("--load", "works", repository=root) as server:
        assert server.infer("works", ONES).json["outputs"][0]["data"] == [1, 1, 1, 1]
        # One library for a name; this model's is another file.
        assert "give this one another name" in server.post("/v2/models/refuses/load").error
        config = root / "refuses" / "config.toml"
        config.write_text(config.read_text().replace("libprovider.so", str(root / "works" / "libprovider.so")))
        assert "is not in the model's directory" in server.post("/v2/models/refuses/load").error


def test_options_of_a_librarys_provider_reach_it(places):
    root, beside = places
    parameters = f'execution_providers = "Idle"\nprovider_library.Idle = "{beside}/libprovider.so"'
    write(root, "m", parameters + '\nprovider.Idle.refuse = "as it is told to"')
    with serving("--allow-empty", "--allow-library", str(beside), repository=root, wait=False) as server:
        assert "as it is told to" in server.post("/v2/models/m/load").error


def test_a_library_that_changes_is_not_mistaken_for_the_loaded_one(places):
    root, beside = places
    library = write(root, "m", content=custom(), config=operations("liboperators.so")) / "liboperators.so"
    shutil.copy(beside / "liboperators.so", library)
    with serving(repository=root) as server:
        other = library.with_suffix(".new")
        other.write_bytes(library.read_bytes() + b"\0")
        other.rename(library)
        assert "restart the server" in server.post("/v2/models/m/load").error
        assert server.infer("m", ONES).json["outputs"][0]["data"] == [2, 2, 2, 2]


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A server with one model that is served, whose configuration tests replace."""
    root = tmp_path_factory.mktemp("refusing")
    write(root, "m")
    (root / "libbeside.so").write_bytes(compiled("operators").read_bytes())
    (root / "m" / "link.so").symlink_to(root / "libbeside.so")
    (root / "m" / "text.so").write_text("no library")
    (root / "m" / "1" / ".output").mkdir()
    (root / "m" / "1" / ".output" / "link").symlink_to(root / "elsewhere")
    numbers = count(1)
    with serving(repository=root) as server:

        def refusal(config="", parameters="", content=None):
            name = f"m{next(numbers)}"
            shutil.copytree(root / "m", root / name, symlinks=True)
            if content is not None:
                (root / name / "1" / "model.onnx").write_bytes(content)
            (root / name / "config.toml").write_text(f"{config}\n[parameters]\n{parameters}\n")
            answer = server.post(f"/v2/models/{name}/load")
            assert answer.status == 400
            assert str(root) not in answer.error
            shutil.rmtree(root / name)
            return answer.error

        yield server, refusal
    assert not (root / "elsewhere").exists()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ("session.disable_prepackin = 1", "'session.disable_prepackin' is not one of ONNX Runtime; did you mean"),
        ("session.nonsense = 1", "parameter 'session.nonsense' is not one of ONNX Runtime"),
        ('session.disable_prepacking = "maybe"', "parameter 'session.disable_prepacking' must be 0 or 1"),
        ('session.log_severity_level = "loud"', "must be a whole number from 0 to 4"),
        ("session.set_denormal_as_zero = 2", "'session.set_denormal_as_zero' must be 0 or 1"),
        ("session.dynamic_block_base = 4", "needs threads of the model's own: set intra_op_threads"),
        ('execution_mode = "sideways"', "parameter 'execution_mode'"),
        ('session.intra_op_thread_affinities = "1"\nintra_op_threads = 3', "it needs 2, one for each thread"),
        ('session.intra_op_thread_affinities = "1-99999"\nintra_op_threads = 2', "not among the processors"),
        ('memory.enable_memory_arena_shrinkage = "cpu"', "must be like cpu:0"),
        (
            'enable_mem_arena = 0\nmemory.enable_memory_arena_shrinkage = "cpu:0"',
            "shrinks the CPU's arena, but enable_mem_arena is off",
        ),
        ('session.load_model_format = "ORT"', "'session.load_model_format' is not supported: the server reads"),
        ("intra_op_threads = 2\nsession.intra_op_num_threads = 3", "two names of one parameter"),
        ('provider.Azure.x = "1"', "'AzureExecutionProvider', which execution_providers lacks"),
        ('provider.CPU.x = "1"', "has no options"),
        ('execution_providers = "NoExecutionProvider"', "'NoExecutionProvider' is not in this build"),
        ("session.save_model_format = 'ORT'", "needs the parameter 'session.optimized_model_filepath'"),
        ('session.enable_profiling = "profile"', "is not a place to write to"),
        ('session.enable_profiling = "../profile"', "is not a place to write to"),
        ('session.enable_profiling = ".output/../profile"', "is not a place to write to"),
        ('session.enable_profiling = ".output/deeper/profile"', "is not a place to write to"),
        ('session.enable_profiling = "/tmp/profile"', "is not a place to write to"),
        ('session.enable_profiling = "/tmp/.output/profile"', "is not a place to write to"),
        ('session.optimized_model_filepath = ".output/link"', "not a regular file"),
        ('session.optimized_model_filepath = "model.onnx"', "is not a place to write to"),
        ('session.node_partition_config_file = "../../../etc/passwd"', "session.node_partition_config_file: there is"),
        ('session.node_partition_config_file = "/etc/passwd"', "is not in the model's directory"),
        ('session.model_external_initializers_file_folder_path = "/"', "is not in the model's directory"),
        (
            'provider_library.Idle = "/lib/x.so"\nexecution_providers = "Idle"',
            "provider_library.Idle: there is no file",
        ),
        ('provider.Azure.cache_dir = "/tmp"\nexecution_providers = "AzureExecutionProvider"', "model's directory"),
        ('provider.Azure.any = "/etc/passwd"\nexecution_providers = "AzureExecutionProvider"', "model's directory"),
    ],
)
def test_wrong_parameters_are_refused_by_name(refusing, parameters, sentence):
    assert sentence in refusing[1](parameters=parameters)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("missing.so", "there is no file"),
        ("../libbeside.so", "is not in the model's directory"),
        ("link.so", "is not in the model's directory"),
        ("text.so", "library 'text.so' cannot be loaded"),
        ("1", "is not a file"),
        ("", "op_library_filename"),
    ],
)
def test_libraries_that_are_not_loaded(refusing, path, sentence):
    assert sentence in refusing[1](operations(path))


def test_a_library_without_operators(tmp_path):
    directory = write(tmp_path, "m", config=operations("libprovider.so"))
    shutil.copy(compiled("provider"), directory)
    with serving("--allow-empty", repository=tmp_path, wait=False) as server:
        assert "has no function RegisterCustomOps" in server.post("/v2/models/m/load").error


@pytest.mark.parametrize(
    ("operator", "domain", "sentence"),
    [
        ("BertTokenizer", "ai.onnx.contrib", "package onnxruntime-extensions: pip install 'fastinfer[extensions]'"),
        ("DecodeImage", "com.microsoft.extensions", "extensions = true in the model's config.toml"),
        ("Mine", "org.example", "name the library with model_operations.op_library_filename"),
        ("Mine", "mmdeploy", "libmmdeploy_onnxruntime_ops.so"),
        ("Mine", "com.microsoft", "this version or build of ONNX Runtime does not have it"),
        ("Mine", "", "operator 'Mine' is not in version 17 of the operator set 'ai.onnx'"),
    ],
)
def test_an_unknown_operator_is_refused_with_what_brings_it(refusing, operator, domain, sentence):
    error = refusing[1](content=custom(operator, domain))
    assert f"operator '{operator}'" in error
    assert sentence in error


# Everything that would load code, or read or write a file.
GIVEN = {
    "extensions": True,
    "provider_library.Idle": "libprovider.so",
    "provider.Azure.cache_dir": "/tmp",
    "session.enable_profiling": ".output/x",
    "session.optimized_model_filepath": "/tmp/x.onnx",
    "session.collect_node_memory_stats_to_file": "/tmp/x.csv",
    "session.model_external_initializers_file_folder_path": "/",
    "session.node_partition_config_file": "/tmp/x.json",
    "session.optimized_model_external_initializers_file_name": "x",
    "session.log_severity_level": 0,
    "ep.context_enable": 1,
    "ep.context_file_path": "/tmp/x",
    "session.some_future_path": "/tmp/x",
    "ep.library": "/tmp/x.so",
}


@pytest.mark.parametrize("name", GIVEN)
def test_no_client_loads_code_or_names_files(refusing, name):
    server, _ = refusing
    value = GIVEN[name]
    answers = [
        server.post("/v2/models/m/load", {name: value}),
        server.post("/v2/repository/models/m/load", {"parameters": {name: value}}),
        server.post("/v2/models/m/versions/1/load", {name: value}),
        server.post("/v2/workers/onnx/load", {"model": "m", name: value}),
        server.post("/v2/models/m/load", override({"parameters": {name: {"string_value": str(value)}}})),
        server.post("/v2/models/m/load", override({"parameters": nested(name, value)})),
    ]
    for answer in answers:
        assert answer.status == 400, answer.body
        assert f"'{name}' is taken only from the configuration in the model's directory" in answer.error
    assert server.infer("m", ONES).status == 200


def nested(name, value):
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def override(config):
    return {"parameters": {"config": json.dumps(config)}}


@pytest.mark.parametrize("config", [{"model_operations": {"op_library_filename": ["link.so"]}}, {"extensions": True}])
def test_no_client_names_operators(refusing, config):
    answer = refusing[0].post("/v2/models/m/load", override(config))
    assert answer.status == 400
    assert f"config: '{next(iter(config))}' is taken only from the configuration" in answer.error


def test_clients_may_give_the_rest(refusing):
    server, _ = refusing
    server.load("models/m", {"session.disable_prepacking": "1", "enable_mem_arena": False})
    server.load("models/m", override({"parameters": {"session.disable_prepacking": {"string_value": "1"}}}))
