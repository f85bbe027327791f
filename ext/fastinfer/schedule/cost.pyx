# What one model's runs cost, by the shapes of their inputs: whether a run belongs on the event loop's thread.
# Lives here: estimates, and the suspension of a model whose runs take longer than estimated. Does not: runs (runner),
# terminating one (watchdog). Loop's thread only; a model's runner owns its costs.
#
# A shape is a 64-bit hash of all that the work may depend on: rows, dimensions, the size of texts. Only measured shapes
# are predicted: equal bytes may cost a hundred times as much in another shape, and twice the size eight times
# as much, so a shape that was never run goes to a native thread once, where it is measured.
#
# An estimate falls quickly and rises slowly, and one run counts for at most OVERRUN_FACTOR times the estimate, so a run
# that was preempted hardly moves it; a shape above the limit runs, and is measured, on native threads until it is
# below.
#
# A run that takes more than OVERRUN_FACTOR times its estimate, and longer than the limit, is an overrun, because of the
# model or because the thread was preempted. Its processor time shows which, but reading it before each run would cost a
# system call. So the first overrun puts the model on probation: its next PROBATION runs are measured with processor
# time and waits. An overrun then that computed or waited suspends the model, as does a run that the watchdog terminated
# while it computed: all its runs go to native threads for a time that doubles with each suspension. A preempted run has
# no consequence.

cimport cython
from libc.math cimport INFINITY, fmax, fmin
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from fastinfer.native.job cimport Clock

cdef extern from "fastinfer/schedule/fingerprint.h" namespace "fastinfer" nogil:
    uint64_t hash_number(uint64_t seed, uint64_t number)

cdef extern from "fastinfer/native/thread_usage.h" namespace "fastinfer" nogil:
    void thread_usage(int64_t* cpu_ns, int64_t* waits)

cdef double FALL = 1.0 / 2      # weight of a run that was shorter than estimated
cdef double RISE = 1.0 / 8      # ... and of one that was longer; TCP's choice for round-trip times
cdef int64_t SUSPENSION_NS = 10_000_000_000       # the first one
cdef int64_t LONGEST_SUSPENSION_NS = 86_400_000_000_000
cdef int64_t FORGIVEN_AFTER = 10                        # this many times a suspension without another one


cdef uint64_t shape_of_rows(int64_t rows) noexcept:
    return shape_with(0, <uint64_t>rows)


cdef uint64_t shape_with(uint64_t shape, uint64_t number) noexcept:
    return hash_number(shape, number) | 1       # 0 stands for a free place


cdef int size_class(Py_ssize_t nbytes) noexcept:
    cdef int bits = 0
    while nbytes > 0:
        nbytes >>= 1
        bits += 1
    return bits


@cython.final
cdef class ShapeCosts:
    def __cinit__(self, int64_t limit_ns, Clock clock=None):
        cdef int size
        self.limit_ns = limit_ns
        self.clock = clock if clock is not None else Clock()
        for size in range(SIZES):
            self.together[size] = self.apart[size] = -1

    def __dealloc__(self):
        free(self.table)

    # --- Estimates ----------------------------------------------------------------------------------------------------

    cdef Estimate* find(self, uint64_t shape) noexcept:
        cdef Py_ssize_t mask = self.places - 1
        cdef Py_ssize_t place
        if mask < 0:
            return NULL
        place = <Py_ssize_t>(shape >> 1) & mask
        while self.table[place].shape != 0:
            if self.table[place].shape == shape:
                return &self.table[place]
            place = (place + 1) & mask
        return NULL

    cdef int observe(self, uint64_t shape, int64_t ns) except -1:
        cdef Estimate* estimate = self.find(shape)
        cdef Py_ssize_t place
        if estimate != NULL:
            learn(estimate, ns)
            return 0
        if 2 * (self.known + 1) > self.places:
            self.make_room()
        place = <Py_ssize_t>(shape >> 1) & (self.places - 1)
        while self.table[place].shape != 0:
            place = (place + 1) & (self.places - 1)
        self.table[place] = Estimate(shape, <double>ns, True)
        self.known += 1
        return 0

    cdef int make_room(self) except -1:
        # Doubles the table. At its maximum, drops the shapes that did not run since the last sweep, or all if that
        # frees little.
        if self.places == 0:
            return self.move_to(FEWEST_PLACES, True)
        if self.places < MOST_PLACES:
            return self.move_to(2 * self.places, True)
        self.move_to(self.places, False)
        if 4 * self.known > self.places:
            self.known = 0
            free(self.table)
            self.table = NULL
            self.places = 0
            return self.move_to(MOST_PLACES, True)
        return 0

    cdef int move_to(self, Py_ssize_t places, bint all_of_them) except -1:
        cdef Estimate* made = <Estimate*>calloc(places, sizeof(Estimate))
        cdef Estimate* old
        cdef Py_ssize_t place, i
        if made == NULL:
            raise MemoryError()
        self.known = 0
        for i in range(self.places):
            old = &self.table[i]
            if old.shape == 0 or not (old.used or all_of_them):
                continue
            place = <Py_ssize_t>(old.shape >> 1) & (places - 1)
            while made[place].shape != 0:
                place = (place + 1) & (places - 1)
            made[place] = Estimate(old.shape, old.ns, old.used and all_of_them)
            self.known += 1
        free(self.table)
        self.table = made
        self.places = places
        return 0

    # --- Runs on the loop's thread ------------------------------------------------------------------------------------

    cdef Estimate* find_short(self, uint64_t shape) noexcept:
        cdef Estimate* estimate
        if self.suspended_until_ns != 0:
            if self.clock.now() < self.suspended_until_ns:
                return NULL
            self.suspended_until_ns = 0
        estimate = self.find(shape)
        return estimate if estimate != NULL and estimate.ns < self.limit_ns else NULL

    cdef void begins(self) noexcept:
        if self.probation > 0:
            thread_usage(&self.before.cpu_ns, &self.before.waits)

    cdef bint ends(self, Estimate* estimate, int64_t ns, bint well, bint cut, bint at_work) noexcept:
        cdef double estimate_ns = estimate.ns
        cdef int64_t limit_ns = self.limit_ns
        if well:
            learn(estimate, ns)
        elif cut:
            estimate.ns = <double>ns            # its next runs are on native threads, until they are short again
        if self.probation > 0:
            at_work = self.was_at_work(ns) or at_work
        if ns <= limit_ns or <double>ns <= OVERRUN_FACTOR * estimate_ns:      # the common case
            return False
        if at_work:
            self.suspend()
        self.probation = PROBATION
        return True

    cdef bint was_at_work(self, int64_t ns) noexcept:
        # Counts a run on probation; returns whether it computed most of its time, or waited for others.
        cdef Usage after
        self.probation -= 1
        thread_usage(&after.cpu_ns, &after.waits)
        return 2 * (after.cpu_ns - self.before.cpu_ns) >= ns or after.waits > self.before.waits

    cdef void suspend(self) noexcept:
        cdef int64_t now = self.clock.now()
        if self.suspension_ns == 0 or now - self.suspended_at_ns > FORGIVEN_AFTER * self.suspension_ns:
            self.suspension_ns = SUSPENSION_NS
        else:
            self.suspension_ns = min(2 * self.suspension_ns, LONGEST_SUSPENSION_NS)
        self.suspended_at_ns = now
        self.suspended_until_ns = now + self.suspension_ns

    # --- Batches of large requests ------------------------------------------------------------------------------------

    cdef bint are_quicker_apart(self, Py_ssize_t nbytes) noexcept:
        cdef int size = size_class(nbytes)
        return self.apart[size] < self.together[size]       # a way that was not measured (-1) seems quickest

    cdef void observe_size(self, double* times, Py_ssize_t nbytes, int64_t ns) noexcept:
        cdef double* known = &times[size_class(nbytes)]
        known[0] = <double>ns if known[0] < 0 else known[0] + (<double>ns - known[0]) * RISE

    # --- For Python ---------------------------------------------------------------------------------------------------

    def measured(self, uint64_t shape, int64_t ns):
        self.observe(shape, ns)

    def ran(self, uint64_t shape, int64_t ns, *, bint well=True, bint cut=False, bint at_work=False, int64_t cpu_ns=0,
            int64_t waits=0):
        cdef Estimate* estimate = self.find(shape)
        if estimate == NULL:
            raise KeyError(shape)
        thread_usage(&self.before.cpu_ns, &self.before.waits)
        self.before.cpu_ns -= cpu_ns
        self.before.waits -= waits
        return self.ends(estimate, ns, well, cut, at_work)

    def is_short(self, uint64_t shape):
        return self.find_short(shape) != NULL

    def predict_ns(self, uint64_t shape):
        cdef Estimate* estimate = self.find(shape)
        return estimate.ns if estimate != NULL else INFINITY

    def times_of(self, Py_ssize_t nbytes):
        cdef int size = size_class(nbytes)
        return tuple([ns if ns >= 0 else None for ns in (self.together[size], self.apart[size])])


cdef void learn(Estimate* estimate, int64_t ns) noexcept:
    cdef double known = fmax(estimate.ns, 1)
    cdef double off = fmin(<double>ns, OVERRUN_FACTOR * known) - known
    estimate.ns = known + off * (FALL if off < 0 else RISE)
    estimate.used = True


def shape_of(*numbers):
    cdef uint64_t shape = 0
    for number in numbers:
        shape = shape_with(shape, <uint64_t>number)
    return shape
