"""Ensembles in several processes: loaded and restored alike, reloaded under load, and without the blame for a step."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx_models
from ensembles import diamond, ensemble, linear, outer, step, tensors, times, write_basic, write_ensemble, write_model
from support import Answer, Server, exchange, inference, serving, tensor, wait_for

X = inference(tensor("x", [1, 4], "FP32", [1, 2, 3, 4]))


def write(repository: Path) -> None:
    write_basic(repository)
    for name, config in {"linear": linear(), "diamond": diamond(), "outer": outer()}.items():
        write_ensemble(repository, name, config)


def everywhere(server: Server, path: str, body: Any = None) -> set[tuple[int, bytes]]:
    """The answers on many connections, which reach all processes."""
    answers = (server.request("GET" if body is None else "POST", path, body) for _ in range(24))
    return {(answer.status, answer.body) for answer in answers}


def data(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"]


def test_all_processes_serve_an_ensemble_and_a_new_one_restores_it(tmp_path: Path) -> None:
    write(tmp_path)
    with serving("--processes", "2", "--load", "none", repository=tmp_path) as server:
        server.load("models/outer")
        names = ["diamond", "join", "linear", "outer", "plus", "times"]
        assert server.get("/v2/models").json["models"] == names
        (answer,) = everywhere(server, "/v2/models/outer/infer", X)
        assert json.loads(answer[1])["outputs"][0]["data"] == [10, 16, 22, 28]
        server.replace(0)
        server.replace(1)
        assert everywhere(server, "/v2/models/outer/infer", X) == {answer}

        # An ensemble that misses a step is restored, too.
        assert server.post("/v2/models/join/unload").status == 200
        (unready,) = everywhere(server, "/v2/models/outer/ready")
        assert unready[0] == 503
        server.replace(0)
        assert everywhere(server, "/v2/models/outer/ready") == {unready}
        server.load("models/diamond")
        assert everywhere(server, "/v2/models/outer/infer", X) == {answer}
        assert "does not serve the same models" not in server.log


def test_two_ensembles_that_load_at_the_same_time(tmp_path: Path) -> None:
    write(tmp_path)
    with serving("--processes", "2", "--load", "none", repository=tmp_path) as server, ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            loads = [f"/v2/models/{name}/load" for name in ("outer", "diamond", "linear", "times")]
            assert [answer.status for answer in pool.map(server.post, loads)] == [200] * 4
            assert data(server.infer("outer", X)) == [10, 16, 22, 28]
            for name in server.get("/v2/models").json["models"]:
                assert server.post(f"/v2/models/{name}/unload").status == 200


def test_a_step_is_reloaded_under_load(tmp_path: Path) -> None:
    """Each answer is of one version of the step, and none fails."""
    write_basic(tmp_path)
    write_ensemble(tmp_path, "twice", linear("times", "times"))
    done = threading.Event()
    wrong: list[Any] = []
    seen = set()

    def ask() -> None:
        with contextlib.closing(server.connect()) as connection:
            while not done.is_set():
                answer = exchange(connection, "POST", "/v2/models/twice/infer", X)
                first = answer.json["outputs"][0]["data"][0] if answer.status == 200 else answer.body
                seen.add(first)
                if first not in (4, 9, 16, 25, 36):
                    wrong.append(first)

    with serving("--processes", "2", "--load", "twice", repository=tmp_path) as server:
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for factor in (3, 4, 5, 6):
            write_model(tmp_path, "times", times(factor))
            server.load("models/times")
            server.load("models/twice")
            wait_for(lambda factor=factor: factor**2 in seen)  # type: ignore[misc]
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_crash_is_blamed_on_the_model_of_the_step(tmp_path: Path) -> None:
    write_model(tmp_path, "divide", onnx_models.divide("INT64"))
    config = ensemble(
        tensors("n", "d", dims=(1,), datatype="INT64"),
        tensors("y", dims=(1,), datatype="INT64"),
        step("divide", {"a": "n", "b": "d"}, {"y": "y"}),
    )
    write_ensemble(tmp_path, "quotient", config)
    deadly = [("INT64", [-(2**63)]), ("INT64", [-1])]

    def body(*names: str) -> dict[str, Any]:
        return inference(*(tensor(name, [1, 1], *each) for name, each in zip(names, deadly, strict=True)))

    def ask(model: str, *names: str) -> Answer | None:
        try:
            return server.infer(model, body(*names))
        except (http.client.HTTPException, ConnectionError):
            return None

    with serving("--processes", "2", repository=tmp_path) as server:
        answer = next(found for found in (ask("quotient", "n", "d") for _ in range(8)) if found is not None)
        refused = "this request has ended the process that ran it; it is not run again"
        assert (answer.status, answer.error) == (500, f"step 1 ('divide') of ensemble 'quotient': {refused}")
        itself = ask("divide", "a", "b")
        assert itself is not None
        assert (itself.status, itself.error) == (500, refused)
        well = inference(tensor("n", [1, 1], "INT64", [9]), tensor("d", [1, 1], "INT64", [3]))
        assert data(server.infer("quotient", well)) == [3]
