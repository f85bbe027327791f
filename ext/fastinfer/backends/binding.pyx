# Binds a session to input and output memory that is allocated once, for batches of a fixed number of rows. The runtime
# then creates no values and allocates no outputs, a large part of a small model's run time. Only for shapes that the
# model fixes, and for small ones. Does not live here: the choice of a binding (runner).
#
# Loop's thread only. A binding owns its memory; rows are copied in, outputs are views, and the binding is busy while a
# view exists.

cimport cython
from cpython.ref cimport PyObject
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastinfer.backends.onnx.ort_run cimport (
    EngineError, check_in_place, create_binding, error_of, execute_bound, release_binding,
)
from fastinfer.backends.watchdog cimport Watchdog
from fastinfer.native.job cimport monotonic_ns
from fastinfer.tensor.datatype cimport BYTES, datatype_of
from fastinfer.tensor.message cimport InferRequest
from fastinfer.tensor.tensor cimport MAX_RANK, Tensor, TensorSpec, element_count

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* object)

cdef enum:
    ALIGNMENT = 64


cdef Binding make_binding(Session session, bint batched, int64_t rows, Py_ssize_t max_nbytes):
    cdef Binding made = Binding.__new__(Binding)
    cdef EngineError failure
    made.session = session
    made.batched = batched
    made.rows = rows
    if not made._lay_out(max_nbytes):
        return None
    made.binding = create_binding(&session.handle, made.inputs, made.outputs, &failure)
    if made.binding == NULL:
        raise error_of(&failure)
    return made


@cython.final
cdef class Binding:
    def __dealloc__(self):
        release_binding(self.binding)
        free(self.inputs)

    cdef bint is_free(self) noexcept:
        return Py_REFCNT(<PyObject*>self.memory) == 1       # every output view holds it, too

    cdef list run(self, list requests, Watchdog watchdog):
        cdef int64_t started = monotonic_ns()
        cdef int64_t taken, ran
        cdef EngineError failure
        cdef int failed
        cdef list outputs
        self._copy_in(requests)
        taken = monotonic_ns()
        watchdog.begins(taken)
        # With the GIL: to release it, and to wait for a thread that has taken it, may take longer than the run.
        failed = execute_bound(&self.session.handle, self.binding, watchdog.options, &failure)
        self.cut = watchdog.ends()
        if failed < 0:
            self.input_ns = taken - started
            self.infer_ns = monotonic_ns() - taken
            return None
        if not self.proved:
            if check_in_place(&self.session.handle, self.binding, self.outputs, &failure) < 0:
                return None
            self.proved = True
        ran = monotonic_ns()
        outputs = self._lend(requests)
        self.input_ns = taken - started
        self.infer_ns = ran - taken
        self.output_ns = monotonic_ns() - ran
        return outputs

    cdef bint _lay_out(self, Py_ssize_t max_nbytes) except -1:
        # Lays inputs and outputs out in the memory; False if that is not possible.
        cdef tuple specs = self.session.inputs + self.session.outputs
        cdef Py_ssize_t count = len(specs)
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t i
        cdef int64_t elements
        cdef TensorSpec spec
        cdef Feed* feed
        cdef int64_t* dims
        if self.session.handle.may_lack_outputs:
            return False
        self.inputs = <Feed*>calloc(1, count * (sizeof(Feed) + MAX_RANK * sizeof(int64_t)) + 1)
        if self.inputs == NULL:
            raise MemoryError()
        self.outputs = self.inputs + self.session.handle.input_count
        self.dims = <int64_t*>(self.inputs + count)
        for i in range(count):
            spec = <TensorSpec>specs[i]
            if spec.open_rank:
                return False
            feed = self.inputs + i
            dims = self.dims + i * MAX_RANK
            memcpy(dims, spec.dims, spec.rank * sizeof(int64_t))
            if self.batched:
                if spec.rank == 0:
                    return False
                dims[0] = self.rows
            elements = element_count(dims, spec.rank)
            if elements < 1 or elements > max_nbytes or spec.datatype_id == BYTES:
                return False
            feed[0] = Feed(spec.datatype_id, spec.rank, dims, NULL, elements * datatype_of(spec.datatype_id).itemsize)
            size += aligned(feed.nbytes)
            if size > max_nbytes:
                return False
        self.memory = Memory.allocate(size)
        size = 0
        for i in range(count):
            self.inputs[i].data = self.memory.data + size
            size += aligned(self.inputs[i].nbytes)
        return True

    cdef int _copy_in(self, list requests) except -1:
        # Copies the rows in. The signature has checked that they fit; the bounds of the memory are checked again here.
        cdef InferRequest request
        cdef Tensor tensor
        cdef const Feed* feed
        cdef char* at
        cdef char* end
        cdef Py_ssize_t i
        for i in range(self.session.handle.input_count):
            feed = self.inputs + i
            at = <char*>feed.data
            end = at + feed.nbytes
            for request in requests:
                tensor = <Tensor?>request.inputs[i]
                if tensor.datatype_id != feed.datatype_id or tensor.nbytes > end - at:
                    raise ValueError(f"{tensor!r} does not fit into a binding of {self.rows} rows")
                memcpy(at, tensor.data, tensor.nbytes)
                at += tensor.nbytes
            if at != end:
                raise ValueError(f"fewer than {self.rows} rows for a binding of that many")
        return 0

    cdef list _lend(self, list requests):
        cdef InferRequest request
        cdef TensorSpec spec
        cdef Feed* feed
        cdef list lent = [None] * len(requests)
        cdef list parts
        cdef Py_ssize_t count = self.session.handle.output_count
        cdef int64_t first = 0
        cdef int64_t rows = self.rows
        cdef int64_t[MAX_RANK] dims
        cdef Py_ssize_t row_nbytes
        cdef Py_ssize_t i, k
        for i in range(len(requests)):
            request = <InferRequest>requests[i]
            if self.batched:
                rows = request.rows
            parts = lent[i] = [None] * count
            for k in range(count):
                spec = <TensorSpec>self.session.outputs[k]
                feed = self.outputs + k
                row_nbytes = feed.nbytes // self.rows
                memcpy(dims, feed.dims, feed.rank * sizeof(int64_t))
                if self.batched:
                    dims[0] = rows
                parts[k] = Tensor.wrap(spec.name, feed.datatype_id, feed.rank, dims,
                                       <char*>feed.data + first * row_nbytes, rows * row_nbytes, self.memory)
            first += rows
        return lent


cdef Py_ssize_t aligned(Py_ssize_t size) noexcept:
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
