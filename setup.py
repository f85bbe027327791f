"""Builds the extensions of the data plane; everything else is said in pyproject.toml.

Switches, read from the environment:
    FASTINFER_DEBUG=1      invariants and indices are checked, the C++ library checks itself, symbols, no optimisation
    FASTINFER_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer
    FASTINFER_COVERAGE=1   lines count how often they run, those of .pyx files under their own names: make coverage
    FASTINFER_GUIDED=1     each basic block tells tests/fuzz/coverage.cpp that it runs: make fuzz-guided
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCE = Path("ext")


def switch(name: str) -> bool:
    return os.environ.get(f"FASTINFER_{name}", "0") not in ("", "0")


debug, sanitize, coverage, guided = (switch(name) for name in ("DEBUG", "SANITIZE", "COVERAGE", "GUIDED"))

DEBUG = [("FASTINFER_DEBUG", "1")] if debug else []

compile_args = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wno-unused-function", "-Wno-deprecated-declarations"]
link_args = ["-pthread"]
if debug:
    compile_args += ["-O0", "-g3", "-D_GLIBCXX_ASSERTIONS"]
elif coverage:
    compile_args += ["-O0", "-g1", "--coverage", "-fprofile-update=atomic"]
    link_args += ["--coverage"]
else:
    compile_args += ["-O3", "-g1", "-fno-plt"]
if sanitize:
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args += flags
    link_args += flags

if guided:
    compile_args += ["-fsanitize-coverage=trace-pc"]

extensions = [
    Extension(
        ".".join(source.relative_to(SOURCE).with_suffix("").parts),
        [str(source)],
        include_dirs=[str(SOURCE), numpy.get_include()],
        depends=[str(header) for header in SOURCE.rglob("*.h")],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), *DEBUG],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        language="c++",
    )
    for source in sorted(SOURCE.rglob("*.pyx"))
]

modules = cythonize(
    extensions,
    include_path=[str(SOURCE)],
    nthreads=os.cpu_count() or 1,
    emit_linenums=coverage,
    compiler_directives={
        "language_level": "3",
        "boundscheck": debug,
        "wraparound": False,
        "cdivision": True,
        "initializedcheck": debug,
        "embedsignature": False,
    },
)
if coverage:  # Cython names files from ext/ on, the compiler from here on; gcov knows one of both
    for source in SOURCE.rglob("*.cpp"):
        text = source.read_text()
        if '"fastinfer/' in text:
            source.write_text(text.replace('"fastinfer/', f'"{SOURCE}/fastinfer/'))

setup(options={"build_ext": {"parallel": True}}, ext_modules=modules)
