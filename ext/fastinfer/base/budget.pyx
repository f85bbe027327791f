# The memory that requests hold in a process: bodies, inflated bodies, tensors, outputs, the text of answers. The code
# that allocates such memory reserves it first; the owner (`http/upload` Body, `tensor/tensor` Memory, `onnx/ort_run`
# Value) releases the reservation.
#
# Thread-safe, without the GIL. A budget outlives everything that counts in it: its owners hold references.

cimport cython
from libc.stdint cimport int64_t


@cython.final
cdef class Budget:
    def __cinit__(self, int64_t limit=0x7FFFFFFFFFFFFFFF):
        if limit < 0:
            raise ValueError("a budget is not negative")
        self.limit = limit
        self.count.set_limit(limit)

    @property
    def used(self):
        return self.count.used()

    @property
    def refused(self):
        return self.count.refused()

    def reserve(self, int64_t nbytes):
        return self.count.reserve(nbytes)

    def release(self, int64_t nbytes):
        self.count.release(nbytes)
