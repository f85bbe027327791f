"""Requests against a model's signature: order, names, datatypes, shapes, the batch dimension."""

import numpy as np
import orjson
import pytest

from fastinfer.base.errors import ApiError
from fastinfer.codec.decode import decode
from fastinfer.tensor.message import InferRequest, RequestedOutput
from fastinfer.tensor.signature import Signature, names_a_batch
from fastinfer.tensor.tensor import Tensor, TensorSpec

PAIR = Signature(
    [TensorSpec("A", "INT32", [-1, 4]), TensorSpec("B", "INT32", [-1, 4])],
    [TensorSpec("X", "INT32", [-1, 4]), TensorSpec("Y", "INT32", [-1, 4])],
    batched=True,
    max_batch_size=8,
    max_batch_size_configured=True,
)
FREE = Signature(
    [TensorSpec("A", "FP32", [-1, -1], ["batch", ""])],
    [TensorSpec("X", "FP32", [-1, -1])],
    batched=True,
    max_batch_size=64,
)
PLAIN = Signature([TensorSpec("A", "FP32", [2, -1])], [TensorSpec("X", "FP32", [2])])
SCALAR = Signature([TensorSpec("A", "INT64", [])], [TensorSpec("X", "INT64", [])])


DEFAULTS = [TensorSpec("W", "INT32", [4]), TensorSpec("V", "BYTES", None)]
OPTIONAL = Signature(
    PAIR.inputs,
    PAIR.outputs,
    batched=True,
    max_batch_size=8,
    max_batch_size_configured=True,
    optional_inputs=DEFAULTS,
)


def tensor(name, shape, dtype="i4", datatype=None):
    return Tensor.from_numpy(name, np.zeros(shape, dtype), datatype)


def request(*tensors, outputs=(), **kwargs):
    return InferRequest(list(tensors), [RequestedOutput(name) for name in outputs], **kwargs)


def refused(signature, wanted):
    with pytest.raises(ApiError) as caught:
        signature.check(wanted, "M")
    assert caught.value.status == 400
    return caught.value.message


def test_inputs_are_put_in_the_models_order():
    wanted = request(tensor("B", (2, 4)), tensor("A", (2, 4)))
    PAIR.check(wanted, "M")
    assert [t.name for t in wanted.inputs] == ["A", "B"]
    assert (wanted.rows, wanted.implicit_batch, wanted.shape_key) == (2, False, None)


def test_the_batch_dimension_may_be_left_out_of_all_inputs_and_then_of_the_answer():
    wanted = request(tensor("A", (4,)), tensor("B", (4,)))
    PAIR.check(wanted, "M")
    assert wanted.rows == 1
    assert wanted.implicit_batch
    assert wanted.inputs[0].shape == (1, 4)
    answer = PAIR.respond(wanted, [tensor("X", (1, 4)), tensor("Y", (1, 4))], "M", "1")
    assert [output.shape for output in answer.outputs] == [(4,), (4,)]


def test_requests_share_a_batch_only_when_their_rows_have_the_same_shape():
    keys = []
    for shape in ((1, 3), (5, 3), (1, 4), (3,)):
        wanted = request(tensor("A", shape, "f4"))
        FREE.check(wanted, "M")
        keys.append(wanted.shape_key)
    assert keys[0] == keys[1] == keys[3] != keys[2]


@pytest.mark.parametrize(
    ("signature", "wanted", "sentence"),
    [
        (
            PAIR, request(tensor("A", (1, 4))),
            "expected 2 inputs but got 1 inputs for model 'M'. Got input(s) ['A'], but missing required input(s) "
            "['B']. Please provide all required input(s).",
        ),
        (
            PAIR, request(),
            "expected 2 inputs but got 0 inputs for model 'M'. Got input(s) [], but missing required input(s) "
            "['A','B']. Please provide all required input(s).",
        ),
        (PAIR, request(tensor("A", (1, 4)), tensor("Z", (1, 4))), "unexpected inference input 'Z' for model 'M'"),
        (
            PAIR, request(tensor("A", (1, 4)), tensor("B", (1, 4)), tensor("C", (1, 4))),
            "unexpected inference input 'C' for model 'M'",
        ),
        (PAIR, request(tensor("B", (1, 4)), tensor("B", (1, 4))), "input 'B' is given twice"),
        (
            PAIR, request(tensor("A", (1, 4), "f4"), tensor("B", (1, 4))),
            "inference input 'A' data-type is 'FP32', but model 'M' expects 'INT32'",
        ),
        (
            PAIR, request(tensor("A", (1, 8)), tensor("B", (1, 4))),
            "unexpected shape for input 'A' for model 'M'. Expected [-1,4], got [1,8]",
        ),
        (
            PAIR, request(tensor("A", (4,)), tensor("B", (1, 4))),
            "unexpected shape for input 'A' for model 'M'. Expected [-1,4], got [4]",
        ),
        (
            PAIR, request(tensor("A", (1, 1, 4)), tensor("B", (1, 4))),
            "unexpected shape for input 'A' for model 'M'. Expected [-1,4], got [1,1,4]",
        ),
        (PAIR, request(tensor("A", (9, 4)), tensor("B", (9, 4))), "inference request batch-size must be <= 8 for 'M'"),
        (
            PAIR, request(tensor("A", (1, 4)), tensor("B", (2, 4))),
            "input 'B' batch size does not match other inputs for 'M'",
        ),
        (
            PAIR, request(tensor("A", (1, 4)), tensor("B", (1, 4)), outputs=["Q"]),
            "unexpected inference output 'Q' for model 'M'",
        ),
        (
            PLAIN, request(tensor("A", (3, 1), "f4")),
            "unexpected shape for input 'A' for model 'M'. Expected [2,-1], got [3,1]",
        ),
        (
            PLAIN, request(tensor("A", (2,), "f4")),
            "unexpected shape for input 'A' for model 'M'. Expected [2,-1], got [2]",
        ),
        (
            SCALAR, request(tensor("A", (2,), "i8")),
            "unexpected shape for input 'A' for model 'M'. Expected [], got [2]",
        ),
        (
            SCALAR, request(tensor("A", (1, 1), "i8")),
            "unexpected shape for input 'A' for model 'M'. Expected [], got [1,1]",
        ),
        (
            PAIR, request(tensor("A", (1, 4)), tensor("b", (1, 4))),
            "unexpected inference input 'b' for model 'M'; did you mean 'B'?",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_sentence(signature, wanted, sentence):
    assert refused(signature, wanted) == sentence


BATCHES = [
    "batch",
    "BATCH",
    "batch_size",
    "batch_axis_0",
    "DynamicBatch",
    "N",
    "n",
    "B",
    "b",
    "bs",
    "BS",
    "nb",
    "None",
    "none",
    "unk__3",
    "unk__118",
]


@pytest.mark.parametrize("symbol", BATCHES)
def test_the_item_form_needs_a_first_dimension_that_is_named_like_a_batch(symbol):
    assert names_a_batch(symbol)
    named = Signature([TensorSpec("A", "FP32", [-1, 3], [symbol, ""])], [], batched=True, max_batch_size=64)
    wanted = request(tensor("A", (3,), "f4"))
    named.check(wanted, "M")
    assert (wanted.implicit_batch, wanted.inputs[0].shape) == (True, (1, 3))


@pytest.mark.parametrize("symbol", ["", "sequence", "length", "seq_len", "rows", "num", "m", "nn", "bn", "unk", "s0"])
def test_without_such_a_name_a_dimension_is_missing(symbol):
    assert not names_a_batch(symbol)
    spec = TensorSpec("A", "FP32", [-1, 3], [symbol, ""])
    unnamed = Signature([spec], [], batched=True, max_batch_size=64)
    sentence = "unexpected shape for input 'A' for model 'M'. Expected [-1,3], got [3]"
    assert refused(unnamed, request(tensor("A", (3,), "f4"))) == sentence
    batch = TensorSpec("B", "FP32", [-1, 3], ["batch", ""])
    both = Signature([batch, spec], [], batched=True, max_batch_size=64)
    assert "unexpected shape" in refused(both, request(tensor("A", (3,), "f4"), tensor("B", (3,), "f4")))
    for told in (
        Signature([spec], [], batched=True, max_batch_size=64, max_batch_size_configured=True),
        Signature([spec], [], batched=True, max_batch_size=64, item_form=True),
    ):
        wanted = request(tensor("A", (3,), "f4"))
        told.check(wanted, "M")
        assert wanted.implicit_batch
    never = Signature([batch], [], batched=True, max_batch_size=64, item_form=False)
    assert "unexpected shape" in refused(never, request(tensor("B", (3,), "f4")))
    assert not Signature([batch], [], item_form=True).item_form  # not batched: there is no batch dimension to leave out


AUTOMATIC = Signature(PAIR.inputs, PAIR.outputs, batched=True, max_batch_size=8)


def test_rows_that_do_not_match_run_as_they_are_where_batches_are_our_own_choice():
    keys = []
    for rows in ((1, 3), (3, 1), (1, 3), (2, 640), (0, 1)):
        wanted = request(*(tensor(name, (count, 4)) for name, count in zip("AB", rows, strict=True)))
        AUTOMATIC.check(wanted, "M")
        assert (wanted.whole, wanted.rows, wanted.implicit_batch) == (True, 1, False)
        assert [each.shape[0] for each in wanted.inputs] == list(rows)
        keys.append(wanted.shape_key)
    assert len(set(keys)) == len(keys)
    wanted = request(tensor("A", (2, 4)), tensor("B", (2, 4)))
    AUTOMATIC.check(wanted, "M")
    assert (wanted.whole, wanted.rows, wanted.shape_key) == (False, 2, None)
    assert "unexpected shape" in refused(AUTOMATIC, request(tensor("A", (1, 4)), tensor("B", (2, 5))))
    named = [TensorSpec(name, "INT32", [-1, 4], ["batch", ""]) for name in "AB"]
    alike = Signature(named, PAIR.outputs, batched=True, max_batch_size=8)
    assert "batch size does not match" in refused(alike, request(tensor("A", (1, 4)), tensor("B", (2, 4))))


def test_an_open_rank_takes_any_shape():
    spec = TensorSpec("A", "FP32", None)
    assert (spec.shape, spec.open_rank, spec.symbols) == ((-1,), True, ("",))
    assert spec != TensorSpec("A", "FP32", [-1])
    single = Signature([spec], [TensorSpec("X", "FP32", None)])
    assert str(single) == "A FP32[...] -> X FP32[...], not batched"
    for shape in ((), (3,), (2, 0), (1, 2, 3, 4)):
        wanted = request(tensor("A", shape, "f4"))
        single.check(wanted, "M")
        assert (wanted.rows, wanted.inputs[0].shape) == (1, shape)
        answer = single.respond(wanted, [tensor("X", shape, "f4")], "M", "1")
        assert answer.outputs[0].shape == shape
    assert "data-type" in refused(single, request(tensor("A", (3,), "i4")))
    assert "cannot be derived from a raw request" in refused(single, raw_request(16))


def test_the_first_dimension_of_an_open_rank_is_the_batch_where_that_is_configured():
    specs = [TensorSpec("A", "FP32", None), TensorSpec("B", "FP32", [-1, 4])]
    signature = Signature(specs, [], batched=True, max_batch_size=8, max_batch_size_configured=True)
    keys = []
    for shape in ((2,), (2, 4), (2, 4, 1), (2, 1, 4), (2, 5)):
        wanted = request(tensor("A", shape, "f4"), tensor("B", (2, 4), "f4"))
        signature.check(wanted, "M")
        assert (wanted.rows, wanted.implicit_batch) == (2, False)
        keys.append(wanted.shape_key)
    assert len(set(keys)) == len(keys)
    assert "batch size does not match" in refused(
        signature, request(tensor("A", (3, 1), "f4"), tensor("B", (2, 4), "f4"))
    )
    assert refused(signature, request(tensor("A", (), "f4"), tensor("B", (2, 4), "f4"))) == (
        "unexpected shape for input 'A' for model 'M'. Expected [...], got []"
    )


def test_two_open_ranks_have_no_key_in_common_by_chance():
    specs = [TensorSpec("A", "FP32", None), TensorSpec("B", "FP32", None)]
    signature = Signature(specs, [], batched=True, max_batch_size=8, max_batch_size_configured=True)
    keys = set()
    for a, b in (((1, 2), (1,)), ((1,), (1, 2)), ((1, 2, 2), (1, 2)), ((1, 2), (1, 2, 2))):
        wanted = request(tensor("A", a, "f4"), tensor("B", b, "f4"))
        signature.check(wanted, "M")
        keys.add(wanted.shape_key)
    assert len(keys) == 4


@pytest.mark.parametrize("batched", [False, True])
def test_operators_that_need_elements_do_not_get_inputs_without(batched):
    signature = Signature([TensorSpec("A", "FP32", [-1, -1])], [], batched=batched, max_batch_size=8, never_empty="GRU")
    assert refused(signature, request(tensor("A", (2, 0), "f4"))) == (
        "input 'A' has no elements, and the operators GRU of model 'M' cannot run on that"
    )
    signature.check(request(tensor("A", (2, 1), "f4")), "M")
    none = request(tensor("A", (0, 4), "f4"))
    if batched:  # answered without a run
        signature.check(none, "M")
        assert none.rows == 0
    else:
        assert "has no elements" in refused(signature, none)


def test_more_rows_than_a_batch_are_refused_only_where_the_limit_was_configured():
    wanted = request(tensor("A", (65, 3), "f4"))
    FREE.check(wanted, "M")
    assert wanted.rows == 65


def test_a_model_without_a_batch_dimension():
    wanted = request(tensor("A", (2, 7), "f4"))
    PLAIN.check(wanted, "M")
    assert (wanted.rows, wanted.implicit_batch) == (1, False)
    SCALAR.check(request(tensor("A", (), "i8")), "M")


def test_positional_inputs_have_free_names_even_the_same():
    twice = Signature([TensorSpec("a", "UINT32", [1]), TensorSpec("b", "UINT32", [2])], [], positional=True)
    wanted = request(tensor("x", (1,), "u4"), tensor("x", (2,), "u4"))
    twice.check(wanted, "M")
    assert [each.shape for each in wanted.inputs] == [(1,), (2,)]
    signature = Signature([TensorSpec("input", "UINT32", [1])], [TensorSpec("output", "UINT32", [1])], positional=True)
    signature.check(request(tensor("whatever", (1,), "u4")), "M")
    assert refused(signature, request()) == "expected 1 inputs but got 0 inputs for model 'M'"


def test_anything_goes():
    signature = Signature([], [], accepts_anything=True)
    wanted = request(tensor("a", (3,)), tensor("b", (2, 2), "f8"), outputs=["b"])
    signature.check(wanted, "M")
    answer = signature.respond(wanted, wanted.inputs, "M", "1")
    assert [output.name for output in answer.outputs] == ["b"]


def test_the_answer_has_the_wanted_outputs_in_the_wanted_order():
    wanted = request(tensor("A", (1, 4)), tensor("B", (1, 4)), outputs=["Y", "X"], id=b"42")
    PAIR.check(wanted, "M")
    answer = PAIR.respond(wanted, [tensor("X", (1, 4)), tensor("Y", (1, 4))], "M", "3")
    assert [output.name for output in answer.outputs] == ["Y", "X"]
    assert (answer.model_name, answer.model_version, answer.id, answer.binary) == ("M", "3", b"42", (False, False))


def test_binary_outputs_are_those_that_were_asked_for():
    tensors = tensor("A", (1, 4)), tensor("B", (1, 4))
    given = [tensor("X", (1, 4)), tensor("Y", (1, 4))]
    everything = InferRequest(list(tensors), binary_output=True)
    assert PAIR.respond(everything, given, "M", "1").binary == (True, True)
    mixed = InferRequest(list(tensors), [RequestedOutput("X", 0), RequestedOutput("Y")], binary_output=True)
    assert PAIR.respond(mixed, given, "M", "1").binary == (False, True)


def raw_request(nbytes):
    """What the decoder makes of a body without JSON."""
    return decode(bytes(nbytes), 0)


def test_a_raw_request_takes_its_open_dimension_from_its_size():
    wanted = raw_request(24)
    PLAIN.check(wanted, "M")
    assert [(t.name, t.datatype, t.shape) for t in wanted.inputs] == [("A", "FP32", (2, 3))]


def test_a_raw_scalar():
    wanted = raw_request(8)
    SCALAR.check(wanted, "M")
    assert wanted.inputs[0].shape == ()
    assert "Expected 8, got 4" in refused(SCALAR, raw_request(4))


@pytest.mark.parametrize("body", [b"", b"\0\1\1", b"\0\1\2", b"\xff" * 70, bytes(range(256)) * 3])
def test_in_a_raw_request_any_byte_but_zero_is_true(body):
    switches = Signature([TensorSpec("A", "BOOL", [-1])], [TensorSpec("X", "BOOL", [-1])])
    wanted = decode(body, 0, stable=True)
    switches.check(wanted, "M")
    (only,) = wanted.inputs
    assert (only.name, only.datatype, only.shape) == ("A", "BOOL", (len(body),))
    assert bytes(only) == bytes(byte != 0 for byte in body)
    assert (only.owner is body) == (max(body, default=0) <= 1)


def test_a_raw_request_cannot_tell_two_dimensions():
    squares = Signature([TensorSpec("A", "FP32", [-1, -1])], [TensorSpec("X", "FP32", [2])])
    assert "cannot be derived from a raw request" in refused(squares, raw_request(16))


def test_dimensions_of_one_name_that_differ_make_a_request_run_alone() -> None:
    inputs = [
        TensorSpec("ids", "FP32", [-1, -1], ["n", "length"]),
        TensorSpec("mask", "FP32", [-1, 2, -1], ["n", "", "length"]),
    ]
    for configured in (False, True):
        signature = Signature(inputs, [], batched=True, max_batch_size=8, max_batch_size_configured=configured)
        for length, whole in ((5, False), (4, not configured)):
            ids, mask = np.zeros((3, 5), np.float32), np.zeros((3, 2, length), np.float32)
            request = InferRequest([Tensor.from_numpy("ids", ids), Tensor.from_numpy("mask", mask)])
            signature.check(request, "m")
            assert (request.whole, request.rows) == (whole, 1 if whole else 3)


# --- Optional inputs -------------------------------------------------------------------------------------------------


def test_a_request_without_optional_inputs_is_as_any_other():
    wanted = request(tensor("B", (2, 4)), tensor("A", (2, 4)))
    OPTIONAL.check(wanted, "M")
    assert [t.name for t in wanted.inputs] == ["A", "B"]
    assert (wanted.rows, wanted.whole, wanted.shape_key) == (2, False, None)


def test_a_request_with_an_optional_input_runs_alone():
    keys = []
    for given in ([tensor("W", (4,))], [tensor("V", (), object, "BYTES"), tensor("W", (4,))]):
        wanted = request(*given, tensor("B", (2, 4)), tensor("A", (2, 4)))
        OPTIONAL.check(wanted, "M")
        assert [t.name for t in wanted.inputs] == ["A", "B", *sorted((t.name for t in given), reverse=True)]
        assert (wanted.rows, wanted.whole) == (1, True)
        keys.append(wanted.shape_key)
    assert None not in keys
    assert keys[0] != keys[1]


def test_an_item_with_an_optional_input_is_answered_as_an_item():
    wanted = request(tensor("A", (4,)), tensor("B", (4,)), tensor("W", (4,)))
    OPTIONAL.check(wanted, "M")
    assert [t.shape for t in wanted.inputs] == [(1, 4), (1, 4), (4,)]
    answer = OPTIONAL.respond(wanted, [tensor("X", (1, 4)), tensor("Y", (3, 4))], "M", "1")
    assert [output.shape for output in answer.outputs] == [(4,), (3, 4)]
    answer = OPTIONAL.respond(wanted, [tensor("X", ()), tensor("Y", (1,))], "M", "1")
    assert [output.shape for output in answer.outputs] == [(), ()]


def test_of_no_rows_optional_inputs_are_not_needed():
    wanted = request(tensor("A", (0, 4)), tensor("B", (0, 4)), tensor("W", (4,)))
    OPTIONAL.check(wanted, "M")
    assert (wanted.rows, wanted.whole, len(wanted.inputs)) == (0, False, 2)


def test_the_rows_of_a_request_with_an_optional_input_are_bounded():
    message = refused(OPTIONAL, request(tensor("A", (9, 4)), tensor("B", (9, 4)), tensor("W", (4,))))
    assert message == "inference request batch-size must be <= 8 for 'M'"
    message = refused(OPTIONAL, request(tensor("A", (1, 4)), tensor("B", (2, 4)), tensor("W", (4,))))
    assert message == "input 'B' batch size does not match other inputs for 'M'"


def test_the_signature_in_words_names_optional_inputs():
    words = "A INT32[-1,4], B INT32[-1,4] (optional: W INT32[4], V BYTES[...]) -> "
    assert str(OPTIONAL).startswith(words)
    many = Signature(PAIR.inputs, PAIR.outputs, optional_inputs=[TensorSpec(f"w{i}", "FP32", []) for i in range(300)])
    assert str(many).startswith("A INT32[-1,4], B INT32[-1,4] (300 more are optional) -> ")


@pytest.mark.parametrize(
    ("shape", "datatype", "decoded"),
    [
        ([4], "INT32", True),
        ([5], "INT32", False),
        ([1, 4], "INT32", False),
        ([4], "INT64", False),
        ([], "INT32", False),
    ],
)
def test_what_an_optional_input_cannot_be_is_not_decoded(shape, datatype, decoded):
    """Its first dimension is no batch, and nothing may be left out of its shape."""
    data = [1] * int(np.prod(shape))
    body = {"inputs": [{"name": "W", "shape": shape, "datatype": datatype, "data": data}]}
    assert decode(orjson.dumps(body), expectation=OPTIONAL.expectation).undecoded is not decoded
