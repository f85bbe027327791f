"""The command line: ``fastinfer serve``, ``fastinfer check``, ``fastinfer infer``.

Heavy modules are imported only when needed, so that help is quick and needs no built extension. Exit codes: 0 success,
1 the operation failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fastinfer import __version__

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from fastinfer.config.server import ServerConfig

FAILED, REFUSED, INTERRUPTED = 1, 2, 130

_HELP = """\
fastinfer serves ONNX models over the KServe v2 REST protocol.

Usage:
  fastinfer serve [OPTIONS] [PATH ...]   serve model files, model directories or repositories
  fastinfer check PATH [NAME ...]        validate models without serving them
  fastinfer infer MODEL FILE             send the request in a file (-: stdin), print the answer
  fastinfer --version

'fastinfer COMMAND --help' describes a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    _open_standard_descriptors()
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        match command:
            case "-h" | "--help" | "help":
                print(_HELP, end="")
                return 0
            case "-V" | "--version" | "version":
                print(f"fastinfer {__version__}")
                return 0
            case "":
                print(_HELP, end="", file=sys.stderr)
                return REFUSED
            case _ if command in _COMMANDS:
                return _COMMANDS[command](rest)
            case "process":
                return _process(rest)
            case _:
                from fastinfer.base.near import suggestion

                return _complain(f"there is no command '{_safe(command)}'{suggestion(command, _COMMANDS)}")
    except _Refused as refused:
        return _complain(*str(refused).splitlines())
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe; without this the interpreter fails again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _open_standard_descriptors() -> None:
    """Opens the null device for closed standard descriptors (``2>&-``), so that no other file gets their numbers.

    Otherwise the log, which goes to descriptor 2, would be written into that file.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


class _Refused(Exception):
    """The command cannot run; each line of the text is one sentence."""


def _complain(*sentences: str) -> int:
    for sentence in sentences:
        print(f"fastinfer: {sentence}", file=sys.stderr)
    return REFUSED


def _safe(text: str) -> str:
    from fastinfer.base.logs import printable

    return printable(text)


# --- serve ------------------------------------------------------------------------------------------------------------


def _serve(arguments: Sequence[str]) -> int:
    # SIGTERM ends the process at once until the server installs its own handlers, because nothing needs cleaning up. A
    # handler is needed because the kernel ignores SIGTERM without one for PID 1 of a container. It comes before the
    # imports, which may take as long as the rest of the start.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from fastinfer.base import signals

    signals.hold()
    parser = serve_parser()
    given, paths = parser.parse_with_paths(arguments)
    _add_models(given, paths)
    for alias, (option, value) in _ALIASES.items():
        if given.pop(alias, False) and given.setdefault(option, value) != value:
            raise _Refused(f"--{alias.replace('_', '-')} contradicts --{option.replace('_', '-')}")
    config = _configuration(given)
    try:
        if not config.processes:
            from fastinfer.cli.process import serve

            return serve(config)
        from fastinfer.config.server import load_config
        from fastinfer.supervisor.server import supervise
    except ImportError as error:
        raise _Refused(_not_built(error)) from error
    return supervise(config, lambda: load_config(given))


def _add_models(given: dict[str, Any], paths: Sequence[str]) -> None:
    """Adds the arguments that are paths to the option ``--model``."""
    if paths:
        # A path with a slash is never taken for NAME=PATH.
        given["model"] = [*given.get("model", ()), *(path if "/" in path else f"./{path}" for path in paths)]


def _process(arguments: Sequence[str]) -> int:
    """Serve for the supervisor, which starts this process; the argument is a descriptor."""
    try:
        from fastinfer.cli.process import serve_for
    except ImportError as error:
        raise _Refused(_not_built(error)) from error
    return serve_for(int(arguments[0]))


def _configuration(given: dict[str, Any]) -> ServerConfig:
    from fastinfer.config.server import OptionError, load_config

    try:
        return load_config(given)
    except OptionError as error:
        raise _Refused("\n".join(_safe(line) for line in str(error).splitlines())) from None


_ALIASES: dict[str, tuple[str, Any]] = {
    "repository_load_existing": ("load", ["all"]),
    "repository_monitoring": ("model_control", "poll"),
}
"""Options of the AMD Inference Server, and the options here that they stand for."""


def serve_parser() -> _Parser:
    """Make the parser of ``fastinfer serve`` from the fields of the configuration."""
    from fastinfer.config.server import ENV_PREFIX, ServerConfig

    parser = _Parser(
        "serve",
        "[OPTIONS] [PATH ...]",
        "Serves models until SIGINT or SIGTERM. PATH is an .onnx file, a directory with one, a model's directory, or a "
        "repository; without any the models of --model-repository are served.",
        "Each option can also be given as an environment variable (--max-body-bytes as "
        f'{ENV_PREFIX}MAX_BODY_BYTES) or as a key of the file named by --config (max_body_bytes = "64MiB"). '
        "The command line wins over the environment, the environment over the file.",
    )
    groups: dict[str, Any] = {}
    for name, field in ServerConfig.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        title = str(extra["group"])
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_option(groups[title], name, field)
    parser.add_argument("--repository-load-existing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repository-monitoring", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_option(group: Any, name: str, field: FieldInfo) -> None:
    from fastinfer.config.server import choices, default_text, is_list, is_size

    metavar = str(field.json_schema_extra["metavar"]) if isinstance(field.json_schema_extra, dict) else ""
    help_text = f"{field.description} Default: {default_text(field)}.".replace("%", "%%")
    options: dict[str, Any] = {"dest": name, "help": help_text, "default": argparse.SUPPRESS}
    if field.annotation is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif is_list(field):
        options |= {"action": "extend", "nargs": "+", "metavar": metavar}
    else:
        by_type = "SIZE" if is_size(field) else "S" if field.annotation is float else "N"
        options["metavar"] = metavar or "|".join(choices(field)) or by_type
    group.add_argument(f"--{name.replace('_', '-')}", **options)


# --- check ------------------------------------------------------------------------------------------------------------


def _check(arguments: Sequence[str]) -> int:
    from fastinfer.config.server import ServerConfig

    parser = _Parser(
        "check",
        "[OPTIONS] PATH [NAME ...]",
        "Loads models as a server would, and prints for each its signature, or why it does not load; then why it is "
        "batched, the time of a run, the memory, and a request to try. PATH is an .onnx file, a directory with one, a "
        "model's directory (DIR), or a repository (DIR), of which NAMEs may be chosen; several PATHs are possible. "
        "Exits with 1 if any fails.",
    )
    for name in _CHECK_OPTIONS:
        _add_option(parser, name, ServerConfig.model_fields[name])
    given, words = parser.parse_with_paths(arguments)
    paths, names = _paths_and_names(words)
    _add_models(given, paths)
    if not given.keys() & {"model", "model_path"}:
        raise _Refused(f"name what to check: DIR, a model file, or --model NAME=PATH (see '{parser.prog} --help')")
    config = _configuration(given)
    try:
        from fastinfer.cli.check import check
    except ImportError as error:
        raise _Refused(_not_built(error)) from error
    roots = list(config.given_roots)
    results = list(check(config, roots, names))
    if not results:  # only a repository can have none
        print(f"fastinfer: there is no model in '{_safe(', '.join(map(str, roots)))}'", file=sys.stderr)
        return FAILED
    places = [f"{result.name}/{result.version}" if result.version else result.name for result in results]
    width = max(map(len, places))
    for result, name in zip(results, places, strict=True):
        print(f"{'ok    ' if result.ok else 'FAILED'}  {name:<{width}}  {_safe(result.detail)}")
        for note in result.notes:
            print(f"        {_safe(note)}")
    return 0 if all(result.ok for result in results) else FAILED


_CHECK_OPTIONS = ("model", "model_name", "model_path", "layout", "allow_python_models", "allow_library")


def _paths_and_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates paths from the names of models.

    The first word is a path. Another without a slash is a name if the first is a directory with such a model, or if no
    file has that name.
    """
    paths = list(words[:1])
    names: list[str] = []
    for word in words[1:]:
        is_name = "/" not in word and (Path(words[0], word).is_dir() or not Path(word).exists())
        (names if is_name else paths).append(word)
    return paths, names


# --- infer ------------------------------------------------------------------------------------------------------------


def _infer(arguments: Sequence[str]) -> int:
    parser = _Parser(
        "infer",
        "MODEL FILE [OPTIONS]",
        "Sends the inference request in FILE (JSON; -: standard input) and prints the answer. "
        "Exits with 1 if the server answers with an error, with 2 if no server answers.",
    )
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    parser.add_argument("file", metavar="FILE", help="a JSON file, or -")
    parser.add_argument("--url", default="http://127.0.0.1:8000", metavar="URL", help="the server (%(default)s)")
    parser.add_argument("--model-version", metavar="V", help="the model's version (default: the server's choice)")
    parser.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="seconds to wait (%(default)g)")
    given = parser.parse(arguments)
    try:
        body = sys.stdin.buffer.read() if given.file == "-" else Path(given.file).read_bytes()
    except OSError as error:
        raise _Refused(f"'{_safe(given.file)}' cannot be read: {error.strerror}") from None
    status, answer = _post(given.url, given.model, given.model_version, body, given.timeout)
    if 200 <= status < 300:
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()
        return 0
    print(f"fastinfer: the server answered {status}: {_error_text(answer)}", file=sys.stderr)
    return FAILED


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86_400:
        raise ValueError
    return seconds


_seconds.__name__ = "time"  # argparse: "invalid time value: '-1'"


def _post(url: str, model: str, version: str | None, body: bytes, timeout_s: float) -> tuple[int, bytes]:
    from http.client import HTTPConnection, HTTPException, HTTPSConnection
    from urllib.parse import quote, urlsplit

    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        parts, port = None, None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Refused(f"'{_safe(url)}' is not the URL of a server; it looks like http://127.0.0.1:8000")
    path = f"{parts.path.rstrip('/')}/v2/models/{quote(model, safe='')}"
    path += f"/versions/{quote(version, safe='')}/infer" if version else "/infer"
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    try:
        connection = kind(parts.hostname, port, timeout=timeout_s)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
    except ConnectionRefusedError:
        raise _Refused(
            f"no server answers at {_safe(url)}; start one with 'fastinfer serve', or name it with --url"
        ) from None
    except TimeoutError:
        raise _Refused(f"the server at {_safe(url)} did not answer within {timeout_s:g} seconds") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _Refused(f"no answer from {_safe(url)}: {_safe(str(error)) or type(error).__name__}") from None


def _error_text(answer: bytes) -> str:
    import json

    try:
        return _safe(str(json.loads(answer)["error"]))
    except (ValueError, TypeError, LookupError, RecursionError):
        return _safe(answer[:512].decode("utf-8", "replace"))


# --- Parsing ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and a suggestion for a misspelt option."""

    def __init__(self, command: str, usage: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"fastinfer {command}",
            usage=f"fastinfer {command} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=_width()),
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        namespace, rest = self._parse_options(arguments)
        if rest:
            raise _Refused(f"unknown argument '{_safe(rest[0].partition('=')[0])}'")
        return namespace

    def parse_with_paths(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the options and the other arguments, which may stand before, between and behind the options."""
        # Not a positional argument of argparse, because that takes only those that stand together.
        namespace, paths = self._parse_options(arguments)
        return vars(namespace), paths

    def _parse_options(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        namespace, rest = self.parse_known_args(arguments)
        unknown = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        if unknown is not None:
            from fastinfer.base.near import suggestion

            known = [text for text in self._option_string_actions if text.startswith("--")]
            raise _Refused(f"unknown option '{_safe(unknown)}'{suggestion(unknown, known)}")
        return namespace, rest

    def error(self, message: str) -> NoReturn:
        raise _Refused(f"{_safe(message)} (see '{self.prog} --help')")


def _width() -> int:
    import shutil

    return max(60, min(110, shutil.get_terminal_size().columns - 2))


def _not_built(error: ImportError) -> str:
    return f"fastinfer is not completely installed ({_safe(str(error))}); build it with 'pip install .'"


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"serve": _serve, "check": _check, "infer": _infer}
