from libc.stdint cimport int64_t, uint64_t

from fastinfer.backends.batch_run cimport BatchRun, RunSeries
from fastinfer.backends.binding cimport Binding
from fastinfer.backends.onnx.ort cimport Session
from fastinfer.backends.watchdog cimport Watchdog
from fastinfer.base.budget cimport Budget
from fastinfer.native.executor cimport Executor, Share
from fastinfer.native.job cimport Job
from fastinfer.schedule.cost cimport Estimate, ShapeCosts
from fastinfer.schedule.run_notes cimport RunNotes
from fastinfer.tensor.message cimport BatchResult, BatchRunner, Keeper

cdef enum:
    MAX_BINDING_BYTES = 16 << 10    # of one binding: larger runs take so long that a binding hardly matters
    MAX_BOUND_BYTES = 256 << 10     # of all bindings of a model; no further one is made then
    LARGE_REQUEST = 32 << 10        # bytes of inputs; from here on, choose between batching and back to back
    GUESSES = 8                     # the budget has room for at least this many guessed outputs
    TRIAL = 32                      # batches of large requests after which the slower way is measured again


cdef class Runner(BatchRunner):
    cdef readonly Session session
    cdef bint batched
    cdef Executor executor
    cdef Share share                # the model's share of its threads
    cdef readonly ShapeCosts costs
    cdef double output_ratio        # bytes of outputs per byte of inputs: the recent maximum
    cdef Watchdog watchdog          # None if nothing runs inline
    cdef int large_batches          # how many ran
    cdef list bindings              # by rows: Binding, or None if it is not made yet; empty: none can be made
    cdef Py_ssize_t row_nbytes      # of a row of all inputs, if bindings can be made; else 0
    cdef readonly Py_ssize_t bound_nbytes   # of all bindings
    cdef RunNotes notes             # None if crashes are not recorded
    cdef bint in_doubt              # the last run in a binding failed, and was not yet retried without one

    # The shape of a run for `costs`; 0 if nothing follows from it, because optional inputs are given.
    cdef uint64_t shape_of(self, BatchRun run) noexcept
    # Whether the requests of a batch, with this many bytes together, run one after the other.
    cdef bint runs_apart(self, Py_ssize_t requests, Py_ssize_t input_bytes) noexcept
    # Open and close the note of a run in the crash record.
    cdef void open_note(self, BatchRun run, list requests) noexcept
    cdef void close_note(self, BatchRun run) noexcept
    cdef void count_overrun(self) noexcept
    cdef list run_bound(self, Binding binding, list requests)
    # Their number of rows if a binding may run them, else 0.
    cdef int64_t rows_to_bind(self, list requests) except -1
    cdef Binding ready_binding(self, int64_t rows)
    cdef Binding bind(self, int64_t rows)
    # Drops all bindings for good; an output that still exists keeps its memory.
    cdef int drop_bindings(self) except -1


# A batch under way. If it fails and has several requests, its halves are retried separately, so that one bad request
# does not fail the others. It is also the executor's callback at the end of a run.
cdef class RunningBatch(Keeper):
    cdef Runner runner
    cdef list requests
    cdef object done            # Callable[[BatchResult], None]; None when it was called
    cdef Job attempt            # on a native thread, or None: a BatchRun or a RunSeries
    cdef bint given_up
    cdef list outcomes          # None until a run has ended
    # The requests of the attempt are those from start to stop; `later` holds the (start, stop) of those after it.
    cdef Py_ssize_t start
    cdef Py_ssize_t stop
    cdef Py_ssize_t ended       # all before this one have ended, as far as it is known
    cdef list later
    cdef uint64_t shape         # of the attempt; 0: its time is not learned for a shape
    cdef int64_t input_ns
    cdef int64_t infer_ns
    cdef int64_t output_ns

    cdef Budget budget          # in which bytes are reserved for the outputs of the attempt, and ...
    cdef int64_t reserved       # ... how many

    # Reserves the outputs that are expected of an attempt; False if the budget has no room for them.
    cdef bint reserve(self, int64_t input_bytes) except? True
    cdef int give_back(self) noexcept
    cdef int refuse(self) except -1
    cdef int go_on(self) except -1
    cdef int end(self) except -1
    cdef int run_apart(self, list members) except -1
    # Takes the outcomes; returns whether there is more to run.
    cdef bint take_outcomes(self, BatchRun attempt) except? True
    cdef int learn(self, BatchRun attempt) except -1
    cdef bint take_series(self, RunSeries series) except? True
    cdef bint turn_to_rest(self) except? True
    cdef bint is_awaited(self) noexcept
    # Runs an attempt on this thread. False: the watchdog has terminated it, so it is to run on a native thread.
    cdef bint run_here(self, BatchRun attempt, Estimate* estimate) except? True
    cdef int close(self, BatchRun attempt) noexcept
    cdef int take_failure(self, BatchRun attempt) except -1
