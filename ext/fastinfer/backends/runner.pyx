# Picks the thread for a batch by its predicted run time, runs it, and retries a failed batch in halves. Large rows are
# copied into one block only if batching saves more than the copies cost; both are measured. Lives here: choice of
# thread, bindings, retries. Does not: queues, batching rules.
#
# Loop's thread only; its BatchRuns run on any. A BatchRun or a Binding owns the memory of a run.

import logging

cimport cython
from libc.stdint cimport int64_t, uint64_t

from fastinfer.backends.batch_run cimport BatchRun, BatchState, RunSeries
from fastinfer.backends.binding cimport Binding, make_binding
from fastinfer.backends.onnx.ort cimport Session
from fastinfer.backends.onnx.ort_run cimport INVALID_ARGUMENT, Feed
from fastinfer.backends.watchdog cimport ENDED_AT_WORK, NOT_ENDED, Watchdog
from fastinfer.base.budget cimport Budget
from fastinfer.native.executor cimport Executor, Share
from fastinfer.native.job cimport Job, monotonic_ns
from fastinfer.schedule.cost cimport Estimate, ShapeCosts, shape_of_rows, shape_with, size_class
from fastinfer.schedule.run_notes cimport RunNotes
from fastinfer.shared.crash_record cimport NotedRun, run_begins, run_ends
from fastinfer.tensor.datatype cimport BYTES, datatype_of
from fastinfer.tensor.message cimport ENDED, BatchResult, InferRequest
from fastinfer.tensor.tensor cimport Tensor, TensorSpec, element_count

from fastinfer.backends.onnx.ort_run import OrtError
from fastinfer.base.errors import ApiError, without_paths

log = logging.getLogger(__name__)

cdef double FORGETTING = 0.99       # the factor by which the maximum of `output_ratio` falls with each run
cdef object NEVER_RUN = ApiError(500, "the model was not run")


@cython.final
cdef class Runner(BatchRunner):
    def __init__(self, Session session not None, bint batched, Executor executor not None, int64_t inline_run_us,
                 RunNotes notes=None, Watchdog watchdog=None):
        self.session = session
        self.batched = batched
        self.executor = executor
        self.share = Share()
        self.notes = notes
        self.costs = ShapeCosts(inline_run_us * 1000)
        if inline_run_us > 0:
            self.watchdog = watchdog if watchdog is not None else Watchdog(inline_run_us)
        # Bindings are for rows along the first dimension, whose outputs need no copy.
        self.row_nbytes = row_nbytes_of(session.inputs, batched) if session.axes is None else 0
        self.bindings = [None] * (MAX_BINDING_BYTES // self.row_nbytes + 1) if self.row_nbytes > 0 else []

    cdef uint64_t shape_of(self, BatchRun run) noexcept:
        # If only the number of rows varies, the shape is that number, as for the bindings. A run with optional inputs
        # has none: the facts of the graph, and so the prediction of its work, hold for the defaults.
        cdef const BatchState* state = &run.run_state
        cdef const Feed* feed
        cdef uint64_t shape = shape_of_rows(state.total_rows)
        cdef bint texts = False
        cdef Py_ssize_t i
        cdef int k, axis
        if state.handle == &state.extended:
            return 0
        if self.row_nbytes > 0 and state.batched == self.batched:
            return shape
        for i in range(state.handle.input_count):
            feed = &state.feeds[i]
            texts = texts or feed.datatype_id == BYTES
            shape = shape_with(shape, <uint64_t>feed.rank)
            axis = -1 if not state.batched else 0 if state.axes == NULL else state.axes[i]
            for k in range(feed.rank):
                if k != axis:
                    shape = shape_with(shape, <uint64_t>feed.dims[k])
        if texts:           # by powers of two
            shape = shape_with(shape, <uint64_t>size_class(run.input_bytes))
        return shape

    cdef bint runs_apart(self, Py_ssize_t requests, Py_ssize_t input_bytes) noexcept:
        cdef bint quicker
        if requests == 1 or input_bytes < requests * LARGE_REQUEST:
            return False
        quicker = self.costs.are_quicker_apart(input_bytes)
        self.large_batches += 1
        return quicker if self.large_batches % TRIAL != 0 else not quicker

    def __call__(self, list requests not None, done not None):
        cdef RunningBatch batch = RunningBatch.__new__(RunningBatch)
        batch.runner = self
        batch.requests = requests
        batch.done = done
        batch.stop = len(requests)
        try:
            batch.go_on()
        except Exception:
            batch.give_back()
            raise
        return batch if batch.done is not None else None

    def close(self):
        # The last reference frees it, because an answer may still be written from its memory.
        self.drop_bindings()
        self.session = None

    cdef BatchResult run_at_once(self, list requests):
        # Runs in a binding, if one is free; if that fails, a run without one gives the error.
        cdef int64_t rows = self.rows_to_bind(requests)
        cdef Estimate* estimate
        cdef Binding binding
        cdef list outcomes
        if rows == 0:
            return None
        estimate = self.costs.find_short(shape_of_rows(rows))
        if estimate == NULL or not self.watchdog.is_watching():
            return None
        binding = self.ready_binding(rows)
        if binding is None:
            return None
        self.costs.begins()
        outcomes = self.run_bound(binding, requests)
        if self.costs.ends(estimate, binding.input_ns + binding.infer_ns, outcomes is not None,
                           binding.cut != NOT_ENDED, binding.cut == ENDED_AT_WORK):
            self.count_overrun()
        if outcomes is None:
            self.in_doubt = binding.cut == NOT_ENDED
            return None
        return BatchResult.make(outcomes, binding.input_ns, binding.infer_ns, binding.output_ns)

    cdef void count_overrun(self) noexcept:
        if self.stats is not None:
            self.stats.count_overrun()

    cdef void open_note(self, BatchRun run, list requests) noexcept:
        if self.notes is not None:
            run.run_state.noted = self.notes.open(requests)

    cdef void close_note(self, BatchRun run) noexcept:
        if self.notes is not None:
            self.notes.close(run.run_state.noted)

    cdef list run_bound(self, Binding binding, list requests):
        cdef NotedRun* noted
        if self.notes is None:
            return binding.run(requests, self.watchdog)
        noted = self.notes.open(requests)
        run_begins(noted)
        try:
            return binding.run(requests, self.watchdog)
        finally:
            run_ends(noted)
            self.notes.close(noted)

    cdef int64_t rows_to_bind(self, list requests) except -1:
        cdef InferRequest request
        cdef int64_t rows = 0
        if self.watchdog is None or (<InferRequest>requests[0]).whole:
            return 0
        for request in requests:
            rows += request.rows
        return rows if 0 < rows < len(self.bindings) else 0

    cdef Binding ready_binding(self, int64_t rows):
        cdef Binding binding
        binding = <Binding>self.bindings[rows]
        if binding is None:
            return self.bind(rows) if self.bound_nbytes < MAX_BOUND_BYTES else None
        return binding if binding.is_free() else None

    cdef Binding bind(self, int64_t rows):
        cdef Binding binding = None
        try:
            binding = make_binding(self.session, self.batched, rows, MAX_BINDING_BYTES)
        except (OrtError, MemoryError):
            pass
        if binding is None:
            del self.bindings[rows:]        # more rows need no less
            return None
        self.bound_nbytes += binding.memory.nbytes
        self.bindings[rows] = binding
        return binding

    cdef int drop_bindings(self) except -1:
        self.bindings = []
        self.bound_nbytes = 0
        return 0


# The bytes of a row of all inputs; 0 if shapes are open, or there are BYTES.
cdef Py_ssize_t row_nbytes_of(tuple inputs, bint batched):
    cdef TensorSpec spec
    cdef int64_t elements
    cdef Py_ssize_t nbytes = 0
    cdef int first = 1 if batched else 0
    for spec in inputs:
        if spec.open_rank:
            return 0
        elements = element_count(spec.dims + first, spec.rank - first) if spec.rank >= first else -1
        if elements < 0 or elements > MAX_BINDING_BYTES or spec.datatype_id == BYTES:
            return 0
        nbytes += elements * datatype_of(spec.datatype_id).itemsize
    return nbytes


@cython.final
cdef class RunningBatch:
    def terminate(self):
        self.given_up = True
        if self.attempt is not None:
            self.attempt.terminate()

    cdef int let_go(self, InferRequest request, int was, int cause) except -1:
        # Terminates a run that is for this request alone: its run of a series, or an attempt whose other requests have
        # ended.
        cdef Py_ssize_t i
        if isinstance(self.attempt, RunSeries):
            for i in range(self.start, self.stop):
                if self.requests[i] is request:
                    (<RunSeries>self.attempt).runs[i - self.start].terminate()
        elif self.attempt is not None and not self.is_awaited():
            self.attempt.terminate()
        return 0

    cdef bint is_awaited(self) noexcept:
        # A request stays ended, so each one is skipped once, even if they leave one after the other.
        self.ended = max(self.ended, self.start)
        while self.ended < self.stop and (<InferRequest>self.requests[self.ended]).state == ENDED:
            self.ended += 1
        return self.ended < self.stop

    def __call__(self, Job attempt not None):
        # A native thread has run it.
        self.attempt = None
        self.give_back()
        try:
            if (self.take_outcomes(<BatchRun>attempt) if isinstance(attempt, BatchRun)
                    else self.take_series(<RunSeries?>attempt)):
                self.go_on()
            else:
                self.end()
        except Exception:       # for example out of memory; the requests must be answered, and the instance freed
            log.exception("a batch could not be finished")
            if self.done is not None:
                self.end()

    cdef int go_on(self) except -1:
        # Runs the rest: inline while that is short, else the next attempt on a native thread.
        cdef Runner runner = self.runner
        cdef BatchRun attempt
        cdef Estimate* estimate
        cdef list members
        while True:
            whole = self.stop - self.start == len(self.requests)
            members = self.requests if whole else self.requests[self.start:self.stop]
            attempt = BatchRun.make(runner.session, members,
                                    runner.batched and not (<InferRequest>members[0]).whole)
            self.shape = runner.shape_of(attempt)
            estimate = NULL
            if runner.watchdog is not None and self.shape != 0:
                estimate = runner.costs.find_short(self.shape)
            if (estimate == NULL or not runner.watchdog.is_watching()) and not self.reserve(attempt.input_bytes):
                self.refuse()
                if not self.turn_to_rest():
                    return self.end()
                continue
            if runner.runs_apart(len(members), attempt.input_bytes):
                return self.run_apart(members)
            runner.open_note(attempt, members)
            if estimate == NULL or not runner.watchdog.is_watching():
                attempt.make_terminable()
                self.attempt = attempt
                runner.executor.submit(attempt, self, runner.share)
                return 0
            if self.run_here(attempt, estimate) and not self.take_outcomes(attempt):
                return self.end()

    cdef bint reserve(self, int64_t input_bytes) except? True:
        # Guesses the outputs from the model's latest runs; outputs count themselves once they exist. The guess is
        # bounded: if the size of outputs depends on values, one huge answer must not cause the refusal of the next
        # request, and a refused run would not correct the guess.
        cdef Budget budget = self.runner.session.budget
        cdef int64_t expected
        if budget is None:
            return True
        expected = <int64_t>min(self.runner.output_ratio * <double>input_bytes, <double>(budget.limit // GUESSES))
        if budget.count.spent() or not budget.count.reserve(expected):
            return False
        self.budget = budget
        self.reserved = expected
        return True

    cdef int give_back(self) noexcept:
        if self.reserved > 0:
            self.budget.count.release(self.reserved)
            self.reserved = 0
        return 0

    cdef int refuse(self) except -1:
        if self.outcomes is None:
            self.outcomes = [NEVER_RUN] * len(self.requests)
            self.later = []
        self.outcomes[self.start:self.stop] = [
            ApiError(503, "the server is out of its memory budget", retry_after_s=1)
            for _ in range(self.stop - self.start)]
        return 0

    cdef bint run_here(self, BatchRun attempt, Estimate* estimate) except? True:
        cdef Runner runner = self.runner
        cdef Watchdog watchdog = runner.watchdog
        cdef bint well
        cdef int cut
        runner.costs.begins()
        attempt.run_state.options = watchdog.options
        watchdog.begins(monotonic_ns())
        attempt.run_here()
        cut = watchdog.ends()
        attempt.run_state.options = NULL        # they are the watchdog's
        well = attempt.run_state.failure.code == 0
        if runner.costs.ends(estimate, attempt.task.ended_ns - attempt.task.started_ns, well, cut != NOT_ENDED,
                             cut == ENDED_AT_WORK):
            runner.count_overrun()
        self.shape = 0
        if cut != NOT_ENDED and not well:
            runner.close_note(attempt)
            return False
        return True

    cdef int run_apart(self, list members) except -1:
        cdef RunSeries series = RunSeries.make(self.runner.session, members)
        cdef Py_ssize_t i
        for i in range(len(members)):
            self.runner.open_note(<BatchRun>series.runs[i], members[i:i + 1])
        self.attempt = series
        self.runner.executor.submit(series, self, self.runner.share)
        return 0

    cdef int end(self) except -1:
        # The batch releases its contents first, because the callback may hold the batch.
        cdef list outcomes = self.outcomes
        self.give_back()
        done, self.done = self.done, None
        if outcomes is None:
            outcomes = [NEVER_RUN] * len(self.requests)
        self.outcomes = None
        self.requests = None
        done(BatchResult.make(outcomes, self.input_ns, self.infer_ns, self.output_ns))
        return 0

    cdef bint take_outcomes(self, BatchRun attempt) except? True:
        cdef list outcomes
        cdef bint in_doubt
        self.close(attempt)
        in_doubt, self.runner.in_doubt = self.runner.in_doubt, False
        if attempt.run_state.failure.code == 0:
            if in_doubt:        # the binding is wrong: for example, the model's outputs differ from their declaration
                self.runner.drop_bindings()
            outcomes = attempt.split()
            self.learn(attempt)
            if self.outcomes is None:       # the common case: all at once
                self.outcomes = outcomes
            else:
                self.outcomes[self.start:self.stop] = outcomes
        else:
            self.take_failure(attempt)
        return self.turn_to_rest()

    cdef int learn(self, BatchRun attempt) except -1:
        cdef Runner runner = self.runner
        cdef ShapeCosts costs = runner.costs
        cdef int64_t made = 0
        cdef Py_ssize_t i
        if attempt.run_state.options != NULL:       # a run on a native thread: outputs of inline runs are small
            for i in range(attempt.run_state.handle.output_count):
                made += attempt.run_state.outputs[i].nbytes
            runner.output_ratio = max(<double>made / max(1, attempt.input_bytes), runner.output_ratio * FORGETTING)
        cdef int64_t ns = attempt.task.ended_ns - attempt.task.started_ns
        costs.observe_size(costs.together, attempt.input_bytes, ns)
        if self.shape != 0 and self.runner.watchdog is not None:
            costs.observe(self.shape, ns)
        return 0

    cdef bint take_series(self, RunSeries series) except? True:
        cdef ShapeCosts costs
        cdef BatchRun each
        cdef bint failed = False
        cdef Py_ssize_t i
        if self.outcomes is None:
            self.outcomes = [NEVER_RUN] * len(self.requests)
        for i, each in enumerate(series.runs, self.start):
            self.close(each)
            if each.run_state.failure.code == 0:
                self.outcomes[i] = each.split()[0]
            else:
                self.outcomes[i] = failure_of(each, <InferRequest>self.requests[i])
                failed = True
        if not failed:
            costs = self.runner.costs
            costs.observe_size(costs.apart, series.input_bytes, series.task.ended_ns - series.task.started_ns)
        return self.turn_to_rest()

    cdef int close(self, BatchRun attempt) noexcept:
        # Called for each run that has ended, whether well or not.
        self.runner.close_note(attempt)
        self.input_ns += attempt.run_state.input_ns
        self.infer_ns += attempt.run_state.infer_ns
        self.output_ns += attempt.run_state.output_ns
        return 0

    cdef bint turn_to_rest(self) except? True:
        # Goes on to the next half with a waiting request; False if there is none.
        while self.later and not self.given_up:
            self.start, self.stop = self.later.pop()
            self.ended = self.start
            if self.is_awaited():
                return True
        return False

    cdef int take_failure(self, BatchRun attempt) except -1:
        cdef Py_ssize_t count = self.stop - self.start
        cdef Py_ssize_t middle = self.start + count // 2
        if self.outcomes is None:
            self.outcomes = [NEVER_RUN] * len(self.requests)
            self.later = []
        if count == 1 or self.given_up:
            self.outcomes[self.start:self.stop] = [
                failure_of(attempt, <InferRequest>request) for request in self.requests[self.start:self.stop]]
        else:
            self.later.append((middle, self.stop))
            self.later.append((self.start, middle))
        return 0


# The error of a request that failed alone, or was given up. An invalid argument of the runtime is the client's error;
# so is any failure of inputs that could not be checked before, because only the model's operators can check them.
cdef object failure_of(BatchRun attempt, InferRequest request):
    cdef str reason = without_paths(str(attempt.error)).strip() or "no reason was given"
    if attempt.run_state.refused and (attempt.run_state.failure.code == INVALID_ARGUMENT
                                      or only_a_run_tells(attempt.session, request)):
        return ApiError(400, f"the model cannot run on these inputs: {reason}")
    return ApiError(500, f"the model failed: {reason}")


cdef bint only_a_run_tells(Session session, InferRequest request) except? True:
    cdef Tensor tensor
    cdef TensorSpec spec
    if request.whole:
        return True
    for tensor in request.inputs:
        if tensor.count == 0:
            return True
    return any([spec.open_rank for spec in session.inputs])
