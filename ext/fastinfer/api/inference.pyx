# Handles an inference request from its body to its answer: decode, check, queue, encode. Small bodies and answers are
# decoded and encoded on the loop's thread, larger ones (`--off-loop-bytes`) as jobs on native threads. Does not live
# here: HTTP, batching, ONNX Runtime.
#
# Loop's thread only. The exchange owns the Inference; the Inference owns the request and the job that works for it.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.codec.decode cimport DecodeJob, decode_view
from fastinfer.codec.encode cimport Encoded, EncodeJob, classes_effort, encode_response
from fastinfer.http.exchange cimport Exchange
from fastinfer.native.executor cimport Executor
from fastinfer.schedule.lifetime cimport SUCCESS, Life, cause_of, count, drop, failure_of, timeout_error
from fastinfer.schedule.scheduler cimport Scheduler, Target
from fastinfer.shared.counters cimport BY_TIMEOUT, CANCELLED
from fastinfer.tensor.message cimport InferRequest, InferResponse
from fastinfer.tensor.signature cimport Signature
from fastinfer.tensor.tensor cimport Tensor

from fastinfer.base.errors import ApiError
from fastinfer.codec import encode

cdef enum:
    BINARY_IS_QUICKER = 16      # times per byte, at least
    LONG_JOB = 1 << 20          # bytes of JSON, or of tensors that become text: some milliseconds

cdef double POLL_S = 0.005

cdef bytes HEADER_LENGTH = b"inference-header-content-length"
cdef bytes JSON = b"application/json"
cdef bytes OCTETS = b"application/octet-stream"

cdef list NOTHING = []      # never changed


@cython.final
cdef class InferHandler:
    def __init__(self, find not None, dict ready not None, Executor executor not None, int64_t off_loop_bytes,
                 int nonfinite, Budget budget=None):
        self.find = find
        self.ready = ready
        self.executor = executor
        self.off_loop_bytes = off_loop_bytes
        self.nonfinite = nonfinite
        self.budget = budget
        self.nullable = nonfinite == encode.NULL        # so that an answer can be sent as a request

    cdef Target target(self, tuple arguments):
        found = self.ready.get(arguments)
        return found if found is not None else self.find(*arguments)

    def await_body(self, Exchange exchange not None):
        # The body is inflated first; the deadline runs meanwhile.
        cdef Inference inference = self.inference(exchange)
        inference.model = self.target(inference.arguments)
        inference.exchange = exchange
        exchange.on_client_gone = inference
        inference.await_request(inference.model.scheduler.deadlines, exchange.handled_ns)
        return inference

    def __call__(self, Exchange exchange not None):
        cdef Inference inference = self.inference(exchange)
        cdef Py_buffer view
        cdef Py_ssize_t json_size = -1
        cdef InferRequest request
        cdef bint stable
        inference.model = self.target(inference.arguments)      # 404 before the body is decoded
        body = exchange.body
        stable = exchange.body_is_stable
        length = exchange.field(HEADER_LENGTH)
        PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
        try:
            if length is not None:
                json_size = read_length(length, view.len)
            if stable and decoding_bytes(view.len, json_size) > self.off_loop_bytes:
                request = None
            else:
                request = decode_view(&view, body, json_size, stable, inference.model.name,
                                      self.nullable, inference.model.own_signature.takes_base64,
                                      inference.model.own_signature.expectation, self.budget)
        except ApiError as error:
            inference.exchange = None
            inference.close()
            inference.model.scheduler.count_refusal(error, exchange.arrived_ns)
            raise
        finally:
            PyBuffer_Release(&view)
        inference.exchange = exchange
        exchange.on_client_gone = inference
        if stable:
            exchange.body = b""     # a job or a tensor that still reads it keeps it alive
        if request is not None:
            inference.begin(request, exchange.handled_ns)
        else:
            inference.decode(body, json_size, exchange.handled_ns)

    cdef Inference inference(self, Exchange exchange):
        # Returns the inference that has waited for the body, or a new one.
        cdef Inference inference
        waiting = exchange.on_client_gone
        if waiting is not None:
            inference = <Inference?>waiting
            inference.job = None
            return inference
        inference = Inference.__new__(Inference)
        inference.handler = self
        inference.arguments = exchange.arguments
        inference.arrived_ns = exchange.arrived_ns
        return inference


# A body's size in bytes of JSON that take as long to decode. Binary tensors are used in place; at worst they are copied
# or scanned.
cdef Py_ssize_t decoding_bytes(Py_ssize_t size, Py_ssize_t json_size) noexcept:
    return size if json_size < 0 else json_size + (size - json_size) // BINARY_IS_QUICKER


# The bytes of JSON before the binary tensors, from the field's value.
cdef Py_ssize_t read_length(bytes value, Py_ssize_t size) except? -1:
    if not value.isdigit() or len(value) > 18 or int(value) > size:
        raise ApiError(400, f"Inference-Header-Content-Length must be a decimal number from 0 to {size}")
    return int(value)


@cython.final
cdef class Inference(Life):
    # --- In -----------------------------------------------------------------------------------------------------------

    def work_on(self, job not None):
        if self.exchange is not None:
            self.job = job
        else:
            job.terminate()

    def refuse(self, error not None):
        self.fail(error)

    def decode(self, body, Py_ssize_t json_size, int64_t now):
        cdef Executor executor = self.handler.executor
        try:
            if self.deadlines is None:
                self.await_request(self.model.scheduler.deadlines, now)
            job = DecodeJob(body, json_size, self.model.name, self.handler.nullable,
                            self.model.own_signature.takes_base64, self.model.own_signature.expectation,
                            self.handler.budget)
            long_job = decoding_bytes(len(body), json_size) > LONG_JOB
            executor.submit(job, self.decoded, executor.bulk if long_job else executor.brief)
            self.job = job
            if long_job:
                self.poll_timeout(job)
        except Exception as error:
            self.fail(error)

    def poll_timeout(self, DecodeJob job not None):
        # Polls a long decoding for the request's timeout, which may pass before the decoding ends.
        cdef Scheduler scheduler = self.model.scheduler
        cdef int64_t timeout_us = job.timeout_us()
        if self.exchange is None or self.request is not None or scheduler.has_policies():
            return
        if timeout_us > 0:
            self.learn_timeout(scheduler.deadlines, timeout_us)
        else:
            scheduler.loop.call_later(POLL_S, self.poll_timeout, job)

    def decoded(self, DecodeJob job not None):
        cdef InferRequest request
        self.job = None
        if self.exchange is None:
            return
        try:
            self.model = self.handler.target(self.arguments)    # it may have been replaced meanwhile
            request = job.result()
        except Exception as error:
            self.fail(error)
        else:
            self.begin(request, self.model.scheduler.clock.now())

    cdef int begin(self, InferRequest request, int64_t now) except -1:
        cdef Scheduler scheduler = self.model.scheduler
        request.stats = scheduler.stats
        request.enqueued_ns = now
        self.request = request
        try:
            if scheduler.has_policies():
                scheduler.set_timeout(request)
            self.attach(scheduler.deadlines, request, now)
            request.complete = self
            self.place(request)
        except Exception as error:
            self.fail(error)
        return 0

    cdef int place(self, InferRequest request) except -1:
        cdef Target model = self.model
        if model.successor is not None:
            (<object>model).begin(request)
            return 0
        model.own_signature.check(request, model.name)
        if model.own_signature.batched and not 0 < request.rows <= model.own_signature.max_batch_size:
            (<object>model).enqueue(request)
            return 0
        model.scheduler.submit(request)     # the common case
        return 0

    def __call__(self):
        # Exchange.on_client_gone: the client went away.
        cdef InferRequest request = self.request
        cdef Scheduler scheduler = self.model.scheduler
        cdef int64_t now = scheduler.clock.now()
        self.close()
        if request is not None:
            drop(request, CANCELLED, now)
        else:
            scheduler.stats.count_failure(CANCELLED, now - self.arrived_ns)

    cdef int overdue(self, int64_t now) except -1:
        if self.request is None:
            self.model.scheduler.stats.count_failure(BY_TIMEOUT, now - self.arrived_ns)
        self.close().fail(timeout_error())
        return 0

    # --- Out ----------------------------------------------------------------------------------------------------------

    cdef bint completed(self, InferRequest request, object outcome) except? True:
        if isinstance(outcome, list):
            return self.respond(request, <list>outcome)     # settle turns an exception into the next outcome
        self.fail(outcome)
        return True

    cdef bint respond(self, InferRequest request, list outputs) except? True:
        cdef Target model = self.model
        cdef Signature signature
        cdef InferHandler handler = self.handler
        cdef InferResponse response
        cdef int64_t nbytes = 0         # of outputs that become text
        cdef Py_ssize_t i
        signature = model.own_signature if model.successor is None else (<object>model).signature
        response = signature.respond(request, outputs, model.name, model.version)
        request.inputs = NOTHING        # their memory is no longer needed
        for i in range(len(response.outputs)):
            if not response.binary or not response.binary[i]:
                nbytes += (<Tensor>response.outputs[i]).nbytes
        if response.classes is not None:
            nbytes += classes_effort(response)
        if nbytes > handler.off_loop_bytes:
            self.job = EncodeJob(response, handler.nonfinite, handler.budget)
            handler.executor.submit(self.job, self.encoded,
                                    handler.executor.bulk if nbytes > LONG_JOB else handler.executor.brief)
            return True
        self.answer(encode_response(response, handler.nonfinite, handler.budget))
        return True

    def encoded(self, EncodeJob job not None):
        self.job = None
        if self.exchange is not None:
            try:
                self.answer(job.result())
            except Exception as error:
                self.fail(error)

    cdef int answer(self, Encoded encoded) except -1:
        cdef int64_t now = self.model.scheduler.clock.now()
        if self.is_late(now):
            return self.fail(timeout_error())
        count(self.request, SUCCESS, now)
        if encoded.binary:
            length = (b"Inference-Header-Content-Length", b"%d" % encoded.json_size)
            self.close().respond(200, encoded.parts(), OCTETS, (length,))
        else:
            self.close().respond(200, encoded, JSON)
        return 0

    cdef int fail(self, object error) except -1:
        cdef Scheduler scheduler = self.model.scheduler
        cdef InferRequest request = self.request
        cdef Exchange exchange = self.close()
        if exchange is None:
            return 0
        error = failure_of(error)
        if request is not None:
            drop(request, cause_of(error), scheduler.clock.now())
        else:
            scheduler.count_refusal(error, self.arrived_ns)
        exchange.fail(error)
        return 0

    cdef Exchange close(self):
        cdef Exchange exchange = self.exchange
        self.exchange = None
        self.request = None
        if self.job is not None:
            job, self.job = self.job, None
            job.terminate()
        self.forget_deadline()
        return exchange
