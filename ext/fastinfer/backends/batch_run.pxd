from libc.stdint cimport int64_t

from fastinfer.backends.onnx.ort cimport Session
from fastinfer.backends.onnx.ort_run cimport EngineError, Feed, Handle, OrtRunOptions, OrtValue, Output
from fastinfer.native.job cimport Job
from fastinfer.shared.crash_record cimport NotedRun
from fastinfer.tensor.rows cimport BatchAxes, RowSlice
from fastinfer.tensor.tensor cimport Tensor

cdef struct BatchState:
    # Configuration.
    const Handle* handle        # the session's, or `extended`
    Handle extended             # the session's with the optional inputs that the request gives
    Py_ssize_t requests
    bint batched
    const int* axes             # [inputs + outputs]: where the rows are; NULL: along the first dimension of each
    int64_t total_rows
    const int64_t* rows         # [requests]
    const char* unwanted        # [outputs]: 1 if no request asks for it; NULL: all are wanted
    # Inputs.
    const RowSlice* slices      # [inputs][requests]
    Feed* feeds                 # [inputs]
    int64_t* dims               # [inputs][MAX_RANK]: of the feeds
    char* slab                  # the gathered rows of all inputs; NULL if nothing is gathered
    # The run.
    OrtRunOptions* options
    NotedRun* noted             # in the crash record, kept by the runner; NULL if there is none
    bint ran                    # a run is used once
    bint refused                # the run failed by the inputs or in the runtime, not in a step before or after it
    int terminated              # set by the loop's thread, read by the job's: atomically
    OrtValue** values           # [inputs + outputs], only while it runs
    # Results.
    Output* outputs             # [outputs]
    Py_ssize_t* bounds          # [outputs][requests + 1]: where each request's rows start
    int64_t input_ns
    int64_t infer_ns
    int64_t output_ns
    EngineError failure


cdef class BatchRun(Job):
    cdef BatchState run_state
    cdef char* arrays           # one block for all arrays of run_state
    cdef Session session
    cdef bytes unwanted         # what the state's pointer points into
    cdef BatchAxes axes         # what state.axes points into
    cdef list inputs            # of all requests: list[list[Tensor]]; the memory that the slices point into
    cdef readonly Py_ssize_t input_bytes
    cdef readonly int64_t rows

    # As the constructor, for a run that may stay on this thread: without run options, so terminate has no effect.
    @staticmethod
    cdef BatchRun make(Session session, list requests, bint batched)
    # Makes terminate work; before the run goes to another thread.
    cdef int make_terminable(self) except -1

    cpdef list split(self)
    cdef int _open(self, Session session, list requests, bint batched) except -1
    cdef int _note_unwanted(self, list requests) except -1
    cdef int _extend(self, list tensors) except -1
    cdef int _lay_out(self) except -1
    cdef int _check_input(self, Tensor tensor, Py_ssize_t i, int64_t rows) except -1
    cdef int _add_inputs(self, Py_ssize_t index, list tensors, int64_t rows) except -1


# Several runs as one Job, one after the other, each over the rows of one request, in place.
cdef class RunSeries(Job):
    cdef readonly list runs             # of BatchRun, which keep what `states` points to
    cdef BatchState** states            # ended by NULL
    cdef readonly Py_ssize_t input_bytes

    @staticmethod
    cdef RunSeries make(Session session, list requests)
