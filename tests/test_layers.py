"""Keeps the floors: a folder imports only from folders below it, and only from those that its row names.

Reads the imports of fastinfer/**/*.py and the imports, cimports and includes of ext/**; nothing is imported. A folder
without a row fails, and so does a row that names a folder of which nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The lowest first. Each row: a folder (of fastinfer/, of ext/fastinfer/ or of both), and those that it imports from.
FLOORS: dict[str, str] = {
    "base": "",
    "number": "",
    "native": "base",
    "shared": "base number native",
    "tensor": "base native shared",
    "config": "base",
    "codec": "base number native tensor",
    "http": "base native shared",
    "schedule": "base native shared tensor config",
    "backends": "base native shared tensor config schedule",
    "repository": "base native shared config schedule backends",
    "api": "base native shared tensor config codec http schedule backends repository",
    "supervisor": "base shared config http repository",
    "cli": "base native shared tensor config http schedule backends repository api supervisor",
}
TOP = {"fastinfer", "fastinfer.__main__"}  # the package itself: its version; `python -m fastinfer`

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(fastinfer[\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n#]*)|c?import[ \t]+(fastinfer[\w.]*))",
    re.M,
)
INCLUDE = re.compile(r'^[ \t]*(?:cdef extern from|#[ \t]*include)[ \t]+"(fastinfer/[\w/]+\.h)"', re.M)


def module_files() -> dict[str, list[Path]]:
    """Every file by its module's name: `fastinfer.codec.decode` is decode.pyx, decode.pxd and decode.pyi; a header by
    its path below ext/."""
    found: dict[str, list[Path]] = {}
    for tree in (ROOT, ROOT / "ext"):
        for path in sorted(tree.glob("fastinfer/**/*")):
            inside = path.relative_to(tree)
            if path.suffix in (".py", ".pyi", ".pyx", ".pxd"):
                parts = inside.with_suffix("").parts
                found.setdefault(".".join(parts[:-1] if parts[-1] == "__init__" else parts), []).append(path)
            elif path.suffix == ".h":
                found[str(inside)] = [path]
    return found


FILES = module_files()


def folder_of(module: str) -> str:
    return re.split(r"[./]", module)[1]


def imports_of(path: Path) -> Iterator[str]:
    """The modules and headers that a file imports."""
    text = path.read_text()
    names: list[tuple[str, list[str]]] = []
    if path.suffix in (".py", ".pyi"):
        for statement in ast.walk(ast.parse(text)):
            if isinstance(statement, ast.ImportFrom):
                assert statement.level == 0, f"{path.name}: write imports in full"
                names.append((statement.module or "", [alias.name for alias in statement.names]))
            elif isinstance(statement, ast.Import):
                names += [(alias.name, []) for alias in statement.names]
    else:
        for module, members, alone in IMPORT.findall(text):
            names.append(
                (module or alone, [member.split(" ")[0] for member in re.split(r"[(),\s]+", members) if member])
            )
        for header in INCLUDE.findall(text):
            assert header in FILES, f"{path.name} includes {header}, which is not there"
            yield header
    for module, members in names:
        if module.split(".")[0] != "fastinfer":
            continue
        inside = [f"{module}.{member}" for member in members if f"{module}.{member}" in FILES]
        yield from inside
        if len(inside) < len(members) or not members:
            assert module in FILES, f"{path.name} imports {module}, which is not there"
            yield module


@cache
def imports(module: str) -> frozenset[str]:
    """What the files of a module import, but for themselves and for the package's version."""
    return frozenset(other for path in FILES[module] for other in imports_of(path)) - {module} - TOP


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_imports_what_its_row_names(folder: str) -> None:
    used: dict[str, str] = {}
    for module in FILES.keys() - TOP:
        if folder_of(module) == folder:
            used |= {folder_of(other): f"{module} imports {other}" for other in imports(module)}
    used.pop(folder, None)
    floors = list(FLOORS)
    above = [line for other, line in used.items() if floors.index(other) > floors.index(folder)]
    assert not above, f"on a higher floor: {above}"
    row = FLOORS[folder].split()
    assert not used.keys() - row, f"not in the row of {folder}: {[used[other] for other in used.keys() - row]}"
    assert not row - used.keys(), f"nobody in {folder} imports from {row - used.keys()}: take it from the row"
    assert row == sorted(row, key=floors.index), "a row names folders in the order of the floors"


def test_each_folder_has_a_row() -> None:
    assert {folder_of(module) for module in FILES.keys() - TOP} == FLOORS.keys()


@pytest.mark.parametrize("folder", FLOORS)
def test_no_folder_goes_in_circles(folder: str) -> None:
    inside = [module for module in FILES.keys() - TOP if folder_of(module) == folder]
    TopologicalSorter({module: imports(module) for module in inside}).prepare()  # raises CycleError


def test_the_architecture_names_every_file() -> None:
    """Its table has the folders in the order of the floors, and in a folder's row the modules and headers in it."""
    rows = re.findall(r"^\| \d+ \| `(\w+)` \| (.*) \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    assert [folder for folder, _ in rows] == list(FLOORS)
    for folder, text in rows:
        named = {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", text)}
        there = set()
        for module in FILES:
            parts = re.split(r"[./]", module.removesuffix(".h"))[1:]
            if parts[:1] == [folder] and len(parts) > 1:
                whole = next((part for part in parts[1:] if part in ("routes", "graph")), None)  # named as folders
                there |= {whole} if whole else set(parts[1:])
        assert named == there, folder


def test_the_supervisor_is_out_of_reach_of_what_kills_a_serving_process() -> None:
    """It shares one built module with them: the memory in which they note what they run."""
    reached: set[str] = set()
    ahead = ["fastinfer.supervisor.server"]
    while ahead:
        if (module := ahead.pop()) not in reached:
            reached.add(module)
            ahead += imports(module) if not module.endswith(".h") else ()
    built = {module for module in reached if any(path.suffix == ".pyx" for path in FILES[module])}
    assert built == {"fastinfer.native.job", "fastinfer.shared.crash_record"}


@pytest.mark.parametrize("module", FILES)
def test_onnxruntime_is_only_reached_through_its_c_api(module: str) -> None:
    """Its Python module would bring a second session, its telemetry, and runs that hold the GIL."""
    for path in FILES[module]:
        text = path.read_text()
        assert not re.search(r"^\s*(?:import|from)\s+onnxruntime\b", text, re.M), path.name
        assert not re.search(r"\bInferenceSession\b|import_module\(.onnxruntime", text), path.name
