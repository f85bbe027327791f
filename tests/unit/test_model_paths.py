"""What a path that is given for a model holds, and the model's name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastinfer.config.model_paths import Layout, ModelPath, PathError, Root, read_roots, split_option
from fastinfer.config.server import OptionError, ServerConfig, load_config


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("FASTINFER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def make(*files: str) -> None:
    """Empty files in the working directory; a path that ends with a slash is a directory."""
    for name in files:
        path = Path(name)
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def roots(*options: str, layout: Layout = "auto") -> tuple[Root, ...]:
    return read_roots([split_option(option) for option in options], layout)


def models(*options: str, layout: Layout = "auto") -> dict[str, ModelPath]:
    (found,) = roots(*options, layout=layout)
    assert isinstance(found, dict)
    return found


def refusal(*options: str, layout: Layout = "auto") -> str:
    with pytest.raises(PathError) as caught:
        roots(*options, layout=layout)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("resnet50-v1.7.onnx", "resnet50-v1.7"),
        ("bert/model.onnx", "bert"),
        ("bert/Model.onnx", "bert"),
        ("bert/1/inference.onnx", "bert"),
        ("bert/12/3.onnx", "bert"),
        ("bert/onnx/model.onnx", "bert"),
        ("a model (final).onnx", "a_model__final_"),
        ("modèle.onnx", "mod_le"),
        ("-x.onnx", "_x"),
        (f"{'n' * 200}.onnx", "n" * 128),
    ],
)
def test_the_name_of_a_file(path: str, name: str) -> None:
    make(path)
    assert models(path) == {name: ModelPath(None, Path.cwd() / path)}


def test_the_name_of_a_directory() -> None:
    make("a b/1/model.onnx", "net/model.onnx", "export/model/model.onnx", "named/file.onnx")
    assert models("a b", "net/", "./export", "named") == {
        "a_b": ModelPath(Path.cwd() / "a b"),
        "net": ModelPath(Path.cwd() / "net", Path.cwd() / "net/model.onnx"),
        "export": ModelPath(Path.cwd() / "export", Path.cwd() / "export/model/model.onnx"),
        "file": ModelPath(Path.cwd() / "named", Path.cwd() / "named/file.onnx"),
    }


def test_the_name_of_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    make("net/model.onnx")
    monkeypatch.chdir("net")
    assert list(models(".")) == list(models("model.onnx")) == list(models("../net")) == ["net"]


def test_where_nothing_in_the_path_means_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastinfer.config.model_paths._MEANINGLESS", __import__("re").compile(".*"))
    make("x.onnx")
    assert list(models("x.onnx")) == ["model"]


def test_a_given_name_wins() -> None:
    make("m/model.onnx", "a=b.onnx", "c/d=e.onnx")
    assert list(models("n=m", "a=m/model.onnx", "./a=b.onnx", "c/d=e.onnx")) == ["n", "a", "a_b", "d_e"]
    assert refusal("a b=m") == '"a b" is not a model\'s name: 1 to 128 letters, digits, _ . -'
    assert "cannot be called 'stats'" in refusal("stats=m")


def test_equal_names() -> None:
    make("x/m.onnx", "y/m.onnx")
    said = refusal("x/m.onnx", "y/m.onnx")
    assert said.startswith("two models are called 'm', ")
    assert said.endswith("; give one another name: --model NAME=PATH")
    assert list(models("x/m.onnx", "other=y/m.onnx")) == ["m", "other"]


# --- Layouts ----------------------------------------------------------------------------------------------------------


def test_repositories_come_behind_models() -> None:
    make("r/a/1/model.onnx", "m.onnx", "empty/")
    assert roots("r", "m.onnx", "empty") == ({"m": ModelPath(None, Path.cwd() / "m.onnx")}, Path("r"), Path("empty"))
    assert "is a repository of models and can have no name; give it without 'n='" in refusal("n=r")


def test_what_the_content_of_a_directory_says() -> None:
    make("r/README.md", "r/a/1/", "m/1/", "m/config.toml", "f/net.onnx", "f/data/x.pb", "f/.cache/1/", "f/.b.onnx")
    assert roots("r") == (Path("r"),)
    assert models("m") == {"m": ModelPath(Path.cwd() / "m")}
    assert models("f") == {"net": ModelPath(Path.cwd() / "f", Path.cwd() / "f/net.onnx")}


def test_a_tie_is_decided_by_the_option() -> None:
    make("d/1/model.onnx", "d/model.onnx", "d/2024/1/model.onnx")
    assert refusal("d") == (
        "'d' may be a repository ('2024/1') or a model's directory ('1') or a flat directory ('model.onnx'); "
        "say which with --layout repository|model|flat"
    )
    assert roots("d", layout="repository") == (Path("d"),)
    assert models("d", layout="model") == {"d": ModelPath(Path.cwd() / "d")}
    assert models("d", layout="flat") == {"d": ModelPath(Path.cwd() / "d", Path.cwd() / "d/model.onnx")}


def test_which_file_of_a_flat_directory() -> None:
    make(
        "one/model.onnx",
        "one/model_q4.onnx",
        "two/encoder.onnx",
        "two/decoder.onnx",
        "three/a/x.onnx",
        "three/b/x.onnx",
    )
    assert models("one")["one"].file == Path.cwd() / "one/model.onnx"
    assert refusal("two") == (
        "'two' has several .onnx files (decoder.onnx, encoder.onnx); give the path of each that is to be served"
    )
    assert refusal("three") == "'three' has models in several directories (a, b); give each as --model NAME=PATH"
    make(*(f"many/{n}.onnx" for n in range(9)))
    assert "(0.onnx, 1.onnx, 2.onnx, 3.onnx, 4.onnx, ...)" in refusal("many")


def test_what_is_no_model() -> None:
    make("d/notes.txt", "deep/a/b/c/model.onnx", "m.pt", "small.ort", "kept/small.ort")
    assert refusal("nowhere") == "there is no directory or file 'nowhere'"
    for path in ("d", "deep"):
        assert refusal(path) == (
            f"there is no model in '{path}': neither NAME/1/model.onnx, nor 1/model.onnx, nor an .onnx file"
        )
    assert refusal("m.pt") == "'m.pt' is not a model: the name of a model file ends in .onnx"
    for path, file in (("small.ort", "small.ort"), ("kept", "kept/small.ort")):
        assert refusal(path).startswith(f"'{file}' is in ONNX Runtime's own format")


def test_an_unreadable_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    make("d/m.onnx")

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal("d") == "'d' cannot be read: Permission denied"


def test_an_entry_of_unknown_kind_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    make("r/a/1/", "r/bad/1/", "f/bad.onnx", "f/net.onnx")
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.stem == "bad":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert roots("r") == (Path("r"),)
    assert list(models("f")) == ["net"]


# --- Other servers' settings ------------------------------------------------------------------------------------------


def settings(**content: object) -> None:
    Path("d/model-settings.json").write_text(json.dumps(content))


def test_mlserver() -> None:
    make("d/a.onnx", "d/b.onnx", "d/in/c.onnx", "outside.onnx", "d/m.joblib")
    settings(name="n/1", parameters={"uri": "./b.onnx"})
    assert models("d") == {"n_1": ModelPath(Path.cwd() / "d", Path.cwd() / "d/b.onnx")}
    settings(parameters={"uri": "in"})
    assert list(models("d")) == ["c"]
    settings(name="n")
    assert "several .onnx files" in refusal("d")
    for uri in ("../outside.onnx", "/outside.onnx", "s3://bucket/m.onnx"):
        settings(parameters={"uri": uri})
        assert refusal("d") == f"'d/model-settings.json' names \"{uri}\", which is not in the model's directory"
    for uri in ("m.joblib", "nowhere.onnx"):
        settings(parameters={"uri": uri})
        assert refusal("d") == f"'d/model-settings.json' names \"{uri}\", which is not an .onnx file"
    Path("d/model-settings.json").write_text("[")
    assert refusal("d") == "'d/model-settings.json' is not a JSON object that can be read"


def test_openvino_model_server() -> None:
    configs = [{"config": {"name": name, "base_path": f"/models/{name}"}} for name in "ab"]
    Path("config.json").write_text(json.dumps({"model_config_list": configs}))
    assert refusal("config.json") == (
        "'config.json' is a configuration of OpenVINO Model Server; give its models: "
        "--model a=/models/a --model b=/models/b"
    )
    for content in ("{}", "[]", "{", '{"model_config_list": [1, {"config": 2}]}'):
        Path("config.json").write_text(content)
        assert refusal("config.json").endswith("the name of a model file ends in .onnx")


# --- Options ----------------------------------------------------------------------------------------------------------


def test_the_default_repository_is_for_servers_without_paths() -> None:
    make("m.onnx", "r/")
    found = {"m": ModelPath(None, Path.cwd() / "m.onnx")}
    assert load_config().roots == (Path("model-repository"),)
    assert load_config({"model": ["m.onnx"]}).roots == (found,)
    assert load_config({"model": ["m.onnx", "r"], "model_repository": ["x"]}).roots == (found, Path("r"), Path("x"))
    assert load_config({"model_path": "m.onnx"}).roots == (found,)
    assert ServerConfig(model_path=Path("m.onnx"), model_name="n").share().roots == ({"n": found["m"]},)


def test_the_options_of_kserve() -> None:
    make("mnt/models/model.onnx")
    assert list(load_config({"model_name": "n", "model_path": "mnt/models"}).given_roots[0]) == ["n"]  # type: ignore[arg-type]
    for options, said in (
        ({"model_name": "n"}, "--model-name needs --model-path, the model's file or directory"),
        ({"model_name": "n", "model_path": "mnt/models", "model": ["n=mnt/models"]}, "two models are called 'n'"),
        ({"model_path": "nowhere"}, "there is no directory or file 'nowhere'"),
        ({"model_name": "a b", "model_path": "mnt"}, "--model-name: has characters that are not allowed"),
    ):
        with pytest.raises(OptionError) as caught:
            load_config(options)
        assert str(caught.value).startswith(said)
