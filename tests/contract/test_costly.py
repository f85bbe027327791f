"""Requests that take long after many like them were quick: while one runs, others are answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from costly_models import ALL, BY_VALUES
from support import Server, serving, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory: Path = tmp_path_factory.mktemp("models")
    for name, costly in ALL.items():
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(costly.model)
    with serving("--inline-run-us", "500", repository=directory) as running:
        yield running


def value(server: Server, family: str, model: str) -> float:
    found = re.search(rf'^{family}{{model="{model}",version="1"}} (\S+)$', server.metrics(), re.MULTILINE)
    return float(found[1]) if found else -1


@pytest.mark.parametrize("model", ALL)
def test_others_are_answered_while_a_request_runs_that_costs_more_than_those_before(server: Server, model: str) -> None:
    cheap, dear = (json.dumps(body).encode() for body in (ALL[model].cheap, ALL[model].dear))
    for _ in range(50):
        assert server.infer(model, cheap).status == 200
    preempted = value(server, "fastinfer_inline_overruns_total", model)  # cheap runs, on a machine with other work
    with ThreadPoolExecutor(1) as client:

        def seen_in_flight() -> bool:
            """Whether the page shows a request that is answered later; it cannot while that stops the loop."""
            answer = client.submit(server.infer, model, dear)
            seen = False
            while not answer.done():
                seen = value(server, "fastinfer_batches_running", model) == 1 or seen
            assert answer.result().status == 200
            return seen

        wait_for(seen_in_flight)
    assert value(server, "fastinfer_inline_overruns_total", model) == preempted


@pytest.mark.parametrize("model", BY_VALUES)
def test_the_log_says_which_operator_keeps_a_model_off_the_loop(server: Server, model: str) -> None:
    reason = f"operator '{model}' has work"
    wait_for(lambda: f"model '{model}' never runs on the event loop's thread: {reason}" in server.log)
