"""The command line: what is printed where, exit codes, and that help is quick."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastinfer import __version__
from fastinfer.cli import main as cli
from fastinfer.config.server import ServerConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("FASTINFER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")


class Recorder:
    """Stands for fastinfer.supervisor.server and for fastinfer.cli.process."""

    def __init__(self) -> None:
        self.config: ServerConfig | None = None
        self.again: Callable[[], ServerConfig] | None = None

    def supervise(self, config: ServerConfig, again: Callable[[], ServerConfig]) -> int:
        self.config, self.again = config, again
        return 7

    def serve(self, config: ServerConfig) -> int:
        self.config = config
        return 8


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for name, function in (("supervisor.server", recorder.supervise), ("cli.process", recorder.serve)):
        module = ModuleType(f"fastinfer.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"fastinfer.{name}", module)
    return recorder


def test_closed_descriptors_are_not_given_to_what_is_opened_next(tmp_path: Path) -> None:
    code = "import os, sys; from fastinfer.cli.main import main; main(['--version']); " + (
        "open(sys.argv[1], 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))"
    )
    python = [sys.executable, "-c", code, str(tmp_path / "found")]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *python], cwd=ROOT, check=True)
    assert (tmp_path / "found").read_text() == "/dev/null /dev/null /dev/null"


# --- The program ------------------------------------------------------------------------------------------------------


def run(*arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "fastinfer", *arguments], capture_output=True, text=True, env=environment, **keywords
    )


def test_as_a_module() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fastinfer {__version__}\n", "")


def test_a_mistake_is_one_line_without_a_traceback() -> None:
    done = run("serve", "--port", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == 'fastinfer: --port: must be a whole number, got "x"\n'


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastinfer.cli.main import main; main(['--help']);"
        "print([name for name in ('pydantic', 'numpy', 'onnxruntime', 'uvloop') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_of_serve_needs_no_extension() -> None:
    code = (
        "import sys; from fastinfer.cli.main import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([name for name, module in sys.modules.items() if name == 'onnxruntime' "
        "or name.startswith('fastinfer') and str(module.__file__).endswith('.so')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "fastinfer serve [OPTIONS]" in out
    assert max(map(len, out.splitlines())) <= 100
    assert err == ""


def test_nothing_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastinfer serves ONNX models")


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["srve"]) == 2
    assert capsys.readouterr().err == "fastinfer: there is no command 'srve'; did you mean 'serve'?\n"
    assert cli.main(["\x1b[2J\n"]) == 2
    assert capsys.readouterr().err == "fastinfer: there is no command '\\x1b[2J\\n'\n"


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "serve", interrupted)
    assert cli.main(["serve"]) == 130


# --- serve ------------------------------------------------------------------------------------------------------------


def test_serve_hands_over_the_configuration(service: Recorder) -> None:
    arguments = ["serve", "--port", "9", "--max-body-bytes=128MiB", "--load", "a", "b", "--load", "c", "--telemetry"]
    assert cli.main([*arguments, "--model-repository", "x", "--model-repository", "y"]) == 7
    assert service.config is not None
    assert (service.config.port, service.config.max_body_bytes) == (9, 128 << 20)
    assert service.config.load == ("a", "b", "c")
    assert service.config.model_repository == (Path("x"), Path("y"))
    assert service.config.telemetry is True


def test_paths_stand_anywhere(service: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b=c", "d", "e"):
        (tmp_path / f"{name}.onnx").touch()
    assert cli.main(["serve", "a.onnx", "--port", "9", "b=c.onnx", "--model", "n=d.onnx", "e.onnx"]) == 7
    assert service.config is not None
    assert service.config.port == 9
    assert service.config.model == ("n=d.onnx", "e.onnx", "./a.onnx", "./b=c.onnx")
    assert [list(root) for root in service.config.roots if not isinstance(root, Path)] == [["n", "e", "a", "b_c"]]
    assert service.again is not None
    assert service.again().roots == service.config.roots


def test_options_that_are_not_given_leave_the_environment_alone(
    service: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTINFER_PORT", "5")
    monkeypatch.setenv("FASTINFER_TELEMETRY", "true")
    assert cli.main(["serve", "--no-telemetry"]) == 7
    assert service.config is not None
    assert (service.config.port, service.config.telemetry) == (5, False)


def test_options_of_the_amd_inference_server(service: Recorder) -> None:
    assert cli.main(["serve", "--repository-load-existing", "--repository-monitoring"]) == 7
    assert service.config is not None
    assert service.config.load_all
    assert service.config.model_control == "poll"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--prt", "3"], "fastinfer: unknown option '--prt'; did you mean '--port'?\n"),
        (["--prt=3"], "fastinfer: unknown option '--prt'; did you mean '--port'?\n"),
        (["extra"], "fastinfer: there is no directory or file 'extra'\n"),
        (["--port"], "fastinfer: argument --port: expected one argument (see 'fastinfer serve --help')\n"),
        (["--max-head", "3"], "fastinfer: unknown option '--max-head'; did you mean '--max-headers'?\n"),
        (["--repository-monitoring", "--model-control", "none"],
         "fastinfer: --repository-monitoring contradicts --model-control\n"),
        (["--repository-load-existing", "--load", "a"], "fastinfer: --repository-load-existing contradicts --load\n"),
        (["--config", "/no/such.toml"],
         "fastinfer: the configuration file /no/such.toml cannot be read: No such file or directory\n"),
        (["--host", ""], "fastinfer: --host: must not be empty\n"),
    ],
)  # fmt: skip
def test_wrong_options(arguments: list[str], error: str, service: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", *arguments]) == 2
    assert capsys.readouterr().err == error
    assert service.config is None


def test_help_of_serve_tells_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "--help"])
    assert not end.value.code
    out = capsys.readouterr().out
    for name in ServerConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in out.replace(",", " "), name
    assert out.count("Default:") == len(ServerConfig.model_fields)
    assert max(map(len, out.splitlines())) <= 100


def test_a_missing_extension_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastinfer.cli.process", None)
    for arguments in (["serve", "--processes", "0"], ["process", "3"]):
        assert cli.main(arguments) == 2
        assert "fastinfer: fastinfer is not completely installed (" in capsys.readouterr().err


def test_zero_processes_serve_without_a_supervisor(service: Recorder) -> None:
    assert cli.main(["serve", "--processes", "0"]) == 8
    assert service.again is None


def test_the_supervisor_reads_the_configuration_again(service: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("max_queue_size = 1")
    assert cli.main(["serve", "--config", str(file), "--port", "9"]) == 7
    file.write_text("max_queue_size = 2\nport = 10")
    assert service.again is not None
    assert (service.again().max_queue_size, service.again().port) == (2, 9)


# --- check ------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    name: str
    version: int | None
    ok: bool
    detail: str
    notes: tuple[str, ...] = ()


def checked(monkeypatch: pytest.MonkeyPatch, results: list[Result]) -> list[Any]:
    calls: list[Any] = []

    def check(config: ServerConfig, directories: Any, names: Any) -> list[Result]:
        assert isinstance(config, ServerConfig)
        calls.append((directories, names))
        return results

    module = ModuleType("fastinfer.cli.check")
    module.check = check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastinfer.cli.check", module)
    return calls


def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = checked(monkeypatch, [Result("a", 1, True, "x FP32 [-1] -> y"), Result("long", 10, True, "z")])
    assert cli.main(["check", str(tmp_path), "a", "long"]) == 0
    assert calls == [([tmp_path], ["a", "long"])]
    assert capsys.readouterr().out == "ok      a/1      x FP32 [-1] -> y\nok      long/10  z\n"


def test_check_prints_the_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked(monkeypatch, [Result("a", 1, True, "x", ("opset 17", "curl \x1b"))])
    assert cli.main(["check", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "ok      a/1  x\n        opset 17\n        curl \\x1b\n"


def test_check_takes_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = checked(monkeypatch, [Result("a", 1, True, "fine")])
    monkeypatch.chdir(tmp_path)
    for name in ("r/a/1", "b", "a"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b" / "b.onnx").touch()
    assert cli.main(["check", "r", "b", "a", "other", "--model", "c=b"]) == 0
    ((roots, names),) = calls
    assert (list(roots[0]), roots[1:], names) == (["c", "b"], [Path("r")], ["a", "other"])
    assert cli.main(["check", "--model-name", "n", "--model-path", "b"]) == 0
    assert cli.main(["check", "r", "./nowhere"]) == 2


def test_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checked(monkeypatch, [Result("a", 1, True, "fine"), Result("b", None, False, "no\nfile \x1b[2J")])
    assert cli.main(["check", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "ok      a/1  fine\nFAILED  b    no\\nfile \\x1b[2J\n"


def test_check_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checked(monkeypatch, [])
    assert cli.main(["check", str(tmp_path)]) == 1
    assert "there is no model in" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path / "nowhere")]) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert cli.main(["check"]) == 2
    assert "DIR" in capsys.readouterr().err


def test_check_with_a_wrong_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked(monkeypatch, [])
    monkeypatch.setenv("FASTINFER_PORT", "x")
    assert cli.main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("fastinfer: environment variable FASTINFER_PORT: must be")


# --- infer ------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says, and remembers what was asked."""

    status = 200
    answer = b'{"outputs":[]}'
    seen: tuple[str, bytes, str | None] = ("", b"", None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).seen = (self.path, body, self.headers["Content-Type"])
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "status", 200)
    monkeypatch.setattr(Handler, "answer", b'{"outputs":[]}')
    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def request_file(tmp_path: Path) -> str:
    path = tmp_path / "request.json"
    path.write_text('{"inputs":[]}')
    return str(path)


def test_infer(server: str, request_file: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["infer", "m", request_file, "--url", server]) == 0
    assert Handler.seen == ("/v2/models/m/infer", b'{"inputs":[]}', "application/json")
    assert capfdbinary.readouterr().out == b'{"outputs":[]}\n'
    assert cli.main(["infer", "a/b", request_file, "--model-version", "2", "--url", f"{server}/prefix/"]) == 0
    assert Handler.seen[0] == "/prefix/v2/models/a%2Fb/versions/2/infer"


def test_infer_from_the_standard_input(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    assert cli.main(["infer", "m", "-", "--url", server.removeprefix("http://")]) == 0
    assert Handler.seen[1] == b"{}"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b'{"error":"no such thing"}', "no such thing"),
        (json.dumps({"error": "a\n\x1b[2J"}).encode(), "a\\n\\x1b[2J"),
        (b"<html>\xff", "<html>\ufffd"),
        (b"[]", "[]"),
    ],
)
def test_infer_is_refused(
    server: str, request_file: str, answer: bytes, told: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Handler, "status", 404)
    monkeypatch.setattr(Handler, "answer", answer)
    assert cli.main(["infer", "m", request_file, "--url", server]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fastinfer: the server answered 404: {told}\n")


def test_infer_without_a_server(request_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        port = httpd.server_port  # free again, and refused, in a moment
    assert cli.main(["infer", "m", request_file, "--url", f"http://127.0.0.1:{port}"]) == 2
    assert capsys.readouterr().err == (
        f"fastinfer: no server answers at http://127.0.0.1:{port}; start one with 'fastinfer serve', "
        "or name it with --url\n"
    )


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://x:99999", "http://[::1", "http://no such host/", "http://a\x00b"]
)
def test_infer_with_a_bad_url(url: str, request_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["infer", "m", request_file, "--url", url]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastinfer: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("timeout", ["-1", "0", "nan", "inf", "x"])
def test_infer_with_a_bad_timeout(
    timeout: str, server: str, request_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["infer", "m", request_file, "--url", server, "--timeout", timeout]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_infer_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["infer", "m", str(tmp_path / "nothing.json")]) == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
    assert cli.main(["infer", "m"]) == 2
    assert "FILE" in capsys.readouterr().err
