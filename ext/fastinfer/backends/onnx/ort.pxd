from fastinfer.backends.onnx.ort_run cimport Handle
from fastinfer.base.budget cimport Budget


cdef class Session:
    cdef Handle handle
    cdef readonly tuple inputs          # tuple[TensorSpec, ...]
    cdef readonly tuple outputs
    cdef readonly tuple sequence_outputs    # the names of those that are sequences, which are stacked
    cdef public Budget budget           # in which its outputs count; None: nowhere
    cdef list _names                    # the bytes that the handle's names point into
    cdef list _run_config               # the same of its run_config

    cdef int _add_run_config(self, dict given) except -1
