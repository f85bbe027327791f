from libc.stdint cimport int64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from fastinfer.base.budget cimport Budget
from fastinfer.native.job cimport Interrupt
from fastinfer.tensor.tensor cimport Tensor

cdef extern from "fastinfer/tensor/top_k.h" namespace "fastinfer::classes" nogil:
    cppclass Lines:
        const char* text
        const int64_t* starts
        int64_t count

    cppclass Ranking:
        int (*rank)(Ranking&, const Interrupt*) noexcept
        const char* data
        int64_t rows
        int64_t width
        int64_t wanted
        Lines labels
        string text
        int64_t charged
        int64_t most_text() noexcept
        int run(const Interrupt* job) noexcept

    enum:
        RANKED
        TOO_LONG
        GIVEN_UP

    int64_t MAX_CLASSES_TEXT


# ApiError 400 if elements of this datatype have no order: BOOL, as with Triton, and BYTES.
cdef int check_rankable(str name, int datatype_id) except -1


cdef class Labels:
    cdef bytes _text            # lines, each with its line break
    cdef vector[int64_t] _starts
    cdef Lines lines            # of both: valid as long as this object


cdef class Classification:
    cdef Ranking ranking        # borrows the scores, which the response keeps
    cdef Labels _labels
    cdef Budget budget          # in which the text counts, or None
    cdef int rank               # of the answer: 2 with the batch dimension, else 1
    cdef int64_t[2] dims

    # The number of a tensor's bytes that take as long to write as text.
    cdef int64_t effort(self) noexcept
    # The classes as a BYTES tensor, once the ranking has run.
    cdef Tensor result(self, str name)
