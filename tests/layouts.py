"""Models on the disk as other tools lay them out. Each function fills an empty directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_models
from onnx import helper, numpy_helper


def adding(weight: float, *more: float) -> onnx.ModelProto:
    """``y = x + weight``, for four FP32 at a time; further weights are added one after the other."""
    weights = [weight, *more]
    nodes = [
        helper.make_node("Add", ["x" if not n else f"t{n}", f"w{n}"], ["y" if n == len(weights) - 1 else f"t{n + 1}"])
        for n in range(len(weights))
    ]
    constants = [numpy_helper.from_array(np.full(4, each, "f4"), f"w{n}") for n, each in enumerate(weights)]
    shape = ("batch", 4)
    made = onnx_models.model(
        nodes, [onnx_models.value("x", "FP32", shape)], [onnx_models.value("y", "FP32", shape)], constants
    )
    return onnx.load_from_string(made)


def write(path: Path, weight: float = 1) -> None:
    """Puts a model file in place, as a deployment does: the old one is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(adding(weight).SerializeToString())
    new.rename(path)


def write_external(path: Path, *weights: float, one_file: bool) -> None:
    """A model file with its weights beside it, in one file or in one for each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"all_tensors_to_one_file": one_file, "location": f"{path.name}.data" if one_file else None}
    onnx.save_model(adding(*weights), path, save_as_external_data=True, size_threshold=0, **options)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def triton(directory: Path) -> None:
    write(directory / "triton" / "1" / "model.onnx")
    (directory / "triton" / "config.pbtxt").write_text('name: "triton"\nbackend: "onnxruntime"\nmax_batch_size: 4\n')


def triton_directory(directory: Path) -> None:
    """The model file and its weights in a directory that has the name of a model file."""
    write_external(directory / "multi_file" / "1" / "model.onnx" / "model.onnx", 1, one_file=True)
    (directory / "multi_file" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\n')


def openvino(directory: Path) -> None:
    write(directory / "openvino" / "1" / "network.onnx")
    config = {"name": "openvino", "base_path": str(directory / "openvino")}
    write_json(directory / "config.json", {"model_config_list": [{"config": config}]})


def mlserver(directory: Path) -> None:
    write(directory / "artifacts" / "fitted.onnx")
    write(directory / "older.onnx", 9)
    settings = {
        "name": "ml server",
        "implementation": "some.OnnxRuntime",
        "parameters": {"uri": "./artifacts/fitted.onnx"},
    }
    write_json(directory / "model-settings.json", settings)


def kserve(directory: Path) -> None:
    write(directory / "mnt" / "models" / "model.onnx")


def zoo(directory: Path) -> None:
    """An archive of the ONNX model zoo, unpacked."""
    write(directory / "zoo-net" / "model.onnx")
    for name in ("input_0.pb", "output_0.pb"):
        path = directory / "zoo-net" / "test_data_set_0" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(numpy_helper.from_array(np.ones((1, 4), "f4"), name[0]).SerializeToString())
    (directory / "zoo-net" / "._model.onnx").write_bytes(b"of another system's archiver")


def optimum(directory: Path) -> None:
    write(directory / "optimum" / "model.onnx")
    write(directory / "optimum" / "model_quantized.onnx", 9)
    for name in ("config.json", "ort_config.json", "tokenizer.json", "tokenizer_config.json"):
        write_json(directory / "optimum" / name, {})


def olive(directory: Path) -> None:
    write_external(directory / "olive" / "model" / "model.onnx", 1, one_file=True)
    write_json(directory / "olive" / "model_config.json", {"type": "ONNXModel", "config": {"model_path": "elsewhere"}})
    write_json(directory / "olive" / "footprint.json", {})


def one_external_file(directory: Path) -> None:
    write_external(directory / "one_weight_file.onnx", 0.5, 0.5, one_file=True)


def many_external_files(directory: Path) -> None:
    write_external(directory / "many_weight_files.onnx", 0.25, 0.25, 0.5, one_file=False)


def ort(directory: Path) -> None:
    """ONNX Runtime's own format."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(directory / "small.ort")
    onnxruntime.InferenceSession(adding(1).SerializeToString(), options, providers=["CPUExecutionProvider"])
