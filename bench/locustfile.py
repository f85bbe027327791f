"""Users for locust that learn from the server what to ask: `locust -f bench/locustfile.py --host http://127.0.0.1:8000`

Opens a web page on http://localhost:8089; without one: add `--headless --users 50 --spawn-rate 10 --run-time 1m`.
Each user reads /v2/models and every model's metadata and builds its requests from them, so it needs no configuration
and works with any server of the Open Inference Protocol that lists its models.

    BENCH_MODELS=digits,simple   only these models (default: all)
    BENCH_ROWS=1                 rows of a request: the size of a first dimension that is free
    BENCH_COLUMNS=8              the size of any other free dimension
"""

from __future__ import annotations

import logging
import os
import random
from typing import Any

import orjson
from locust import FastHttpUser, constant, task
from locust.exception import StopUser

ONLY = set(filter(None, os.environ.get("BENCH_MODELS", "").split(",")))
ROWS = int(os.environ.get("BENCH_ROWS", "1"))
COLUMNS = int(os.environ.get("BENCH_COLUMNS", "8"))


def values(datatype: str, count: int) -> list[Any]:
    """Random elements; integers stay small, so that they suit every width and models that use them as an index."""
    match datatype:
        case "BOOL":
            return [random.random() < 0.5 for _ in range(count)]
        case "BYTES":
            return [f"text {random.randrange(1000)}" for _ in range(count)]
        case "FP16" | "BF16" | "FP32" | "FP64":
            return [round(random.random(), 6) for _ in range(count)]
    return [random.randrange(2) for _ in range(count)]


def payload(metadata: dict[str, Any]) -> str:
    """A request that fits the model."""
    inputs = []
    for tensor in metadata["inputs"]:
        shape = [size if size >= 0 else (COLUMNS if axis else ROWS) for axis, size in enumerate(tensor["shape"])]
        count = 1
        for size in shape:
            count *= size
        inputs.append(
            {
                "name": tensor["name"],
                "shape": shape,
                "datatype": tensor["datatype"],
                "data": values(tensor["datatype"], count),
            }
        )
    return orjson.dumps({"inputs": inputs}).decode()


class Client(FastHttpUser):
    """Asks one model after the other, at random, without a pause, and looks at the answer."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.payloads: dict[str, tuple[str, set[str]]] = {}
        for name in self.read("/v2/models", "/v2/models")["models"]:
            if not ONLY or name in ONLY:
                metadata = self.read(f"/v2/models/{name}", "/v2/models/[name]")
                self.payloads[name] = (payload(metadata), {output["name"] for output in metadata["outputs"]})
        if not self.payloads:
            self.give_up(f"none of {', '.join(sorted(ONLY))} is loaded" if ONLY else "no model is loaded")

    def read(self, path: str, name: str) -> Any:
        answer = self.client.get(path, name=name)
        if answer.status_code != 200:
            self.give_up(f"{path}: {answer.text or answer.error}")
        return answer.json()

    def give_up(self, reason: str) -> None:
        logging.error("%s", reason)
        self.environment.process_exit_code = 1
        raise StopUser

    @task
    def infer(self) -> None:
        name = random.choice(list(self.payloads))
        body, outputs = self.payloads[name]
        url = f"/v2/models/{name}/infer"
        with self.client.post(
            url, data=body, headers={"Content-Type": "application/json"}, catch_response=True
        ) as answer:
            if answer.status_code == 200 and {each["name"] for each in answer.json()["outputs"]} != outputs:
                answer.failure("other outputs than the metadata lists")
