"""What one client's load or request leaves behind: memory that nobody gives back, a model that is closed to others."""

from __future__ import annotations

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.fault.subject import repository_of, subject
from tests.fault.trial import MIB, Trial
from tests.support import inference, tensor

WEIGHTS = 64 * MIB
REFUSED = (
    '{"input":[{"name":"x","data_type":"TYPE_BOOL"}]}',
    '{"input":[{"name":"z","data_type":"TYPE_FP32"}]}',
    '{"platform":"tensorflow"}',
)
BUDGET = 256 * MIB


def _heavy() -> bytes:
    weights = numpy_helper.from_array(np.ones(WEIGHTS // 4, np.float32), "w")
    nodes = [helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    return _model(nodes, [_value("x", [1])], [_value("y", [1])], [weights])


def _filled() -> bytes:
    """As many elements as its input says."""
    node = helper.make_node("ConstantOfShape", ["n"], ["y"])
    return _model([node], [_value("n", [1], TensorProto.INT64)], [_value("y", ["k"])], [])


def _value(name: str, shape: list[object], kind: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: list[object], inputs: list[object], outputs: list[object], held: list[object]) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def refused_loads(trial: Trial) -> None:
    """A valid model, loaded with configurations that do not fit it."""
    with repository_of({"heavy": _heavy()}) as repository, subject("--load", "none", repository=repository) as server:
        statuses: set[int] = set()

        def load(config: str) -> None:
            body = {"parameters": {"config": config}}
            statuses.add(server.post("/v2/repository/models/heavy/load", body).status)

        for config in REFUSED:
            load(config)
        before = server.rss()
        count = trial.count(100, 12)
        for number in range(count):
            load(REFUSED[number % len(REFUSED)])
        trial.equal("loads that were not refused", len(statuses - {400}), 0)
        trial.most(
            f"MiB kept of {count} models of {WEIGHTS // MIB} MiB", (server.rss() - before) / MIB, 2 * WEIGHTS / MIB
        )
        trial.equal("status of a good load afterwards", server.post("/v2/repository/models/heavy/load").status, 200)


def huge_answers(trial: Trial) -> None:
    """Requests whose values make outputs that exceed the budget, among small ones to the same model."""
    options = ("--in-flight-bytes", str(BUDGET))
    with repository_of({"filled": _filled()}) as repository, subject(*options, repository=repository) as server:

        def ask(count: int) -> tuple[int, bytes]:
            outputs = [{"name": "y", "parameters": {"binary_data": True}}]
            answer = server.infer("filled", inference(tensor("n", [1], "INT64", [count]), outputs=outputs))
            return answer.status, answer.body

        huge = wrong = 0
        for _ in range(trial.count(20, 3)):
            huge += ask(BUDGET // 4 + 1_000_000)[0] == 200
            for count in (1, 1000, 100_000):
                status, body = ask(count)
                size = json.loads(body[: body.rindex(b"}") + 1])["outputs"][0]["parameters"]["binary_data_size"]
                wrong += status != 200 or size != 4 * count
        trial.equal("answers above the budget", huge, 0)
        trial.equal("small requests that were not answered right", wrong, 0)
        trial.equal("bytes in flight at the end", server.metric("fastinfer_in_flight_bytes"), 0)
