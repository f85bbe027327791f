from libc.stdint cimport int64_t

from fastinfer.backends.onnx.ort cimport Session
from fastinfer.backends.onnx.ort_run cimport Feed, OrtIoBinding
from fastinfer.backends.watchdog cimport Watchdog
from fastinfer.tensor.tensor cimport Memory

cdef class Binding:
    cdef Session session
    cdef OrtIoBinding* binding
    cdef Feed* inputs           # [inputs], in `memory`
    cdef Feed* outputs          # [outputs], likewise
    cdef int64_t* dims          # [inputs + outputs][MAX_RANK]: of the feeds
    cdef Memory memory
    cdef bint batched
    cdef bint proved            # a run has left its outputs in place
    cdef readonly int64_t rows  # of the batch; 1 if the model is not batched
    cdef int64_t input_ns       # of the last run
    cdef int64_t infer_ns
    cdef int64_t output_ns
    cdef int cut                # the result of Watchdog.ends: whether it terminated the run

    cdef bint is_free(self) noexcept
    # The outputs of each request (list[list[Tensor]]), which have `rows` rows together; None if the run failed.
    cdef list run(self, list requests, Watchdog watchdog)
    cdef bint _lay_out(self, Py_ssize_t max_nbytes) except -1
    cdef int _copy_in(self, list requests) except -1
    cdef list _lend(self, list requests)


# None if the shapes are not fixed, an input or output is BYTES, or more than max_nbytes are needed.
# Raises OrtError if the runtime refuses.
cdef Binding make_binding(Session session, bint batched, int64_t rows, Py_ssize_t max_nbytes)
