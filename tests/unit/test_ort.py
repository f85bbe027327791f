"""Sessions and their runs; the C level beneath is the one that batches use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_models as models
import pytest
from onnx import ModelProto, TensorProto, TypeProto, helper, numpy_helper

from fastinfer.backends.onnx import ort
from fastinfer.backends.onnx.ort import OrtError, Session
from fastinfer.tensor import datatype
from fastinfer.tensor.tensor import Tensor

NUMERIC = [name for name in datatype.NAMES if name != "BYTES"]


def tensor(name: str, array: object, datatype: str | None = None) -> Tensor:
    return Tensor.from_numpy(name, np.asarray(array), datatype)


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


# --- The library ------------------------------------------------------------------------------------------------------


def test_library() -> None:
    assert int(ort.version().split(".")[0]) >= 1
    assert "CPUExecutionProvider" in ort.available_providers()


def test_configure_is_for_once_and_before_the_first_session() -> None:
    Session(model=models.simple())
    with pytest.raises(RuntimeError, match="configured already"):
        ort.configure(1)


def run_python(source: str, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_package_is_not_imported_and_telemetry_is_off(tmp_path: Path) -> None:
    out = run_python(
        "import os, sys\n"
        "from fastinfer.backends.onnx import ort\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = threads()\n"
        "ort.configure(3, 1)\n"
        "print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'], threads() - before)",
        HOME=str(tmp_path),
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert out.split() == ["False", "1", "2"]  # the pool's other two, and none that uploads
    assert not list(tmp_path.iterdir())


def test_thread_counts_are_positive() -> None:
    out = run_python(
        "from fastinfer.backends.onnx import ort\n"
        "for counts in ((0, 1), (1, 0)):\n"
        "    try: ort.configure(*counts)\n"
        "    except ValueError as error: print(error)"
    )
    assert out.count("positive") == 2


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "has 0 runtime libraries"),
        (["libonnxruntime.so.1.0", "libonnxruntime.so.2.0"], "has 2 runtime libraries"),
        (["libonnxruntime.so.1.0"], "cannot be loaded"),
    ],
)
def test_a_wheel_that_does_not_fit(tmp_path: Path, files: list[str], sentence: str) -> None:
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    (tmp_path / "onnxruntime" / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in files:
        (tmp_path / "onnxruntime" / "capi" / name).write_text("no library")
    out = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fastinfer.backends.onnx import ort\n"
        "try: ort.version()\n"
        "except ort.OrtError as error: print(error)"
    )
    assert sentence in out
    assert "needs the 'onnxruntime' wheel" in out


# --- What a session says of its model ---------------------------------------------------------------------------------


def test_signature() -> None:
    session = Session(model=models.simple())
    assert [(s.name, s.datatype, s.shape, s.symbols) for s in session.inputs] == [
        ("INPUT0", "INT32", (-1, 16), ("batch", "")),
        ("INPUT1", "INT32", (-1, 16), ("batch", "")),
    ]
    assert [s.name for s in session.outputs] == ["OUTPUT0", "OUTPUT1"]


def test_free_dimensions_can_be_overridden() -> None:
    session = Session(model=models.simple(), free_dimension_overrides={"batch": 5})
    assert session.inputs[0].shape == (5, 16)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (models.sequence_input, "input 'parts' is a sequence, .* construct it from tensors"),
        (models.map_input, "input 'x' is a map, .* without DictVectorizer"),
        (models.map_output, "output 'maps' is a sequence of maps, .* zipmap=False"),
        (lambda: models.constructed("FP32", [1] * 16), "output 'parts' has 17 dimensions"),
        (partial(models.element_output, TensorProto.FLOAT8E4M3FN), "output 'y' is FLOAT8E4M3FN; the protocol has no"),
        (partial(models.element_output, TensorProto.UINT2), "output 'y' is UINT2; the protocol has no datatype"),
        (partial(models.element_output, TensorProto.FLOAT8E8M0, declared=False), "output 'y' is FLOAT8E8M0"),
        (partial(models.element_output, TensorProto.INT4, declared=False), "output 'y' is INT4"),
        (partial(models.element_input, TensorProto.FLOAT8E5M2FNUZ), "input 'x' is FLOAT8E5M2FNUZ"),
        (lambda: models.identity("FP32", [1] * 17), "input 'x' has 17 dimensions"),
    ],
)
def test_what_cannot_be_served_is_refused(made: Callable[[], bytes], sentence: str) -> None:
    with pytest.raises(OrtError, match=sentence) as caught:
        Session(model=made())
    assert caught.value.code == 9


def run(session: Session, **arrays: np.ndarray) -> list[np.ndarray]:
    return [each.numpy() for each in session.run([Tensor.from_numpy(*each) for each in arrays.items()])]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="f4").reshape(6, 2),
        np.arange(12, dtype="i8").reshape(6, 2),
        np.array([["", "a"], ["bb", "c" * 1000], ["d", "ü"], ["e" * 7, ""], ["", ""], ["f" * 99, "g"]], dtype=object),
        np.arange(12).reshape(6, 2) % 3 == 0,
    ],
    ids=["FP32", "INT64", "BYTES", "BOOL"],
)
def test_a_sequence_is_one_tensor(array: np.ndarray) -> None:
    datatype = Tensor.from_numpy("x", array).datatype
    session = Session(model=models.sequence_output(datatype))
    parts, _ = session.outputs
    assert (parts.name, parts.datatype, parts.shape) == ("parts", datatype, (-1, -1, 2))
    assert session.sequence_outputs == ("parts",)
    bytes_of = array if array.dtype != object else np.vectorize(str.encode, otypes=[object])(array)
    for parts in (1, 2, 3, 6):
        stacked, total = run(session, x=array, sizes=np.array([6 // parts] * parts))
        assert total == parts
        assert np.array_equal(stacked, bytes_of.reshape(parts, 6 // parts, 2))


def test_a_sequence_of_scalars_is_a_vector() -> None:
    session = Session(model=models.constructed("FP64"))
    (stacked,) = run(session, a=np.array(1.5), b=np.array(-2.0))
    assert stacked.tolist() == [1.5, -2.0]


def test_a_sequence_without_elements_has_the_declared_shape() -> None:
    for kind, declared, shape in (
        ("INT64", [None, 3], (0, 0, 3)),
        ("BYTES", [2], (0, 2)),
        ("FP32", None, (0,)),
        ("FP16", [], (0,)),
    ):
        session = Session(model=models.empty_sequence(kind, declared))
        (empty,) = session.run([Tensor.from_numpy("x", np.zeros(1, "f4"))])
        assert (empty.datatype, empty.shape, empty.nbytes) == (kind, shape, 0)


def test_a_sequence_of_unequal_shapes_is_an_error() -> None:
    session = Session(model=models.sequence_output())
    for sizes in ([1, 2], [2, 2, 1], [3, 3, 3, 4]):
        with pytest.raises(OrtError, match="output 'parts' is a sequence of tensors of different shapes") as caught:
            run(session, x=np.zeros((sum(sizes), 2), "f4"), sizes=np.array(sizes))
        assert caught.value.code == 2
    (total,) = session.run(
        [Tensor.from_numpy("x", np.zeros((3, 2), "f4")), Tensor.from_numpy("sizes", np.array([1, 2]))], ["total"]
    )
    assert total.numpy() == 2


def test_an_optional_output_is_served_if_it_is_there() -> None:
    session = Session(model=models.optional_output())
    assert [(s.name, s.shape) for s in session.outputs] == [("y", (2,)), ("z", (2,))]
    x = np.array([1, 2], "f4")
    assert run(session, x=x, given=np.array(True))[0].tolist() == [1, 2]
    with pytest.raises(OrtError, match="output 'y' is optional, and absent"):
        run(session, x=x, given=np.array(False))


def test_sparse_weights_inside_are_served() -> None:
    session = Session(model=models.sparse_weight(output=False))
    (sum_,) = session.run([Tensor.from_numpy("x", np.ones((2, 2), "f4"))])
    assert sum_.numpy().tolist() == [[1, 6], [1, 1]]


def test_an_open_rank_is_no_scalar() -> None:
    session = Session(model=models.identity("FP32", None))
    assert [(spec.shape, spec.open_rank) for spec in (*session.inputs, *session.outputs)] == [((-1,), True)] * 2
    for shape in ((), (2,), (1, 0, 3)):
        (same,) = session.run([Tensor.from_numpy("x", np.ones(shape, "f4"))])
        assert same.shape == shape
    for known in ([], [None], ["batch", 2]):
        session = Session(model=models.identity("FP32", known))
        assert [spec.open_rank for spec in (*session.inputs, *session.outputs)] == [False] * 2
        assert [len(spec.shape) for spec in session.inputs] == [len(known)]


# --- Optional inputs --------------------------------------------------------------------------------------------------


def test_an_initializer_that_is_an_input_may_be_overridden() -> None:
    session = Session(model=models.with_defaults())
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [(spec.name, spec.datatype, spec.shape) for spec in session.optional_inputs] == [
        ("scale", "FP32", (4,)), ("bias", "FP32", (4,)),
    ]  # fmt: skip
    x, bias = np.ones((2, 4), "f4"), np.float32([4, 3, 2, 1])
    assert session.run([tensor("x", x)])[0].numpy().tolist() == [[1, 2, 3, 4]] * 2
    assert session.run([tensor("bias", bias), tensor("x", x)])[0].numpy().tolist() == [[5, 4, 3, 2]] * 2
    both = [tensor("bias", bias), tensor("scale", 2 * bias), tensor("x", x)]
    assert session.run(both)[0].numpy().tolist() == [[12, 9, 6, 3]] * 2
    for wrong in ([tensor("x", x), tensor("z", bias)], [tensor("x", x), tensor("bias", bias), tensor("bias", bias)]):
        with pytest.raises(OrtError, match="inputs were given"):
            session.run(wrong)


def test_old_models_list_constants_as_inputs() -> None:
    """Before version 4 of the format, each initializer had to be an input, too."""
    session = Session(model=models.with_defaults(ir_version=3))
    assert ([spec.name for spec in session.inputs], session.optional_inputs) == (["x"], ())


def test_an_input_of_an_optional_type_may_be_left_out() -> None:
    session = Session(model=models.optional_bias())
    assert [(spec.name, spec.shape, spec.symbols) for spec in session.optional_inputs] == [
        ("bias", (-1, 4), ("batch", ""))
    ]
    x = tensor("x", np.ones((1, 4), "f4"))
    assert session.run([x])[0].numpy().tolist() == [[1, 1, 1, 1]]
    assert session.run([x, tensor("bias", np.ones((1, 4), "f4"))])[0].numpy().tolist() == [[2, 2, 2, 2]]


def _with_optional(kind: TypeProto) -> bytes:
    nodes = [helper.make_node("OptionalHasElement", ["o"], ["is_given"]), helper.make_node("Neg", ["x"], ["y"])]
    x, y = (models.value(each, "FP32", [2]) for each in "xy")
    given = helper.make_value_info("o", helper.make_optional_type_proto(kind))
    return models.model(nodes, [x, given], [y, models.value("is_given", "BOOL", [])], opset=18)


def test_a_model_runs_without_an_optional_input_that_cannot_be_given() -> None:
    sequence = _with_optional(helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2])))
    float8 = ModelProto.FromString(models.model(
        [helper.make_node("Cast", ["w"], ["wide"], to=1), helper.make_node("Add", ["x", "wide"], ["y"])],
        [models.value("x", "FP32", [1]), helper.make_tensor_value_info("w", TensorProto.FLOAT8E4M3FN, [1])],
        [models.value("y", "FP32", [1])],
        [TensorProto(name="w", data_type=TensorProto.FLOAT8E4M3FN, dims=[1], raw_data=b"\x38")],
        opset=19,
    ))  # fmt: skip
    for model, reason in (
        (
            sequence,
            "input 'o' is a sequence, which no request can hold; let the graph construct it from tensors "
            "(SequenceConstruct, SplitToSequence)",
        ),
        (float8.SerializeToString(), "input 'w' is FLOAT8E4M3FN; the protocol has no datatype for that"),
    ):
        session = Session(model=model)
        assert (session.optional_inputs, session.refused_inputs) == ((), (reason,))
        (spec,) = session.inputs
        first = session.run([tensor("x", np.ones(spec.shape, "f4"))])[0].numpy()
        assert first.flat[0] == (-1 if model is sequence else 2)


def test_no_more_defaults_are_offered_than_a_request_may_give() -> None:
    names = [f"w{i}" for i in range(1100)]
    weights = [numpy_helper.from_array(np.float32([1]), name) for name in names]
    inputs = [models.value("x", "FP32", [1]), *(models.value(name, "FP32", [1]) for name in names)]
    model = models.model(
        [helper.make_node("Sum", ["x", *names], ["y"])], inputs, [models.value("y", "FP32", [1])], weights
    )
    session = Session(model=model)
    assert session.optional_inputs == ()
    assert session.refused_inputs[0].startswith("the model has 1100 optional inputs")
    assert session.run([tensor("x", np.float32([1]))])[0].numpy() == [1101]


# --- Models that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [b"", b"\x00", b"garbage" * 100, b"\x08\x09", b"ORTM" * 8])
def test_no_model(model: bytes) -> None:
    with pytest.raises(OrtError):
        Session(model=model)


def test_truncated_and_damaged_models() -> None:
    whole = models.mlp(16)
    for end in range(1, len(whole), len(whole) // 40):
        with pytest.raises(OrtError):
            Session(model=whole[:end])
    for at in range(0, len(whole), len(whole) // 40):  # may load or not, and lives on in any case
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        try:
            Session(model=damaged)
        except OrtError as error:
            assert str(error)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OrtError, match="cannot be read") as caught:
        Session(tmp_path / "model.onnx")
    assert caught.value.code == 3
    with pytest.raises(OrtError, match="cannot be read"):
        Session(tmp_path)
    with pytest.raises(ValueError, match="path or a model"):
        Session()


@pytest.fixture
def version_directory(tmp_path: Path) -> Path:
    """A model's directory; a file that is none of the model's business lies outside."""
    weight = np.arange(4, dtype="f4").tobytes()
    (tmp_path / "secret").write_bytes(weight)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "weight").write_bytes(weight)
    (tmp_path / "1" / "link").symlink_to("../secret")
    return tmp_path / "1"


def test_external_data_beside_the_model(version_directory: Path) -> None:
    path = version_directory / "model.onnx"
    path.write_bytes(models.external_weight("weight"))
    for session in (Session(path), Session(str(path), model=models.external_weight("weight"))):
        [y] = session.run([tensor("x", np.ones(4, "f4"))])
        assert y.numpy().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("location", ["../secret", "{outside}/secret", "link", "missing", "/dev/zero", "", "."])
def test_external_data_elsewhere(version_directory: Path, location: str) -> None:
    path = version_directory / "model.onnx"
    path.write_bytes(models.external_weight(location.format(outside=version_directory.parent)))
    with pytest.raises(OrtError):
        Session(path)


def test_external_data_behind_a_hard_link(version_directory: Path) -> None:
    path = version_directory / "model.onnx"
    path.write_bytes(models.external_weight("hard"))
    (version_directory / "hard").hardlink_to(version_directory.parent / "secret")
    (version_directory / "dangling").symlink_to("nowhere")
    with pytest.raises(OrtError, match="'hard' has a second name"):
        Session(path)
    path.write_bytes(models.external_weight("weight"))  # a hard link that the model does not name is no matter
    Session(path)


def test_external_data_of_a_model_without_a_path(version_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(version_directory)
    with pytest.raises(OrtError):
        Session(model=models.external_weight("weight"))


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [None, 0, 1, 2, 3, 99, "none", "basic", "extended", "layout", "all"])
def test_graph_optimization_levels(level: str | int | None) -> None:
    session = Session(model=models.mlp(), graph_optimization_level=level)
    assert session.run([tensor("x", np.zeros((3, 64), "f4"))])[0].shape == (3, 8)


@pytest.mark.parametrize("level", [4, -7, "most"])
def test_unknown_graph_optimization_levels(level: str | int) -> None:
    with pytest.raises(OrtError):
        Session(model=models.mlp(), graph_optimization_level=level)


def test_threads_of_its_own() -> None:
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    session = Session(model=models.mlp(), intra_op_threads=3, inter_op_threads=2, allow_spinning=False)
    assert len(list(tasks.iterdir())) > before
    assert session.run([tensor("x", np.zeros((3, 64), "f4"))])[0].shape == (3, 8)


def test_execution_providers() -> None:
    Session(model=models.simple(), execution_providers=("CPUExecutionProvider",))
    Session(model=models.simple(), execution_providers=())
    with pytest.raises(OrtError, match="'QuantumExecutionProvider' is not in this build"):
        Session(model=models.simple(), execution_providers=("QuantumExecutionProvider", "CPUExecutionProvider"))


# --- Runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMERIC)
def test_every_numeric_datatype_keeps_its_bits(name: str) -> None:
    random = np.random.default_rng(3)
    bits = random.integers(0, 2 if name == "BOOL" else 256, 24 * datatype.itemsize(name), dtype="u1")
    array = bits.view(datatype.numpy_dtype(name)).reshape(3, 8)
    session = Session(model=models.identity(name))
    assert session.inputs[0].datatype == session.outputs[0].datatype == name
    [y] = session.run([tensor("x", array, name)])
    assert (y.name, y.datatype, y.shape) == ("y", name, (3, 8))
    assert bytes(y) == array.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 1, 3)])
@pytest.mark.parametrize("name", ["FP32", "BYTES"])
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    array = np.full(shape, b"a" if name == "BYTES" else 7, dtype=datatype.numpy_dtype(name))
    [y] = Session(model=models.identity(name, [None] * len(shape))).run([tensor("x", array, name)])
    assert y.shape == shape
    assert y.numpy().tolist() == array.tolist()


def test_strings() -> None:
    elements = [b"", b"a", b"ab\0cd\0", b"\xff\xfe", "grüße".encode(), b"x" * 100_000, b"\0", b""]
    session = Session(model=models.identity("BYTES"))
    [y] = session.run([tensor("x", np.array([*elements, None], dtype=object)[:-1].reshape(2, 4))])
    assert y.numpy().reshape(-1).tolist() == elements


def test_inputs_in_any_order_and_outputs_by_name() -> None:
    session = Session(model=models.simple())
    a, b = np.full((2, 16), 5, "i4"), np.full((2, 16), 3, "i4")
    inputs = [tensor("INPUT1", b), tensor("INPUT0", a)]
    assert [t.numpy()[0, 0] for t in session.run(inputs)] == [8, 2]
    assert [t.name for t in session.run(inputs, ["OUTPUT1"])] == ["OUTPUT1"]
    assert [t.numpy()[1, 15] for t in session.run(inputs, ["OUTPUT1", "OUTPUT0"])] == [2, 8]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([("INPUT0", (1, 16), "i4")], "input 'INPUT1' is missing"),
        ([], "is missing"),
        ([("INPUT0", (1, 16), "i4"), ("INPUT1", (1, 16), "i4"), ("MORE", (1,), "i4")], "3 inputs were given"),
        ([("INPUT0", (1, 16), "f4"), ("INPUT1", (1, 16), "i4")], "Unexpected input data type"),
        ([("INPUT0", (1, 17), "i4"), ("INPUT1", (1, 16), "i4")], "Got: 17 Expected: 16"),
        ([("INPUT0", (16,), "i4"), ("INPUT1", (1, 16), "i4")], "Invalid rank"),
    ],
)
def test_inputs_that_do_not_fit(inputs: list[tuple[str, tuple[int, ...], str]], sentence: str) -> None:
    session = Session(model=models.simple())
    with pytest.raises(OrtError, match=sentence) as caught:
        session.run([tensor(name, np.zeros(shape, dtype)) for name, shape, dtype in inputs])
    assert caught.value.code == 2


def test_outputs_that_do_not_exist() -> None:
    with pytest.raises(OrtError, match="no output 'nope'"):
        Session(model=models.scalar_sum()).run([tensor("x", np.zeros((1, 4), "f4"))], ["nope"])


def test_failures_of_a_run() -> None:
    gather = Session(model=models.gather_rows())
    assert gather.run([tensor("index", np.array([3, 0]))])[0].numpy().tolist() == [[6, 7], [0, 1]]
    with pytest.raises(OrtError, match="bounds"):
        gather.run([tensor("index", np.array([4]))])
    divide = Session(model=models.divide())
    one, zero = np.ones((1, 1), "i4"), np.zeros((1, 1), "i4")
    with pytest.raises(OrtError):
        divide.run([tensor("a", one), tensor("b", zero)])
    assert divide.run([tensor("a", one), tensor("b", one)])[0].numpy().tolist() == [[1]]


def test_shapes_that_depend_on_values() -> None:
    session = Session(model=models.nonzero())
    for ones in range(5):
        x = np.zeros((1, 4), "f4")
        x[0, :ones] = 1
        assert session.run([tensor("x", x)])[0].shape == (2, ones)


def test_an_output_that_is_an_input_has_memory_of_its_own() -> None:
    array = np.arange(8, dtype="f4").reshape(2, 4)
    x, y = Session(model=models.passed_through()).run([tensor("x", array)])
    array[:] = 99
    assert x.numpy().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert y.numpy()[1].tolist() == [-4, -5, -6, -7]


def test_outputs_outlive_their_session() -> None:
    session = Session(model=models.constant_output())
    outputs = session.run([tensor("x", np.ones(2, "f4"))])
    del session
    arrays = [output.numpy() for output in outputs]
    del outputs
    assert arrays[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays[1].tolist() == [-1, -1]


def test_memory_of_load_run_and_unload() -> None:
    model, x = models.mlp(8), tensor("x", np.zeros((1, 8), "f4"))

    def cycle() -> None:
        Session(model=model).run([x])

    for _ in range(300):
        cycle()
    before = resident_kib()
    for _ in range(2000):
        cycle()
    assert resident_kib() - before < 4096


def test_memory_of_failed_loads_and_runs() -> None:
    damaged = models.mlp(8)[:-20]
    session = Session(model=models.gather_rows())
    index = tensor("index", np.array([4]))

    def cycle() -> None:
        with pytest.raises(OrtError):
            Session(model=damaged)
        with pytest.raises(OrtError):
            session.run([index])

    for _ in range(300):
        cycle()
    before = resident_kib()
    for _ in range(1000):
        cycle()
    assert resident_kib() - before < 4096
