from libc.stdint cimport int64_t

from fastinfer.backends.onnx.ort_run cimport OrtRunOptions

cdef extern from "fastinfer/native/watch.h" namespace "fastinfer" nogil:
    enum:
        NOT_ENDED "fastinfer::Watch::kNotEnded"
        ENDED_WAITING "fastinfer::Watch::kEnded"
        ENDED_AT_WORK "fastinfer::Watch::kEndedAtWork"

    cdef cppclass Watch:
        Watch(int64_t bound_ns, void (*end)(void*) noexcept nogil, void* what)
        int start()
        void close()
        void begins(int64_t now_ns)
        int ends()


cdef class Watchdog:
    cdef Watch* watch               # NULL before it is started, as is the next one
    cdef OrtRunOptions* options     # of every run that is watched
    cdef readonly int64_t bound_ns
    cdef bint watching

    # Whether it watches; the first call starts it. False: its thread could not be started.
    cdef bint is_watching(self) noexcept
    # Called on the loop's thread, if it watches, around a run with `options`. ends() returns whether the run was
    # terminated: ENDED_AT_WORK if it used the processor, ENDED_WAITING if it did not, or NOT_ENDED.
    cdef void begins(self, int64_t now_ns) noexcept
    cdef int ends(self) noexcept
