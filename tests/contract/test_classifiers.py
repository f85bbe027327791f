"""Classifiers of scikit-learn, LightGBM and XGBoost as they are exported, over the socket.

The graphs have the exporters' forms; the expected answers are ONNX Runtime's own for the original model, maps included.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import classifier_models as models
import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from support import Server, inference, serving, tensor

MODELS = {
    "sklearn": models.sklearn(),
    "sklearn-9": models.sklearn(9),
    "lightgbm": models.lightgbm(),
    "lightgbm-binary": models.lightgbm_binary(),
    "xgboost": models.xgboost(),
    "xgboost-zipped": models.xgboost_zipped(),
    "columns": models.columns(),
    "text": models.text(),
}
DATATYPES = {"f": "FP32", "i": "INT64", "O": "BYTES"}
LABELLED = "[[output]]\nname = 'output_probability'\ndata_type = 'FP32'\ndims = [3]\nlabel_filename = 'labels.txt'\n"


def feeds(name: str, rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(len(name))
    if name == "columns":
        return {
            "age": random.normal(40, 10, (rows, 1)).astype("f4"),
            "sex": random.choice(np.array(["male", "female", "?"], dtype=object), (rows, 1)),
            "port": random.choice(np.array(["C", "Q", "S"], dtype=object), (rows, 1)),
            "deck": random.integers(0, 3, (rows, 1)),
        }
    if name == "text":
        words = np.array(["Good", "BAD", "great", "awful", "nothing", "fun"], dtype=object)
        return {"text": np.array([[" ".join(random.choice(words, 3))] for _ in range(rows)], dtype=object)}
    return {"x": random.normal(0, 1, (rows, 4)).astype("f4")}


def put(repository: Path, name: str, model: bytes, config: str = "", **files: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(model)
    for file, text in {"config.toml": config, **files}.items():
        (repository / name / file).write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    repository = tmp_path_factory.mktemp("models")
    for name, model in MODELS.items():
        put(repository, name, model.SerializeToString())
    put(repository, "labelled", models.sklearn().SerializeToString(), LABELLED, **{"labels.txt": "a\nb\nc\n"})
    put(repository, "external", b"")
    model = models.columns()
    onnx.save_model(
        model, repository / "external" / "1" / "model.onnx", save_as_external_data=True, location="w", size_threshold=80
    )
    with serving("--batching", "exact", repository=repository) as running:
        yield running


def expected(name: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX Runtime's own answer; a sequence of maps as a matrix, in the order of the labels."""
    session = onnxruntime.InferenceSession(MODELS[name].SerializeToString(), providers=["CPUExecutionProvider"])
    return {
        info.name: answer
        if isinstance(answer, np.ndarray)
        else np.array([list(row.values()) for row in answer], dtype="f4")
        for info, answer in zip(session.get_outputs(), session.run(None, given), strict=True)
    }


def ask(server: Server, name: str, given: dict[str, np.ndarray], **more: Any) -> dict[str, Any]:
    tensors = [tensor(key, list(a.shape), DATATYPES[a.dtype.kind], a.ravel().tolist()) for key, a in given.items()]
    answer = server.infer(name, inference(*tensors, **more))
    assert answer.status == 200, answer.body
    return {output["name"]: output for output in answer.json["outputs"]}


def check(answer: dict[str, Any], right: dict[str, np.ndarray]) -> None:
    assert list(answer) == list(right)
    for name, array in right.items():
        assert answer[name]["shape"] == list(array.shape)
        if array.dtype == object:
            assert answer[name]["data"] == array.ravel().tolist()
        else:
            assert np.array(answer[name]["data"], dtype=array.dtype).tobytes() == array.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_runtimes_own(server: Server, name: str) -> None:
    given = feeds(name, 16)
    rows = [{key: array[i : i + 1] for key, array in given.items()} for i in range(16)]
    right = [expected(name, row) for row in rows]
    for row, answer in zip(rows, right, strict=True):
        check(ask(server, name, row), answer)
    with ThreadPoolExecutor(16) as clients:
        for answer, own in zip(clients.map(lambda row: ask(server, name, row), rows), right, strict=True):
            check(answer, own)
    check(ask(server, name, given), expected(name, given))


@pytest.mark.parametrize("name", MODELS)
def test_metadata(server: Server, name: str) -> None:
    label, scores = server.get(f"/v2/models/{name}").json["outputs"]
    assert [label["name"], scores["name"]] == [each.name for each in MODELS[name].graph.output]
    classes = expected(name, feeds(name, 1))[scores["name"]].size
    assert (scores["datatype"], scores["shape"]) == ("FP32", [-1, classes])


@pytest.mark.parametrize("name", MODELS)
def test_the_first_class_is_the_label(server: Server, name: str) -> None:
    scores = MODELS[name].graph.output[1].name
    given = feeds(name, 16)
    classified = [{"name": scores, "parameters": {"classification": 1}}]
    answer = ask(server, name, given, outputs=classified)[scores]
    labels = ask(server, name, given)[MODELS[name].graph.output[0].name]["data"]
    assert answer["shape"] == [16, 1]
    assert [text.split(":", 2)[2] for text in answer["data"]] == [str(label) for label in labels]


def test_a_label_file_wins(server: Server) -> None:
    given = {"x": np.zeros((1, 4), "f4")}
    classified = [{"name": "output_probability", "parameters": {"classification": 3}}]
    for name, labels in (("sklearn", models.NAMES), ("labelled", ["a", "b", "c"])):
        answer = ask(server, name, given, outputs=classified)["output_probability"]["data"]
        assert {text.split(":")[2] for text in answer} == set(labels)
        assert all(labels[int(text.split(":")[1])] == text.split(":")[2] for text in answer)


def test_external_data_is_found(server: Server) -> None:
    given = feeds("columns", 5)
    check(ask(server, "external", given), expected("columns", given))


def test_independent_rows_are_batched(server: Server) -> None:
    """Without the promise of the same bits, which only some operators keep."""
    with serving(repository=server.repository) as batching:
        sizes = {name: batching.get(f"/v2/models/{name}/config").json["max_batch_size"] for name in MODELS}
    assert all(sizes.values()), sizes


def test_refusals_name_the_way_out(tmp_path: Path) -> None:
    refused = {
        "maps": (onnx_models.map_output(), "output 'maps' is a sequence of maps, .* with zipmap=False"),
        "map": (onnx_models.map_input(), "input 'x' is a map, .* without DictVectorizer"),
        "sequence": (onnx_models.sequence_input(), "input 'parts' is a sequence, .*SequenceConstruct"),
        "locale": (
            models.text("tlh_QO.UTF-8").SerializeToString(),
            "operator 'StringNormalizer' needs the locale 'tlh_QO.UTF-8', which this machine lacks; install it .* "
            "localedef -i tlh_QO -f UTF-8 tlh_QO.UTF-8",
        ),
    }
    for name, (model, _) in refused.items():
        put(tmp_path, name, model)
    with serving("--load", "none", repository=tmp_path) as server:
        for name, (_, sentence) in refused.items():
            answer = server.post(f"/v2/repository/models/{name}/load")
            assert answer.status == 400
            assert re.search(sentence, answer.error), answer.error
