"""Keeps the floors: a file imports only from floors below its own, or, on its own floor, what its row allows.

Reads the imports of fastinfer/**/*.py and the imports, cimports and includes of ext/**; nothing is imported. A file
that is not in FLOORS fails, so whoever adds one says where it stands.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The lowest first. Each row: a file, and what it may import from its own floor (and, through those, what they may).
FLOORS: list[dict[str, str]] = [
    {
        "__init__": "",
        "config.__init__": "",
        "http.__init__": "",
        "http.listen": "",
        "http.origin": "",
        "models.__init__": "",
        "models.operation": "",
        "supervisor.__init__": "",
        "supervisor.counters": "machine",
        "errors": "",
        "limits": "",
        "machine": "",
        "signals": "",
        "disk": "",
        "waits": "",
        "_ext.jsoncount": "",
        "onnx.__init__": "",
        "onnx.contents": "onnx.dims onnx.proto onnx.values",
        "onnx.dims": "",
        "onnx.operators.__init__": "onnx.operators.axes onnx.operators.call onnx.operators.classical "
        "onnx.operators.elementwise onnx.operators.images onnx.operators.places onnx.operators.products "
        "onnx.operators.quantized onnx.operators.selection onnx.operators.sequences onnx.operators.shapes",
        "onnx.operators.axes": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.classical": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.elementwise": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.images": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.places": "onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.products": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.quantized": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.selection": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.sequences": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.shapes": "onnx.contents onnx.dims onnx.operators.call onnx.values",
        "onnx.operators.call": "onnx.dims onnx.proto onnx.values",
        "onnx.facts": "onnx.operators.__init__ onnx.proto onnx.visits",
        "onnx.proto": "",
        "onnx.rows": "onnx.contents onnx.dims onnx.operators.__init__ onnx.operators.places "
        "onnx.proto onnx.values onnx.visits",
        "onnx.values": "onnx.dims",
        "onnx.visits": "",
        "config.validation": "",
        "_ext.__init__": "",
        "_ext.buffer": "number_parse.h number_run.h",
        "_ext.datatype": "_ext.buffer number_parse.h number_format.h",
        "classes.h": "interrupt.h",
        "number_digits.h": "number_power.h",
        "number_format.h": "number_digits.h number_shortest.h",
        "number_shortest.h": "number_power.h",
        "number_parse.h": "number_power.h",
        "number_power.h": "",
        "number_run.h": "number_parse.h",
        "_ext.reply": "",
        "number_mask.h": "number_run.h",
        "number_find.h": "number_mask.h",
        "number_wide.h": "number_find.h",
        "number_table.h": "number_wide.h",
        "_ext.ort_table": "ort_table.h",
        "ort_table.h": "",
        "base64.h": "",
        "interrupt.h": "",
        "budget.h": "",
        "_ext.budget": "budget.h",
        "pool.h": "signals.h",
        "fingerprint.h": "",
        "thread_usage.h": "",
        "watch.h": "signals.h",
        "crash_record.h": "",
        "crash_signals.h": "crash_record.h",
        "signals.h": "",
        "shared_counters.h": "",
        "process_usage.h": "",
    },
    {
        "bounded": "",
        "config.server": "",
        "http.exchange": "_ext.exchange",
        "http.head": "http.exchange _ext.exchange",
        "logs": "",
        "config.model": "config.model_schema config.pbtxt",
        "config.model_schema": "config.pbtxt",
        "config.pbtxt": "",
        "openapi": "openapi_extensions openapi_parts",
        "openapi_extensions": "openapi_parts",
        "openapi_parts": "",
        "models.stats": "_ext.histogram _ext.report _ext.stats",
        "models.upkeep": "",
        "models.banks": "_ext.report models.stats",
        "supervisor.assignment": "config.server",
        "supervisor.channel": "",
        "supervisor.child": "supervisor.assignment supervisor.channel",
        "supervisor.operations": "models.upkeep supervisor.channel",
        "supervisor.slots": "supervisor.child",
        "http.upload": "http.head _ext.upload",
        "_ext.exchange": "_ext.job",
        "_ext.upload": "_ext.exchange",
        "_ext.histogram": "",
        "_ext.stats": "_ext.histogram",
        "_ext.job": "",
        "_ext.report": "_ext.job _ext.stats",
        "_ext.crashrecord": "_ext.job",
        "_ext.cost": "_ext.job",
        "_ext.poller": "_ext.job",
        "_ext.message": "_ext.classify _ext.stats _ext.tensor",
        "_ext.classify": "_ext.job _ext.tensor",
        "_ext.tensor": "",
        "_ext.expected": "_ext.tensor",
        "http.compression": "http.head _ext.upload",
        "http.pieces": "",
    },
    {
        "hardware": "_ext.ort",
        "models.files": "",
        "models.index": "",
        "models.readiness": "",
        "models.policy": "",
        "models.run": "",
        "models.crashes": "_ext.runnotes",
        "supervisor.suspects": "",
        "_ext.batch": "",
        "_ext.connection": "",
        "_ext.decode": "_ext.envelope",
        "_ext.envelope": "_ext.payload",
        "_ext.payload": "_ext.decoder",
        "_ext.decoder": "",
        "_ext.encode": "",
        "_ext.executor": "",
        "_ext.lifetime": "",
        "_ext.ort": "_ext.ort_run",
        "_ext.ort_run": "",
        "_ext.queue": "",
        "_ext.runnotes": "",
        "_ext.signature": "",
    },
    {
        "_ext.scheduler": "",
        "_ext.batchrun": "",
        "_ext.binding": "_ext.watchdog",
        "_ext.watchdog": "",
        "_ext.runner": "_ext.batchrun _ext.binding",
        "_ext.inference": "_ext.scheduler",
        "workers.base": "",
        "workers.parameters": "",
    },
    {
        "service": "metrics models.replica",
        "models.rounds": "models.replica",
        "models.replica": "models.repository",
        "models.repository": "models.endpoints models.loader",
        "models.loader": "models.model workers.__init__ workers.onnx workers.onnx_load workers.onnx_trial",
        "models.endpoints": "models.model",
        "metrics": "models.model",
        "models.model": "",
        "workers.__init__": "workers.echo workers.fake workers.image workers.item",
        "workers.echo": "workers.item",
        "workers.fake": "workers.item",
        "workers.image": "workers.item",
        "workers.item": "",
        "workers.onnx": "",
        "workers.onnx_load": "workers.onnx_trial",
        "workers.onnx_trial": "",
    },
    {
        "http.protocol": "http.hub routes.router",
        "http.hub": "",
        "routes.__init__": "routes.health routes.metadata routes.infer routes.repository "
        "routes.statistics routes.hardware routes.docs routes.metrics",
        "routes.docs": "routes.router",
        "routes.body": "",
        "routes.hardware": "routes.body routes.router",
        "routes.health": "routes.router",
        "routes.infer": "routes.router",
        "routes.metadata": "routes.router",
        "routes.metrics": "routes.router",
        "routes.repository": "routes.body routes.router",
        "routes.statistics": "routes.router",
        "routes.router": "",
    },
    {
        "__main__": "cli",
        "cli": "check process supervisor.server",
        "check": "",
        "process": "http.server state",
        "state": "http.server",
        "http.server": "",
        "supervisor.server": "",
    },
]
FLOOR_OF = {name: floor for floor, rows in enumerate(FLOORS) for name in rows}

CIMPORT = re.compile(
    r"^\s*(?:from\s+(fastinfer[\w.]*)\s+c?import\s+\(?\s*([\w, ]*)|c?import\s+(fastinfer[\w.]*))", re.M
)
INCLUDE = re.compile(r'^\s*(?:cdef extern from|#\s*include)\s+"([\w/]+\.h)"', re.M)


def source_files() -> dict[str, list[Path]]:
    """Every file by the name of its row: `_ext.decode` is decode.pyx, decode.pxd and decode.pyi."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*ROOT.glob("fastinfer/**/*.py*"), *ROOT.glob("ext/fastinfer/**/*.p[xy]*")]):
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd"):
            inside = path.relative_to(ROOT / "ext" if path.is_relative_to(ROOT / "ext") else ROOT)
            found.setdefault(".".join(inside.with_suffix("").parts[1:]), []).append(path)
    for path in ROOT.glob("ext/fastinfer/**/*.h"):
        found[path.name] = [path]
    return found


FILES = source_files()


def row_of(module: str) -> str | None:
    """The row of a module, by its dotted name below `fastinfer`; None if it names no module that has a floor."""
    return next((row for row in (module, f"{module}.__init__".lstrip(".")) if row in FLOOR_OF), None)


def imports(path: Path) -> Iterator[str]:
    """The rows that a file imports."""
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
        for module, members, alone in CIMPORT.findall(text):
            names.append((module or alone, [member.strip().split(" ")[0] for member in members.split(",")]))
        yield from {Path(header).name for header in INCLUDE.findall(text)} & FLOOR_OF.keys()
    for module, members in names:
        head, _, rest = module.partition(".")
        if head != "fastinfer":
            continue
        inside = [row_of(f"{rest}.{member}".strip(".")) for member in members]
        yield from (row for row in inside if row)  # "from fastinfer import limits"
        if not all(inside) or not inside:
            row = row_of(rest)
            assert row, f"{path.relative_to(ROOT)} imports {module}, which has no floor"
            yield row


def allowed(name: str) -> set[str]:
    """What a file may import from its own floor."""
    rows = FLOORS[FLOOR_OF[name]]
    reached: set[str] = set()
    ahead = rows[name].split()
    while ahead:
        if (other := ahead.pop()) not in reached:
            reached.add(other)
            ahead += rows[other].split()
    return reached


@pytest.mark.parametrize("name", FILES)
def test_imports_run_down(name: str) -> None:
    assert name in FLOOR_OF, f"{name} has no floor yet: add it to FLOORS"
    for path in FILES[name]:
        for other in imports(path):
            if other == name:
                continue
            if FLOOR_OF[other] == FLOOR_OF[name]:
                assert other in allowed(name), f"{path.name} imports {other}, on its own floor"
            else:
                assert FLOOR_OF[other] < FLOOR_OF[name], f"{path.name} imports {other}, on a higher floor"


def test_no_floor_goes_in_circles() -> None:
    for rows in FLOORS:
        TopologicalSorter({name: others.split() for name, others in rows.items()}).prepare()  # raises CycleError


def test_each_file_has_one_floor_and_each_floor_its_files() -> None:
    assert len(FLOOR_OF) == sum(len(rows) for rows in FLOORS)
    assert FLOOR_OF.keys() <= FILES.keys(), FLOOR_OF.keys() - FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_onnxruntime_is_only_reached_through_its_c_api(name: str) -> None:
    """Its Python module would bring a second session, its telemetry, and runs that hold the GIL."""
    for path in FILES[name]:
        text = path.read_text()
        assert not re.search(r"^\s*(?:import|from)\s+onnxruntime\b", text, re.M), path.name
        assert not re.search(r"\bInferenceSession\b|import_module\(.onnxruntime", text), path.name
