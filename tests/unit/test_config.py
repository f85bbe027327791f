"""The server's configuration: sources, their precedence, values and sentences."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fastinfer.base import limits
from fastinfer.base.machine import memory_bytes, usable_cores
from fastinfer.config.server import OptionError, ServerConfig, default_text, format_size, load_config, parse_size

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("FASTINFER_")]:
        monkeypatch.delenv(name)


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return str(path)


def refusal(arguments: dict[str, Any]) -> str:
    with pytest.raises(OptionError) as caught:
        load_config(arguments)
    return str(caught.value)


def test_defaults() -> None:
    config = load_config()
    assert (config.host, config.port, config.server_name) == ("127.0.0.1", 8000, "fastinfer")
    assert config.model_repository == (Path("model-repository"),)
    assert config.load_all
    assert config.load_names == ()
    assert config.model_control == "explicit"
    assert config.threads == 2 * usable_cores()
    assert config.intra_op_threads == usable_cores()
    assert config.in_flight_bytes == memory_bytes() // 4
    assert config.telemetry is False


def test_every_limit_is_an_option_with_its_default() -> None:
    config = load_config()
    compared = 0
    for name, value in vars(limits).items():
        if name.isupper() and name.lower() in ServerConfig.model_fields:
            assert getattr(config, name.lower()) == value, name
            compared += 1
    assert compared >= 20  # the others are fixed: by the compiled data plane, the grammar of names, or their own nature


def test_the_limits_that_users_meet_are_options() -> None:
    assert {
        "max_head_bytes", "max_headers", "max_target_bytes", "max_body_bytes", "max_control_body_bytes", "max_chunks",
        "max_connections", "max_pipelined", "head_timeout_s", "body_idle_timeout_s", "body_min_bytes_per_s",
        "upload_timeout_s", "keep_alive_timeout_s", "write_timeout_s", "in_flight_bytes", "max_queue_size",
        "request_timeout_s", "drain_timeout_s",
    } <= set(ServerConfig.model_fields)  # fmt: skip


def test_http_limits_follow_the_options() -> None:
    config = load_config({"max_headers": "7", "head_timeout_s": "1.5", "in_flight_bytes": "64MiB"})
    assert config.http_limits.max_headers == 7
    assert config.http_limits.head_timeout_s == 1.5
    assert config.http_limits.in_flight_bytes == 64 * limits.MIB
    assert {field.name for field in fields(config.http_limits)} <= set(ServerConfig.model_fields)


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, 'port = 1\nhost = "file"\nserver_name = "file"\nmax_headers = 3')
    monkeypatch.setenv("FASTINFER_PORT", "2")
    monkeypatch.setenv("FASTINFER_HOST", "environment")
    config = load_config({"config": file, "port": "3"})
    assert (config.port, config.host, config.server_name, config.max_headers) == (3, "environment", "file", 3)
    assert config.max_pipelined == limits.MAX_PIPELINED


def test_file_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINFER_CONFIG", toml(tmp_path, "port = 5"))
    assert load_config().port == 5


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config({"model_repository": ["a", "b"], "load": ["x", "y,z"]}).load == ("x", "y", "z")
    monkeypatch.setenv("FASTINFER_MODEL_REPOSITORY", "a, b")
    monkeypatch.setenv("FASTINFER_LOAD", "none")
    config = load_config()
    assert config.model_repository == (Path("a"), Path("b"))
    assert (config.load_all, config.load_names) == (False, ())
    monkeypatch.undo()
    file = toml(tmp_path, 'load = ["x", "y"]\nmodel_repository = "one"')
    config = load_config({"config": file})
    assert config.load_names == ("x", "y")
    assert config.model_repository == (Path("one"),)


def test_frozen_and_closed() -> None:
    config = load_config()
    with pytest.raises(ValidationError):
        config.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        ServerConfig(no_such_option=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65536), ("64KiB", 65536), ("64 kib", 65536), ("1.5GiB", 3 << 29), ("1MB", 10**6), ("2k", 2048),
     ("12B", 12), (" 3MiB ", 3 << 20), (7, 7)],
)  # fmt: skip
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "64 furlongs", "-1", "1e3", "0x10", "MiB", "1" * 30, "1..5KiB", "١MiB\n2", True]
)
def test_bad_sizes(text: Any) -> None:
    with pytest.raises(ValueError, match="must be a"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 1000, 1024, 65536, 64 << 20, 3 << 30, 1025])
def test_a_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_a_share_of_the_memory() -> None:
    assert load_config({"in_flight_bytes": "50%"}).in_flight_bytes == memory_bytes() // 2
    assert "1% to 100%" in refusal({"in_flight_bytes": "101%"})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"port": "70000"}, '--port: must be at most 65535, got "70000"'),
        ({"port": "x"}, '--port: must be a whole number, got "x"'),
        ({"max_body_bytes": "0"}, '--max-body-bytes: must be at least 1, got "0"'),
        ({"request_timeout_s": "inf"}, "--request-timeout-s: must be"),
        ({"request_timeout_s": "nan"}, "--request-timeout-s: must be"),
        ({"request_timeout_s": "-1"}, '--request-timeout-s: must be more than 0, got "-1"'),
        ({"model_control": "maybe"}, "--model-control: must be 'explicit', 'none' or 'poll', got \"maybe\""),
        ({"load": ["all", "x"]}, "--load: 'all' cannot be combined with anything else"),
        ({"load": ["../x"]}, '--load: "../x" is not a model\'s name'),
        ({"server_name": "a\nb"}, "--server-name: has characters that are not allowed"),
        ({"poll_interval_s": "0.01"}, "--poll-interval-s: must be at least 0.1"),
        ({"config": "/no/such/file.toml"}, "the configuration file /no/such/file.toml cannot be read: No such file"),
        ({"config": "/"}, "the configuration file / cannot be read: Is a directory"),
    ],
)
def test_refusals_of_the_command_line(arguments: dict[str, Any], sentence: str) -> None:
    assert refusal(arguments).startswith(sentence)


def test_every_wrong_option_is_told_in_one_line_each() -> None:
    text = refusal({"port": "x", "max_headers": "y" * 10_000})
    assert [line.split(":")[0] for line in sorted(text.splitlines())] == ["--max-headers", "--port"]
    assert all(len(line) < 200 for line in text.splitlines())


def test_refusals_name_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINFER_PORT", "x")
    assert refusal({}) == 'environment variable FASTINFER_PORT: must be a whole number, got "x"'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port = true", "server.toml: port: must be a number, got true"),
        ("port = 80.5", "server.toml: port: must be a whole number, got 80.5"),
        ("prt = 1", "server.toml: there is no option 'prt'; did you mean 'port'?"),
        ('config = "x"', "server.toml: there is no option 'config'"),
        ("a = = 1", "server.toml: Invalid value (at line 1, column 5)"),
        ("load = 3", "server.toml: load: must be a list, got 3"),
        ("request_timeout_s = inf", "server.toml: request_timeout_s: must be"),
        ("max_headers = 99999999999999999999999", "server.toml: max_headers: "),
        ("a = " + "[" * 100_000, "server.toml: is nested too deeply"),
        ("#" * (2 << 20), "server.toml: is larger than 1MiB"),
        ("\x00", "server.toml: "),
    ],
)
def test_refusals_of_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    assert refusal({"config": toml(tmp_path, text)}).startswith(sentence)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_bytes(b"\xff\xfe")
    assert refusal({"config": str(path)}) == "server.toml: is not UTF-8 text"


def test_the_variable_that_kubernetes_sets_for_a_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINFER_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("FASTINFER_SERVICE_HOST", "10.0.0.1")
    assert load_config().port == 8000


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINFER_PORT", "")
    assert load_config().port == 8000


def test_every_option_and_every_model_field_is_documented() -> None:
    from fastinfer.config.model import ModelConfig
    from fastinfer.config.pbtxt import names_of

    text = (ROOT / "docs/configuration.md").read_text()
    words = set(re.findall(r"[\w-]+", text))
    for name, field in ServerConfig.model_fields.items():
        assert f"| `--{name.replace('_', '-')}` | {default_text(field)} |" in text, name
    silent = {"runtime", "batch_input", "batch_output", "cc_model_filenames", "metric_tags", "model_transaction_policy"}
    for name, field in ModelConfig.model_fields.items():
        assert name in silent or set(names_of(name, field)) <= words, name
