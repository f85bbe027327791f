from libc.stdint cimport int64_t, uint64_t

from fastinfer.native.job cimport Clock

cdef enum:
    SIZES = 64              # sizes of input, in powers of two
    OVERRUN_FACTOR = 10     # times an estimate: a longer run is an overrun
    PROBATION = 1024        # runs
    FEWEST_PLACES = 16      # of the table of shapes
    MOST_PLACES = 4096

# The estimate of a shape that was measured.
cdef struct Estimate:
    uint64_t shape          # 0: the place is free
    double ns               # smoothed
    bint used               # since the last sweep of the table

# The resources that a thread has used so far.
cdef struct Usage:
    int64_t cpu_ns
    int64_t waits


# The size class of this many bytes: powers of two.
cdef int size_class(Py_ssize_t nbytes) noexcept


cdef class ShapeCosts:
    cdef readonly int64_t limit_ns      # shorter runs belong on the loop's thread
    cdef readonly Clock clock
    cdef Estimate* table                # open addressing
    cdef Py_ssize_t places
    cdef readonly Py_ssize_t known      # shapes
    cdef readonly int64_t probation     # runs whose processor time is still to be measured
    cdef readonly int64_t suspended_until_ns    # 0: it is not
    cdef int64_t suspended_at_ns        # when the last suspension began,
    cdef int64_t suspension_ns          # ... and how long it was; 0: there was none
    cdef Usage before                   # the run in progress, on probation
    # How long batches of large requests took, by their size: together in one run, and one after the other.
    cdef double[SIZES] together
    cdef double[SIZES] apart

    # The estimate of a shape whose runs belong on the loop's thread; NULL: they do not. Valid until the next observe.
    cdef Estimate* find_short(self, uint64_t shape) noexcept
    # Called around a run on the loop's thread. `well`: it gave outputs. `cut`: the watchdog terminated it, `at_work`:
    # while it used the processor. `ends` returns whether it was an overrun.
    cdef void begins(self) noexcept
    cdef bint ends(self, Estimate* estimate, int64_t ns, bint well, bint cut, bint at_work) noexcept
    # A run on a native thread has ended well.
    cdef int observe(self, uint64_t shape, int64_t ns) except -1

    cdef bint are_quicker_apart(self, Py_ssize_t nbytes) noexcept
    cdef void observe_size(self, double* times, Py_ssize_t nbytes, int64_t ns) noexcept

    cdef Estimate* find(self, uint64_t shape) noexcept
    cdef int make_room(self) except -1
    cdef int move_to(self, Py_ssize_t places, bint all_of_them) except -1
    cdef bint was_at_work(self, int64_t ns) noexcept
    cdef void suspend(self) noexcept


# A shape that is one number of rows.
cdef uint64_t shape_of_rows(int64_t rows) noexcept
# A shape with one more number.
cdef uint64_t shape_with(uint64_t shape, uint64_t number) noexcept
