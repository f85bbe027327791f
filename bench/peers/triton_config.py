"""Writes the model repository that Triton serves: for each file a Python-backend model with dynamic batching."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime

MODEL = Path(__file__).parent / "triton_model.py"
MAX_BATCH_SIZE = 64
# What was faster on two cores, November 2026: two where the runs are long, one where Python has most of the work.
INSTANCES = {"mlp_large": 2}
KINDS = {"tensor(float)": "FP32", "tensor(int32)": "INT32", "tensor(int64)": "INT64", "tensor(double)": "FP64"}


def write(files: dict[str, Path], directory: Path) -> None:
    for name, file in files.items():
        (directory / name / "1").mkdir(parents=True)
        shutil.copyfile(MODEL, directory / name / "1" / "model.py")
        (directory / name / "config.pbtxt").write_text(config(name, file))


def config(name: str, file: Path) -> str:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def tensors(key: str, listed: list[onnxruntime.NodeArg]) -> str:
        rows = [
            f'{{ name: "{each.name}" data_type: TYPE_{KINDS[each.type]} '
            f"dims: [{', '.join(str(size) if isinstance(size, int) else '-1' for size in each.shape[1:])}] }}"
            for each in listed
        ]
        return f"{key} [ {', '.join(rows)} ]"

    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "python"',
            f"max_batch_size: {MAX_BATCH_SIZE}",
            tensors("input", session.get_inputs()),
            tensors("output", session.get_outputs()),
            "dynamic_batching { }",
            f"instance_group [ {{ kind: KIND_CPU count: {INSTANCES.get(name, 1)} }} ]",
            f'parameters [ {{ key: "file" value: {{ string_value: "{file}" }} }} ]',
        ]
    )
