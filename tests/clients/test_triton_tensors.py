"""Triton's stock client: tensors of every datatype, shape and layout, as binary data and as JSON, there and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_models
import pytest
from clients.triton import assert_same, dtype_of, refusal, sent, texts, wanted

DATATYPES = [*onnx_models.ONNX_TYPES]
FLOATS = ("FP16", "BF16", "FP32", "FP64")
ANY_BYTES = texts(b"", b"\0", b"a\0b\0", b"\xff\xfe\x80", "größe 🎉".encode(), bytes(range(256)))
ANY_TEXTS = texts("", "\0", '"\\\n\x7f', "größe 🎉", "𝄞\u2028", "x" * 300)


def values(datatype: str) -> np.ndarray:
    """``[2, 3]`` with the extremes of a datatype; the BYTES are texts, so that they may travel in JSON too."""
    if datatype == "BYTES":
        return ANY_TEXTS.reshape(2, 3)
    dtype = dtype_of(datatype)
    if datatype == "BOOL":
        elements = [True, False, False, True, True, False]
    elif datatype in FLOATS:
        info = ml_dtypes.finfo(dtype)
        elements = [info.max, info.min, info.smallest_normal, -0.0, 0.1, 1 / 3]
    else:
        info = np.iinfo(dtype)
        elements = [info.min, info.max, 0, 1, info.max - 1, info.max // 3]
    return np.array(elements, dtype).reshape(2, 3)


def there_and_back(client, model, array, binary_in=True, binary_out=True):
    result = client.infer(model, [sent("x", array, binary_in)], outputs=[wanted("y", binary_out)])
    assert ("data" in result.get_output("y")) == (not binary_out)
    return result.as_numpy("y")


@pytest.mark.parametrize("binary_out", [True, False], ids=["to_binary", "to_json"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype(client, datatype, binary_in, binary_out):
    array = values(datatype)
    if datatype == "BF16" and not binary_in:
        assert "BF16 inputs must be sent as binary data" in refusal(sent, "x", array, False)[1]  # the client's own rule
        return
    assert_same(there_and_back(client, f"rows_{datatype.lower()}", array, binary_in, binary_out), array)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_without_requested_outputs_all_of_them_come_as_binary_data(client, datatype):
    array = values(datatype)
    result = client.infer(f"rows_{datatype.lower()}", [sent("x", array)])
    assert_same(result.as_numpy("y"), array)
    assert "data" not in result.get_output("y")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", [each for each in FLOATS if each != "BF16"])
def test_numbers_that_are_not_finite(client, datatype, binary):
    array = np.array([[np.nan, np.inf, -np.inf]]).astype(dtype_of(datatype))
    assert_same(there_and_back(client, f"rows_{datatype.lower()}", array, binary, binary), array)


def test_bits_of_nan_and_of_subnormals_survive_as_binary_data(client):
    for bits, model in ((np.uint16, "rows_bf16"), (np.uint16, "rows_fp16"), (np.uint32, "rows_fp32")):
        dtype = dtype_of(model.removeprefix("rows_").upper())
        array = np.arange(1, np.iinfo(bits).max, np.iinfo(bits).max // 1000, dtype=bits).view(dtype)[None]
        assert_same(there_and_back(client, model, array), array)


def test_bytes_are_any_bytes(client):
    array = ANY_BYTES.reshape(3, 2)
    assert_same(there_and_back(client, "rows_bytes", array), array)


def test_bytes_of_a_fixed_length(client):
    array = np.array([[b"ab", b"cde", b""]])  # numpy's S3
    assert_same(there_and_back(client, "rows_bytes", array), texts(b"ab", b"cde", b"")[None])


def test_bytes_that_are_no_text_have_replacement_characters_in_json(client):
    array = texts(b"a\xff\0b", b"\xed\xa0\x80")[None]
    expected = texts("a\ufffd\0b", "\ufffd\ufffd\ufffd")[None]
    assert_same(there_and_back(client, "rows_bytes", array, binary_out=False), expected)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=["no_rows", "empty_rows", "nothing"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_shapes_without_elements(client, datatype, shape, binary):
    array = np.zeros(shape, dtype_of(datatype))
    binary_in = binary or datatype == "BF16"
    assert_same(there_and_back(client, f"rows_{datatype.lower()}", array, binary_in, binary), array)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_scalars(client, datatype, binary):
    array = np.array(values(datatype)[1, 2], dtype_of(datatype))
    assert array.shape == ()
    binary_in = binary or datatype == "BF16"
    assert_same(there_and_back(client, f"scalar_{datatype.lower()}", array, binary_in, binary), array)


def test_a_row_without_its_batch_dimension(client):
    array = values("INT16")[0]
    assert_same(there_and_back(client, "rows_int16", array), array)


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "every_other": lambda array: array[::2, ::3],
    "transposed": lambda array: array.T,
    "backwards": lambda array: array[::-1, ::-1],
    "broadcast": lambda array: np.broadcast_to(array[0], array.shape),
    "fortran": np.asfortranarray,
    "read_only": frozen,
}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("datatype", ["FP32", "UINT8", "BYTES"])
def test_layouts(client, datatype, layout, binary):
    if datatype == "BYTES":
        array = texts(*(f"{number} é" for number in range(24))).reshape(4, 6)
    else:
        array = np.arange(24).reshape(4, 6).astype(dtype_of(datatype))
    view = LAYOUTS[layout](array)
    assert not (view.flags.c_contiguous and view.flags.writeable)
    assert_same(there_and_back(client, f"rows_{datatype.lower()}", view, binary, binary), view)


@pytest.mark.parametrize("parity", [0, 1])
def test_mixed_inputs_and_outputs(client, parity):
    names = DATATYPES[::-1]  # not in the model's order
    inputs = [sent(name, values(name), name == "BF16" or number % 2 == parity) for number, name in enumerate(names)]
    outputs = [wanted(f"same {name}", number % 3 == parity) for number, name in enumerate(names)]
    result = client.infer("every_datatype", inputs, outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == [f"same {name}" for name in names]
    for number, name in enumerate(names):
        assert ("data" in result.get_output(f"same {name}")) == (number % 3 != parity)
        assert_same(result.as_numpy(f"same {name}"), values(name))


def test_inputs_all_json_and_outputs_by_default(client):
    names = [name for name in DATATYPES if name != "BF16"]
    inputs = [sent(name, values(name), binary=False) for name in names] + [sent("BF16", values("BF16"))]
    result = client.infer("every_datatype", inputs)
    for name in DATATYPES:
        assert_same(result.as_numpy(f"same {name}"), values(name))


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's advice to its user
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_large_tensors(client, binary):
    numbers = np.random.default_rng(1).standard_normal((40, 65536 if binary else 13000)).astype(np.float32)  # 10 MB
    assert_same(there_and_back(client, "rows_fp32", numbers, binary, binary), numbers)
    long = texts("größe" * 1_600_000, "", "end")[None]  # 11 MB
    assert_same(there_and_back(client, "rows_bytes", long, binary, binary), long)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_many_short_texts(client, binary):
    many = texts(*(str(number) for number in range(100_000))).reshape(100, 1000)
    assert_same(there_and_back(client, "rows_bytes", many, binary, binary), many)


def test_an_unknown_output_is_none(client):
    result = client.infer("rows_int8", [sent("x", values("INT8"))])
    assert result.as_numpy("nope") is None
    assert result.get_output("nope") is None


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_names_that_are_not_ascii(client, binary):
    array = np.ones((1, 2), np.float32)
    result = client.infer("unicode", [sent("größe π", array, binary)], outputs=[wanted("same größe π", binary)])
    assert_same(result.as_numpy("same größe π"), array)
