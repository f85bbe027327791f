# One inference on its way: see inference.pxd.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from fastinfer._ext.decode cimport DecodeJob, decode_view
from fastinfer._ext.encode cimport Encoded, EncodeJob, classes_effort, encode_response
from fastinfer._ext.exchange cimport Exchange
from fastinfer._ext.executor cimport Executor
from fastinfer._ext.message cimport InferRequest, InferResponse
from fastinfer._ext.scheduler cimport Scheduler
from fastinfer._ext.signature cimport Signature
from fastinfer._ext.tensor cimport Tensor

from fastinfer._ext import encode
from fastinfer.errors import ApiError

cdef enum:
    BINARY_IS_QUICKER = 16      # times, at least, a byte

cdef bytes HEADER_LENGTH = b"inference-header-content-length"
cdef bytes JSON = b"application/json"
cdef bytes OCTETS = b"application/octet-stream"


cdef class Target:
    def __init__(self, str name not None, str version not None, Signature own not None, Scheduler scheduler not None,
                 successor=None):
        self.name = name
        self.version = version
        self.own = own
        self.scheduler = scheduler
        self.successor = successor


@cython.final
cdef class InferHandler:
    def __init__(self, find not None, dict ready not None, Executor executor not None, int64_t off_loop_bytes,
                 int nonfinite):
        self.find = find
        self.ready = ready
        self.executor = executor
        self.off_loop_bytes = off_loop_bytes
        self.nonfinite = nonfinite
        self.nullable = nonfinite == encode.NULL        # what is written can be sent back

    cdef Target target(self, tuple arguments):
        found = self.ready.get(arguments)
        return found if found is not None else self.find(*arguments)

    def __call__(self, Exchange exchange not None):
        cdef Inference inference = Inference.__new__(Inference)
        cdef Py_buffer view
        cdef Py_ssize_t json_size = -1
        cdef InferRequest request
        cdef bint stable
        inference.handler = self
        inference.arguments = exchange.arguments
        inference.model = self.target(inference.arguments)      # 404 before the body is looked at
        body = exchange.body
        stable = exchange.body_is_stable
        length = exchange.headers.get(HEADER_LENGTH)
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            if length is not None:
                json_size = read_length(length, view.len)
            if stable and decoding_bytes(view.len, json_size) > self.off_loop_bytes:
                request = None
            else:
                request = decode_view(&view, body, json_size, stable, inference.model.name,
                                      self.nullable, inference.model.own.takes_base64)
        except ApiError as error:
            inference.model.scheduler.count_refusal(error)
            raise
        finally:
            PyBuffer_Release(&view)
        inference.exchange = exchange
        exchange.abandoned = inference
        if stable:
            exchange.body = b""     # who still reads it, a job or a tensor, holds it
        if request is not None:
            inference.start(request)
        else:
            self.executor.submit(DecodeJob(body, json_size, inference.model.name, self.nullable,
                                           inference.model.own.takes_base64, self.executor.loop_fd),
                                 inference.decoded)


# A body's size in bytes of JSON that take as long to decode. Binary tensors are used where they lie; at the worst they
# are copied or walked through.
cdef Py_ssize_t decoding_bytes(Py_ssize_t size, Py_ssize_t json_size) noexcept:
    return size if json_size < 0 else json_size + (size - json_size) // BINARY_IS_QUICKER


# The bytes of JSON before the binary tensors, out of the field's value.
cdef Py_ssize_t read_length(bytes value, Py_ssize_t size) except? -1:
    if not value.isdigit() or len(value) > 18 or int(value) > size:
        raise ApiError(400, f"Inference-Header-Content-Length must be a decimal number from 0 to {size}")
    return int(value)


@cython.freelist(64)
@cython.final
cdef class Inference(Waiter):
    # --- In -----------------------------------------------------------------------------------------------------------

    def decoded(self, DecodeJob job not None):
        if self.exchange is not None:
            self.exchange.guard(self._start_decoded, job)

    def _start_decoded(self, DecodeJob job):
        cdef InferRequest request
        self.model = self.handler.target(self.arguments)    # it may have been replaced meanwhile
        try:
            request = job.result()
        except ApiError as error:
            self.model.scheduler.count_refusal(error)
            raise
        self.start(request)

    cdef int start(self, InferRequest request) except -1:
        cdef Target model = self.model
        if model.successor is not None:
            self.cancel = (<object>model).infer(request, self.complete)
            return 0
        try:
            model.own.check(request, model.name)
        except ApiError as error:
            model.scheduler.count_refusal(error)
            raise
        if model.own.batched and not 0 < request.rows <= model.own.max_batch_size:
            self.cancel = (<object>model).enqueue(request, self.complete)
            return 0
        request.complete = self         # the common case
        model.scheduler.submit(request)
        self.request = request
        return 0

    def __call__(self):
        # The client went away.
        self.exchange = None
        request, self.request = self.request, None
        cancel, self.cancel = self.cancel, None
        if request is not None:
            self.model.scheduler.cancel(request)
        elif cancel is not None:
            cancel()

    # --- Out ----------------------------------------------------------------------------------------------------------

    def complete(self, InferRequest request, outcome):
        self.completed(request, outcome)

    cdef int completed(self, InferRequest request, object outcome) except -1:
        cdef Exchange exchange = self.exchange
        self.request = None
        self.cancel = None
        if exchange is not None:
            try:
                self.respond(request, outcome)
            except Exception as error:
                self.fail(exchange, error)
        return 0

    cdef int respond(self, InferRequest request, object outcome) except -1:
        cdef Target model = self.model
        cdef Signature signature
        cdef InferHandler handler = self.handler
        cdef InferResponse response
        cdef int64_t nbytes = 0         # of what becomes text
        cdef Py_ssize_t i
        if not isinstance(outcome, list):
            raise outcome
        signature = model.own if model.successor is None else (<object>model).signature
        response = signature.respond(request, <list>outcome, model.name, model.version)
        for i in range(len(response.outputs)):
            if not response.binary or not response.binary[i]:
                nbytes += (<Tensor>response.outputs[i]).nbytes
        if response.classes is not None:
            nbytes += classes_effort(response)
        if nbytes > handler.off_loop_bytes:
            handler.executor.submit(EncodeJob(response, handler.nonfinite, handler.executor.loop_fd), self.encoded)
            return 0
        return self.answer(encode_response(response, handler.nonfinite))

    def encoded(self, EncodeJob job not None):
        cdef Exchange exchange = self.exchange
        if exchange is not None:
            try:
                self.answer(job.result())
            except Exception as error:
                self.fail(exchange, error)

    cdef int answer(self, Encoded encoded) except -1:
        cdef Exchange exchange = self.exchange
        self.exchange = None
        if encoded.binary:
            length = (b"Inference-Header-Content-Length", b"%d" % encoded.json_size)
            exchange.respond(200, encoded.parts(), OCTETS, (length,))
        else:
            exchange.respond(200, encoded, JSON)
        return 0

    cdef int fail(self, Exchange exchange, object error) except -1:
        self.exchange = None
        exchange.guard(_raise, error)   # it knows how to answer what is raised
        return 0


def _raise(error):
    raise error
