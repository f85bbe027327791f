# The records that travel through the server: what a client asked for, and what it is answered. No behaviour.

from libc.stdint cimport int64_t


cdef class RequestedOutput:
    # One entry of the request's "outputs".
    cdef readonly str name
    cdef readonly int binary            # parameters.binary_data: 1, 0, or -1 where it was not given
    cdef readonly int64_t classification  # parameters.classification: 0 where it was not given


cdef class InferRequest:
    # From the wire (decode).
    cdef readonly bytes id              # the JSON text between the quotes, as it was sent: valid, still escaped
    cdef public list inputs             # list[Tensor]: as sent, after Signature.check in the model's order
    cdef readonly list outputs          # list[RequestedOutput]; empty: all
    cdef readonly bint binary_output    # parameters.binary_data_output
    cdef readonly bint raw              # the whole body is the only input's bytes (binary extension, N = 0)
    cdef readonly int64_t timeout_us    # parameters.timeout; 0: none
    cdef readonly int64_t priority      # parameters.priority; 0: the default

    # From the model's signature (Signature.check).
    cdef public int64_t rows            # of the batch; 1 for a model that is not batched
    cdef public bint implicit_batch     # the client left the batch dimension out, and so does the answer
    cdef public object shape_key        # requests with equal keys may share a batch

    # Life in the scheduler; loop's thread only.
    cdef public int64_t enqueued_ns
    cdef public int state               # see scheduler.py
    cdef public object complete         # Callable[[InferRequest, list[Tensor] | ApiError], None]
    cdef public object timer            # the handle of an explicit deadline, or None


cdef class InferResponse:
    cdef readonly str model_name
    cdef readonly str model_version
    cdef readonly bytes id              # as InferRequest.id; empty: none
    cdef readonly list outputs          # list[Tensor], in the order of the answer
    cdef readonly tuple binary          # for each output, whether it is sent as bytes; empty: none is
