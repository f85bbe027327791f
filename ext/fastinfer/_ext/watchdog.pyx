# Ends a run on the event loop's thread that takes too long: see watchdog.pxd.

cimport cython
from libc.stdint cimport int64_t

from fastinfer._ext.ort_run cimport OrtRunOptions, create_run_options, release_run_options, terminate, unset_terminate


cdef enum:
    LEAST_BOUND_NS = 10_000_000     # what the loop's thread may stand still: half a frame, and far above a hiccup
    TIMES_THE_LIMIT = 10


cdef void end_run(void* options) noexcept nogil:
    terminate(<OrtRunOptions*>options)


@cython.final
cdef class Watchdog:
    def __cinit__(self, int64_t inline_run_us):
        self.bound_ns = max(LEAST_BOUND_NS, TIMES_THE_LIMIT * inline_run_us * 1000)
        self.options = create_run_options()
        self.watch = new Watch(self.bound_ns, end_run, self.options)

    def __dealloc__(self):
        del self.watch      # joins the thread
        if self.options != NULL:
            release_run_options(self.options)

    def start(self):
        cdef int failed = self.watch.start()
        if failed != 0:
            raise OSError(failed, "the thread that watches runs on the event loop's thread could not be started")

    def close(self):
        self.watch.close()

    cdef void begins(self, int64_t now_ns) noexcept:
        self.watch.begins(now_ns)

    cdef int ends(self) noexcept:
        cdef int ended = self.watch.ends()
        if ended != NOT_ENDED:
            unset_terminate(self.options)       # the next run has the same options
        return ended
