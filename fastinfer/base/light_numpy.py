"""Imports numpy without its pool of threads for linear algebra, of which a server does none.

Import this before anything that imports numpy. The variable that says so does not stay in the environment, because the
processes of Python models inherit that, and they may need the pool.
"""

from __future__ import annotations

import os
import sys

_VARIABLE = "OPENBLAS_NUM_THREADS"

if "numpy" not in sys.modules and _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[_VARIABLE]
