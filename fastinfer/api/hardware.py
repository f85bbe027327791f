"""Lists the hardware of this machine, by name and number.

``CPU`` (cores that the process may use), ``GPU`` and each GPU's model name (from NVIDIA's driver), and the execution
providers of the installed ONNX Runtime.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from fastinfer.backends.onnx import ort
from fastinfer.base.machine import usable_cores

_MODEL = re.compile(r"^Model:\s*(\S.*?)\s*$", re.M)


def available(root: Path = Path("/")) -> dict[str, int]:
    """Return the number of each kind of hardware. Reads files, so do not call it on the loop's thread.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
    """
    models = gpu_models(root)
    providers = dict.fromkeys(ort.available_providers(), 1)
    return {"CPU": usable_cores(root), "GPU": len(models), **Counter(models), **providers}


def gpu_models(root: Path = Path("/")) -> list[str]:
    """Return the model name of each NVIDIA GPU; empty without a GPU or its driver."""
    models = []
    for information in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            found = _MODEL.search(information.read_text("utf-8", "replace"))
        except OSError:
            continue  # the GPU was removed meanwhile
        models.append(found[1] if found else "NVIDIA GPU")
    return models
