"""A query of death, and a model that does not load alive: each costs a process once or twice, and is harmless then."""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import onnx_models
import pytest
from load_clients import wait_until
from support import Answer, Server, inference, serving, tensor

LOWEST = -(2**63)
REFUSED = "this request has ended the process that ran it; it is not run again"
QUARANTINED = "is quarantined: the process died by SIGFPE while it loaded this model"
TOGETHER = """
[dynamic_batching]
max_queue_delay_microseconds = 2000000
preferred_batch_size = [{}]
"""


def write(repository: Path, name: str, model: bytes, config: str = "") -> Path:
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)
    if config:
        (repository / name / "config.toml").write_text(config)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write(tmp_path, "other", onnx_models.identity("FP32"))
    return tmp_path


def quotient(a: list[int], b: list[int]) -> dict[str, object]:
    return inference(tensor("a", [len(a), 1], "INT64", a), tensor("b", [len(b), 1], "INT64", b))


DEADLY = quotient([LOWEST], [-1])


def ask(server: Server, body: object, model: str = "div") -> Answer | None:
    """An answer; None where the server died of it."""
    try:
        return server.infer(model, body)
    except (http.client.HTTPException, ConnectionError):
        return None


def deaths(server: Server) -> int:
    return server.log.count("has ended: SIGFPE")


def assert_others_are_served(server: Server) -> None:
    answer = server.infer("other", inference(tensor("x", [1, 2], "FP32", [1.5, 2.5])))
    assert answer.json["outputs"][0]["data"] == [1.5, 2.5]
    answer = server.infer("div", quotient([LOWEST], [1]))
    assert answer.json["outputs"][0]["data"] == [LOWEST]


@pytest.mark.parametrize(
    ("options", "before"),
    [
        pytest.param([], 0, id="first-on-a-native-thread"),
        pytest.param(["--inline-run-us", "0"], 3, id="on-a-native-thread"),
        pytest.param(["--inline-run-us", "1000000"], 3, id="on-the-loop-in-a-binding"),
        pytest.param(["--processes", "3"], 0, id="in-one-of-three-processes"),
    ],
)
def test_a_query_of_death_kills_once(repository: Path, options: list[str], before: int) -> None:
    write(repository, "div", onnx_models.divide("INT64"))
    with serving(*options, repository=repository) as server:
        for n in range(before):
            assert ask(server, quotient([n], [1])).status == 200
        assert ask(server, DEADLY) is None
        for _ in range(8):  # by whichever process; the first ones before the supervisor knows
            answer = ask(server, DEADLY)
            assert (answer.status, answer.error) == (500, REFUSED)
            assert_others_are_served(server)
        for _ in range(8):  # of the whole server, whichever process tells it
            assert "fastinfer_culprits_refused_total 8.0" in server.get("/metrics").body.decode()
        assert deaths(server) == 1
        wait_until(lambda: server.log.count("a request to model 'div' version 1 has ended its process by SIGFPE") == 1)


def test_a_query_of_death_on_the_loop_without_a_binding(repository: Path) -> None:
    """More rows than a binding holds, run inline."""
    write(repository, "div", onnx_models.divide("INT64"), "max_batch_size = 4096\n")
    rows = 3000
    with serving("--inline-run-us", "1000000", repository=repository) as server:
        assert ask(server, quotient([6] * rows, [3] * rows)).status == 200
        deadly = quotient([LOWEST] * rows, [-1] * rows)
        assert ask(server, deadly) is None
        answer = ask(server, deadly)
        assert (answer.status, answer.error) == (500, REFUSED)
        assert deaths(server) == 1


@pytest.mark.parametrize("rows", [pytest.param(1, id="gathered"), pytest.param(4096, id="one-after-the-other")])
def test_the_mates_of_a_query_of_death_are_answered(repository: Path, rows: int) -> None:
    """Requests with large inputs may run one after the other: then the first death tells which it was."""
    write(
        repository, "div", onnx_models.divide("INT64"), f"max_batch_size = {32 * rows}\n" + TOGETHER.format(32 * rows)
    )
    bodies = [quotient([n] * rows, [1] * rows) for n in range(31)] + [quotient([LOWEST] * rows, [-1] * rows)]
    with serving(repository=repository) as server, ThreadPoolExecutor(32) as clients:

        def ask_all() -> list[Answer | None]:
            return list(clients.map(lambda body: ask(server, body), bodies))

        assert ask_all() == [None] * 32
        *_, last = ask_all()  # now each runs alone, if need be, and the deadly one may kill again
        assert last is None or last.error == REFUSED
        *answers, last = ask_all()
        assert [answer.json["outputs"][0]["data"] for answer in answers] == [[n] * rows for n in range(31)]
        assert (last.status, last.error) == (500, REFUSED)
        assert 1 <= deaths(server) <= 2


def test_a_slice_of_a_larger_request_that_kills(repository: Path) -> None:
    write(repository, "div", onnx_models.divide("INT64"))
    body = quotient([4, LOWEST, 6], [2, -1, 2])
    with serving("--default-max-batch-size", "1", repository=repository) as server:
        assert ask(server, body) is None
        answer = ask(server, body)
        assert (answer.status, answer.error) == (500, REFUSED)
        assert ask(server, quotient([4, 5, 6], [2, 1, 2])).json["outputs"][0]["data"] == [2, 5, 3]


def test_a_changed_model_gets_the_request_again(repository: Path) -> None:
    path = write(repository, "div", onnx_models.divide("INT64"))
    with serving(repository=repository) as server:
        assert ask(server, DEADLY) is None
        assert ask(server, DEADLY).status == 500
        mended = [onnx_models.helper.make_node("Add", ["a", "b"], ["y"])]
        values = [onnx_models.value(name, "INT64", ["batch", 1]) for name in "aby"]
        path.write_bytes(onnx_models.model(mended, values[:2], values[2:]))
        assert server.post("/v2/models/div/load").status == 200
        assert ask(server, DEADLY).status == 200


def test_a_large_request(repository: Path) -> None:
    size = 60 << 20
    head = b'{"inputs":[{"name":"x","shape":[1,%d],"datatype":"FP32","parameters":{"binary_data_size":%d}}]' % (
        size // 4,
        size,
    )
    head += b',"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
    data = os.urandom(4096) * (size // 4096)
    field = {"Inference-Header-Content-Length": str(len(head))}
    with serving(repository=repository) as server:
        answer = server.post("/v2/models/other/infer", head + data, **field)
        assert answer.status == 200
        assert answer.body.endswith(data)


# --- Models that end processes with different requests ----------------------------------------------------------------

WITHDRAWN = "has ended processes with different requests"


def deadly(number: int) -> dict[str, object]:
    """Another request, of another shape, each time."""
    return quotient([LOWEST] + [number] * number, [-1] + [1] * number)


def kill_until_withdrawn(server: Server, numbers: Iterator[int], model: str = "div") -> Answer:
    """The answer of the model when it is not run any more."""
    for number in numbers:
        before = deaths(server)
        if (answer := ask(server, deadly(number), model)) is not None:
            return answer
        wait_until(lambda before=before: deaths(server) > before)  # else the next request may outrun the verdict
        wait_until(lambda: server.get("/v2/health/ready").status == 200)
        wait_until(lambda: server.get("/v2/models/other/ready").status == 200)
    raise AssertionError


def metric(server: Server, name: str) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("processes", ["1", "3"])
def test_a_model_that_kills_with_other_requests_each_time_is_withdrawn(repository: Path, processes: str) -> None:
    path = write(repository, "div", onnx_models.divide("INT64"))
    numbers = count(1)
    with serving("--processes", processes, repository=repository) as server:
        answer = kill_until_withdrawn(server, numbers)
        assert answer.status == 503
        assert f"model 'div' version 1 is withdrawn for {answer.headers['retry-after']} s" in answer.error
        assert WITHDRAWN in answer.error
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert deaths(server) == 3

        # Nobody runs it, in whichever process, whatever it is asked; and nobody else notices.
        for number in range(1, 9):
            refused = ask(server, quotient([number], [1]))
            assert (refused.status, WITHDRAWN in refused.error) == (503, True)
            assert ask(server, deadly(next(numbers))).status == 503
            other = server.infer("other", inference(tensor("x", [1, 2], "FP32", [1.5, 2.5])))
            assert other.json["outputs"][0]["data"] == [1.5, 2.5]
        assert deaths(server) == 3
        for _ in range(6):
            ready = server.get("/v2/models/div/ready")
            assert (ready.status, WITHDRAWN in ready.error, "retry-after" in ready.headers) == (503, True, True)
            assert server.get("/v2/models/div/versions/1/ready").status == 503
            assert server.get("/v2/models/div").status == 200
            assert server.get("/v2/health/ready").status == 200
            states = {entry["name"]: entry for entry in server.post("/v2/repository/index").json}
            assert states["other"]["state"] == "READY"
            assert states["div"]["state"] == "UNAVAILABLE"
            assert WITHDRAWN in states["div"]["reason"]
            assert metric(server, "fastinfer_models_withdrawn") == 1
        assert metric(server, 'fastinfer_withdrawn_refused_total{model="div"') == 17

        # Loaded again it is tried again, and one more death is enough.
        assert server.post("/v2/models/div/load").status == 200
        for _ in range(4):
            assert ask(server, quotient([8], [2])).json["outputs"][0]["data"] == [4]
            assert server.get("/v2/models/div/ready").status == 200
        assert metric(server, "fastinfer_models_withdrawn") == 0
        answer = kill_until_withdrawn(server, numbers)
        assert (answer.status, deaths(server)) == (503, 4)
        assert 60 < int(answer.headers["retry-after"]) <= 120

        # Other files are another model.
        path.write_bytes(onnx_models.identity("INT64"))
        assert server.post("/v2/models/div/load").status == 200
        answer = server.infer("div", inference(tensor("x", [1, 1], "INT64", [4])))
        assert answer.json["outputs"][0]["data"] == [4]


@pytest.mark.parametrize("options", [[], ["--inline-run-us", "1000000"]], ids=["native", "on-the-loop"])
def test_slices_of_a_model_that_kills(repository: Path, options: list[str]) -> None:
    write(repository, "div", onnx_models.divide("INT64"))
    with serving("--default-max-batch-size", "2", *options, repository=repository) as server:
        for rows in (1, 2, 5, 5, 5):
            assert ask(server, quotient([4] * rows, [2] * rows)).json["outputs"][0]["data"] == [2] * rows
        answer = kill_until_withdrawn(server, count(5))
        assert (answer.status, WITHDRAWN in answer.error) == (503, True)
        assert deaths(server) == 3
        refused = ask(server, quotient([4] * 9, [2] * 9))
        assert (refused.status, WITHDRAWN in refused.error) == (503, True)


def test_a_chain_with_a_stage_that_kills(repository: Path) -> None:
    """The stage is withdrawn, and with it every chain through it; the first stage is not."""
    write(repository, "div", onnx_models.divide("INT64"))
    write(repository, "first", onnx_models.identities({"a": "INT64", "b": "INT64"}))
    with serving(repository=repository) as server:
        chain = server.post("/v2/models/first/load", {"parameters": {"next": "div"}}).json["name"]
        body = quotient([8], [2])
        assert ask(server, body, chain).json["outputs"][0]["data"] == [4]
        answer = kill_until_withdrawn(server, count(1), chain)
        assert (answer.status, WITHDRAWN in answer.error) == (503, True)
        assert "model 'div'" in answer.error
        assert deaths(server) == 3
        for name, status in (("first", 200), ("div", 503), (chain, 503)):
            assert server.get(f"/v2/models/{name}/ready").status == status
        assert ask(server, body, "first").status == 200
        assert ask(server, body).status == 503
        assert server.post("/v2/models/div/load").status == 200
        assert ask(server, body, chain).json["outputs"][0]["data"] == [4]


# --- Loads ------------------------------------------------------------------------------------------------------------

WARM_UP = """
max_batch_size = 0
[[model_warmup]]
name = "zero"
[model_warmup.inputs.x]
data_type = "TYPE_INT64"
dims = [1]
zero_data = true
"""


@pytest.mark.parametrize(
    ("model", "config"),
    [
        pytest.param(onnx_models.fatal_load, "", id="load"),
        pytest.param(onnx_models.fatal_for_zero, WARM_UP, id="warm-up"),
        pytest.param(lambda: onnx_models.fatal_for_zero("batch"), "", id="trial-run"),
    ],
)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_model_that_kills_at_load_is_quarantined(
    repository: Path, model: Callable[[], bytes], config: str, processes: str
) -> None:
    path = write(repository, "fatal", model(), config)
    for n in range(3):
        write(repository, f"simple{n}", onnx_models.simple())
    with serving("--processes", processes, repository=repository, wait=False) as server:
        wait_until(lambda: QUARANTINED in server.log)
        for name in ("other", "simple0", "simple1", "simple2"):
            wait_until(lambda name=name: server.get(f"/v2/models/{name}/ready").status == 200)
        wait_until(lambda: server.log.count("is not served") == 1)  # nobody else was blamed
        assert QUARANTINED in server.get("/v2/health/ready").body.decode()
        at_start = deaths(server)
        assert at_start <= 1 + int(processes)

        # Nobody gets it tried again.
        for _ in range(3):
            refused = server.post("/v2/models/fatal/load")
            assert refused.status == 400
            assert QUARANTINED in refused.error
        for _ in range(4):
            assert server.get("/v2/models/other/ready").status == 200
        assert server.infer("fatal", inference(tensor("x", [1], "INT64", [5]))).status in (404, 503)
        assert deaths(server) == at_start

        # Other files are another model.
        path.write_bytes(onnx_models.identity("FP32"))
        (path.parent.parent / "config.toml").unlink(missing_ok=True)
        assert server.post("/v2/models/fatal/load").status == 200
        answer = server.infer("fatal", inference(tensor("x", [1, 1], "FP32", [4.0])))
        assert answer.json["outputs"][0]["data"] == [4.0]
        assert server.get("/v2/health/ready").status == 200
