from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.codec.encode cimport Encoded
from fastinfer.http.exchange cimport Exchange
from fastinfer.native.executor cimport Executor
from fastinfer.schedule.lifetime cimport Life
from fastinfer.schedule.scheduler cimport Target
from fastinfer.tensor.message cimport InferRequest
from fastinfer.tensor.signature cimport Signature


# The handler of the route: makes an Inference for each exchange.
cdef class InferHandler:
    cdef object find                    # Callable: name, version -> Target; ApiError 404, 503
    cdef dict ready                     # (name,) and (name, version) -> Target: a cache of `find`
    cdef Executor executor
    cdef int64_t off_loop_bytes         # larger ones are decoded or encoded on a native thread
    cdef int nonfinite
    cdef Budget budget                  # in which tensors and answers count, or None
    cdef bint nullable                  # null among floating-point data is NaN

    cdef Target target(self, tuple arguments)
    cdef Inference inference(self, Exchange exchange)


# Owned by its exchange (`on_client_gone`), its request (`complete`), the executor and its timer. `close` breaks the
# cycles before the exchange is answered.
cdef class Inference(Life):
    cdef InferHandler handler
    cdef Exchange exchange              # None: it is answered, or the client is gone
    cdef tuple arguments
    cdef Target model
    cdef object job                     # the job that works for it now, which `close` terminates; or None

    cdef int begin(self, InferRequest request, int64_t now) except -1
    cdef int place(self, InferRequest request) except -1
    cdef bint respond(self, InferRequest request, list outputs) except? True
    cdef int answer(self, Encoded encoded) except -1
    # Drops the request, counts the failure and answers the client. Does nothing after `close`.
    cdef int fail(self, object error) except -1
    # Ends the life and returns the exchange, which the caller answers; None if it was closed before.
    cdef Exchange close(self)
