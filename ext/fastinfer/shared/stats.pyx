# The counters of one version of a model, as they are written: see stats.pxd.

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from fastinfer.shared.histogram cimport Histogram

from fastinfer.shared.histogram import DURATION_BOUNDS_NS, SIZE_BOUNDS, nbytes

CAUSES = ("client", "model", "timeout", "rejected", "cancelled")
DURATIONS = ("success", "queue", "compute_input", "compute_infer", "compute_output")

# The block: five histograms of durations, that of sizes, the causes' counts and sums, the lines by size of the batch,
# the answered rows, the date of the last inference, the overruns, the requests refused because the model is withdrawn.
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
NBYTES = LINES_AT + LINES_SIZE + 4 * sizeof(int64_t)


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

    # --- At the level of C -------------------------------------------------------------------------------------------

    cdef void count_success(self, int64_t total_ns, int64_t queue_ns, int64_t rows) noexcept:
        self.success.count_in(total_ns, 1)
        self.queue.count_in(queue_ns, 1)
        self._answered_rows[0] += rows

    cdef void count_failure(self, int cause, int64_t total_ns) noexcept:
        (<Histogram>self._failures[cause]).count_in(total_ns, 1)

    cdef void count_withdrawn(self) noexcept:
        self._withdrawn[0] += 1

    cdef void count_overrun(self) noexcept:
        self._overruns[0] += 1

    cdef void count_compute(self, int64_t requests, int64_t input_ns, int64_t infer_ns, int64_t output_ns) noexcept:
        self.compute_input.count_in(input_ns, requests)
        self.compute_infer.count_in(infer_ns, requests)
        self.compute_output.count_in(output_ns, requests)

    cdef void count_run(self, int64_t rows, bint useful, int64_t input_ns, int64_t infer_ns,
                        int64_t output_ns) noexcept:
        cdef int64_t* line
        cdef timespec now
        self.batch_size.count_in(rows, 1)
        if not useful:
            return
        line = self._lines + line_of(rows) * LINE_CELLS
        line[0] += 1
        line[1] += input_ns
        line[2] += infer_ns
        line[3] += output_ns
        clock_gettime(CLOCK_REALTIME, &now)     # a date for people; nothing is decided by it
        self._last_inference_ms[0] = <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000

    # --- For Python ---------------------------------------------------------------------------------------------------

    def record_success(self, int64_t total_ns, int64_t queue_ns, int64_t rows=1):
        self.count_success(total_ns, queue_ns, rows)

    def record_failure(self, cause, int64_t total_ns):
        self.count_failure(CAUSES.index(cause), total_ns)

    def record_batch(self, int64_t rows, int64_t answered, int64_t compute_input_ns, int64_t compute_infer_ns,
                     int64_t compute_output_ns):
        if answered > 0:
            self.count_compute(answered, compute_input_ns, compute_infer_ns, compute_output_ns)
        self.count_run(rows, answered > 0, compute_input_ns, compute_infer_ns, compute_output_ns)

    @property
    def answered_rows(self):
        return self._answered_rows[0]

    @property
    def last_inference_ms(self):
        return self._last_inference_ms[0]

    @property
    def overruns(self):
        return self._overruns[0]

    @property
    def withdrawn(self):
        return self._withdrawn[0]


def batch_size_of(Py_ssize_t line):
    return line if line < EXACT_SIZES else 1 << (line - EXACT_SIZES + 7)


# The line that counts batches of so many rows; the first one is never used.
cdef Py_ssize_t line_of(int64_t rows) noexcept:
    cdef Py_ssize_t line = EXACT_SIZES
    if rows < EXACT_SIZES:
        return rows if rows > 0 else 0
    while (<int64_t>EXACT_SIZES << (line - EXACT_SIZES)) < rows and line < EXACT_SIZES + LARGER_SIZES - 1:
        line += 1
    return line
