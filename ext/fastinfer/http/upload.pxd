from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.http.exchange cimport RequestHead

cdef enum:
    MAX_KEPT = 64       # blocks

cdef struct Block:
    # Whole pages of mmap; at is NULL if there is none.
    char* at
    Py_ssize_t size


cdef class BodyPool:
    # Free blocks, kept because their pages exist already and are warm in the caches. The latest is the last.
    cdef readonly Py_ssize_t max_bytes
    cdef readonly Py_ssize_t kept_bytes
    cdef Block[MAX_KEPT] _kept
    cdef int _count
    cdef int _least             # the minimum of `_count` since `age` was called

    cdef Block take(self, Py_ssize_t size) noexcept
    cdef void give(self, Block block) noexcept
    cdef void _remove(self, int index) noexcept


cdef class Body:
    # One body in memory of its own. The buffer protocol gives, until it is complete, the room for the next bytes,
    # writable; then the body, read-only. Its last reference returns the memory, and every view holds one, so no view
    # ever shows another body.
    cdef BodyPool _pool
    cdef Budget _budget             # in which the received bytes count
    cdef Block _block
    cdef Py_ssize_t _before         # unused bytes before the body, which align the tensors in it
    cdef readonly Py_ssize_t size   # as announced, or the limit, until `end`
    cdef readonly Py_ssize_t received

    # `aligned_at`: the byte of the body that is to be aligned as tensors are.
    @staticmethod
    cdef Body begin(BodyPool pool, Budget budget, Py_ssize_t size, Py_ssize_t aligned_at)
    # Copies the next bytes to the room; at most those that are missing. MemoryError if the budget or the system has no
    # memory for them.
    cdef int append(self, const char* data, Py_ssize_t size) except -1
    # Whether there is memory for the next bytes; this check spares the transport an exception.
    cdef bint has_room(self) noexcept
    # This many bytes were written to the room; they count even above the limit.
    cdef void written(self, Py_ssize_t size) noexcept
    cdef int _reserve(self, Py_ssize_t received) except -1


cdef class Upload:
    # The progress of a body, of announced length or chunked (http/chunked.py).
    cdef readonly RequestHead head
    cdef public int64_t arrived_ns          # when the first byte of its head came (CLOCK_MONOTONIC)
    cdef public Py_ssize_t received         # bytes of the body so far
    cdef public bint complete
    cdef public bint wants_continue         # the client waits for 100 Continue, which was not sent yet
    cdef public double started              # when it began, and ...
    cdef public double window_started       # ... its current window of measured progress, ...
    cdef public Py_ssize_t window_received  # ... and `received` at that time


cdef class SizedUpload(Upload):
    cdef readonly Body body                 # None until its first bytes have come

    @staticmethod
    cdef SizedUpload begin(RequestHead head, double now, int64_t arrived_ns)
    # Takes the next bytes, which are elsewhere, or were written to the body's room.
    cdef int append(self, BodyPool pool, Budget budget, const char* data, Py_ssize_t size) except -1
    cdef void written(self, Py_ssize_t size) noexcept
    cdef void _count(self) noexcept
