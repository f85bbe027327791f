from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.codec.decoder cimport Decoder
from fastinfer.native.job cimport Job
from fastinfer.tensor.expected cimport Expectation
from fastinfer.tensor.message cimport InferRequest

# decode() of a buffer that the caller has acquired and will release; `body` is its owner.
cdef InferRequest decode_view(const Py_buffer* view, object body, Py_ssize_t json_size, bint stable, str model,
                              bint nullable, bint keeps_base64, Expectation expectation, Budget budget,
                              int width=*)


cdef class DecodeJob(Job):
    cdef Decoder decoder
    cdef Expectation expectation    # the inputs that the model takes, or None
    cdef Budget budget              # in which its memory counts, or None
    cdef Py_buffer body     # held from construction to deallocation
    cdef bint has_body
    cdef bint raw
    cdef str model

    # The request's timeout, also while the job runs. 0: there is none, or it is not read yet.
    cdef int64_t timeout_us(self) noexcept
