# A piece of native work: runs once, without the GIL, on any thread; its completion is reported on the loop's thread. A
# job can be cancelled: `terminate` makes it return at its next check, or not start at all. A cancelled job has no
# result. Does not live here: threads and queues (native/executor).
#
# A subclass sets `task.work` and `task.state` in its constructor; the state points into C fields of the subclass
# itself, which must not change and must own all the memory that the work touches until the job has ended. The submitter
# keeps a reference to the job until then (the executor does).

cimport cython
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastinfer.base.debug cimport invariant


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


@cython.final
cdef class Clock:
    cdef int64_t now(self) noexcept:
        return self.fixed_ns if self.fixed_ns != 0 else monotonic_ns()


cdef class Job:
    def terminate(self):
        interrupt(&self.interruption)

    @property
    def started_ns(self):
        return self.task.started_ns

    @property
    def ended_ns(self):
        return self.task.ended_ns

    def run(self):
        if self.task.work == NULL or self.task.ended_ns != 0:
            raise ValueError("a job runs once, when it is ready")
        self.run_here()

    cdef int take_result(self) except -1:
        if self.task.ended_ns == 0 or self._result_taken:
            raise ValueError("a job has one result, when it has ended")
        self._result_taken = True
        return 0

    cdef void run_here(self) noexcept:
        cdef int64_t started, ended
        invariant(self.task.work != NULL and self.task.ended_ns == 0, "a job runs once, when it is ready")
        with nogil:
            started = monotonic_ns()
            self.task.work(self.task.state)
            ended = monotonic_ns()
        self.task.started_ns = started
        self.task.ended_ns = ended
