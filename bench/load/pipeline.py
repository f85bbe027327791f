"""What batching saves for a scikit-learn pipeline: `python bench/load/pipeline.py [--connections 16] [--rounds 5]`.

Two servers run side by side, fastinfer and the same that runs every request by itself, and are asked in turn, in a
closed loop. The model takes two numbers and two texts, one row a request. Prints each round's rates, the processor time
that the server needs for a request, and the medians of their ratios. `--model-repository DIR --model NAME` measures
another model of the same inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import make_models
from bench.load import batches, loadgen
from bench.load.compare import UNBATCHED
from bench.load.scenarios import Case, Part
from bench.load.servers import LARGE_MODELS, serving
from bench.peers import Models

GOAL = 2.0  # times the rate without batches
VARIANTS = 16


def passenger(random: np.random.Generator) -> dict[str, Any]:
    """One row of each column."""
    return {
        "age": np.float32([[random.integers(1, 80)]]),
        "fare": np.float32([[random.integers(5, 300) / 4]]),
        "sex": np.array([[random.choice(["female", "male"])]], object),
        "port": np.array([[random.choice(["C", "Q", "S"])]], object),
    }


def cases(file: Path, name: str) -> list[Case]:
    """Requests, with the answers of ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    made = []
    for seed in range(VARIANTS):
        row = passenger(np.random.default_rng(seed))
        inputs = [
            {
                "name": column,
                "shape": value.shape,
                "datatype": "BYTES" if value.dtype == object else "FP32",
                "data": value.ravel().tolist(),
            }
            for column, value in row.items()
        ]
        answers = dict(zip(outputs, session.run(outputs, row), strict=True))
        made.append(Case(f"/v2/models/{name}/infer", orjson.dumps({"inputs": inputs}), None, answers))
    return made


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--model-repository", type=Path, default=LARGE_MODELS)
    parser.add_argument("--model", default="pipeline")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    repository, name = options.model_repository, options.model
    if repository == LARGE_MODELS:
        make_models.make(repository, [name])
    file = repository / name / "1" / "model.onnx"
    asked = [(Part(name, name, passenger), cases(file, name))]
    loadgen.build()
    ratios, savings = [], []
    with contextlib.ExitStack() as stack:
        served = Models((repository,), {name: file})
        servers = {each: stack.enter_context(serving(each, served)) for each in ("fastinfer", UNBATCHED)}
        for number in range(options.rounds):
            rates, costs = {}, {}
            for each, server in servers.items():
                before, cpu = batches.so_far(server.port), sum(server.cpu_s())
                measured = loadgen.run(server.port, asked, options.connections, options.seconds)
                rates[each] = measured["requests_per_s"]
                sizes = batches.between(before, batches.so_far(server.port))
                costs[each] = 1e6 * (sum(server.cpu_s()) - cpu) / measured["answered"]
                print(
                    f"round {number + 1}: {each:10} {rates[each]:9,.0f} requests/s, {costs[each]:5.1f} us of processor "
                    f"time each, batches by size: {sizes}"
                )
            ratios.append(rates["fastinfer"] / rates[UNBATCHED])
            savings.append(costs[UNBATCHED] / costs["fastinfer"])
    ratio = statistics.median(ratios)
    print(f"{1 / statistics.median(savings):.2f} of the processor time without batches")
    print(f"{ratio:.2f} times the rate without batches, at {options.connections} connections; the goal is {GOAL:g}")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
