# Writes one model's runs to the crash record, and looks up whether a request is suspect or a culprit. Does not live
# here: the memory (shared/crash_record), the verdicts (supervisor/blame). Loop's thread only;
# the notes are in the crash record's memory.

cimport cython
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint64_t

from fastinfer.shared.crash_record cimport (
    IS_SUSPECT, IS_WITHDRAWN, NONE, REQUESTS, CrashSlot, NotedRun, fingerprints_of, is_armed, write_what,
)
from fastinfer.tensor.message cimport InferRequest
from fastinfer.tensor.tensor cimport Tensor

from fastinfer.base.errors import ApiError

cdef extern from "fastinfer/schedule/fingerprint.h" namespace "fastinfer" nogil:
    uint64_t hash_number(uint64_t seed, uint64_t number)
    uint64_t fingerprint(uint64_t seed, const char* at, size_t size)


@cython.final
cdef class RunNotes:
    def __init__(self, CrashSlot slot not None, uint64_t key, uint64_t group, bytes label not None):
        self.slot = slot
        self.key = key
        self.group = group
        self.label = label

    def fingerprint(self, InferRequest request not None):
        return self.fingerprint_of(request)

    cdef bint armed(self) noexcept:
        return is_armed(self.slot.record.header)

    cdef int verdict(self, InferRequest request) noexcept:
        cdef int of_model = self.slot.kind_of(self.key)
        cdef int kind
        if of_model == IS_WITHDRAWN:
            return IS_WITHDRAWN
        kind = self.slot.kind_of(self.fingerprint_of(request))
        return IS_SUSPECT if kind == NONE and of_model == IS_SUSPECT else kind

    cdef int64_t withdrawn_ns(self) noexcept:
        return self.slot.entry_remaining_ns(self.key, IS_WITHDRAWN)

    def why_withdrawn(self):
        cdef int64_t seconds = (self.withdrawn_ns() + 999_999_999) // 1_000_000_000
        if seconds == 0:
            return None
        label = self.label.decode("utf-8", "replace")
        return ApiError(503, f"{label} is withdrawn for {seconds} s: it has ended processes with different requests",
                        retry_after_s=seconds)

    def reinstate(self):
        return self.slot.absolve(self.key, IS_WITHDRAWN)

    cdef uint64_t fingerprint_of(self, InferRequest request) noexcept:
        # The tensors are in the model's order, so their places stand for their names, unless some are optional.
        cdef uint64_t hashed
        cdef Tensor tensor
        cdef const char* name
        cdef Py_ssize_t name_size = 0
        cdef Py_ssize_t place
        cdef int i
        if request.fingerprint == 0:
            hashed = self.slot.record.header.seed ^ self.key
            for place in range(len(request.inputs)):
                tensor = <Tensor>request.inputs[place]
                hashed = hash_number(hashed, <uint64_t>tensor.datatype_id << 32 | <uint64_t>tensor.rank)
                for i in range(tensor.rank):
                    hashed = hash_number(hashed, <uint64_t>tensor.dims[i])
                hashed = fingerprint(hashed, tensor.data, tensor.nbytes)
                if request.whole:
                    name = PyUnicode_AsUTF8AndSize(tensor.name, &name_size)
                    hashed = fingerprint(hashed, name, name_size)
            request.fingerprint = hashed if hashed != 0 else 1
        return request.fingerprint

    cdef NotedRun* open(self, list requests) noexcept:
        cdef NotedRun* run = self.slot.take_place()
        cdef uint64_t* fingerprints
        cdef Py_ssize_t count = len(requests)
        cdef Py_ssize_t i
        if run != NULL:
            if run.what.key != self.key:        # usually the place had the same model before
                write_what(&run.what, self.key, self.group, self.label)
            run.requests = count
            fingerprints = fingerprints_of(self.slot.slot, run)
            for i in range(min(count, <Py_ssize_t>REQUESTS)):
                fingerprints[i] = self.fingerprint_of(<InferRequest>requests[i])
        return run

    cdef void close(self, NotedRun* run) noexcept:
        self.slot.give_back(run)
