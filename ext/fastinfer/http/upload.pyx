# Request bodies that are still arriving, and are not wholly in the connections' read buffer. Lives here: their memory,
# and their progress. Does not: the socket, clocks.
#
# The loop makes and fills bodies; any thread with the GIL may drop the last view, which returns the memory to its pool.
# Memory grows with the bytes that really come, so that an announced length costs nothing; only a block that the pool
# already holds is used whole at once.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memmove

from fastinfer.base.budget cimport Budget

from fastinfer.base import limits as constants

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* at, size_t size, int protection, int flags, int file, Py_ssize_t offset)
    void* mremap(void* at, size_t size, size_t new_size, int flags)
    int munmap(void* at, size_t size)
    void* MAP_FAILED
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MREMAP_MAYMOVE

cdef enum:
    PAGE = 4096
    ALIGNMENT = 64      # as that of tensors in memory of their own
    # Memory is reserved for this many times the bytes that came. It grows by moving pages, not bytes, and untouched
    # pages do not exist yet.
    GROWTH = 8
    # A kept block may be this many times larger than the requested size.
    MAX_WASTE = 2

# While memory is short, a body of more bytes than this must make progress sooner, and at this rate.
cdef Py_ssize_t HOLDS_MEMORY = 64 * constants.KIB
cdef double PRESSED_IDLE_S = constants.PRESSED_IDLE_S
cdef double PRESSED_BYTES_PER_S = constants.PRESSED_BYTES_PER_S

cdef bytes JSON_SIZE = b"inference-header-content-length"


# --- Memory ----------------------------------------------------------------------------------------------------------

@cython.final
cdef class BodyPool:
    def __init__(self, Py_ssize_t max_bytes):
        self.max_bytes = max_bytes

    def __dealloc__(self):
        for i in range(self._count):
            munmap(self._kept[i].at, self._kept[i].size)

    cdef Block take(self, Py_ssize_t size) noexcept:
        # The most recently used block that fits, or none.
        cdef Block block
        cdef int i
        for i in range(self._count - 1, -1, -1):
            block = self._kept[i]
            if size <= block.size <= MAX_WASTE * size:
                self._remove(i)
                return block
        block.at = NULL
        block.size = 0
        return block

    cdef void give(self, Block block) noexcept:
        # Keeps a block instead of the least recently used ones.
        if block.size > self.max_bytes:
            munmap(block.at, block.size)
            return
        while self._count == MAX_KEPT or self.kept_bytes + block.size > self.max_bytes:
            munmap(self._kept[0].at, self._kept[0].size)
            self._remove(0)
        self._kept[self._count] = block
        self._count += 1
        self.kept_bytes += block.size

    def age(self):
        # Frees those that were not used since the last call: they have been the first ones all the time.
        cdef int unused = self._least
        while unused > 0:
            munmap(self._kept[0].at, self._kept[0].size)
            self._remove(0)
            unused -= 1
        self._least = self._count

    cdef void _remove(self, int index) noexcept:
        self.kept_bytes -= self._kept[index].size
        self._count -= 1
        self._least = min(self._least, self._count)
        memmove(&self._kept[index], &self._kept[index + 1], (self._count - index) * sizeof(Block))


@cython.no_gc
@cython.final
cdef class Body:
    def __dealloc__(self):
        if self._block.at != NULL:
            self._pool.give(self._block)
        if self._budget is not None:
            self._budget.count.release(self.received)

    @staticmethod
    cdef Body begin(BodyPool pool, Budget budget, Py_ssize_t size, Py_ssize_t aligned_at):
        cdef Body body = Body.__new__(Body)
        body._pool = pool
        body._budget = budget
        body.size = size
        body._before = -aligned_at & (ALIGNMENT - 1)
        return body

    cdef int append(self, const char* data, Py_ssize_t size) except -1:
        if not self._budget.count.reserve(size):
            raise MemoryError("the budget for requests is spent")
        try:
            self._reserve(self.received + size)
        except MemoryError:
            self._budget.count.release(size)
            raise
        memcpy(self._block.at + self._before + self.received, data, size)
        self.received += size
        return 0

    cdef void written(self, Py_ssize_t size) noexcept:
        self._budget.count.add(size)
        self.received += size

    def take(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len > self.size - self.received:
                raise ValueError("a body of more bytes than it may have")
            self.append(<const char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def end(self):
        self.size = self.received
        if self._block.at == NULL:      # an empty body needs an address for its views, too
            self._reserve(0)

    cdef bint has_room(self) noexcept:
        try:
            self._reserve(self.received + 1)
        except MemoryError:
            return False
        return True

    cdef int _reserve(self, Py_ssize_t received) except -1:
        # Makes room for this many bytes, and more. There is no view at this time: the transport holds one only during a
        # read.
        cdef Py_ssize_t whole = whole_pages(self._before + self.size)
        cdef Py_ssize_t size = min(whole, whole_pages(self._before + GROWTH * received))
        cdef void* at
        if self._block.at == NULL:
            self._block = self._pool.take(whole)
        if self._block.at != NULL and self._before + received <= self._block.size:
            return 0
        size = max(size, PAGE)
        if self._block.at == NULL:
            at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        else:
            at = mremap(self._block.at, self._block.size, size, MREMAP_MAYMOVE)
        if at == MAP_FAILED:
            raise MemoryError(f"no memory for a body of {self.size} bytes")
        self._block.at = <char*>at
        self._block.size = size
        return 0

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef Py_ssize_t room
        if self.received == self.size:
            PyBuffer_FillInfo(view, self, self._block.at + self._before, self.size, 1, flags)
            return
        self._reserve(self.received + 1)
        room = min(self.size, self._block.size - self._before) - self.received
        PyBuffer_FillInfo(view, self, self._block.at + self._before + self.received, room, 0, flags)


cdef Py_ssize_t whole_pages(Py_ssize_t size) noexcept:
    return (size + PAGE - 1) // PAGE * PAGE


def new_body(BodyPool pool not None, Budget budget not None, Py_ssize_t most):
    return Body.begin(pool, budget, most, 0)


# --- Progress --------------------------------------------------------------------------------------------------------

cdef class Upload:
    def __init__(self, RequestHead head not None, double now, int64_t arrived_ns):
        self.head = head
        self.arrived_ns = arrived_ns
        self.started = now
        self.window_started = now

    def overdue(self, double now, limits, bint short_of_memory):
        cdef double idle_s = limits.body_idle_timeout_s
        cdef double least = limits.body_min_bytes_per_s
        cdef double elapsed = now - self.window_started
        cdef Py_ssize_t received
        if now - self.started > limits.upload_timeout_s:
            return "the body took too long"
        if short_of_memory and self.received > HOLDS_MEMORY and PRESSED_IDLE_S < idle_s:
            idle_s = PRESSED_IDLE_S
            least = max(least, PRESSED_BYTES_PER_S)
        if elapsed <= idle_s:
            return None
        received = self.received - self.window_received
        self.window_started = now
        self.window_received = self.received
        return "the body came too slowly" if received < least * elapsed else None


@cython.final
cdef class SizedUpload(Upload):
    @staticmethod
    cdef SizedUpload begin(RequestHead head, double now, int64_t arrived_ns):
        cdef SizedUpload upload = SizedUpload.__new__(SizedUpload)
        upload.head = head
        upload.arrived_ns = arrived_ns
        upload.started = now
        upload.window_started = now
        return upload

    cdef int append(self, BodyPool pool, Budget budget, const char* data, Py_ssize_t size) except -1:
        if self.body is None:
            self.body = Body.begin(pool, budget, self.head.body_size, json_size(self.head))
        self.body.append(data, size)
        self._count()
        return 0

    cdef void written(self, Py_ssize_t size) noexcept:
        self.body.written(size)
        self._count()

    cdef void _count(self) noexcept:
        self.received = self.body.received
        self.complete = self.received == self.body.size


# Where binary tensors begin in the body, or 0; the decoder validates the field.
cdef Py_ssize_t json_size(RequestHead head) except -1:
    value = head.field(JSON_SIZE)
    return int(value) if value is not None and len(value) <= 18 and value.isdigit() else 0
