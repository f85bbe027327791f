from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget
from fastinfer.http.exchange cimport Head

cdef enum:
    MAX_KEPT = 64       # blocks

cdef struct Block:
    # Whole pages of mmap; at is NULL where there is none.
    char* at
    Py_ssize_t size


cdef class BodyPool:
    # Blocks between two bodies: their pages exist already, and are warm in the caches. The latest is the last.
    cdef readonly Py_ssize_t max_bytes
    cdef readonly Py_ssize_t kept_bytes
    cdef Block[MAX_KEPT] _kept
    cdef int _count
    cdef int _least             # what `_count` has been at least since `age` was called

    cdef Block take(self, Py_ssize_t size) noexcept
    cdef void give(self, Block block) noexcept
    cdef void _remove(self, int index) noexcept


cdef class Body:
    # One body in memory of its own. Through the buffer protocol it is, until it is complete, the room for the next
    # bytes, writable; then the body, read-only. Its memory is given back with its last reference, and every view holds
    # one: no view ever shows another body.
    cdef BodyPool _pool
    cdef Budget _budget             # in which the bytes that came count
    cdef Block _block
    cdef Py_ssize_t _before         # unused bytes before the body, for the alignment of what lies in it
    cdef readonly Py_ssize_t size   # as announced, or the most that there may be, until `end`
    cdef readonly Py_ssize_t received

    # `aligned_at`: the byte of the body that shall be aligned as tensors are.
    @staticmethod
    cdef Body begin(BodyPool pool, Budget budget, Py_ssize_t size, Py_ssize_t aligned_at)
    # Copies the next bytes to the room; no more than there are to come. MemoryError where the budget or the system has
    # none for them.
    cdef int append(self, const char* data, Py_ssize_t size) except -1
    # Whether there is memory for the next bytes; looking for it here spares the transport an exception.
    cdef bint has_room(self) noexcept
    # So many bytes were written to the room: they are there, and count whatever the limit.
    cdef void written(self, Py_ssize_t size) noexcept
    cdef int _reserve(self, Py_ssize_t received) except -1


cdef class Upload:
    # What bodies of announced length and chunked ones (http/chunked.py) have: how they get on.
    cdef readonly Head head
    cdef public int64_t arrived_ns          # when the first byte of its head came (CLOCK_MONOTONIC)
    cdef public Py_ssize_t received         # bytes of the body so far
    cdef public bint complete
    cdef public bint wants_continue         # the client waits for 100 Continue, which was not sent yet
    cdef public double started              # when it began, and ...
    cdef public double window_started       # ... its current window of measured progress, ...
    cdef public Py_ssize_t window_received  # ... and `received` at that time


cdef class SizedUpload(Upload):
    cdef readonly Body body                 # None until its first bytes are here

    @staticmethod
    cdef SizedUpload begin(Head head, double now, int64_t arrived_ns)
    # The next bytes are elsewhere, or were written to the body's room.
    cdef int append(self, BodyPool pool, Budget budget, const char* data, Py_ssize_t size) except -1
    cdef void written(self, Py_ssize_t size) noexcept
    cdef void _count(self) noexcept
