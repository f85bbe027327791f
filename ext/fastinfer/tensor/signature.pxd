from libc.stdint cimport int64_t

from fastinfer.tensor.expected cimport Expectation
from fastinfer.tensor.message cimport InferRequest, InferResponse
from fastinfer.tensor.tensor cimport Tensor, TensorSpec


cdef class Signature:
    cdef readonly tuple inputs              # tuple[TensorSpec, ...]
    cdef readonly tuple optional_inputs     # a request may give them, after the others; they have no batch dimension
    cdef readonly tuple outputs
    cdef readonly bint batched              # one dimension of everything is the batch: TensorSpec.batch_axis
    cdef readonly int64_t max_batch_size    # rows; 0 if it is not batched
    cdef readonly bint max_batch_size_configured
    cdef readonly int64_t max_request_rows  # of one request, if max_batch_size is configured
    cdef readonly bint positional           # inputs are taken by position, their names are free
    cdef readonly bint accepts_anything     # any inputs at all
    cdef readonly bint outputs_batched      # one dimension of every output is the batch
    cdef readonly bint item_form            # a request whose inputs all lack the batch dimension is one item
    cdef readonly bint takes_base64         # the model reads base64 text itself: it is not decoded before
    cdef readonly str never_empty           # operators that cannot run on inputs without elements; "": none is known
    cdef readonly dict labels               # Labels of the classes of outputs that have them, by the output's name
    cdef public frozenset score_matrices  # outputs with a row of scores for each input row, batched or not
    cdef readonly Expectation expectation   # the inputs, for the decoder; None: any
    cdef dict _input_index                  # name -> position; those of optional inputs follow the others'
    cdef dict _output_index
    cdef object _near_inputs                # their names, for suggestions; None before the first one
    cdef object _near_outputs
    cdef tuple _equal_dims                  # (input, axis, input, axis) of each two dimensions of one name
    cdef bint _one_batch                    # inputs must have the same number of rows: configured, or named alike
    cdef bint _static_rows                  # rows of every input have a fixed shape: all requests are compatible
    cdef bint _rows_first                   # the batch is the first dimension of everything

    # Puts the inputs in the model's order, the given optional ones last; gives the others the batch dimension if the
    # client left it out; sets rows, implicit_batch, whole and shape_key. ApiError 400 if the request does not fit.
    cpdef int check(self, InferRequest request, str model) except -1
    # Selects the requested ones of all outputs (in the model's order).
    cpdef InferResponse respond(self, InferRequest request, list outputs, str model, str version)

    cdef int _check(self, InferRequest request, str model) except -1
    cdef str _meant_input(self, str name)
    cdef str _meant_output(self, str name)
    cdef int _order_inputs(self, InferRequest request, str model) except -1
    cdef int _check_optional(self, list ordered, str model) except -1
    cdef object _missing(self, list given, list missing, str model)
    cdef int _check_outputs(self, InferRequest request, str model) except -1
    # The dimension of rows of one of the outputs.
    cdef int _axis_of(self, Tensor output) except -1
    cdef tuple _classes(self, InferRequest request, list chosen)
    cdef int _check_batched(self, InferRequest request, str model) except -1
    cdef int _check_elements(self, InferRequest request, str model) except -1
    cdef bint _is_item(self, InferRequest request) noexcept
    cdef int _fit(self, InferRequest request, Py_ssize_t i, int first, str model) except -1
    cdef Tensor _raw_input(self, Tensor body, str model)
