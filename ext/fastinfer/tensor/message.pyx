# The request, response and batch records that are passed between the layers. Does not live here: behaviour. Loop's
# thread, but a native thread reads a request's tensors while it runs; a record keeps its tensors alive.

cimport cython


@cython.final
cdef class RequestedOutput:
    def __init__(self, str name not None, int binary=-1, int64_t classification=0):
        self.name = name
        self.binary = binary
        self.classification = classification


@cython.freelist(64)
@cython.final
cdef class InferRequest:
    def __init__(self, list inputs not None, list outputs=None, bytes id=b"", bint binary_output=False,
                 bint raw=False, int64_t timeout_us=0, int64_t priority=0):
        self.id = id
        self.inputs = inputs
        self.outputs = outputs if outputs is not None else []
        self.binary_output = binary_output
        self.raw = raw
        self.timeout_us = timeout_us
        self.priority = priority
        self.rows = 1
        self.deadline_ns = NEVER

    @staticmethod
    cdef InferRequest make(list inputs, list outputs, bytes id, bint binary_output, int64_t timeout_us,
                           int64_t priority):
        cdef InferRequest request = InferRequest.__new__(InferRequest)
        request.id = id
        request.inputs = inputs
        request.outputs = outputs
        request.binary_output = binary_output
        request.timeout_us = timeout_us
        request.priority = priority
        request.rows = 1
        request.deadline_ns = NEVER
        return request


cdef class Waiter:
    cdef bint completed(self, InferRequest request, object outcome) except? True:
        raise NotImplementedError


cdef class Keeper:
    cdef int let_go(self, InferRequest request, int was, int cause) except -1:
        raise NotImplementedError


@cython.freelist(8)
@cython.final
cdef class InferResponse:
    def __init__(self, str model_name not None, str model_version not None, list outputs not None, bytes id=b"",
                 tuple binary=(), tuple classes=None):
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = outputs
        self.id = id
        self.binary = binary
        self.classes = classes

    @staticmethod
    cdef InferResponse make(str model_name, str model_version, list outputs, bytes id, tuple binary):
        cdef InferResponse response = InferResponse.__new__(InferResponse)
        response.model_name = model_name
        response.model_version = model_version
        response.outputs = outputs
        response.id = id
        response.binary = binary
        return response


@cython.freelist(8)
@cython.final
cdef class BatchResult:
    def __init__(self, list outputs not None, int64_t compute_input_ns=0, int64_t compute_infer_ns=0,
                 int64_t compute_output_ns=0):
        self.outputs = outputs
        self.compute_input_ns = compute_input_ns
        self.compute_infer_ns = compute_infer_ns
        self.compute_output_ns = compute_output_ns

    @staticmethod
    cdef BatchResult make(list outputs, int64_t compute_input_ns, int64_t compute_infer_ns, int64_t compute_output_ns):
        cdef BatchResult result = BatchResult.__new__(BatchResult)
        result.outputs = outputs
        result.compute_input_ns = compute_input_ns
        result.compute_infer_ns = compute_infer_ns
        result.compute_output_ns = compute_output_ns
        return result


cdef class BatchRunner:
    cdef BatchResult run_at_once(self, list requests):
        return None
