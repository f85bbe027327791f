"""Libraries that tests load into a server, compiled from ``tests/libraries``."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from onnx import helper
from onnx_models import value

SOURCES = Path(__file__).resolve().parent / "libraries"


@cache
def compiled(name: str) -> Path:
    """The library of ``tests/libraries/NAME.cpp``: ``operators`` or ``provider``."""
    library = Path(mkdtemp()) / f"lib{name}.so"
    command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", str(SOURCES / f"{name}.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def custom(operator: str = "Twice", domain: str = "test.operators", version: int = 1) -> bytes:
    """``y = operator(x)`` for FP32 ``[batch, 4]``; ``Twice`` is the one of :func:`compiled` ``("operators")``."""
    x, y = value("x", "FP32", ("batch", 4)), value("y", "FP32", ("batch", 4))
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "graph", [x], [y])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, version)] if domain else [])]
    return helper.make_model(graph, ir_version=9, opset_imports=opsets).SerializeToString()
