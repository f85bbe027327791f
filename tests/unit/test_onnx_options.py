"""What a session can be told: names, values, and places of files."""

import importlib.util
import re
from pathlib import Path

import pytest

from fastinfer.backends.onnx.config_keys import ALIASES, RUN_ENTRIES, SESSION_ENTRIES, affinity_sets
from fastinfer.backends.onnx.options import OnnxParameters, is_parameter, only_from_files, session_settings
from fastinfer.backends.onnx.places import OUTPUT, Places
from fastinfer.backends.onnx.refusals import explained
from fastinfer.backends.parameters import parse
from fastinfer.base.errors import ApiError
from fastinfer.config.model import ConfigError, ModelConfig, load

# Names that this platform's build of the runtime does not have, and those whose text the compiler has taken apart.
NOT_IN_THIS_BUILD = {
    "ep.nnapi.partitioning_stop_ops", "mlas.disable_kleidiai", "mlas.enable_gemm_fastmath_arm64_bfloat16",
    "session.enable_matmul_fp8_fusion", "gpu_graph_id", "qnn.htp_perf_mode", "qnn.htp_perf_mode_post_run",
    "qnn.rpc_control_latency", "ep.share_ep_contexts", "ep.stop_share_ep_contexts", "ep.context_node_name_prefix",
}  # fmt: skip


def test_names_are_those_of_the_installed_runtime():
    """A name's first 16 characters are enough: of some the library has only parts."""
    folder = Path(importlib.util.find_spec("onnxruntime").submodule_search_locations[0])
    library = next((folder / "capi").glob("libonnxruntime.so*")).read_bytes()
    missing = {name for name in (*SESSION_ENTRIES, *RUN_ENTRIES, *ALIASES) if name[:16].encode() not in library}
    assert missing <= NOT_IN_THIS_BUILD


def test_names_like_paths_are_taken_only_from_files():
    entries = {**SESSION_ENTRIES, **RUN_ENTRIES}
    for name, entry in entries.items():
        if entry.path is not None or re.search(r"file|path|folder|dir\b", name):
            assert only_from_files(name), name
    for name in (
        "session.new_cache_dir",
        "ep.plugin",
        "optimization.trace_prefix",
        "provider.X.y",
        "provider_library.X",
    ):
        assert only_from_files(name)
    for name in ("session.disable_prepacking", "intra_op_threads", "enable_mem_arena", "anything"):
        assert not only_from_files(name)


def test_which_names_mean_something():
    known = ("model", "extensions", "session.log_id", "session.execution_mode", "provider.X.y", "gpu_graph_id")
    assert all(is_parameter(name) for name in known)
    assert not any(is_parameter(name) for name in ("intra_op_threds", "session.nonsense", "enable_arena", "file"))


@pytest.mark.parametrize(("text", "sets"), [("1", [{1}]), ("1,2;3", [{1, 2}, {3}]), ("2-4,7;1", [{2, 3, 4, 7}, {1}])])
def test_affinities(text, sets):
    assert affinity_sets(text, 8) == sets


@pytest.mark.parametrize("text", ["0", "9", "3-2", "1-2-3", "1-99999"])
def test_affinities_of_processors_that_are_not_there(text):
    with pytest.raises(ValueError, match="not among the processors 1 to 8"):
        affinity_sets(text, 8)


def settings(parameters, places=None, operators=()):
    here = Path("/nowhere")
    return session_settings(parse(OnnxParameters, parameters), operators, places or Places(here, here))


def test_parameters_become_settings():
    made = settings({"intra_op_threads": "2", "session.set_denormal_as_zero": True, "gpu_graph_id": 3})
    assert (made.intra_op_threads, made.inter_op_threads, made.parallel) == (2, None, None)
    assert made.config == {"session.set_denormal_as_zero": "1"}
    assert made.run_config == {"gpu_graph_id": "3"}
    assert settings({"execution_mode": 1}).inter_op_threads >= 1
    assert settings({"intra_op_threads": 0}).intra_op_threads is None
    assert settings({"session.graph_optimization_level": "disable_all"}).graph_optimization_level == "none"


def test_paths_of_a_model(tmp_path):
    model, version, shared = tmp_path / "m", tmp_path / "m" / "1", tmp_path / "shared"
    for folder in (version, shared):
        folder.mkdir(parents=True)
    for file in (version / "a.so", model / "a.so", model / "b.so", shared / "c.so"):
        file.touch()
    places = Places(version, model, [shared / "c.so"])
    assert places.library("x", "a.so") == str(version / "a.so")
    assert places.library("x", "b.so") == str(model / "b.so")
    inner = version / "model.onnx"  # a directory, as in Triton
    inner.mkdir()
    assert Places(inner, model).library("x", "a.so") == str(version / "a.so")
    assert places.library("x", "../b.so") == str(model / "b.so")
    assert places.library("x", str(shared / "c.so")) == str(shared / "c.so")
    (shared / "d.so").touch()
    for wrong in (str(shared / "d.so"), "../../shared/d.so", "", "a\0.so", "a\n.so", "no.so", ".", "x" * 4000):
        with pytest.raises(ApiError):
            places.library("x", wrong)
    assert places.output("x", f"{OUTPUT}/file") == str(version / OUTPUT / "file")
    with pytest.raises(ApiError, match="not a place to write to"):
        places.output("x", str(shared / "file"))
    assert Places(version, model, [shared]).output("x", str(shared / "file")) == str(shared / "file")


def test_the_directory_for_output_is_no_link(tmp_path):
    (tmp_path / OUTPUT).symlink_to(tmp_path.parent)
    with pytest.raises(ApiError, match="is a link"):
        Places(tmp_path, tmp_path).output("x", f"{OUTPUT}/file")


def test_toml_tables_are_dotted_names(tmp_path):
    (tmp_path / "config.toml").write_text(
        '[parameters]\nsession.log_id = "a"\nprovider.Azure.x = 1\n"session.disable_prepacking" = "1"\n'
        'mine = { string_value = "b" }\nsession.set_denormal_as_zero = { bool_param = true }\n'
    )
    assert load(tmp_path, tmp_path.name).parameters == {
        "session.log_id": "a", "provider.Azure.x": 1, "session.disable_prepacking": "1", "mine": "b",
        "session.set_denormal_as_zero": True,
    }  # fmt: skip
    for wrong, name in (('{"ep": {"b": [1]}}', r"ep\.b"), ('{"a": {"b": 1}}', "a"), ('{"ep": {}}', "ep")):
        with pytest.raises(ConfigError, match=f"'{name}' must"):
            ModelConfig.from_json(f'{{"parameters": {wrong}}}', "m")


@pytest.mark.parametrize("message", ["", "x" * 20_000, 'In Node, ("' * 2000, "Fatal error: " * 1000])
def test_other_refusals_stay_as_they_are(message):
    assert explained(message, extensions=False, libraries=False) == message
