"""Python models: what they can do, how they fail, and that a failure affects no other model."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import orjson
import pytest
from support import Answer, Server, inference, serving, tensor, wait_for

DATATYPES = {
    "BOOL": [True, False], "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [1, 2**32 - 1], "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127], "INT16": [-5, 5], "INT32": [-(2**31), 7], "INT64": [-(2**63), 2**63 - 1],
    "FP16": [0.5, -2.0], "FP32": [1.5, -0.25], "FP64": [1e300, -1e-300], "BYTES": ["", "é\n"],
}  # fmt: skip

TIMES_TWO = """
    import os
    import numpy as np

    class Model:
        def load(self, config):
            self.factor = config["parameters"].get("factor", 2)
        def infer(self, inputs):
            x = inputs["x"]
            rows = np.full((len(x), 1), len(x), np.int32)
            return {"y": x * self.factor, "rows": rows, "pid": np.full((len(x), 1), os.getpid())}
"""
TIMES_TWO_CONFIG = """
    max_batch_size = 8
    input = [{ name = "x", data_type = "FP32", dims = [-1] }]
    output = [
        { name = "y", data_type = "FP32", dims = [-1] },
        { name = "rows", data_type = "INT32", dims = [1] },
        { name = "pid", data_type = "INT64", dims = [1] },
    ]
    [dynamic_batching]
    max_queue_delay_microseconds = 20000
"""

# What it does depends on its input: see the sentences that the tests send.
OBEYS = """
    import os, signal, time
    import numpy as np
    from fastinfer.backends.python import InvalidInput

    class Strange:
        def __array__(self, *args, **kwargs):
            raise ZeroDivisionError("no array")

    class Model:
        def infer(self, inputs):
            words = inputs["word"]
            for word in words.flat:
                match word.decode().split():
                    case ["raise", text]: raise RuntimeError(text)
                    case ["read"]: open("/no/such/place/weights.bin")
                    case ["refuse"]: raise InvalidInput("no word of mine")
                    case ["exit"]: raise SystemExit(3)
                    case ["os_exit"]: os._exit(3)
                    case ["segfault"]: os.kill(os.getpid(), signal.SIGSEGV)
                    case ["loop"]:
                        while True: pass
                    case ["sleep", seconds]: time.sleep(float(seconds))
                    case ["missing"]: return {}
                    case ["extra"]: return {"said": words, "more": words}
                    case ["nothing"]: return None
                    case ["rank"]: return {"said": words[0]}
                    case ["numbers"]: return {"said": np.ones_like(words, dtype=int)}
                    case ["close"]: os.closerange(3, 100)
                    case ["surrogate"]: raise RuntimeError("\\udcff")
                    case ["array"]: return {"said": Strange()}
            return {"said": words}
"""
OBEYS_CONFIG = """
    max_batch_size = 8
    input = [{ name = "word", data_type = "BYTES", dims = [1] }]
    output = [{ name = "said", data_type = "BYTES", dims = [1] }]
    parameters = { run_timeout_s = 1 }
    [dynamic_batching]
    max_queue_delay_microseconds = 50000
"""


def add(repository: Path, name: str, code: str, config: str, **files: str) -> None:
    """Writes a model, and more files beside its code."""
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (repository / name / "config.toml").write_text(textwrap.dedent(config))
    for file, content in files.items():
        (version / f"{file}.py").write_text(textwrap.dedent(content))
    (version / "model.py").write_text(textwrap.dedent(code))


def x(*rows: list[float]) -> dict[str, Any]:
    return inference(tensor("x", [len(rows), len(rows[0])], "FP32", list(rows)))


def word(*words: str) -> dict[str, Any]:
    return inference(tensor("word", [len(words), 1], "BYTES", list(words)))


def output(answer: Answer, name: str) -> Any:
    assert answer.status == 200, answer.body
    return next(each["data"] for each in answer.json["outputs"] if each["name"] == name)


def said(server: Server, text: str = "yes") -> Any:
    return output(server.infer("obeys", word(text)), "said")


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]


def together(server: Server, *bodies: dict[str, Any], model: str = "obeys") -> list[Answer]:
    """Sends requests at the same time."""
    answers: list[Any] = [None] * len(bodies)

    def send(place: int) -> None:
        answers[place] = server.infer(model, bodies[place])

    threads = [threading.Thread(target=send, args=(place,)) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def model_pids(server: Server) -> list[int]:
    """The processes of models: the children of those that serve."""
    found = []
    for pid in server.serving_pids():
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(each) for each in (task / "children").read_text().split()]
    return sorted(found)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("python")
    add(repository, "times_two", TIMES_TWO, TIMES_TWO_CONFIG)
    add(repository, "obeys", OBEYS, OBEYS_CONFIG)
    with serving("--allow-python-models", repository=repository) as running:
        yield running


def test_python_models_are_off_by_default(tmp_path: Path) -> None:
    add(tmp_path, "times_two", TIMES_TWO, TIMES_TWO_CONFIG)
    with serving("--load", "none", repository=tmp_path) as server:
        expected = "model 'times_two' is Python code, which is run only with --allow-python-models"
        assert error(server.post("/v2/models/times_two/load")) == (400, expected)
        assert model_pids(server) == []


def test_it_answers_and_is_described(server: Server) -> None:
    answer = server.infer("times_two", x([1.5, -2.0]))
    assert output(answer, "y") == [3.0, -4.0]
    metadata = server.get("/v2/models/times_two").json
    assert metadata["platform"] == "python"
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]
    config = server.get("/v2/models/times_two/config").json
    assert (config["backend"], config["max_batch_size"], config["default_model_filename"]) == ("python", 8, "model.py")
    assert 'fastinfer_requests_total{model="times_two",version="1"' in server.metrics()


def test_requests_share_a_batch_and_get_their_own_rows(server: Server) -> None:
    answers = together(server, *[x([float(number)] * 2) for number in range(4)], model="times_two")
    assert [output(answer, "y") for answer in answers] == [[2.0 * number] * 2 for number in range(4)]
    assert max(output(answer, "rows")[0] for answer in answers) > 1


def test_the_signature_holds(server: Server) -> None:
    assert server.infer("times_two", inference(tensor("x", [1, 2], "INT32", [1, 2]))).status == 400
    assert server.infer("times_two", inference(tensor("z", [1, 2], "FP32", [1, 2]))).status == 400
    assert server.infer("times_two", x(*[[1.0]] * 9)).status == 400


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_all_datatypes_arrive_and_leave(tmp_path: Path, batched: bool, isolation: str) -> None:
    def tensors(kind: str) -> str:
        return "".join(f'{{ name = "{kind}_{name}", data_type = "{name}", dims = [2] }},' for name in DATATYPES)

    code = """
        class Model:
            def infer(self, inputs):
                return {"o" + name[1:]: array for name, array in inputs.items()}
    """
    config = f"max_batch_size = {8 if batched else 0}\nparameters = {{ isolation = '{isolation}' }}\n"
    config += f"input = [{tensors('i')}]\noutput = [{tensors('o')}]"
    add(tmp_path, "same", code, config)
    shape = [1, 2] if batched else [2]
    body = inference(*(tensor(f"i_{name}", shape, name, data) for name, data in DATATYPES.items()))
    with serving("--allow-python-models", repository=tmp_path) as server:
        for _ in range(2):
            answer = server.infer("same", body)
            for name, data in DATATYPES.items():
                assert output(answer, f"o_{name}") == data
        assert bool(model_pids(server)) is (isolation == "process")


def test_large_tensors(server: Server) -> None:
    rng = np.random.default_rng(0)
    for elements in (20_000, 3_000_000, 5):
        values = rng.random((1, elements), np.float32)
        with contextlib.closing(server.connect()) as connection:
            body, headers = binary(values)
            connection.request("POST", "/v2/models/times_two/infer", body, headers)
            answer = connection.getresponse()
            content, length = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
            assert answer.status == 200
            got = np.frombuffer(content[length : length + values.nbytes], np.float32)
            assert np.array_equal(got, values[0] * 2)


def binary(values: np.ndarray) -> tuple[bytes, dict[str, str]]:
    head = orjson.dumps(
        {
            "inputs": [
                {
                    "name": "x", "shape": list(values.shape), "datatype": "FP32",
                    "parameters": {"binary_data_size": values.nbytes},
                }
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    )  # fmt: skip
    return head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


# --- Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        ("raise trouble", 500, "the model failed: RuntimeError: trouble"),
        ("exit", 500, "the model failed: SystemExit: 3"),
        ("refuse", 400, "the model refuses these inputs: no word of mine"),
        ("missing", 500, "the model failed: infer did not return the output 'said'"),
        ("extra", 500, "the model failed: infer returned the output 'more', which is not declared"),
        ("nothing", 500, "the model failed: infer returned NoneType, not a dict of arrays"),
        ("rank", 500, "the model failed: output 'said' has the shape [1], declared is [1, 1]"),
        ("surrogate", 500, "the model failed: RuntimeError: ?"),
        ("array", 500, "the model failed: output 'said' cannot be made BYTES: no array"),
        ("numbers", 500, "the model failed: output 'said' cannot be made BYTES: int is neither bytes nor text"),
        ("os_exit", 500, "the model's process exited with status 3"),
        ("segfault", 500, "the model's process was ended by SIGSEGV"),
        ("close", 500, "the model's process was ended by SIGKILL"),
        ("loop", 504, "the model has not ended in 1 s"),
        ("sleep 5", 504, "the model has not ended in 1 s"),
    ],
)
def test_a_failure_is_one_sentence_and_the_next_request_is_answered(
    server: Server, text: str, status: int, sentence: str
) -> None:
    assert error(server.infer("obeys", word(text))) == (status, sentence)
    assert said(server) == ["yes"]


def test_a_sentence_has_no_paths(server: Server) -> None:
    status, sentence = error(server.infer("obeys", word("read")))
    assert status == 500
    assert sentence.startswith("the model failed: FileNotFoundError: ")
    assert "/" not in sentence
    wait_for(lambda: "/no/such/place/weights.bin" in server.log)  # the operator sees where


@pytest.mark.parametrize("text", ["raise trouble", "refuse", "segfault", "exit", "numbers"])
def test_only_the_request_fails_that_is_to_blame(server: Server, text: str) -> None:
    for place in range(3):
        words = ["a", "b", "c"]
        words[place] = text
        answers = together(server, *(word(each) for each in words))
        for each, answer in zip(words, answers, strict=True):
            if each == text:
                assert answer.status in (400, 500)
            else:
                assert output(answer, "said") == [each]


def test_others_notice_nothing_of_an_endless_run(server: Server) -> None:
    endless = threading.Thread(target=server.infer, args=("obeys", word("loop")))
    endless.start()
    rounds = 0
    while endless.is_alive():
        assert server.get("/v2/health/live").status == 200
        assert output(server.infer("times_two", x([1.0])), "y") == [2.0]
        rounds += 1
    assert rounds > 3  # an endless run on the loop, or with the GIL, would let none or one of them end
    assert said(server) == ["yes"]


def test_a_client_that_leaves_or_is_in_a_hurry_costs_the_others_no_restart(server: Server) -> None:
    before = model_pids(server)
    assert server.infer("obeys", word("sleep 0.5") | {"parameters": {"timeout": 10_000}}).status == 504
    connection = server.connect()
    connection.request("POST", "/v2/models/obeys/infer", b'{"inputs":[{"name":"word","shape":[1,1],"datatype":"BYTES"'
                       b',"data":["sleep 0.5"]}]}')  # fmt: skip
    time.sleep(0.2)
    connection.close()
    assert said(server) == ["yes"]
    assert model_pids(server) == before


def test_a_process_that_is_killed_while_it_idles_is_replaced(server: Server) -> None:
    before = model_pids(server)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(model_pids(server)) == len(before) and not set(before) & set(model_pids(server)))
    assert said(server) == ["yes"]
    assert output(server.infer("times_two", x([1.0])), "y") == [2.0]


# --- Loads ------------------------------------------------------------------------------------------------------------


BAD = [
    ("def broken(:", "SyntaxError: "),
    ("x = 1", "has no class Model with a method infer"),
    ("class Model: pass", "has no class Model with a method infer"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("class Model:\n    def infer(self, inputs): ...\n    def load(self, config): raise ValueError('no weights')",
     "ValueError: no weights"),
    ("class Model:\n    def infer(self, inputs): ...\n    def load(self, config): exit(1)", "SystemExit: 1"),
    ("import os\nos._exit(7)", "its process exited with status 7"),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)", "its process was ended by SIGABRT"),
    ("open('/etc/no/such/file')", "FileNotFoundError"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("isolation", "code", "reason"),
    # On a thread, a model that ends its process ends the server's, as the documentation says.
    [("process", *bad) for bad in BAD] + [("thread", *bad) for bad in BAD if "os." not in bad[0]],
)
def test_a_model_that_does_not_load_says_why(server: Server, code: str, reason: str, isolation: str) -> None:
    name = f"bad_{isolation}_{zlib.crc32(code.encode())}"
    add(server.repository, name, code, f"parameters = {{ isolation = '{isolation}' }}\n" + OBEYS_CONFIG.replace(
        "parameters = { run_timeout_s = 1 }", ""))  # fmt: skip
    before = model_pids(server)
    status, sentence = error(server.post(f"/v2/models/{name}/load"))
    assert status == 400
    assert sentence.startswith(f"model '{name}' does not load: ")
    assert reason in sentence
    assert "/" not in sentence
    wait_for(lambda: model_pids(server) == before)


def test_a_model_that_loads_and_is_refused_leaves_no_process(server: Server) -> None:
    before = model_pids(server)
    assert server.post("/v2/workers/echo_multi/load").status == 200
    answer = server.post("/v2/models/times_two/load", {"next": "echo_multi", "share": False})
    assert answer.status == 400
    assert "cannot be followed by" in answer.json["error"]
    wait_for(lambda: model_pids(server) == before)


def test_a_configuration_is_needed(server: Server) -> None:
    add(server.repository, "bare", TIMES_TWO, "")
    expected = "model 'bare' needs a config.toml that declares its inputs and outputs"
    assert error(server.post("/v2/models/bare/load")) == (400, expected)


def test_optional_inputs_are_for_onnx_models(server: Server) -> None:
    optional = "[[input]]\nname = 'o'\ndata_type = 'FP32'\ndims = [1]\noptional = true\n"
    add(server.repository, "optional", TIMES_TWO, optional + "[[output]]\nname = 'y'\ndata_type = 'FP32'\ndims = [1]\n")
    expected = "model 'optional' has the optional input 'o': only ONNX models can have such inputs"
    assert error(server.post("/v2/models/optional/load")) == (400, expected)


def test_modules_beside_the_model_can_be_imported_and_leave_no_trace(server: Server) -> None:
    code = """
        from helper import answer
        class Model:
            def infer(self, inputs):
                return {"y": inputs["x"] * 0 + answer}
    """
    config = """
        input = [{ name = "x", data_type = "FP32", dims = [-1] }]
        output = [{ name = "y", data_type = "FP32", dims = [-1] }]
    """
    add(server.repository, "helped", code, config, helper="answer = 42")
    server.load("models/helped")
    assert output(server.infer("helped", inference(tensor("x", [2], "FP32", [1, 2]))), "y") == [42, 42]
    assert sorted(path.name for path in (server.repository / "helped" / "1").iterdir()) == ["helper.py", "model.py"]
    add(server.repository, "helped", code, config, helper="answer = 43")
    server.load("models/helped")
    assert output(server.infer("helped", inference(tensor("x", [1], "FP32", [1]))), "y") == [43]


def test_a_warm_up_is_run_and_one_that_fails_refuses_the_load(server: Server) -> None:
    warm = (
        OBEYS_CONFIG
        + """
    [[model_warmup]]
    name = "first"
    batch_size = 2
    inputs = { word = { data_type = "BYTES", dims = [1], zero_data = true } }
    """
    )
    add(server.repository, "warm", OBEYS, warm)
    server.load("models/warm")
    add(server.repository, "cold", OBEYS.replace('return {"said": words}', "raise KeyError('cold')"), warm)
    assert error(server.post("/v2/models/cold/load")) == (
        400, "model 'cold' does not run its warm-up: the model failed: KeyError: 'cold'"
    )  # fmt: skip


def test_instances_are_processes_and_unloading_ends_them_and_lets_them_close(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    code = (
        TIMES_TWO
        + f"""
        def close(self):
            open({str(closed)!r}, "a").write("x")
    """
    )
    add(tmp_path / "models", "several", code, TIMES_TWO_CONFIG + "[[instance_group]]\ncount = 3")
    with serving("--allow-python-models", repository=tmp_path / "models") as server:
        assert len(model_pids(server)) == 3
        assert server.post("/v2/models/several/unload").status == 200
        wait_for(lambda: model_pids(server) == [])
        assert closed.read_text() == "xxx"
        server.load("models/several")
    assert closed.read_text() == "xxxxxx"  # the server's end is the models' end, too


def test_a_load_that_hangs_is_given_up(tmp_path: Path) -> None:
    add(tmp_path, "slow", "import time\ntime.sleep(600)", OBEYS_CONFIG)
    with serving("--allow-python-models", "--load", "none", "--load-timeout-s", "1", repository=tmp_path) as server:
        status, sentence = error(server.post("/v2/models/slow/load"))
        assert (status, sentence) == (504, "loading model 'slow' has not ended in 1 s")
        wait_for(lambda: model_pids(server) == [])


def test_a_model_that_does_not_come_back_is_refused_meanwhile_and_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    code = (
        OBEYS
        + f"""
        def load(self, config):
            if os.path.exists({str(flag)!r}):
                raise RuntimeError("the weights are away")
    """
    )
    add(tmp_path / "models", "obeys", code, OBEYS_CONFIG)
    with serving("--allow-python-models", repository=tmp_path / "models") as server:
        flag.touch()
        (pid,) = model_pids(server)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "cannot be replaced: RuntimeError: the weights are away" in server.log)
        wait_for(lambda: server.infer("obeys", word("yes")).status == 503)
        flag.unlink()
        wait_for(lambda: server.infer("obeys", word("yes")).status == 200)


def test_threads_answer_as_processes_do(tmp_path: Path) -> None:
    thread = OBEYS_CONFIG.replace("run_timeout_s = 1", "run_timeout_s = 1, isolation = 'thread'")
    add(tmp_path, "obeys", OBEYS, thread)
    with serving("--allow-python-models", repository=tmp_path) as server:
        assert model_pids(server) == []
        assert said(server) == ["yes"]
        for text in ("raise trouble", "refuse", "exit", "extra"):
            answers = together(server, word("a"), word(text), word("b"))
            assert [answer.status for answer in answers][1] in (400, 500)
            assert [output(answers[place], "said") for place in (0, 2)] == [["a"], ["b"]]
        assert error(server.infer("obeys", word("sleep 1.5"))) == (504, "the model has not ended in 1 s")
        wait_for(lambda: server.infer("obeys", word("yes")).status == 200)


# --- The end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_of_a_model_outlives_the_server(tmp_path: Path, how: int) -> None:
    config = OBEYS_CONFIG.replace("run_timeout_s = 1", "run_timeout_s = 600")
    add(tmp_path, "obeys", OBEYS, config)
    with serving("--allow-python-models", "--drain-timeout-s", "0.2", repository=tmp_path) as server:
        (pid,) = model_pids(server)
        (serving_pid,) = server.serving_pids()
        client = server.connect()
        client.request("POST", "/v2/models/obeys/infer", b'{"inputs":[{"name":"word","shape":[1,1],"datatype":"BYTES",'
                       b'"data":["loop"]}]}')  # fmt: skip
        wait_for(lambda: " R " in Path(f"/proc/{pid}/stat").read_text())  # it computes
        os.kill(serving_pid if how == signal.SIGKILL else server.process.pid, how)
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())
        client.close()
        if how == signal.SIGKILL:
            wait_for(lambda: said(server) == ["yes"] if server.get("/v2/health/ready").status == 200 else False)


def test_beside_an_onnx_model(tmp_path: Path) -> None:
    """What people do most: words to numbers, an ONNX model, numbers to words, in one version's directory."""
    code = """
        from pathlib import Path
        import numpy as np
        import onnxruntime

        class Model:
            def load(self, config):
                path = Path(config["directory"]) / "mlp.onnx"
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1
                self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            def infer(self, inputs):
                lengths = np.array([[len(word)] * 64 for word in inputs["word"].reshape(-1)], np.float32)
                (scores,) = self.session.run(None, {self.session.get_inputs()[0].name: lengths})
                return {"said": scores.argmax(1).astype(str).astype(object).reshape(-1, 1)}
    """
    add(tmp_path, "chain", code, "backend = 'python'\n" + textwrap.dedent(OBEYS_CONFIG))
    (tmp_path / "chain" / "1" / "mlp.onnx").write_bytes(onnx_models.mlp())
    with serving("--allow-python-models", repository=tmp_path) as server:
        answer = server.infer("chain", word("abc", "defgh"))
        assert all(text.isdigit() for text in output(answer, "said"))


def test_an_unknown_backend_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    add(tmp_path, "other", TIMES_TWO, "platform = 'tensorflow_graphdef'\n" + textwrap.dedent(TIMES_TWO_CONFIG))
    with serving("--load", "none", repository=tmp_path) as server:
        status, sentence = error(server.post("/v2/models/other/load"))
        assert status == 400
        expected = "model 'other': platform: \"tensorflow_graphdef\" is not served here; use onnxruntime or python"
        assert sentence == expected
