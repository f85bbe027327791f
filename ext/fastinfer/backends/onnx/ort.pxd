from fastinfer.backends.onnx.ort_run cimport Handle
from fastinfer.base.budget cimport Budget
from fastinfer.tensor.rows cimport BatchAxes


cdef class Session:
    cdef Handle handle
    cdef readonly tuple inputs          # tuple[TensorSpec, ...]
    cdef readonly tuple outputs
    cdef readonly tuple sequence_outputs    # the names of those that are sequences, which are stacked
    cdef public Budget budget           # in which its outputs count; None: nowhere
    cdef public BatchAxes axes          # where a batch's rows are; None: along the first dimension of everything
    cdef list _names                    # the bytes that the handle's names point into
