from fastinfer.backends.onnx.ort_run cimport Handle
from fastinfer.base.budget cimport Budget
from fastinfer.tensor.rows cimport BatchAxes


cdef class Session:
    cdef Handle handle
    cdef readonly tuple inputs          # tuple[TensorSpec, ...]
    cdef readonly tuple optional_inputs  # those that a run may leave out
    cdef readonly tuple refused_inputs  # why other optional inputs cannot be given, as sentences
    cdef readonly tuple outputs
    cdef readonly tuple sequence_outputs    # the names of those that are sequences, which are stacked
    cdef public Budget budget           # in which its outputs count; None: nowhere
    cdef public BatchAxes axes          # where a batch's rows are; None: along the first dimension of everything
    cdef list _run_config               # the bytes that the handle's run_config points into
    cdef list _names                    # the bytes that the handle's names point into, and ...
    cdef dict _optional_names           # ... those of optional inputs' names, by name

    # Fills `names` with those of all tensors; the ones after handle.input_count are optional inputs.
    cdef int name_inputs(self, list tensors, const char** names) except -1
    cdef int _add_run_config(self, dict given) except -1
