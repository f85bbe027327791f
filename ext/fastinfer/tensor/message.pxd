from libc.stdint cimport int64_t, uint64_t

from fastinfer.shared.counters cimport Counters

cdef enum:
    # InferRequest.state; 0: no keeper has it yet
    QUEUED = 1
    RUNNING = 2
    ENDED = 3

cdef enum:
    NEVER = 0x7FFFFFFFFFFFFFFF      # a deadline that does not come


cdef class RequestedOutput:
    # One entry of the request's "outputs".
    cdef readonly str name
    cdef readonly int binary            # parameters.binary_data: 1, 0, or -1 if it is not given
    cdef readonly int64_t classification  # parameters.classification: 0 if it is not given


cdef class InferRequest:
    # From the wire (decode).
    cdef readonly bytes id              # the JSON text between the quotes, as it was sent: valid, still escaped
    # list[Tensor]: as sent; after Signature.check in the model's order, then the optional ones that are given.
    cdef public list inputs
    cdef readonly list outputs          # list[RequestedOutput]; empty: all
    cdef readonly bint binary_output    # parameters.binary_data_output
    cdef readonly bint raw              # the whole body is the only input's bytes (binary extension, N = 0)
    cdef readonly int64_t timeout_us    # parameters.timeout; 0: none
    cdef readonly bint undecoded        # some input cannot fit the model: it has no data, and check refuses it
    cdef readonly int64_t priority      # parameters.priority; 0: the default

    # From the model's signature (Signature.check).
    cdef public int64_t rows            # of the batch; 1 for a model that is not batched
    cdef public bint implicit_batch     # the client left the batch dimension out, and so does the answer
    cdef public object shape_key        # requests with equal keys may share a batch
    # Has no common number of rows, or optional inputs: runs alone and as it was sent, as one row.
    cdef public bint whole

    # A hash of the model and the inputs, if crashes are recorded (schedule/run_notes); 0: not computed yet.
    cdef uint64_t fingerprint

    # Its life (lifetime); loop's thread only. Times are CLOCK_MONOTONIC's.
    cdef public int state
    cdef public bint part               # a slice: its request is counted, the slice is not
    # A step of an ensemble, which holds the model: what it holds for the request (schedule/ensemble), else None. A step
    # is accepted even if the model retires, and cut into slices even if its batch size is configured.
    cdef public object step
    cdef public int64_t arrived_ns      # when its first byte came
    cdef public int64_t deadline_ns
    cdef public int64_t enqueued_ns     # 0: submit sets it
    cdef public int64_t started_ns      # when it was taken for a run; 0: not yet
    cdef public int64_t input_ns        # compute times, summed over its runs
    cdef public int64_t infer_ns
    cdef public int64_t output_ns
    cdef public object complete         # a Waiter, or Callable[[InferRequest, list[Tensor] | ApiError], None]
    cdef Keeper keeper                  # its owner while it waits or runs, or None
    cdef bint delayed                   # its queue's timeout has passed: those that have waited for less go first
    cdef public Counters stats          # where its end is counted; None: nowhere, or counted already

    # As the constructor, without a Python call.
    @staticmethod
    cdef InferRequest make(list inputs, list outputs, bytes id, bint binary_output, int64_t timeout_us,
                           int64_t priority)


# Receives a request's outcome, by a C call; loop's thread.
cdef class Waiter:
    # outcome: list[Tensor] or ApiError. Returns True if the waiter counts the request's end itself, now or later.
    cdef bint completed(self, InferRequest request, object outcome) except? True


# Holds requests that have not ended: in a queue, in a run, or as a parent. Loop's thread.
cdef class Keeper:
    # Releases a request that its waiter has dropped: its state was `was` and is ENDED already. `cause`: one of those in
    # shared/counters.pxd.
    cdef int let_go(self, InferRequest request, int was, int cause) except -1


cdef class InferResponse:
    cdef readonly str model_name
    cdef readonly str model_version
    cdef readonly bytes id              # as InferRequest.id; empty: none
    cdef readonly list outputs          # list[Tensor], in the order of the answer
    cdef readonly tuple binary          # for each output, whether it is sent as bytes; empty: none is
    cdef public tuple classes           # for each output, a Classification or None; None: of no output

    # As the constructor, without a Python call.
    @staticmethod
    cdef InferResponse make(str model_name, str model_version, list outputs, bytes id, tuple binary)


# The outcome of a batch: for each request, in order, all outputs of the model in the model's order (each with the
# request's own rows), or the error that this request is answered with.
cdef class BatchResult:
    cdef readonly list outputs          # list[list[Tensor] | ApiError]
    cdef readonly int64_t compute_input_ns
    cdef readonly int64_t compute_infer_ns
    cdef readonly int64_t compute_output_ns

    # As the constructor, without a Python call.
    @staticmethod
    cdef BatchResult make(list outputs, int64_t compute_input_ns, int64_t compute_infer_ns, int64_t compute_output_ns)


# Runs batches; those that it can run at once, by a C call.
cdef class BatchRunner:
    cdef Counters stats                 # of the model; None before a scheduler has it
    # Runs requests that share a batch on this thread; None if they must not run here: then call `start`.
    cdef BatchResult run_at_once(self, list requests)
