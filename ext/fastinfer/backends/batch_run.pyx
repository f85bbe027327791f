# Runs a session once over the rows of one or more requests, as a Job: gather the inputs, run, receive the outputs.
# Lives here: the run and its memory. Does not: choosing the thread, retries (runner).
#
# Made and split on the loop's thread. Runs on any thread without the GIL, and touches only its state, whose pointers
# lie in memory of this object or in the inputs of its requests, which it keeps alive.

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from fastinfer.backends.onnx.ort_run cimport (
    FAIL, INVALID_ARGUMENT, create_run_options, discard, error_of, execute, fail, make_values, own, receive,
    release_run_options, release_values, terminate,
)
from fastinfer.native.job cimport monotonic_ns
from fastinfer.shared.crash_record cimport run_begins, run_ends
from fastinfer.tensor.datatype cimport BYTES, UINT8
from fastinfer.tensor.message cimport InferRequest, RequestedOutput
from fastinfer.tensor.rows cimport alike_but, gather, gather_along, gathered_size, scatter, scatter_along
from fastinfer.tensor.tensor cimport MAX_RANK, Tensor, TensorSpec, allocate_block, element_count, free_block

cdef extern from *:
    int load_flag "__atomic_load_n" (int* flag, int order) noexcept nogil
    void store_flag "__atomic_store_n" (int* flag, int value, int order) noexcept nogil
    enum: SEQUENTIAL "__ATOMIC_SEQ_CST"

cdef enum:
    SLAB_ALIGNMENT = 64


@cython.final
cdef class BatchRun(Job):
    def __init__(self, Session session not None, list requests not None, bint batched):
        if self.run_state.handle != NULL:
            raise RuntimeError("a run is created once")
        if len(requests) == 0 or (len(requests) > 1 and not batched):
            raise ValueError("one request, or several if the model is batched")
        self._open(session, requests, batched)
        self.make_terminable()

    @staticmethod
    cdef BatchRun make(Session session, list requests, bint batched):
        cdef BatchRun made = BatchRun.__new__(BatchRun)
        made._open(session, requests, batched)
        return made

    cdef int make_terminable(self) except -1:
        self.run_state.options = create_run_options(self.run_state.handle)
        return 0

    cdef int _open(self, Session session, list requests, bint batched) except -1:
        cdef BatchState* state = &self.run_state
        cdef InferRequest request
        cdef Py_ssize_t i
        self.session = session
        state.handle = &session.handle
        state.requests = len(requests)
        state.batched = batched
        if state.requests == 1:
            self._extend((<InferRequest?>requests[0]).inputs)
        if batched and session.axes is not None:
            self.axes = session.axes
            state.axes = session.axes.axes
        self._lay_out()
        if state.handle == &state.extended:
            session.name_inputs((<InferRequest>requests[0]).inputs, state.extended.input_names)
        self.inputs = []
        for i in range(state.requests):
            request = <InferRequest?>requests[i]
            self.inputs.append(request.inputs)
            self._add_inputs(i, request.inputs, request.rows)
        if session.handle.may_lack_outputs:
            self._note_unwanted(requests)
        self.rows = state.total_rows
        self.task.work = _work
        self.task.state = state
        return 0

    cdef int _note_unwanted(self, list requests) except -1:
        cdef InferRequest request
        cdef RequestedOutput requested
        cdef set wanted = set()
        for request in requests:
            if not request.outputs:     # it asks for all
                return 0
            wanted.update([requested.name for requested in request.outputs])
        self.unwanted = bytes([(<TensorSpec>spec).name not in wanted for spec in self.session.outputs])
        self.run_state.unwanted = self.unwanted
        return 0

    cdef int _extend(self, list tensors) except -1:
        cdef BatchState* state = &self.run_state
        if len(tensors) > state.handle.input_count:
            state.extended = state.handle[0]
            state.extended.input_count = len(tensors)
            state.handle = &state.extended
        return 0

    cdef int _lay_out(self) except -1:
        cdef BatchState* state = &self.run_state
        cdef Py_ssize_t inputs = state.handle.input_count
        cdef Py_ssize_t outputs = state.handle.output_count
        cdef Py_ssize_t requests = state.requests
        cdef Py_ssize_t feeds_size = inputs * <Py_ssize_t>sizeof(Feed)
        cdef Py_ssize_t outputs_size = outputs * <Py_ssize_t>sizeof(Output)
        cdef Py_ssize_t values_size = (inputs + outputs) * <Py_ssize_t>sizeof(OrtValue*)
        cdef Py_ssize_t dims_size = inputs * MAX_RANK * <Py_ssize_t>sizeof(int64_t)
        cdef Py_ssize_t rows_size = requests * <Py_ssize_t>sizeof(int64_t)
        cdef Py_ssize_t slices_size = inputs * requests * <Py_ssize_t>sizeof(RowSlice)
        cdef Py_ssize_t bounds_size = outputs * (requests + 1) * <Py_ssize_t>sizeof(Py_ssize_t)
        cdef Py_ssize_t names_size = inputs * <Py_ssize_t>sizeof(char*) if state.handle == &state.extended else 0
        cdef char* at = <char*>calloc(1, feeds_size + outputs_size + values_size + dims_size + rows_size + slices_size
                                      + bounds_size + names_size + 1)
        if at == NULL:
            raise MemoryError()
        self.arrays = at
        state.feeds = <Feed*>at
        at += feeds_size
        state.outputs = <Output*>at
        at += outputs_size
        state.values = <OrtValue**>at
        at += values_size
        state.dims = <int64_t*>at
        at += dims_size
        state.rows = <const int64_t*>at
        at += rows_size
        state.slices = <const RowSlice*>at
        at += slices_size
        state.bounds = <Py_ssize_t*>at
        at += bounds_size
        if names_size > 0:
            state.extended.input_names = <const char**>at
        return 0

    cdef int _add_inputs(self, Py_ssize_t index, list tensors, int64_t rows) except -1:
        cdef BatchState* state = &self.run_state
        cdef Tensor tensor, first
        cdef int64_t* dims
        cdef Py_ssize_t i
        if len(tensors) != state.handle.input_count:
            raise ValueError(f"{len(tensors)} inputs for a model of {state.handle.input_count}")
        for i in range(state.handle.input_count):
            tensor = <Tensor?>tensors[i]
            (<RowSlice*>state.slices)[i * state.requests + index] = RowSlice(tensor.data, tensor.nbytes)
            self.input_bytes += tensor.nbytes
            if state.axes != NULL:
                self._check_input(tensor, i, rows)
            elif state.batched and (tensor.rank == 0 or tensor.dims[0] != rows):
                raise ValueError(f"{tensor!r} in a request of {rows} rows")
            if index == 0:
                # The feed of a single request; _gather changes it for several.
                dims = state.dims + i * MAX_RANK
                memcpy(dims, tensor.dims, tensor.rank * sizeof(int64_t))
                state.feeds[i] = Feed(tensor.datatype_id, tensor.rank, dims, tensor.data, tensor.nbytes)
                continue
            if state.axes != NULL:
                continue
            first = <Tensor>(<list>self.inputs[0])[i]
            if (tensor.datatype_id != first.datatype_id or tensor.rank != first.rank
                    or memcmp(tensor.dims + 1, first.dims + 1, (first.rank - 1) * sizeof(int64_t)) != 0):
                raise ValueError(f"{tensor!r} does not share a batch with {first!r}")
        (<int64_t*>state.rows)[index] = rows
        state.total_rows += rows
        return 0

    cdef int _check_input(self, Tensor tensor, Py_ssize_t i, int64_t rows) except -1:
        # For a model whose rows are not along the first dimension of everything.
        cdef int axis = self.run_state.axes[i]
        cdef Tensor first = <Tensor>(<list>self.inputs[0])[i]
        if axis >= 0 and (tensor.rank <= axis or tensor.dims[axis] != rows):
            raise ValueError(f"{tensor!r} in a request of {rows} rows along dimension {axis}")
        if (tensor.datatype_id != first.datatype_id or not alike_but(tensor, first, axis)
                or (axis < 0 and memcmp(tensor.data, first.data, first.nbytes) != 0)):
            raise ValueError(f"{tensor!r} does not share a batch with {first!r}")
        return 0

    def __dealloc__(self):
        cdef BatchState* state = &self.run_state
        cdef Py_ssize_t i
        if self.arrays != NULL:
            for i in range(state.handle.output_count):
                discard(&state.outputs[i])
        if state.options != NULL:
            release_run_options(state.options)
        free(self.arrays)

    def terminate(self):
        # The flag ends a run that has not started, the run options one that has; both outlive the run.
        if self.run_state.options != NULL:
            store_flag(&self.run_state.terminated, 1, SEQUENTIAL)
            terminate(self.run_state.options)

    @property
    def error(self):
        return error_of(&self.run_state.failure) if self.run_state.failure.code != 0 else None

    @property
    def compute_input_ns(self):
        return self.run_state.input_ns

    @property
    def compute_infer_ns(self):
        return self.run_state.infer_ns

    @property
    def compute_output_ns(self):
        return self.run_state.output_ns

    cpdef list split(self):
        cdef BatchState* state = &self.run_state
        cdef Output* output
        cdef const Py_ssize_t* bounds
        cdef char* data
        cdef Py_ssize_t i, k
        cdef str name
        cdef object owner
        cdef list parts = [[] for _ in range(state.requests)]
        if state.failure.code != 0:
            raise self.error
        for k in range(state.handle.output_count):
            output = &state.outputs[k]
            name = (<TensorSpec>self.session.outputs[k]).name
            data = output.data
            if data == NULL:
                raise RuntimeError("a run is split once, after its end")
            owner = own(output, self.session, self.session.budget)
            if not state.batched:
                (<list>parts[0]).append(Tensor.wrap(name, output.datatype_id, output.rank, output.dims, data,
                                                    output.nbytes, owner))
                continue
            bounds = state.bounds + k * (state.requests + 1)
            for i in range(state.requests):
                output.dims[0 if state.axes == NULL else state.axes[state.handle.input_count + k]] = state.rows[i]
                (<list>parts[i]).append(Tensor.wrap(name, output.datatype_id, output.rank, output.dims,
                                                    data + bounds[i], bounds[i + 1] - bounds[i], owner))
        return parts


@cython.final
cdef class RunSeries(Job):
    @staticmethod
    cdef RunSeries make(Session session, list requests):
        cdef RunSeries series = RunSeries.__new__(RunSeries)
        cdef BatchRun each
        cdef Py_ssize_t i
        series.states = <BatchState**>calloc(len(requests) + 1, sizeof(BatchState*))
        if series.states == NULL:
            raise MemoryError()
        series.runs = []
        for i in range(len(requests)):
            each = BatchRun.make(session, [requests[i]], True)
            each.make_terminable()
            series.runs.append(each)
            series.states[i] = &each.run_state
            series.input_bytes += each.input_bytes
        series.task.work = _work_series
        series.task.state = series.states
        return series

    def __dealloc__(self):
        free(self.states)

    def terminate(self):
        for each in self.runs:
            each.terminate()


# --- On any thread, without the GIL -----------------------------------------------------------------------------------


cdef void _work(void* opaque) noexcept nogil:
    cdef BatchState* state = <BatchState*>opaque
    cdef const Handle* handle = state.handle
    cdef OrtValue** inputs = state.values
    cdef OrtValue** outputs = state.values + handle.input_count
    cdef int64_t started = monotonic_ns()
    cdef int64_t now
    cdef int failed
    if state.ran:
        return
    state.ran = True
    if load_flag(&state.terminated, SEQUENTIAL):
        fail(&state.failure, FAIL, b"the run was terminated before it started")
        return
    run_begins(state.noted)
    failed = _gather(state)
    if failed == 0:
        failed = make_values(handle, state.feeds, inputs, &state.failure)
    now = monotonic_ns()
    state.input_ns = now - started
    if failed == 0:
        started = now
        failed = execute(handle, inputs, handle.output_names, handle.output_count, outputs, state.options,
                         &state.failure)
        state.refused = failed < 0
        now = monotonic_ns()
        state.infer_ns = now - started
        release_values(inputs, handle.input_count)
    if failed == 0:
        started = now
        # An answer that cannot be sent is the inputs' doing, as is one that cannot be computed.
        state.refused = _receive(state, outputs) < 0 and state.failure.code == INVALID_ARGUMENT
        state.output_ns = monotonic_ns() - started
    run_ends(state.noted)
    free_block(state.slab)
    state.slab = NULL


cdef void _work_series(void* opaque) noexcept nogil:
    cdef BatchState** states = <BatchState**>opaque
    while states[0] != NULL:
        _work(states[0])
        states += 1


cdef int _gather(BatchState* state) noexcept nogil:
    # Copies the rows of several requests one after the other, for each input; a single request's are used in place.
    cdef Py_ssize_t i
    cdef Py_ssize_t size = 0
    cdef char* at
    cdef const RowSlice* slices
    if state.requests == 1:
        return 0
    for i in range(state.handle.input_count):
        state.feeds[i].nbytes = gathered_size(state.slices + i * state.requests, _slices_of(state, i))
        size += _aligned(state.feeds[i].nbytes)
    at = state.slab = allocate_block(size)
    if at == NULL:
        return fail(&state.failure, FAIL, b"no memory for a batch")
    for i in range(state.handle.input_count):
        slices = state.slices + i * state.requests
        if state.axes == NULL or state.axes[i] <= 0:
            gather(slices, _slices_of(state, i), at)
        else:
            gather_along(slices, state.requests, element_count(state.feeds[i].dims, state.axes[i]), at)
        state.feeds[i].data = at
        if state.axes == NULL:
            state.dims[i * MAX_RANK] = state.total_rows
        elif state.axes[i] >= 0:
            state.dims[i * MAX_RANK + state.axes[i]] = state.total_rows
        at += _aligned(state.feeds[i].nbytes)
    return 0


cdef Py_ssize_t _slices_of(const BatchState* state, Py_ssize_t i) noexcept nogil:
    # How many slices an input is gathered from: one without rows is the same in all requests.
    return 1 if state.axes != NULL and state.axes[i] < 0 else state.requests


cdef Py_ssize_t _aligned(Py_ssize_t size) noexcept nogil:
    return (size + SLAB_ALIGNMENT - 1) // SLAB_ALIGNMENT * SLAB_ALIGNMENT


cdef int _leave_empty(BatchState* state, Output* output) noexcept nogil:
    # In place of an output that cannot be answered, and that nobody asks for.
    output.data = allocate_block(0)
    if output.data == NULL:
        return -1
    state.failure.code = 0
    output.datatype_id = UINT8
    output.rank = 2
    output.dims[0] = state.total_rows
    output.dims[1] = 0
    output.nbytes = 0
    return 0


cdef int _receive(BatchState* state, OrtValue** values) noexcept nogil:
    # Takes the outputs over, and finds each request's rows in them.
    cdef Py_ssize_t i
    cdef Output* output
    cdef int failed = 0
    cdef int axis = 0
    for i in range(state.handle.output_count):
        if failed < 0:
            break
        output = &state.outputs[i]
        failed = receive(state.handle, state.feeds, i, &values[i], output, &state.failure)
        if failed < 0 and state.unwanted != NULL and state.unwanted[i] and state.failure.code == INVALID_ARGUMENT:
            failed = _leave_empty(state, output)
        if failed < 0 or not state.batched:
            continue
        if state.axes != NULL:
            axis = state.axes[state.handle.input_count + i]
        if output.rank <= axis or output.dims[axis] != state.total_rows:
            failed = fail(&state.failure, FAIL, b"the model does not keep the batch dimension in its outputs")
            continue
        if axis > 0:
            failed = _separate(state, output, axis, state.bounds + i * (state.requests + 1))
            continue
        scatter(output.datatype_id, output.data, element_count(output.dims + 1, output.rank - 1), state.rows,
                state.requests, state.bounds + i * (state.requests + 1))
    release_values(values, state.handle.output_count)
    return failed


cdef int _separate(BatchState* state, Output* output, int axis, Py_ssize_t* bounds) noexcept nogil:
    # Puts each request's rows along an inner dimension into a block of its own, all in one new block of memory.
    cdef char* block
    if state.requests == 1:
        bounds[0] = 0
        bounds[1] = output.nbytes
        return 0
    if output.datatype_id == BYTES:
        return fail(&state.failure, FAIL, b"an output of texts has its rows along the first dimension only")
    block = allocate_block(output.nbytes)
    if block == NULL:
        return fail(&state.failure, FAIL, b"no memory for an output")
    scatter_along(output.data, output.nbytes, element_count(output.dims, axis), state.rows, state.requests, block,
                  bounds)
    discard(output)
    output.data = block
    return 0
