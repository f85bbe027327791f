# A model's inputs and outputs, and the check of a request against them.
# Lives here: names, datatypes, shapes, the batch dimension. Does not: values, the queue, the runtime. Immutable;
# requests are checked on the loop's thread.

import re

cimport cython
from libc.string cimport memcpy

from fastinfer.tensor.datatype cimport BOOL, BYTES, name_of, datatype_of
from fastinfer.tensor.expected cimport Expectation, is_same_scalar
from fastinfer.tensor.message cimport InferRequest, InferResponse, RequestedOutput
from fastinfer.tensor.tensor cimport MAX_RANK, Memory, Tensor, TensorSpec, are_bools, put_bools
from fastinfer.tensor.top_k cimport Classification, check_rankable

from fastinfer.base.errors import ApiError
from fastinfer.base.near import Near, as_question


# What exporters call the first dimension when it counts items: by the guides (`batch`, `batch_size`, `N`, `B`, `bs`),
# and if a framework had no name for it (`None`, `unk__3`: Keras's batch dimension is None).
cdef object _BATCH_NAME = re.compile(r".*batch.*|n|b|bs|nb|none|unk__\d+", re.IGNORECASE)


def names_a_batch(str symbol not None):
    return _BATCH_NAME.fullmatch(symbol) is not None


cdef enum:
    EMPTY_BATCHES = 16      # of rows without elements, in one request
    SHOWN_OPTIONAL = 4      # optional inputs that the signature in words names


@cython.final
cdef class Signature:
    def __init__(self, inputs, outputs, *, bint batched=False, int64_t max_batch_size=0,
                 bint max_batch_size_configured=False, bint positional=False, bint accepts_anything=False,
                 outputs_batched=None, item_form=None, bint takes_base64=False, str never_empty not None="",
                 labels=None, score_matrices=(), optional_inputs=(), int64_t max_request_rows=0):
        self.inputs = tuple(inputs)
        self.optional_inputs = tuple(optional_inputs)
        self.outputs = tuple(outputs)
        self.batched = batched
        self.max_batch_size = max_batch_size
        self.max_batch_size_configured = max_batch_size_configured
        self.max_request_rows = max_request_rows or max_batch_size
        self.positional = positional
        self.accepts_anything = accepts_anything
        self.outputs_batched = batched if outputs_batched is None else outputs_batched
        self.takes_base64 = takes_base64
        self.never_empty = never_empty
        self.labels = dict(labels or {})
        self.score_matrices = frozenset(score_matrices)
        self._input_index = {spec.name: i for i, spec in enumerate(self.inputs + self.optional_inputs)}
        self._output_index = {spec.name: i for i, spec in enumerate(self.outputs)}
        cdef TensorSpec spec
        self._static_rows = True
        for spec in self.inputs:
            if spec.open_rank or any([dim < 0 for dim in (spec.row_shape if batched else spec.shape)]):
                self._static_rows = False
            if batched and spec.batch_axis < 0:     # requests with other values do not share a batch
                self._static_rows = False
        self._rows_first = all([spec.batch_axis == 0 for spec in self.inputs + self.outputs])
        names = {_batch_symbol(spec) for spec in self.inputs if spec.batch_axis >= 0}
        self._one_batch = max_batch_size_configured or (len(names) == 1 and "" not in names)
        self._equal_dims = _equal_dims(self.inputs) if batched and not max_batch_size_configured else ()
        if item_form is None:
            item_form = max_batch_size_configured or all(
                [names_a_batch(_batch_symbol(spec)) for spec in self.inputs if spec.batch_axis >= 0])
        self.item_form = batched and item_form
        if not accepts_anything:
            self.expectation = Expectation.make(self.inputs, self.optional_inputs, not positional, batched,
                                                self.item_form)

    def __str__(self):
        if self.accepts_anything:
            return "any inputs -> the same"
        batches = f"batches of up to {self.max_batch_size}" if self.batched else "not batched"
        return f"{_specs(self.inputs)}{_optional(self.optional_inputs)} -> {_specs(self.outputs)}, {batches}"

    cpdef int check(self, InferRequest request, str model) except -1:
        self._check(request, model)
        if request.undecoded:
            raise ApiError(400, f"the inputs do not fit model '{model}'")
        return 0

    cdef int _check(self, InferRequest request, str model) except -1:
        cdef TensorSpec spec
        cdef Tensor tensor
        cdef Py_ssize_t i
        if not self.accepts_anything:
            self._order_inputs(request, model)
            for i in range(len(self.inputs)):
                spec = <TensorSpec>self.inputs[i]
                tensor = <Tensor>request.inputs[i]
                if tensor.datatype_id != spec.datatype_id:
                    raise _unexpected_datatype(tensor, spec, model)
        self._check_outputs(request, model)
        if self.batched:
            self._check_batched(request, model)
            return self._check_elements(request, model) if self.never_empty else 0
        request.rows = 1
        if not self.accepts_anything:
            for i in range(len(self.inputs)):
                self._fit(request, i, -1, model)
        return self._check_elements(request, model) if self.never_empty else 0

    cdef int _fit(self, InferRequest request, Py_ssize_t i, int axis, str model) except -1:
        # Checks the shape of an input, except for the dimension `axis`. Shapes [] and [1] are the same single element.
        cdef TensorSpec spec = <TensorSpec>self.inputs[i]
        cdef Tensor tensor = <Tensor>request.inputs[i]
        cdef int64_t one = 1
        if _fits(tensor, spec, axis):
            return 0
        if spec.open_rank or not is_same_scalar(spec.rank, spec.dims, tensor.rank, tensor.dims):
            raise _unexpected_shape(tensor, spec, model)
        request.inputs[i] = Tensor.wrap(tensor.name, tensor.datatype_id, spec.rank, &one, tensor.data, tensor.nbytes,
                                        tensor.owner)
        return 0

    cdef int _order_inputs(self, InferRequest request, str model) except -1:
        cdef list given = request.inputs
        cdef Py_ssize_t wanted = len(self.inputs)
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef bint in_order = len(given) == wanted
        if request.raw:
            request.inputs = [self._raw_input(<Tensor>given[0], model)]
            return 0
        if self.positional:
            if not in_order:
                raise ApiError(400, f"expected {wanted} inputs but got {len(given)} inputs for model '{model}'")
            return 0
        for i in range(len(given)):
            if not in_order:
                break
            in_order = (<Tensor>given[i]).name == (<TensorSpec>self.inputs[i]).name
        if in_order:            # the common case
            return 0
        cdef list ordered = [None] * len(self._input_index)
        for tensor in given:
            index = self._input_index.get(tensor.name)
            if index is None:
                raise ApiError(400, f"unexpected inference input '{tensor.name}' for model '{model}'"
                                    f"{self._meant_input(tensor.name)}")
            if ordered[index] is not None:
                raise ApiError(400, f"input '{tensor.name}' is given twice")
            ordered[index] = tensor
        missing = [spec.name for i, spec in enumerate(self.inputs) if ordered[i] is None]
        if missing:
            raise self._missing(given, missing, model)
        request.inputs = ordered[:wanted]
        if len(given) > wanted:
            self._check_optional(ordered, model)
            request.inputs += [tensor for tensor in ordered[wanted:] if tensor is not None]
            request.whole = True    # a default has no rows, and the proof that rows are independent assumes it
        return 0

    cdef int _check_optional(self, list ordered, str model) except -1:
        cdef TensorSpec spec
        cdef Tensor tensor
        for spec, tensor in zip(self.optional_inputs, ordered[len(self.inputs):], strict=True):
            if tensor is None:
                continue
            if tensor.datatype_id != spec.datatype_id:
                raise _unexpected_datatype(tensor, spec, model)
            if not _fits(tensor, spec, -1):
                raise _unexpected_shape(tensor, spec, model)
        return 0

    cdef object _missing(self, list given, list missing, str model):
        cdef str expected = f"expected {len(self.inputs)} inputs"
        if self.optional_inputs:
            expected = f"expected number of inputs between {len(self.inputs)} and {len(self._input_index)}"
        return ApiError(400, f"{expected} but got {len(given)} inputs for model '{model}'. Got input(s) "
                             f"[{_quoted([(<Tensor>tensor).name for tensor in given])}], but missing required "
                             f"input(s) [{_quoted(missing)}]. Please provide all required input(s).")
    cdef str _meant_input(self, str name):
        if self._near_inputs is None:
            self._near_inputs = Near(self._input_index)
        return as_question(self._near_inputs.to(name))

    cdef str _meant_output(self, str name):
        if self._near_outputs is None:
            self._near_outputs = Near(self._output_index)
        return as_question(self._near_outputs.to(name))

    cdef Tensor _raw_input(self, Tensor body, str model):
        # The whole body is the only input's bytes, one row of it; at most one dimension may be open.
        if len(self.inputs) != 1:
            raise ApiError(400, f"a raw request needs a model with exactly 1 input, but model '{model}' has "
                                f"{len(self.inputs)}")
        cdef TensorSpec spec = <TensorSpec>self.inputs[0]
        cdef int64_t[MAX_RANK] dims
        cdef int64_t size = datatype_of(spec.datatype_id).itemsize
        cdef int open_dim = -1
        cdef int i
        if spec.datatype_id == BYTES:
            raise ApiError(400, f"a raw request cannot carry BYTES, the datatype of input '{spec.name}' of model "
                                f"'{model}'")
        for i in range(spec.rank):
            dims[i] = 1 if (i == spec.batch_axis and self.batched and not spec.open_rank) else spec.dims[i]
            if dims[i] < 0:
                if open_dim >= 0 or spec.open_rank:
                    raise ApiError(400, f"the shape of input '{spec.name}' of model '{model}' cannot be derived "
                                        "from a raw request")
                open_dim = i
            else:
                size *= dims[i]
        if open_dim >= 0 and size > 0 and body.nbytes % size == 0:
            dims[open_dim] = body.nbytes // size
            size = body.nbytes
        if size != body.nbytes:
            raise ApiError(400, f"input byte size mismatch for input '{spec.name}' for model '{model}'. "
                                f"Expected {size}, got {body.nbytes}")
        if spec.datatype_id == BOOL and not are_bools(body.data, body.nbytes):
            body = _as_bools(body)
        return Tensor.wrap(spec.name, spec.datatype_id, spec.rank, dims, body.data, body.nbytes, body.owner)

    cdef int _check_outputs(self, InferRequest request, str model) except -1:
        cdef RequestedOutput requested
        cdef Py_ssize_t i
        cdef dict known = self._output_index
        if self.accepts_anything and request.outputs:
            known = {(<Tensor>tensor).name: i for i, tensor in enumerate(request.inputs)}
        for requested in request.outputs:
            index = known.get(requested.name)
            if index is None:
                raise ApiError(400, f"unexpected inference output '{requested.name}' for model '{model}'"
                                    f"{self._meant_output(requested.name)}")
            if requested.classification > 0:
                i = index
                check_rankable(requested.name, (<Tensor>request.inputs[i]).datatype_id if self.accepts_anything
                               else (<TensorSpec>self.outputs[i]).datatype_id)
        return 0

    cdef int _check_batched(self, InferRequest request, str model) except -1:
        cdef Py_ssize_t count = len(self.inputs)
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef bint empty = False
        cdef bint apart = False     # rows of inputs do not belong together
        request.implicit_batch = self.item_form and self._is_item(request)
        cdef int axis = 0
        if request.implicit_batch:
            for i in range(count):
                axis = (<TensorSpec>self.inputs[i]).batch_axis
                request.inputs[i] = _with_batch(<Tensor>request.inputs[i], axis)
        request.rows = -1
        for i in range(count):
            axis = (<TensorSpec>self.inputs[i]).batch_axis
            self._fit(request, i, axis, model)
            tensor = <Tensor>request.inputs[i]
            empty = empty or tensor.nbytes == 0
            if axis < 0:
                continue
            if request.rows < 0:
                request.rows = tensor.dims[axis]
            elif tensor.dims[axis] != request.rows:
                if self._one_batch:
                    raise ApiError(400, f"input '{tensor.name}' batch size does not match other inputs for '{model}'")
                apart = True
        if self._equal_dims and not _are_equal(self._equal_dims, request.inputs):
            apart = True        # the proof that rows are independent assumes one size
        if empty and request.rows > 0 and not self.max_batch_size_configured:
            # The proof that rows are independent does not cover dimensions of 0. And such rows cost a client
            # nothing, so the rows of a few batches are the limit.
            if request.rows > EMPTY_BATCHES * self.max_batch_size:
                most = EMPTY_BATCHES * self.max_batch_size
                raise ApiError(400, f"inference request batch-size must be <= {most} for '{model}'")
            apart = True
        if request.rows > self.max_request_rows and self.max_batch_size_configured and request.step is None:
            raise ApiError(400, f"inference request batch-size must be <= {self.max_request_rows} for '{model}'")
        if request.whole and request.rows == 0 and not apart:
            request.whole = False           # it is not run, so nothing needs the optional inputs
            del request.inputs[count:]
        if apart or request.whole:      # we chose to batch the model: its graph may take the inputs as they are
            request.whole = True
            request.rows = 1
            request.shape_key = object()    # equal to no other
            return 0
        if not self._static_rows:
            request.shape_key = (_row_shapes(request.inputs) if self._rows_first
                                 else _row_shapes_along(self.inputs, request.inputs))
        return 0

    cdef int _check_elements(self, InferRequest request, str model) except -1:
        cdef Tensor tensor
        if request.rows == 0:       # it is not run
            return 0
        for tensor in request.inputs:
            if tensor.count == 0:
                raise ApiError(400, f"input '{tensor.name}' has no elements, and the operators {self.never_empty} of "
                                    f"model '{model}' cannot run on that")
        return 0

    cdef bint _is_item(self, InferRequest request) noexcept:
        # Whether all inputs lack the batch dimension; False for an open rank.
        cdef TensorSpec spec
        cdef Py_ssize_t i
        for i in range(len(self.inputs)):
            spec = <TensorSpec>self.inputs[i]
            if spec.open_rank or (<Tensor>request.inputs[i]).rank != spec.rank - (spec.batch_axis >= 0):
                return False
        return True

    cpdef InferResponse respond(self, InferRequest request, list outputs, str model, str version):
        cdef list chosen = outputs
        cdef RequestedOutput requested
        cdef tuple binary = ()
        cdef InferResponse response
        if request.outputs:
            index = self._output_index
            if self.accepts_anything:
                index = {(<Tensor>t).name: i for i, t in enumerate(outputs)}
            chosen = [outputs[index[requested.name]] for requested in request.outputs]
            binary = tuple([requested.binary == 1 or (requested.binary == -1 and request.binary_output)
                            for requested in request.outputs])
        elif request.binary_output or request.raw:
            binary = (True,) * len(outputs)
        if request.implicit_batch:
            chosen = [_without_batch(<Tensor>t, self._axis_of(<Tensor>t), request.whole) for t in chosen]
        response = InferResponse.make(model, version, chosen, request.id, binary)
        if request.outputs:
            response.classes = self._classes(request, chosen)
        return response

    cdef int _axis_of(self, Tensor output) except -1:
        return 0 if self._rows_first else (<TensorSpec>self.outputs[self._output_index[output.name]]).batch_axis

    cdef tuple _classes(self, InferRequest request, list chosen):
        cdef RequestedOutput requested
        cdef Tensor tensor
        cdef bint batched
        cdef list classes
        for requested in request.outputs:
            if requested.classification > 0:
                break
        else:
            return None         # the common case
        classes = [None] * len(chosen)
        for i, requested in enumerate(request.outputs):
            if requested.classification > 0:
                tensor = chosen[i]
                batched = (self.outputs_batched and self._axis_of(tensor) == 0 and not request.implicit_batch
                           and tensor.rank == (<TensorSpec>self.outputs[self._output_index[requested.name]]).rank)
                batched = batched or (tensor.rank == 2 and requested.name in self.score_matrices)
                classes[i] = Classification(tensor, requested.classification, batched=batched,
                                            labels=self.labels.get(requested.name))
        return tuple(classes)


cdef Tensor _as_bools(Tensor body):
    cdef Memory memory
    try:
        memory = Memory.allocate(body.nbytes)
    except MemoryError:
        raise ApiError(503, "out of memory for the request's tensors", retry_after_s=1) from None
    put_bools(memory.data, body.data, body.nbytes)
    return Tensor.wrap(body.name, BOOL, body.rank, body.dims, memory.data, body.nbytes, memory)


cdef bint _fits(Tensor tensor, TensorSpec spec, int axis) noexcept:
    # `axis`: the dimension that may have any size; -1: none.
    cdef int i
    if spec.open_rank:
        return tensor.rank > axis
    if tensor.rank != spec.rank:
        return False
    for i in range(tensor.rank):
        if spec.dims[i] >= 0 and spec.dims[i] != tensor.dims[i] and i != axis:
            return False
    return True


cdef object _unexpected_datatype(Tensor tensor, TensorSpec spec, str model):
    return ApiError(400, f"inference input '{tensor.name}' data-type is '{name_of(tensor.datatype_id)}', but model "
                         f"'{model}' expects '{name_of(spec.datatype_id)}'")


cdef object _unexpected_shape(Tensor tensor, TensorSpec spec, str model):
    return ApiError(400, f"unexpected shape for input '{tensor.name}' for model '{model}'. "
                         f"Expected {_shape_text(spec)}, got {_text(tensor.shape)}")


cdef str _text(shape):
    return "[" + ",".join([str(dim) for dim in shape]) + "]"


cdef str _shape_text(TensorSpec spec):
    return "[...]" if spec.open_rank else _text(spec.shape)


cdef str _specs(tuple specs):
    cdef TensorSpec spec
    return ", ".join([f"{spec.name} {name_of(spec.datatype_id)}{_shape_text(spec)}" for spec in specs])


cdef str _optional(tuple specs):
    if len(specs) > SHOWN_OPTIONAL:     # an exporter's list of all weights
        return f" ({len(specs)} more are optional)"
    return f" (optional: {_specs(specs)})" if specs else ""


cdef str _quoted(list names):
    return ",".join([f"'{name}'" for name in names])


# Pairs of dimensions, after the batch, of one name in the model: each with the first of that name.
cdef tuple _equal_dims(tuple inputs):
    cdef dict first = {}
    cdef list pairs = []
    cdef TensorSpec spec
    for i, spec in enumerate(inputs):
        for axis, symbol in enumerate(spec.symbols):
            if axis != spec.batch_axis and symbol:
                known = first.setdefault(symbol, (i, axis))
                if known != (i, axis):
                    pairs.append((*known, i, axis))
    return tuple(pairs)


cdef bint _are_equal(tuple pairs, list inputs) except -1:
    cdef Py_ssize_t i, axis, j, other
    for i, axis, j, other in pairs:
        if (<Tensor>inputs[i]).dims[axis] != (<Tensor>inputs[j]).dims[other]:
            return False
    return True


cdef bytes _row_shapes(list inputs):
    # The dimensions after the batch of all inputs, each set with its number: a rank may be open.
    cdef Tensor tensor
    key = b""
    for tensor in inputs:
        key += b"%d:" % tensor.rank + (<char*>(tensor.dims + 1))[:(tensor.rank - 1) * sizeof(int64_t)]
    return key


cdef bytes _row_shapes_along(tuple specs, list inputs):
    # As _row_shapes; of an input without rows also the value, which is small.
    cdef Tensor tensor
    cdef int axis
    key = b""
    for i, tensor in enumerate(inputs):
        axis = (<TensorSpec>specs[i]).batch_axis
        key += b"%d:" % tensor.rank
        if axis < 0:
            key += b"%d:" % tensor.nbytes + (<char*>tensor.dims)[:tensor.rank * sizeof(int64_t)]
            key += tensor.data[:tensor.nbytes]
            continue
        key += (<char*>tensor.dims)[:axis * sizeof(int64_t)]
        key += (<char*>(tensor.dims + axis + 1))[:(tensor.rank - axis - 1) * sizeof(int64_t)]
    return key


cdef str _batch_symbol(TensorSpec spec):
    return spec.symbols[spec.batch_axis] if spec.rank > spec.batch_axis and not spec.open_rank else ""


cdef Tensor _with_batch(Tensor tensor, int axis):
    cdef int64_t[MAX_RANK + 1] dims
    if axis < 0:
        return tensor
    memcpy(dims, tensor.dims, axis * sizeof(int64_t))
    dims[axis] = 1
    memcpy(dims + axis + 1, tensor.dims + axis, (tensor.rank - axis) * sizeof(int64_t))
    return Tensor.wrap(tensor.name, tensor.datatype_id, tensor.rank + 1, dims, tensor.data, tensor.nbytes,
                       tensor.owner)


cdef Tensor _without_batch(Tensor tensor, int axis, bint whole):
    cdef int64_t[MAX_RANK] dims
    if whole and (tensor.rank <= axis or tensor.dims[axis] != 1):
        return tensor       # an optional input has given it another shape
    memcpy(dims, tensor.dims, axis * sizeof(int64_t))
    memcpy(dims + axis, tensor.dims + axis + 1, (tensor.rank - axis - 1) * sizeof(int64_t))
    return Tensor.wrap(tensor.name, tensor.datatype_id, tensor.rank - 1, dims, tensor.data, tensor.nbytes,
                       tensor.owner)
