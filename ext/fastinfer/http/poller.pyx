# Busy polling: under load the loop polls for the next request instead of sleeping, because waking takes longer than a
# small request and leaves the caches cold. It polls for a short window after each answer, as long as most windows find
# a request. It never polls while native threads have work, and it sleeps after every millisecond of polling, so that
# other Python threads get the GIL. Does not live here: the sockets.
#
# Loop's thread only.

cimport cython

from fastinfer.native.job cimport monotonic_ns

cdef enum:
    MOST = 16               # the upper limit of `_found`
    ENOUGH = 8              # from here on it pays to poll
    MISS = 4                # the weight of a late request or an empty window; a request in time weighs 1
    BREAK_NS = 1_000_000    # after polling for this long, the loop sleeps once


@cython.final
cdef class Poller:
    def __init__(self, loop not None, busy not None, double window_us):
        self._loop = loop
        self._busy = busy
        self._on_turn = self.on_turn
        self.window_ns = <int64_t>(window_us * 1e3)

    @property
    def polling(self):
        return self._polling

    cpdef int on_bytes(self, int64_t now) except -1:
        cdef int64_t waited
        if self.window_ns > 0:
            waited = now - self._answered_ns
            # A loop that sleeps wakes late, so the same client seems slower.
            self._count(waited < self.window_ns * (1 if self._polling else 2))
        return 0

    cpdef int on_answer(self) except -1:
        if self.window_ns > 0:
            self._answered_ns = monotonic_ns()
            if not self._polling and self._found >= ENOUGH and len(self._busy) == 0:
                self._polling = True
                self._since_ns = self._answered_ns
                self._loop.call_soon(self._on_turn)
        return 0

    def on_turn(self):
        # The loop has turned once without sleeping.
        cdef int64_t now = monotonic_ns()
        if now - self._answered_ns > self.window_ns:
            self._polling = False
            self._count(False)
        elif now - self._since_ns > BREAK_NS or len(self._busy) > 0:
            self._polling = False
        else:
            self._loop.call_soon(self._on_turn)

    cdef void _count(self, bint found) noexcept:
        self._found = min(self._found + 1, MOST) if found else max(self._found - MISS, 0)
