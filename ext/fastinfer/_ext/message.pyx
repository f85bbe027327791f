# The records that travel through the server: see message.pxd.

cimport cython


@cython.final
cdef class RequestedOutput:
    def __init__(self, str name not None, int binary=-1, int64_t classification=0):
        self.name = name
        self.binary = binary
        self.classification = classification


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


@cython.final
cdef class InferResponse:
    def __init__(self, str model_name not None, str model_version not None, list outputs not None, bytes id=b"",
                 tuple binary=()):
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = outputs
        self.id = id
        self.binary = binary
