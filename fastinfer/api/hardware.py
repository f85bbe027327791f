"""What this machine has to compute with, by name and number.

``CPU`` (cores that the process may use), ``GPU`` and each GPU's model name (NVIDIA's, as the driver tells), and the
execution providers of the installed ONNX Runtime.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from fastinfer.backends.onnx import ort
from fastinfer.base.machine import usable_cores

_MODEL = re.compile(r"^Model:\s*(\S.*?)\s*$", re.M)


def available(root: Path = Path("/")) -> dict[str, int]:
    """How many there are of everything, by name; reads files, so not on the loop's thread.

    Args:
        root: where ``proc`` and ``sys`` are looked for.
    """
    models = gpu_models(root)
    providers = dict.fromkeys(ort.available_providers(), 1)
    return {"CPU": usable_cores(root), "GPU": len(models), **Counter(models), **providers}


def gpu_models(root: Path = Path("/")) -> list[str]:
    """The model name of each NVIDIA GPU; empty without one, or without its driver."""
    models = []
    for information in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            found = _MODEL.search(information.read_text("utf-8", "replace"))
        except OSError:
            continue  # it was taken away meanwhile
        models.append(found[1] if found else "NVIDIA GPU")
    return models
