"""A model of Triton's Python backend that calls onnxruntime: one run for all requests that Triton gives at once."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        file = json.loads(args["model_config"])["parameters"]["file"]["string_value"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]

    def execute(self, requests: list[pb.InferenceRequest]) -> list[pb.InferenceResponse]:
        arrays = [[pb.get_input_tensor_by_name(each, name).as_numpy() for name in self.inputs] for each in requests]
        if len(requests) == 1:
            results = [self.session.run(self.outputs, dict(zip(self.inputs, arrays[0], strict=True)))]
        else:
            columns = map(np.concatenate, zip(*arrays, strict=True))
            joined = dict(zip(self.inputs, columns, strict=True))
            ends = np.cumsum([len(each[0]) for each in arrays])[:-1]
            together = [np.split(each, ends) for each in self.session.run(self.outputs, joined)]
            results = list(zip(*together, strict=True))
        return [
            pb.InferenceResponse([pb.Tensor(name, array) for name, array in zip(self.outputs, each, strict=True)])
            for each in results
        ]
