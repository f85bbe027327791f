# Body -> InferRequest: JSON and binary tensors, in one pass, without a document tree.
#
# The core runs over C structs and needs no GIL: on the loop's thread for small bodies, as a DecodeJob on a native
# thread for large ones. What it owns is the tensors' blocks and its two lists; `build` hands the blocks over to
# Tensors, `close_decoder` frees what is left. The body must not change or go away meanwhile.
# Does not live here: models (what a tensor should be), HTTP (where a body comes from).

from libc.stdint cimport int64_t

from fastinfer._ext.buffer cimport Cursor, Text
from fastinfer._ext.job cimport Job
from fastinfer._ext.tensor cimport MAX_RANK

cdef enum:
    MAX_INPUTS = 1024       # fastinfer.limits.MAX_INPUTS; inputs or outputs of one request
    FEW = 4                 # more inputs or outputs than these get a list of their own

cdef enum Place:
    IN_REQUEST
    IN_INPUT
    IN_OUTPUT

cdef enum FailureKind:
    PLAIN                   # "<place><field>[<element>]: <quoted> <text>"
    SYNTAX                  # "byte <at>: <text>"
    COUNT                   # too few elements
    MORE                    # too many elements
    ROW                     # a nested row of the wrong length
    SIZE                    # a binary tensor's size does not fit its shape
    EXTRA                   # bytes behind the last binary tensor
    NO_MEMORY

# The one failure of a decoder; worded with the GIL, by `worded`.
cdef struct Failure:
    bint is_set
    FailureKind kind
    Place place
    int index               # of the input or output
    const char* field       # static, such as ".shape"
    int64_t element         # -1: none
    const char* quote       # the client's own text, in the body; NULL: none
    Py_ssize_t quote_size
    const char* text        # static
    int64_t at              # byte of the body
    int64_t got
    int64_t wanted

cdef struct ParsedInput:
    unsigned int seen       # known keys met
    Text name
    int datatype_id
    int rank
    int64_t[MAX_RANK] dims
    int64_t count           # elements: the product of dims
    const char* data_text   # where "data" begins, if it came before shape and datatype
    int64_t binary_size     # parameters.binary_data_size; -1: none
    char* block             # owned, or NULL where `view` is used in place
    const char* view        # the bytes in the body
    Py_ssize_t nbytes

cdef struct ParsedOutput:
    unsigned int seen
    Text name
    int binary
    int64_t classification

cdef struct Decoder:
    Cursor cursor           # over the JSON
    const char* binary      # the rest of the body; NULL: the request came without a header length
    const char* binary_end
    bint views              # binary tensors may be used in place
    Failure failure
    Place place             # what is being read, for failures
    int index
    unsigned int seen
    Text id
    bint binary_output
    int64_t timeout_us
    int64_t priority
    int input_count
    int input_capacity
    ParsedInput* inputs     # `few_inputs`, or a list of its own
    ParsedInput[FEW] few_inputs
    int output_count
    int output_capacity
    ParsedOutput* outputs
    ParsedOutput[FEW] few_outputs


cdef class DecodeJob(Job):
    cdef Decoder decoder
    cdef Py_buffer body     # held from construction to deallocation
    cdef bint has_body
    cdef bint raw
    cdef str model
