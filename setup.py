"""Builds the extensions of the data plane; everything else is said in pyproject.toml.

Switches, read from the environment:
    FASTINFER_DEBUG=1      indices are checked, the C++ library checks itself, symbols, no optimisation
    FASTINFER_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer
    FASTINFER_TRACE=1      line tracing, for coverage of the .pyx files
    FASTINFER_GUIDED=1     each basic block tells tests/fuzz/coverage.cpp that it runs: make fuzz-guided
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("ext/fastinfer/_ext")


def switch(name: str) -> bool:
    return os.environ.get(f"FASTINFER_{name}", "0") not in ("", "0")


debug, sanitize, trace, guided = (switch(name) for name in ("DEBUG", "SANITIZE", "TRACE", "GUIDED"))

compile_args = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wno-unused-function", "-Wno-deprecated-declarations"]
link_args = ["-pthread"]
compile_args += ["-O0", "-g3", "-D_GLIBCXX_ASSERTIONS"] if debug else ["-O3", "-g1", "-fno-plt"]
if sanitize:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args += flags
    link_args += flags

if guided:
    compile_args += ["-fsanitize-coverage=trace-pc"]

macros = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
if trace:
    macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]

extensions = [
    Extension(
        f"fastinfer._ext.{source.stem}",
        [str(source)],
        include_dirs=["ext", str(SOURCE), numpy.get_include()],
        depends=[str(header) for header in SOURCE.glob("*.h")],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        language="c++",
    )
    for source in sorted(SOURCE.glob("*.pyx"))
]

setup(
    options={"build_ext": {"parallel": True}},
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": "3",
            "boundscheck": debug,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": debug,
            "linetrace": trace,
            "embedsignature": False,
        },
    ),
)
