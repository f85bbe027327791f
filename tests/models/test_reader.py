"""The comparison of answers with the document's: it tolerates other last digits, and nothing else."""

import copy
import json

import pytest
from models.reader import assert_same_answer, without_measures

DOCUMENTED = {"outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 1, 0.5]}]}


def answer(**changed: object) -> object:
    made = copy.deepcopy(DOCUMENTED)
    made["outputs"][0].update(changed)
    return made


@pytest.mark.parametrize("data", [[0.25, 1, 0.5], [0.2519, 0.9999, 0.4981]])
def test_an_answer_with_other_last_digits_is_the_same(data: list[float]) -> None:
    assert_same_answer(answer(data=data), DOCUMENTED)


def test_only_the_shown_beginning_of_a_list_is_compared() -> None:
    documented = json.loads('{"data":[0.25,"…"]}')
    assert_same_answer({"data": [0.25, 0.5]}, documented)
    with pytest.raises(AssertionError):
        assert_same_answer({"data": [0.5, 0.5]}, documented)


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "z"},
        {"shape": [1, 4]},
        {"data": [0.25, 1]},
        {"data": [0.25, 1, 0.5, 0]},
        {"data": [0.3, 1, 0.5]},
        {"data": [0.25, 2, 0.5]},
        {"data": ["0.25", 1, 0.5]},
        {"data": [None, 1, 0.5]},
        {"data": [float("nan"), 1, 0.5]},
        {"parameters": {}},
    ],
    ids=str,
)
def test_any_other_difference_is_found(changed: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        assert_same_answer(answer(**changed), DOCUMENTED)


@pytest.mark.parametrize(
    ("printed", "left"),
    [
        ("opset 21, 16 rows in 0.04 ms, 28.9 MiB of memory\n", "opset #, 16 rows in # ms, # MiB of memory"),
        ("1 row in 9e-05 ms, 16 rows in 1.2 s", "1 row in # ms, 16 rows in # s"),
        ("x FP32[-1,4] -> y INT64[-1]", "x FP32[-1,4] -> y INT64[-1]"),
    ],
)
def test_times_sizes_and_operator_sets_of_a_printed_line_are_not_compared(printed: str, left: str) -> None:
    assert without_measures(printed) == left
