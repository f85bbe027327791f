"""The proof against ONNX Runtime, on the node tests of the ONNX backend.

Each subset of a test's inputs that have the same first dimension is given rows; the other inputs become constants.
Models that are proven run with three rows together and alone.
"""

import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from fastinfer.backends.onnx.graph.rows import prove

pytestmark = pytest.mark.long

CHUNKS = 4
ROWS = 3
MAX_INPUTS = 4  # that are given rows at once
MAX_ELEMENTS = 5_000  # of a test's inputs
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.log_severity_level = 4
OPTIONS.intra_op_num_threads = OPTIONS.inter_op_num_threads = 1
ORT_ERRORS = tuple(
    each for each in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    if isinstance(each, type) and issubclass(each, Exception)
)  # fmt: skip


@pytest.fixture(scope="module")
def cases():
    """The models of the tests, with their inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = [(case.name, case.model, case.data_sets[0][0]) for case in collect_testcases(None) if case.model]
    return [
        (name, model, inputs)
        for name, model, inputs in found
        if len(inputs) == len(model.graph.input)
        and all(isinstance(each, np.ndarray | np.generic) for each in inputs)
        and sum(np.asarray(each).size for each in inputs) <= MAX_ELEMENTS
    ]


def subsets(model, inputs):
    """Which inputs are given rows: each set of those that have the same first dimension."""
    ranks = [len(info.type.tensor_type.shape.dim) for info in model.graph.input]
    may = [i for i, each in enumerate(inputs) if each.ndim and ranks[i] == each.ndim]
    for count in range(1, min(len(may), MAX_INPUTS) + 1):
        for chosen in itertools.combinations(may, count):
            if len({inputs[i].shape[0] for i in chosen}) == 1:
                yield chosen


def opened(model, inputs, chosen):
    """The model with an open first dimension for the chosen inputs, and with the others as constants."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.input[:], made.graph.value_info[:]
    for i, (info, array) in enumerate(zip(model.graph.input, inputs, strict=True)):
        if i in chosen:
            kept = made.graph.input.add()
            kept.CopyFrom(info)
            kept.type.tensor_type.shape.dim[0].dim_param = "n"
        else:
            made.graph.initializer.append(numpy_helper.from_array(array, info.name))
    for info in made.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    return made.SerializeToString()


def agree(together, alone, same_bits):
    if together.shape != alone.shape or together.dtype.kind not in "f":
        return np.array_equal(together, alone)
    if same_bits:
        return np.array_equal(together, alone, equal_nan=True)
    scale = np.abs(alone[np.isfinite(alone)]).max(initial=0)
    return np.allclose(together, alone, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)


def wrong(data, names, rows, same_bits, axes):
    """What differs between rows alone and together; None: they agree. LookupError if no row runs alone."""
    try:
        session = onnxruntime.InferenceSession(data, OPTIONS, providers=["CPUExecutionProvider"])
        alone = [session.run(None, {name: array[i : i + 1] for name, array in rows.items()}) for i in range(ROWS)]
    except (*ORT_ERRORS, RuntimeError) as error:  # it does not know each of numpy's types
        raise LookupError from error
    try:
        together = session.run(None, rows)
    except ORT_ERRORS as error:
        return f"together: {error}"
    for name, output, *each in zip(names, together, *alone, strict=True):
        axis = axes[name]
        if any(one.shape[axis : axis + 1] != (1,) for one in each) or output.shape[axis : axis + 1] != (ROWS,):
            return f"the shape of {name}"
        if output.dtype.kind != "V" and not agree(output, np.concatenate(each, axis), same_bits):
            return f"the values of {name}"
    return None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_is_proven_of_the_backends_tests_holds(chunk, cases):
    random = np.random.default_rng(chunk)
    checked, failures = 0, []
    for name, model, given in cases[chunk::CHUNKS]:
        inputs = [np.asarray(each) for each in given]
        for chosen in subsets(model, inputs):
            data = opened(model, inputs, chosen)
            proof = prove(data)
            if proof.couples is not None:
                continue
            rows = {
                model.graph.input[i].name: inputs[i][random.integers(0, len(inputs[i]), ROWS)]
                for i in chosen if len(inputs[i])
            }  # fmt: skip
            if all(array.dtype.kind == "f" for array in rows.values()):
                scales = np.array([1, 0.01, 100])
                rows = {
                    name: (array * scales.reshape([ROWS] + [1] * (array.ndim - 1))).astype(array.dtype)
                    for name, array in rows.items()
                }
            outputs = [info.name for info in model.graph.output]
            try:
                found = wrong(data, outputs, rows, proof.rounds is None, proof.output_axes)
            except LookupError:
                continue  # it runs with its own number of rows only, or not in this runtime
            checked += 1
            if found:
                failures.append((name, chosen, found))
    assert failures == []
    assert checked > 180
