# Runs Jobs on native threads, and reports their completion on the event loop's thread.
# Lives here: submission and completion. Does not: the work of a job (native/job), the choice of the next one
# (native/pool.h).
#
# All methods are for the loop's thread. The native threads have no Python state and never take the GIL; `_jobs` owns
# the Python references of a job until its callback was called.

import atexit
import os

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable

from fastinfer.native.job cimport Job, Task, monotonic_ns

from fastinfer.base.machine import usable_cores


cdef double CHECK_S = 0.02

cdef enum:
    LONG_NS = 50_000_000        # from here on, a job may get a lower priority
    OVERLONG_NS = 100_000_000   # from here on, it may also lose its place
    MOST_DISPLACED = 4      # extra threads, for each of `threads`


@cython.final
cdef class Share:
    @property
    def running(self):
        return self.share.running


@cython.final
cdef class Executor:
    def __cinit__(self, int threads, int loop_fd=-1, call_later=None, int processes=1):
        if threads < 1:
            raise ValueError("an executor has at least one thread")
        self._jobs = {}
        self.pool = new Pool()
        cdef int error = self.pool.start(threads)
        if error != 0:
            self.pool.close()       # joins those that did start
            raise OSError(error, f"native threads cannot be started: {os.strerror(error)}")
        self.threads = threads
        # All processes together leave at least one core to short jobs.
        self._full_priority = (usable_cores() - 1) // processes
        self._loop_fd = loop_fd
        self._call_later = call_later
        self.brief = Share()
        self.bulk = Share()
        # Threads must be gone before the interpreter frees what they work on. This reference also means that an
        # executor is never collected while it is open.
        atexit.register(self._exit)

    def __dealloc__(self):
        del self.pool

    cpdef int submit(self, Job job, object done=None, Share share=None) except -1:
        cdef Task* task = &job.task
        if task.work == NULL or job in self._jobs:
            raise ValueError("a job is submitted once, when it is ready")
        task.owner = <void*>job
        if share is None:
            share = self.brief
        task.share = &share.share
        job.interruption.loop_fd = self._loop_fd
        self._jobs[job] = (done if done is not None else job.done, share)
        if not self.pool.submit(task):
            del self._jobs[job]
            raise RuntimeError("the executor is closed")
        if not self._watching and self._call_later is not None:
            self._watching = True
            self._call_later(CHECK_S, self._check_overlong)
        return 0

    def _check_overlong(self):
        # Demotes overlong jobs; repeats while jobs run.
        cdef int64_t now = monotonic_ns()
        self.pool.demote_overlong(now - LONG_NS, now - OVERLONG_NS, self._full_priority, MOST_DISPLACED * self.threads)
        self._watching = self.pool.queued() > 0 or self.pool.running() > 0
        if self._watching:
            self._call_later(CHECK_S, self._check_overlong)

    cpdef int drain(self) except -1:
        cdef Task* task
        cdef Task* following
        cdef Job job
        stop = None
        with nogil:
            task = self.pool.take_done()
        while task != NULL:
            following = task.next       # the callback may free the job
            job = <Job>task.owner
            task = following
            done = (<tuple>self._jobs.pop(job))[0]
            if done is not None:
                try:
                    done(job)
                except Exception as error:      # the other callbacks are called nevertheless
                    PyErr_SetObject(type(error), error)
                    PyErr_WriteUnraisable(done)     # reports what is set, to sys.unraisablehook
                except BaseException as error:  # KeyboardInterrupt and the like: raised after the other callbacks
                    stop = error
        if stop is not None:
            raise stop
        return 0

    def __len__(self):
        return len(self._jobs)

    def fileno(self):
        return self.pool.fd()

    @property
    def queued(self):
        return self.pool.queued()

    @property
    def running(self):
        return self.pool.running()

    @property
    def displaced(self):
        return self.pool.displaced()

    def close(self):
        cdef Task* task
        cdef Task* following
        with nogil:
            task = self.pool.close()
        while task != NULL:
            following = task.next
            self._jobs.pop(<Job>task.owner)
            task = following
        self.drain()
        atexit.unregister(self._exit)

    def _exit(self):
        for job in self._jobs:
            terminate = getattr(job, "terminate", None)
            if terminate is not None:
                terminate()
        self.close()
