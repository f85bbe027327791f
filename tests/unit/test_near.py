"""The known name that a misspelt one meant."""

from __future__ import annotations

import random

import pytest

from fastinfer.base.near import Near, suggestion


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("resnt50", "resnet50"),  # a missing letter
        ("rexnet50", "resnet50"),  # a wrong one
        ("resnet550", "resnet50"),  # one too many
        ("ersnet50", "resnet50"),  # two swapped, at the beginning
        ("resnet05", "resnet50"),  # and at the end
        ("ResNet-50", "resnet_50"),  # another case and separator
        ("yolo.v8", "yolo-v8"),
        ("digit", "digits"),
    ],
)
def test_a_misspelt_name(wrong: str, meant: str) -> None:
    known = ["alexnet", "bert", "echo", "vgg16", "zfnet", meant]
    assert Near(known).to(wrong) == meant
    assert suggestion(wrong, known) == f"; did you mean '{meant}'?"


@pytest.mark.parametrize("wrong", ["", "x", "transformer", "-"])
def test_another_name(wrong: str) -> None:
    assert Near(["resnet50", "digits"]).to(wrong) is None
    assert suggestion(wrong, ["resnet50", "digits"]) == ""


def test_nothing_is_known() -> None:
    assert Near([]).to("digits") is None


def test_few_of_many_names_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(3)
    names = [f"{source.choice(['net', 'model', 'text'])}-{number:05}" for number in range(10_000)]
    near = Near([*names, "sentiment-large"])
    compared = []
    monkeypatch.setattr("fastinfer.base.near._ratio", lambda _, name: compared.append(name) or 0.0)
    near.to("sentimnet-large")
    assert "sentiment_large" in compared
    assert len(compared) <= 16


def test_long_names_are_cut() -> None:
    near = Near(["a" * 1_000_000 + "b"])
    assert near.to("a" * 1_000_000 + "c") == "a" * 1_000_000 + "b"
