"""Writes the settings that MLServer starts from: one model, with the runtime of mlserver_runtime.py, for each file."""

from __future__ import annotations

import json
from pathlib import Path

SERVER = {
    "host": "127.0.0.1",
    "parallel_workers": 0,  # in the server's process: no copies between processes
    "load_models_at_startup": True,
    "debug": False,
    "metrics_endpoint": None,
    "logging_settings": None,
}


def write(port: int, files: dict[str, Path], directory: Path) -> None:
    ports = {"http_port": port, "grpc_port": port + 1, "metrics_port": port + 2}
    (directory / "settings.json").write_text(json.dumps(SERVER | ports))
    for name, file in files.items():
        model = {"name": name, "implementation": "mlserver_runtime.OnnxModel", "parameters": {"uri": str(file)}}
        (directory / name).mkdir()
        (directory / name / "model-settings.json").write_text(json.dumps(model))
