# Terminates a run on the event loop's thread that takes too long. Lives here: the watch over one thread
# (native/watch.h), and the run options through which it terminates a run. Does not: the choice of runs for that thread
# (cost), the retry of a terminated run (runner).
#
# Loop's thread only, beside the watching thread of native/watch.h. A Watchdog owns both the watch and the run options.
# ONNX Runtime checks the terminate flag between two operators. One object serves all models of a process, since its
# loop runs one batch at a time: they share the run options.

cimport cython
from libc.stdint cimport int64_t

from fastinfer.backends.onnx.ort_run cimport (
    OrtRunOptions, create_run_options, release_run_options, terminate, unset_terminate,
)

from fastinfer.backends.onnx import ort

cdef enum:
    LEAST_BOUND_NS = 10_000_000     # a delay of the loop that clients do not notice; few machines preempt for longer
    TIMES_THE_LIMIT = 10            # a lower bound would terminate runs whose length was expected


cdef void terminate_run(void* options) noexcept nogil:
    terminate(<OrtRunOptions*>options)


@cython.final
cdef class Watchdog:
    def __cinit__(self, int64_t inline_run_us):
        self.bound_ns = max(LEAST_BOUND_NS, TIMES_THE_LIMIT * inline_run_us * 1000)

    def __dealloc__(self):
        del self.watch      # joins the thread
        if self.options != NULL:
            release_run_options(self.options)

    def start(self):
        cdef int failed
        if self.watch == NULL:
            ort.version()       # loads the runtime's library before its options
            self.options = create_run_options(NULL)
            self.watch = new Watch(self.bound_ns, terminate_run, self.options)
        failed = self.watch.start()
        if failed != 0:
            raise OSError(failed, "the thread that watches runs on the event loop's thread could not be started")
        self.watching = True

    cdef bint is_watching(self) noexcept:
        if not self.watching:       # most models never run on the loop's thread
            try:
                self.start()
            except Exception:
                pass
        return self.watching

    def close(self):
        self.watching = False
        if self.watch != NULL:
            self.watch.close()

    cdef void begins(self, int64_t now_ns) noexcept:
        self.watch.begins(now_ns)

    cdef int ends(self) noexcept:
        cdef int ended = self.watch.ends()
        if ended != NOT_ENDED:
            unset_terminate(self.options)       # the next run has the same options
        return ended
