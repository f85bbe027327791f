"""The proof against ONNX Runtime, on generated graphs: what it says of each value is compared with what is computed.

Each graph is built operator by operator of random ones, on inputs whose sizes equal each other and those of constants,
so that what is mixed up often runs. Then all its values are computed for rows alone and together.
"""

import math

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastinfer.backends.onnx.graph.branches import UndecidedError
from fastinfer.backends.onnx.graph.dims import BATCH_SYMBOL, Dim
from fastinfer.backends.onnx.graph.proto import Model
from fastinfer.backends.onnx.graph.rows import _Prover, prove
from fastinfer.backends.onnx.graph.values import Place
from fastinfer.backends.onnx.graph.visits import Visits

pytestmark = pytest.mark.long

KINDS = {np.dtype("f4"): TensorProto.FLOAT, np.dtype("i8"): TensorProto.INT64, np.dtype("?"): TensorProto.BOOL}
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.log_severity_level = 4
OPTIONS.intra_op_num_threads = OPTIONS.inter_op_num_threads = 1
ROWS, SEQ = 2, 3  # the sizes that a graph is generated with
INPUTS = {"x": ("f4", ("n", "s", 4)), "z": ("f4", ("n", "t")), "k": ("i8", ("n", "s")), "w": ("f4", ("n", 2, 3, 4))}
UNARY = ["Relu", "Neg", "Sigmoid", "Abs", "Exp", "Floor", "Tanh", "Sqrt", "Identity"]
BINARY = ["Add", "Sub", "Mul", "Div", "Max", "Min"]
REDUCE = ["ReduceMax", "ReduceSum", "ReduceMean", "ReduceProd", "ArgMax"]


class Generator:
    """Builds a graph; ``example`` has each value as computed for ROWS rows."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants = [], {}
        self.example = feeds(self.random, ROWS, {"s": SEQ, "t": int(self.random.integers(1, 5))})

    def pick(self, options):
        return options[self.random.integers(len(options))]

    def some(self, kind="f", rank=None):
        """A value of a kind, late ones rather than early ones. LookupError if there is none."""
        names = [
            name for name, array in self.example.items() if array.dtype.kind == kind and rank in (None, array.ndim)
        ]
        return names[-1 - min(int(self.random.exponential(3)), len(names) - 1)] if names else self.pick([])

    def constant(self, array, kind="i8"):
        name = f"c{len(self.constants)}"
        self.constants[name] = self.example[name] = np.asarray(array, kind)
        return name

    def axis(self, name):
        rank = self.example[name].ndim
        return int(self.random.integers(-rank, rank))

    def add(self, op, inputs, outputs=1, **attributes):
        """Adds an operator if ONNX Runtime can apply it."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        made = helper.make_node(op, inputs, names, **attributes)
        given = {name: self.example[name] for name in inputs if name}
        computed = session([made], {name: array.dtype for name, array in given.items()}, names).run(None, given)
        if any(array.size > 2000 or array.dtype not in KINDS for array in computed):
            return None
        self.nodes.append(made)
        self.example.update(zip(names, computed, strict=True))
        return names[0]

    def step(self):
        """Adds one random operator, or a few that belong together."""
        kinds = [each for each in dir(self) if each.startswith("make_")]
        getattr(self, self.pick(kinds))()

    # --- One operator ---

    def make_unary(self):
        self.add(self.pick(UNARY), [self.some()])

    def make_binary(self):
        kind = self.pick("ffi")
        inputs = [self.some(kind), self.some(kind)]
        if self.random.random() < 0.3:
            shape = [self.pick([1, 1, 2, 3, 4]) for _ in range(self.random.integers(0, 4))]
            inputs[self.random.integers(2)] = self.constant(
                self.random.integers(1, 4, shape), "f4" if kind == "f" else "i8"
            )
        self.add(self.pick(BINARY if kind == "f" else ["Add", "Sub", "Mul", "Max"]), inputs)

    def make_where(self):
        compared = self.add(self.pick(["Equal", "Less", "Greater"]), [self.some(), self.some()])
        self.add("Where", [compared, self.some(), self.some()])

    def make_transpose(self):
        name = self.some(self.pick("ffi"))
        self.add("Transpose", [name], perm=self.random.permutation(self.example[name].ndim).tolist())

    def make_swap(self):
        name = self.some()
        order = list(range(self.example[name].ndim))
        order[0], order[1] = order[1], order[0]
        self.add("Transpose", [name], perm=order)

    def make_matmul(self):
        name = self.some()
        width = self.example[name].shape[-1]
        other = self.constant(self.random.integers(-2, 3, (width, self.pick([2, 3, 4]))), "f4")
        self.add("MatMul", [name, self.pick([other, self.some()])])

    def make_gemm(self):
        a, b = self.some(rank=2), self.some(rank=2)
        self.add("Gemm", [a, b], transA=int(self.random.integers(2)), transB=int(self.random.integers(2)))

    def make_softmax(self):
        name = self.some()
        self.add(self.pick(["Softmax", "LogSoftmax", "LpNormalization"]), [name], axis=self.axis(name))

    def make_layer_normalization(self):
        name = self.some()
        shape = self.example[name].shape[self.random.integers(0, self.example[name].ndim) :]
        scale = self.constant(self.random.integers(1, 3, self.pick([shape[-1:], shape])), "f4")
        self.add("LayerNormalization", [name, scale], axis=self.axis(name))

    def make_reduce(self):
        name, op = self.some(), self.pick(REDUCE)
        keep = int(self.random.integers(2))
        if op == "ArgMax":
            self.add(op, [name], axis=self.axis(name), keepdims=keep)
        else:
            axes = self.constant([self.axis(name)])
            self.add(op, [name, axes], keepdims=keep)

    def make_cumsum(self):
        name = self.some()
        self.add("CumSum", [name, self.constant(self.axis(name))])

    def make_concat(self):
        name = self.some()
        self.add("Concat", [name, self.some()], axis=self.axis(name))

    def make_split(self):
        name = self.some()
        self.add("Split", [name], 2, axis=self.axis(name), num_outputs=2)

    def make_slice(self):
        name = self.some(self.pick("ffi"))
        start, end = self.random.integers(-3, 3), self.pick([-1, 1, 2, 3, 2**62, -(2**62)])
        inputs = [self.constant([each]) for each in (start, end, self.axis(name), self.pick([1, 1, 2, -1]))]
        self.add("Slice", [name, *inputs])

    def make_pad(self):
        name = self.some()
        pads = np.zeros(2 * self.example[name].ndim, int)
        pads[self.random.integers(len(pads))] = self.pick([1, 2, -1])
        self.add("Pad", [name, self.constant(pads)], mode=self.pick(["constant", "edge"]))

    def make_squeeze(self):
        name = self.some(self.pick("ffi"))
        self.add("Squeeze", [name, *([self.constant([self.axis(name)])] if self.random.random() < 0.8 else [])])

    def make_unsqueeze(self):
        name = self.some(self.pick("ffi"))
        self.add("Unsqueeze", [name, self.constant([self.random.integers(0, self.example[name].ndim + 1)])])

    def make_flatten(self):
        name = self.some()
        self.add("Flatten", [name], axis=self.axis(name))

    def make_gather(self):
        name = self.some()
        indices = self.pick([self.some("i"), self.constant(self.random.integers(0, 2, self.pick([(), (1,), (2,)])))])
        self.add("Gather", [name, indices], axis=self.axis(name))

    def make_embedding(self):
        table = self.constant(self.random.integers(-3, 3, (9, self.pick([2, 4]))), "f4")
        self.add("Gather", [table, self.add("Mod", [self.some("i"), self.constant(9)])])

    def make_gather_elements(self):
        data, indices = self.some(), self.add("Mod", [self.some("i"), self.constant(2)])
        self.add("GatherElements", [data, indices], axis=self.axis(data))

    def make_top_k(self):
        name = self.some()
        self.add("TopK", [name, self.constant([self.pick([1, 2])])], 2, axis=self.axis(name))

    def make_einsum(self):
        a, b = self.some(), self.some()
        letters = "abcde"
        one = "".join(self.random.permutation(list(letters))[: self.example[a].ndim])
        two = "".join(self.random.permutation(list(letters))[: self.example[b].ndim])
        result = "".join(each for each in dict.fromkeys(one + two) if self.random.random() < 0.7)
        self.add("Einsum", [a, b], equation=f"{one},{two}->{result}")

    def make_convolution(self):
        name = self.some(rank=self.pick([3, 4]))
        depth, *area = self.example[name].shape[1:]
        kernel = [self.pick([1, 2, 3]) for _ in area]
        weights = self.constant(self.random.integers(-2, 3, (self.pick([2, 3]), depth, *kernel)), "f4")
        self.add("Conv", [name, weights], **self.window(len(area)))

    def make_pool(self):
        name = self.some(rank=self.pick([3, 4]))
        count = self.example[name].ndim - 2
        more = {"ceil_mode": int(self.random.integers(2))}
        kernel = [self.pick([1, 2, 3]) for _ in range(count)]
        self.add(self.pick(["MaxPool", "AveragePool"]), [name], kernel_shape=kernel, **more, **self.window(count))

    def window(self, count):
        found = {"strides": [self.pick([1, 2, 3]) for _ in range(count)]}
        pads = {"pads": [self.pick([0, 1]) for _ in range(2 * count)]}
        return found | self.pick([{}, pads, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}])

    def make_transposed_convolution(self):
        name = self.some(rank=self.pick([3, 4]))
        depth, *area = self.example[name].shape[1:]
        kernel = [self.pick([1, 2, 3]) for _ in area]
        weights = self.constant(self.random.integers(-2, 3, (depth, self.pick([1, 2]), *kernel)), "f4")
        self.add("ConvTranspose", [name, weights], **self.window(len(area)))

    def make_resize(self):
        name = self.some(rank=self.pick([3, 4]))
        scales = np.ones(self.example[name].ndim)
        scales[self.random.integers(len(scales))] = self.pick([2, 1.5, 0.5, 1])
        mode = self.pick(["nearest", "linear"])
        self.add("Resize", [name, "", self.constant(scales, "f4")], mode=mode)

    def make_trilu(self):
        self.add("Trilu", [self.some()], upper=int(self.random.integers(2)))

    def make_quantized(self):
        name = self.some()
        scale = self.constant(self.random.integers(1, 3, self.pick([(), (1,), (2,), (3,)])), "f4")
        self.add("DequantizeLinear", [name, scale], axis=self.axis(name))

    # --- Shapes ---

    def size(self):
        """A vector of one number that follows from shapes."""
        name = self.some(self.pick("fffi"))
        at = int(self.random.integers(0, self.example[name].ndim))
        made = self.add("Shape", [name], start=at, end=at + 1)
        choice = self.random.random()
        if choice < 0.15:
            made = self.add(self.pick(["Mul", "Div", "Sub", "Add"]), [made, self.constant([self.pick([1, 2, 3])])])
        elif choice < 0.25:
            real = self.add("Div", [self.add("Cast", [made], to=1), self.constant([self.pick([1, 2, 3])], "f4")])
            made = self.add("Cast", [self.add(self.pick(["Ceil", "Floor", "Identity"]), [real])], to=7)
        elif choice < 0.35:
            made = self.add(self.pick(["Mul", "Div", "Sub", "Max"]), [made, self.size()])
        return made

    def shape(self, wild=0.3):
        parts = [
            self.constant([self.pick([-1, 0, 1, 2, 3, 4])]) if self.random.random() < wild else self.size()
            for _ in range(self.random.integers(1, 5))
        ]
        return self.add("Concat", parts, axis=0)

    def make_reshape(self):
        self.add("Reshape", [self.some(self.pick("ffi")), self.shape()])

    def make_fitting_reshape(self):
        """To a shape of the sizes of the value, moved, joined, or divided."""
        name = self.some(self.pick("ffi"))
        whole = self.add("Shape", [name])
        order = self.random.permutation(self.example[name].ndim)
        parts = [self.add("Gather", [whole, self.constant([each])]) for each in self.pick([order, sorted(order)])]
        if len(parts) > 1 and self.random.random() < 0.6:
            parts = [self.add("Mul", parts[:2]), *parts[2:]]
        if self.random.random() < 0.5:
            parts[self.random.integers(len(parts))] = self.constant([-1])
        if self.random.random() < 0.3:
            parts.insert(self.random.integers(len(parts) + 1), self.constant([1]))
        self.add("Reshape", [name, self.add("Concat", parts, axis=0)], allowzero=int(self.random.integers(2)))

    def make_reshape_to_another(self):
        name = self.some()
        equal = [each for each, array in self.example.items() if array.size == self.example[name].size]
        self.add("Reshape", [name, self.add("Shape", [self.pick(equal)])])

    def make_expand(self):
        name = self.pick([self.some(self.pick("ffi")), self.constant(self.random.integers(1, 3, (1, 1)), "f4")])
        self.add("Expand", [name, self.shape(0.1)])

    def make_filled(self):
        value = numpy_helper.from_array(np.float32([2]))
        self.add("ConstantOfShape", [self.shape(0.3)], value=value)

    def make_tile(self):
        name = self.some()
        repeats = [self.constant([self.pick([1, 1, 1, 2])]) for _ in self.example[name].shape]
        repeats[self.random.integers(len(repeats))] = self.size()
        self.add("Tile", [name, self.add("Concat", repeats, axis=0)])

    def make_part_of_size(self):
        name = self.some()
        self.add("Slice", [name, self.constant([0]), self.size(), self.constant([self.axis(name)])])

    def make_range(self):
        scalar = self.add("Squeeze", [self.size()])
        self.add("Range", [self.constant(self.pick([0, 0, 1])), scalar, self.constant(1)])

    def make_selection_by_place(self):
        name, last = self.some(), self.constant([-1])
        rows = self.add("Squeeze", [self.add("Shape", [name], start=0, end=1)])
        places = self.add("Range", [self.constant(0), rows, self.constant(1)])
        parts = [self.add("Unsqueeze", [each, last]) for each in (places, self.pick([places, self.some("i", 1)]))]
        parts = [parts[i] for i in self.random.permutation(2)]
        self.add("GatherND", [name, self.add("Concat", parts, axis=1)])

    def make_number(self):
        """A number that follows from shapes, among the values."""
        self.add("Cast", [self.size()], to=1)

    # --- Several ---

    def make_fold_and_back(self):
        """Something on another shape, which is undone."""
        name = self.some()
        order = self.random.permutation(self.example[name].ndim)
        turned = self.add("Transpose", [name], perm=order.tolist())
        before = self.add("Shape", [turned])
        folded = self.add("Reshape", [turned, self.shape()])
        done = self.add(self.pick(["Softmax", "Relu"]), [folded])
        self.add("Transpose", [self.add("Reshape", [done, before])], perm=np.argsort(order).tolist())

    def make_branch(self):
        name = self.some()
        condition = self.add("Equal", [self.add("Squeeze", [self.size()]), self.constant(self.pick([1, 2, 3]))])
        graphs = [
            helper.make_graph([helper.make_node(op, [name], [out], **more)], out, [], [unknown(out)])
            for out, op, more in (
                (f"then{len(self.nodes)}", "Relu", {}),
                (f"else{len(self.nodes)}", *self.pick([("Neg", {}), ("Softmax", {"axis": self.axis(name)})])),
            )
        ]
        made = helper.make_node(
            "If", [condition], [f"v{len(self.nodes)}_0"], then_branch=graphs[0], else_branch=graphs[1]
        )
        self.nodes.append(made)
        self.example[made.output[0]] = self.example[name]


def unknown(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def feeds(random, rows, sizes):
    """Random inputs: rows of different scales, sometimes with numbers that are none."""
    made = {}
    for name, (kind, dims) in INPUTS.items():
        shape = [rows if dim == "n" else sizes.get(dim, dim) for dim in dims]
        if kind == "i8":
            made[name] = random.integers(0, 4, shape)
            continue
        scale = 10.0 ** random.integers(-2, 3, [rows] + [1] * (len(shape) - 1))
        array = (random.standard_normal(shape) * scale).astype(np.float32)
        if random.random() < 0.2 and array.size:
            array.flat[random.integers(array.size)] = random.choice([np.nan, np.inf, -np.inf])
        made[name] = array
    return made


def model(nodes, inputs, outputs, constants=()):
    typed = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    wanted = [helper.make_empty_tensor_value_info(name) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", typed, wanted, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def session(nodes, kinds, outputs):
    """A session for a node; OSError or a like error of ONNX Runtime if it cannot be made."""
    data = model(nodes, {name: (KINDS[kind], None) for name, kind in kinds.items()}, outputs)
    return onnxruntime.InferenceSession(data, OPTIONS, providers=["CPUExecutionProvider"])


class Watched(_Prover):
    """Keeps what it knows of each value of the graph."""

    known: dict

    def _run(self, nodes, scope, opsets, given, depth):
        super()._run(nodes, scope, opsets, given, depth)
        if depth == 0:
            self.known = scope


class Sizes(dict):
    """What symbols stand for in one run, learnt from the values that were computed."""

    def value(self, dim):
        """A dimension's size; None if it has a symbol that was not met yet."""
        sizes = [self.get(symbol) for symbol in dim.symbols]
        return None if None in sizes else dim.factor * math.prod(sizes)

    def check(self, dim, size, of):
        met = self.value(dim)
        if met is None and dim.factor == 1 and len(dim.symbols) == 1:
            self[dim.symbols[0]] = size
        else:
            assert met in (None, size), f"{of} is {size}, not {dim}"


def agree(together, alone):
    """Whether numbers are equal, but for rounding."""
    if together.shape != alone.shape or together.dtype.kind != "f":
        return np.array_equal(together, alone)
    finite = np.isfinite(alone)
    if not np.array_equal(together[~finite], alone[~finite], equal_nan=True):
        return False
    return np.allclose(together[finite], alone[finite], rtol=1e-3, atol=1e-3 * np.abs(alone[finite]).max(initial=1e-3))


def row(array, value, i, rows, sizes):
    """The elements that belong to a row; None if it is not known where they are."""
    before, after = sizes.value(value.before), sizes.value(value.after)
    if before is None or after is None:
        return None
    shape = array.shape
    assert shape[value.axis] == before * rows * after, f"an axis of {shape} is not {before} * {rows} * {after}"
    return array.reshape(*shape[: value.axis], before, rows, after, *shape[value.axis + 1 :]).take(i, value.axis + 1)


def compare(known, alone, together, rows, proven):
    """Compares what is known of each value with what was computed. Gives how many values with rows were compared."""
    sizes, single = Sizes({BATCH_SYMBOL: rows}), Sizes({BATCH_SYMBOL: 1})
    compared = 0
    for name, value in known.items():
        if value.mixed is not None or name not in together:
            continue
        array, each = together[name], [run[name] for run in alone]
        if value.dims is not None:
            assert array.ndim == len(value.dims), name
            for dim, size, one in zip(value.dims, array.shape, each[0].shape, strict=True):
                sizes.check(dim, size, name)
                single.check(dim, one, name)
        if value.content is not None:
            assert value.content.shape == array.shape, name
            for number, computed in zip(value.content.flat, array.flat, strict=True):
                if isinstance(number, Dim):
                    sizes.check(number, computed, name)
                else:
                    assert number == computed, name
        if value.axis is None:
            assert value.counts_rows or all(agree(array, one) for one in each), f"{name} depends on the rows"
            continue
        for i, one in enumerate(each):
            mine, own = row(array, value, i, rows, sizes), row(one, value, 0, 1, single)
            if mine is None or own is None:
                break
            if value.place is None:
                assert agree(mine, own), f"row {i} of {name} is {mine}, alone {own}"
            elif value.place is Place.ALL:
                assert (mine == i).all(), name
        else:
            compared += 1
        if name in proven:
            axis, rounds = proven[name]
            assert array.shape[axis] == rows and all(one.shape[axis] == 1 for one in each), name
            if rounds is None:
                joined = np.concatenate(each, axis)
                assert np.array_equal(array, joined, equal_nan=array.dtype.kind == "f"), f"bits of {name}"
    return compared


def check(seed, steps=14):
    """Generates a graph and compares. Gives how many values with rows were compared, and how many outputs proven."""
    graph = Generator(seed)
    for _ in range(steps):
        try:
            graph.step()
        except (RuntimeError, LookupError, ValueError, TypeError, *ORT_ERRORS):
            continue  # ONNX Runtime cannot apply it
    inputs = {name: (KINDS[np.dtype(kind)], list(dims)) for name, (kind, dims) in INPUTS.items()}
    names = [name for made in graph.nodes for name in made.output]
    data = model(graph.nodes, inputs, names, graph.constants)
    watched = Watched(Model(data), {}, Visits(), ())
    try:
        watched.proof()
    except UndecidedError:  # what is known then holds for one choice of sizes
        return 0, 0
    proven = {}
    for name in names:
        proof = prove(model(graph.nodes, inputs, [name], graph.constants))
        if proof.couples is None:
            proven[name] = (proof.output_axes[name], proof.rounds)
    try:
        ready = onnxruntime.InferenceSession(data, OPTIONS, providers=["CPUExecutionProvider"])
    except ORT_ERRORS:
        return 0, 0
    compared = 0
    for rows, sizes in ((2, {"s": 3, "t": 2}), (3, {"s": 1, "t": 4}), (5, {"s": 2, "t": 1}), (2, {"s": 4, "t": 3})):
        given = feeds(graph.random, rows, sizes)
        try:
            alone = [
                dict(zip(names, ready.run(None, {k: v[i : i + 1] for k, v in given.items()}), strict=True))
                for i in range(rows)
            ]
            together = dict(zip(names, ready.run(None, given), strict=True))
        except ORT_ERRORS:
            continue  # a constant of another size than this run's
        together |= graph.constants | given
        for i, run in enumerate(alone):
            run |= graph.constants | {k: v[i : i + 1] for k, v in given.items()}
        compared += compare(watched.known, alone, together, rows, proven)
    return compared, len(proven)


ORT_ERRORS = tuple(
    each for each in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    if isinstance(each, type) and issubclass(each, Exception)
)  # fmt: skip


@pytest.mark.parametrize("chunk", range(5))
def test_generated_graphs_answer_as_was_proven(chunk):
    found = [check(1000 * chunk + seed) for seed in range(40)]
    assert sum(compared for compared, _ in found) > 400
    assert sum(proven for _, proven in found) > 80
