cdef extern from "fastinfer/base/debug.h" namespace "fastinfer" nogil:
    const bint DEBUG
    void invariant(bint holds, const char* what) noexcept
