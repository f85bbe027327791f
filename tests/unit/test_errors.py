"""What a client is told: one printable line of bounded size, whatever it is made from."""

from __future__ import annotations

import tracemalloc

import pytest

from fastinfer.base.errors import MAX_MESSAGE_BYTES, clip, without_paths


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("input 'x' is missing", "input 'x' is missing"),
        (" a\r\n\tb\u2028c\xa0\x1fd ", "a b c d"),
        ("a\x00b\x1b[31m\x7f", "a?b?[31m?"),
        ("\ud800x\u202e\ufeff\ue000\U0010ffff", "?x????"),
        ("é😀", "é😀"),
        ("x" * 512, "x" * 512),
        ("x" * 513, "x" * 509 + "..."),
        ("é" * 256, "é" * 256),
        ("é" * 257, "é" * 254 + "..."),
        ("a" + " " * 5000 + "b", "a..."),
        ("a b " * 1000, ("a b " * 128)[:509] + "..."),
    ],
)
def test_a_line(message: str, line: str) -> None:
    assert clip(message) == line
    assert len(line.encode()) <= MAX_MESSAGE_BYTES


AT = "/onnxruntime_src/onnxruntime/core/a.h:87 "


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("plain words (with brackets), 1/2 and a: b", "plain words (with brackets), 1/2 and a: b"),
        ("matmul_helper.h:59 Compute MatMul dimension mismatch", "MatMul dimension mismatch"),
        ("Message: a.cc:703 operator() Integer division by zero", "Message: Integer division by zero"),
        ("concatbase.h:135 ns::Base::Prepare Non concat axis (1) must match", "Non concat axis (1) must match"),
        (AT + "void ns::Iterator::Init(ptrdiff_t, ptrdiff_t) Cannot broadcast. 3 by 5", "Cannot broadcast. 3 by 5"),
        (AT + "void ns::f(int) axis == 1 || axis == n was false. Not 1 (but 3).\n", "Not 1 (but 3)."),
        (AT + "void ns::f(int) axis == 1 was false.", "axis == 1 was false."),
        (AT + "ns::A<B>::A(const C&, D (*)(int)) const Wrong.", "Wrong."),
        (AT + "ns::f()::<lambda(ptrdiff_t)> const Wrong.", "Wrong."),
        (AT + "ns::f(const T*)::<lambda(int, int)>::operator()(int) const [with T = ns::B<C, std::a<D[]> >] Wrong [1].",
         "Wrong [1]."),
        (AT + "virtual V* ns::K::Out(int, const S&) [ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 Size "
         "Tensor shape.Size() must be >= 0",
         "Tensor shape.Size() must be >= 0"),
        ("node: /a/b/c.onnx: and /src/x.cc", "node: c.onnx: and x.cc"),
        (AT + "", ""),
        (AT + "no brackets here", "no brackets here"),
        (AT + "unbalanced ((( brackets", "unbalanced ((( brackets"),
        ("x.cc:1 ", ""),
    ],
)  # fmt: skip
def test_places_in_source_code_are_no_business_of_clients(message: str, left: str) -> None:
    assert without_paths(message) == left


@pytest.mark.parametrize("unit", ["ab ", "\x00", "\ud800", "😀"])
def test_nothing_is_made_of_what_is_cut_away(unit: str) -> None:
    message = unit * (1 << 20)
    tracemalloc.start()
    try:
        clip(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "unit", ["x", "/x", "a.cc:1 f(", ".cc:1 ", "Non-zero status code returned while running ", "("]
)
def test_long_texts_of_the_runtime_are_read_in_no_time(unit: str) -> None:
    """Quadratic time over a text of megabytes would take hours, and the test's time limit would end it."""
    assert len(without_paths(unit * 3_000_000)) <= 8 * 512


@pytest.mark.parametrize("name", ["", "/encoder/Gather_3"])
def test_the_node_that_failed_is_named_in_a_few_words(name: str) -> None:
    text = f"Non-zero status code returned while running Gather node. Name:'{name}' Status Message: idx=9 is too large"
    where = "operator 'Gather'" + (" ('Gather_3')" if name else "")
    assert without_paths(text) == f"{where}: idx=9 is too large"
