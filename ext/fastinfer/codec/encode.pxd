from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget, Count
from fastinfer.codec.json cimport Writer
from fastinfer.native.job cimport Interrupt, Job
from fastinfer.tensor.message cimport InferResponse
from fastinfer.tensor.tensor cimport Memory
from fastinfer.tensor.top_k cimport Ranking


cdef enum:
    FEW_OUTPUTS = 4         # planned without memory of their own


# The text of one output to be written. All pointers are borrowed from the response.
cdef struct PlannedOutput:
    const char* name        # UTF-8
    Py_ssize_t name_size
    int datatype_id
    int rank
    const int64_t* dims
    int64_t count
    const char* data
    Py_ssize_t nbytes
    bint binary
    Ranking* ranking        # if the plan is ranked: runs first, and gives `data`; NULL: data is the tensor's

cdef struct Plan:
    Writer writer           # `begin` is owned by the plan's object
    const char* model_name
    Py_ssize_t model_name_size
    const char* model_version
    Py_ssize_t model_version_size
    const char* id
    Py_ssize_t id_size
    int nonfinite
    const Interrupt* interruption       # of the job; NULL on the loop's thread
    Count* count            # of bytes, in which the text is reserved; NULL: none
    int64_t charged         # bytes in it for `writer`
    int64_t most_text       # the upper bound of the text's size
    int64_t around_data     # of that, what is not elements
    bint ranked             # some output is answered with classes; else no output's `ranking` is set
    Py_ssize_t output_count
    PlannedOutput* outputs          # few_outputs, or a block of calloc
    PlannedOutput[FEW_OUTPUTS] few_outputs
    int failure             # DONE, or the cause; see encode.pyx
    Py_ssize_t failed_output
    int64_t failed_element


cdef class Encoded:
    cdef Memory _memory
    cdef list _tensors              # those that are sent as bytes, or None
    cdef readonly Py_ssize_t json_size
    cdef readonly Py_ssize_t size   # of the whole body
    cdef readonly bint binary       # some output is sent as bytes


cdef class EncodeJob(Job):
    cdef Plan plan
    cdef InferResponse response     # keeps what the plan borrows
    cdef Budget budget              # in which the text counts, or None


# The number of bytes of tensors that take as long to write as the response's classes.
cdef int64_t classes_effort(InferResponse response) except -1

# encode() at the level of C.
cdef Encoded encode_response(InferResponse response, int nonfinite, Budget budget)
