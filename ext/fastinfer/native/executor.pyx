# Native threads that run Jobs, and tell the event loop of their ends.
# Lives here: hand-over and completion, on the loop's thread. Does not: what a job does.
#
# The threads have no Python state and never take the GIL; all Python references stay in `_jobs`.

import atexit
import os

cimport cython
from cpython.exc cimport PyErr_SetObject, PyErr_WriteUnraisable

from fastinfer.native.job cimport Job, Task, monotonic_ns

from fastinfer.base.machine import usable_cores


cdef double LOOK_S = 0.02

cdef enum:
    OVERLONG_NS = 100_000_000
    MOST_DISPLACED = 4      # threads without a place, for each with one


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
        # Of all processes together at least one core is left to jobs that are short.
        self._undisturbed = (usable_cores() - 1) // processes
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
            self._call_later(LOOK_S, self._look)
        return 0

    def _look(self):
        # While jobs run: puts overlong ones behind the others.
        self.pool.relieve(monotonic_ns() - OVERLONG_NS, self._undisturbed, MOST_DISPLACED * self.threads)
        self._watching = self.pool.queued() > 0 or self.pool.running() > 0
        if self._watching:
            self._call_later(LOOK_S, self._look)

    cpdef int drain(self) except -1:
        cdef Task* task
        cdef Task* following
        cdef Job job
        stop = None
        with nogil:
            task = self.pool.take_done()
        while task != NULL:
            following = task.next       # the job may be gone when its end is told
            job = <Job>task.owner
            task = following
            done = (<tuple>self._jobs.pop(job))[0]
            if done is not None:
                try:
                    done(job)
                except Exception as error:      # the other jobs' ends are told all the same
                    PyErr_SetObject(type(error), error)
                    PyErr_WriteUnraisable(done)     # reports what is set, to sys.unraisablehook
                except BaseException as wish:   # KeyboardInterrupt and the like: then go on with that
                    stop = wish
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
