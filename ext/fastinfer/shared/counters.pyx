# Histograms, and the block of counters of each version of a model, in memory that the caller gives, so that other
# processes can read them at any time.
# Lives here: buckets, counts, sums, the layout of the block. Does not: clocks, displayed names (shared/statistics).
#
# The event loop's thread of one process writes; any thread of any process may read. Cells are aligned 64-bit integers
# that are stored whole, so a reader sees each counter as it was at some moment, though not all at the same moment. A
# histogram keeps its memory alive.

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uintptr_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

cdef extern from *:
    """
    #include <cstdint>
    // Relaxed and without a lock prefix, because there is one writer. A plain store could be split by the compiler.
    static inline int64_t fastinfer_read(const int64_t* cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }
    static inline void fastinfer_set(int64_t* cell, int64_t value) { __atomic_store_n(cell, value, __ATOMIC_RELAXED); }
    static inline void fastinfer_add(int64_t* cell, int64_t by) { fastinfer_set(cell, *cell + by); }
    """
    int64_t fastinfer_read(const int64_t* cell) noexcept nogil
    void fastinfer_set(int64_t* cell, int64_t value) noexcept nogil
    void fastinfer_add(int64_t* cell, int64_t by) noexcept nogil

cdef extern from "fastinfer/shared/shared_counters.h" namespace "fastinfer" nogil:
    void begin_change(int64_t* version) noexcept
    void end_change(int64_t* version) noexcept


# --- Histograms -------------------------------------------------------------------------------------------------------

DURATION_BOUNDS_NS = tuple([step * 10 ** decade // 10 for decade in range(4, 11) for step in (10, 25, 50)]) + (
    60_000_000_000,)
SIZE_BOUNDS = tuple([1 << power for power in range(13)])


def nbytes(bounds):
    return (len(bounds) + 2) * sizeof(int64_t)


cdef char* borrow(object memory, Py_buffer* held, Py_ssize_t* size) except NULL:
    cdef Py_buffer view
    cdef char* at
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    at = <char*>view.buf
    size[0] = view.len
    try:
        PyObject_GetBuffer(memory.obj if isinstance(memory, memoryview) else memory, held, PyBUF_WRITABLE)
    finally:
        PyBuffer_Release(&view)
    return at


# The collector would drop the buffer's owner without releasing the buffer.
@cython.no_gc_clear
@cython.final
cdef class Histogram:
    def __cinit__(self, bounds, memory=None, Py_ssize_t offset=0):
        self.bounds = tuple(bounds)
        self.bound_count = <int>len(self.bounds)
        if self.bound_count > MAX_BOUNDS:
            raise ValueError(f"{self.bound_count} bounds, at most {MAX_BOUNDS} are supported")
        cdef int i
        for i in range(self.bound_count):
            self.limits[i] = self.bounds[i]
            if i > 0 and self.limits[i] <= self.limits[i - 1]:
                raise ValueError("the bounds of a histogram must rise")
        cdef Py_ssize_t size = nbytes(self.bounds)
        cdef Py_ssize_t available = 0
        cdef char* at = borrow(bytearray(size) if memory is None else memory, &self.view, &available)
        if offset < 0 or size > available - offset:
            raise ValueError(f"a histogram of {size} bytes does not fit {available} bytes at {offset}")
        if (<uintptr_t>at + <uintptr_t>offset) % sizeof(int64_t) != 0:
            raise ValueError("the memory of a histogram must be aligned to 8 bytes")
        self.cells = <int64_t*>(at + offset)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    cdef void count_in(self, int64_t value, int64_t times) noexcept nogil:
        cdef int low = 0
        cdef int high = self.bound_count
        cdef int middle
        if value < 0:
            value = 0
        while low < high:       # the first bucket whose bound is not below the value; the last one has no bound
            middle = (low + high) >> 1
            if value <= self.limits[middle]:
                high = middle
            else:
                low = middle + 1
        fastinfer_add(&self.cells[0], value * times)
        fastinfer_add(&self.cells[1 + low], times)

    def add(self, int64_t value, int64_t times=1):
        self.count_in(value, times)

    @property
    def sum(self):
        return fastinfer_read(&self.cells[0])

    @property
    def count(self):
        cdef int64_t total = 0
        cdef int i
        for i in range(self.bound_count + 1):
            total += fastinfer_read(&self.cells[1 + i])
        return total

    def counts(self):
        cdef int i
        return [fastinfer_read(&self.cells[1 + i]) for i in range(self.bound_count + 1)]


# --- The counters of one version of a model ---------------------------------------------------------------------------

CAUSES = ("client", "model", "timeout", "rejected", "cancelled")
DURATIONS = ("success", "queue", "compute_input", "compute_infer", "compute_output")

# The block: five histograms of durations, that of sizes, the causes' counts and sums, the lines by size of the batch,
# the answered rows, the date of the last inference, the overruns, the requests refused because the model is withdrawn,
# and the version, which is odd while counters change that belong together.
cdef dict BOUNDS = {name: DURATION_BOUNDS_NS for name in DURATIONS} | {"batch_size": SIZE_BOUNDS} | {
    cause: () for cause in CAUSES}
HISTOGRAMS = {}

cdef Py_ssize_t LINES_AT = 0
for name in BOUNDS:
    HISTOGRAMS[name] = (LINES_AT // sizeof(int64_t), BOUNDS[name])
    LINES_AT += nbytes(BOUNDS[name])
cdef Py_ssize_t LINES_SIZE = (EXACT_SIZES + LARGER_SIZES) * LINE_CELLS * sizeof(int64_t)
LINE_CELL = LINES_AT // sizeof(int64_t)
LINES = EXACT_SIZES + LARGER_SIZES
CELLS_OF_LINE = LINE_CELLS
ANSWERED_ROWS_CELL = (LINES_AT + LINES_SIZE) // sizeof(int64_t)
LAST_INFERENCE_CELL = ANSWERED_ROWS_CELL + 1
OVERRUNS_CELL = LAST_INFERENCE_CELL + 1
WITHDRAWN_CELL = OVERRUNS_CELL + 1
VERSION_CELL = WITHDRAWN_CELL + 1
NBYTES = LINES_AT + LINES_SIZE + 5 * sizeof(int64_t)


cdef class Counters:
    def __cinit__(self, memory=None):
        if memory is None:
            memory = bytearray(NBYTES)
        block = memoryview(memory).cast("B")[:NBYTES]
        if block.nbytes < NBYTES:
            raise ValueError(f"a block of counters of {NBYTES} bytes does not fit {block.nbytes} bytes")
        self.block = block
        # The histograms borrow from the memory itself: a view with borrowers cannot be collected with a cycle.
        made = {}
        for name, (cell, bounds) in HISTOGRAMS.items():
            made[name] = Histogram(bounds, memory, cell * sizeof(int64_t))
        self.success, self.queue, self.compute_input, self.compute_infer, self.compute_output = [
            made[name] for name in DURATIONS]
        self.batch_size = made["batch_size"]
        self.failures = {cause: made[cause] for cause in CAUSES}
        self._failures = tuple(self.failures.values())
        self._lines = <int64_t*>(<char*>self.success.cells + LINES_AT)   # the first histogram begins the block
        self._answered_rows = <int64_t*>(<char*>self._lines + LINES_SIZE)
        self._last_inference_ms = self._answered_rows + 1
        self._overruns = self._last_inference_ms + 1
        self._withdrawn = self._overruns + 1
        self._version = self._withdrawn + 1

    # --- At the level of C -------------------------------------------------------------------------------------------

    cdef void count_success(self, int64_t rows, int64_t total_ns, int64_t queue_ns, int64_t input_ns, int64_t infer_ns,
                            int64_t output_ns) noexcept:
        begin_change(self._version)
        self.success.count_in(total_ns, 1)
        self.queue.count_in(queue_ns, 1)
        self.compute_input.count_in(input_ns, 1)
        self.compute_infer.count_in(infer_ns, 1)
        self.compute_output.count_in(output_ns, 1)
        fastinfer_add(self._answered_rows, rows)
        end_change(self._version)

    cdef void count_failure(self, int cause, int64_t total_ns) noexcept:
        begin_change(self._version)
        (<Histogram>self._failures[cause]).count_in(total_ns, 1)
        end_change(self._version)

    cdef void count_withdrawn(self) noexcept:
        fastinfer_add(self._withdrawn, 1)

    cdef void count_overrun(self) noexcept:
        fastinfer_add(self._overruns, 1)

    cdef void count_run(self, int64_t rows, bint useful, int64_t input_ns, int64_t infer_ns,
                        int64_t output_ns) noexcept:
        cdef int64_t* line = self._lines + line_of(rows) * LINE_CELLS
        cdef timespec now
        begin_change(self._version)
        self.batch_size.count_in(rows, 1)
        if useful:
            fastinfer_add(&line[0], 1)
            fastinfer_add(&line[1], input_ns)
            fastinfer_add(&line[2], infer_ns)
            fastinfer_add(&line[3], output_ns)
            clock_gettime(CLOCK_REALTIME, &now)     # only displayed; no decision depends on it
            fastinfer_set(self._last_inference_ms, <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000)
        end_change(self._version)

    # --- For Python ---------------------------------------------------------------------------------------------------

    def record_success(self, int64_t total_ns, int64_t queue_ns, int64_t rows=1):
        self.success.count_in(total_ns, 1)
        self.queue.count_in(queue_ns, 1)
        fastinfer_add(self._answered_rows, rows)

    def record_failure(self, cause, int64_t total_ns):
        self.count_failure(CAUSES.index(cause), total_ns)

    def record_batch(self, int64_t rows, int64_t answered, int64_t compute_input_ns, int64_t compute_infer_ns,
                     int64_t compute_output_ns):
        if answered > 0:
            self.compute_input.count_in(compute_input_ns, answered)
            self.compute_infer.count_in(compute_infer_ns, answered)
            self.compute_output.count_in(compute_output_ns, answered)
        self.count_run(rows, answered > 0, compute_input_ns, compute_infer_ns, compute_output_ns)

    @property
    def answered_rows(self):
        return fastinfer_read(self._answered_rows)

    @property
    def last_inference_ms(self):
        return fastinfer_read(self._last_inference_ms)

    @property
    def overruns(self):
        return fastinfer_read(self._overruns)

    @property
    def withdrawn(self):
        return fastinfer_read(self._withdrawn)


def batch_size_of(Py_ssize_t line):
    return line if line < EXACT_SIZES else 1 << (line - EXACT_SIZES + 7)


# The line of batches of this many rows; line 0 is never used.
cdef Py_ssize_t line_of(int64_t rows) noexcept:
    cdef Py_ssize_t line = EXACT_SIZES
    if rows < EXACT_SIZES:
        return rows if rows > 0 else 0
    while (<int64_t>EXACT_SIZES << (line - EXACT_SIZES)) < rows and line < EXACT_SIZES + LARGER_SIZES - 1:
        line += 1
    return line
