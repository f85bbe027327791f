# What all connections of a loop share and every request needs; http/hub.py has the rest. Loop's thread only; the
# counters may be in memory that other processes read.

cimport cython
from cpython.buffer cimport PyBuffer_Release
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport int64_t, uintptr_t

from fastinfer.base.budget cimport Budget
from fastinfer.http.head_cache cimport HeadCache
from fastinfer.http.poller cimport Poller
from fastinfer.http.upload cimport BodyPool
from fastinfer.shared.counters cimport borrow

from fastinfer.base import limits as constants
from fastinfer.base.machine import usable_cores
from fastinfer.http.pieces import Pieces

COUNTER_BYTES = 7 * sizeof(int64_t)


# The collector would drop the buffer's owner without releasing the buffer.
@cython.no_gc_clear
cdef class LoopState:
    def __dealloc__(self):
        PyBuffer_Release(&self.counted)

    def __init__(self, router, limits, loop, Poller poller=None, counters=None, Budget budget=None):
        PyBuffer_Release(&self.counted)
        cdef Py_ssize_t size = 0
        cdef char* at = borrow(bytearray(COUNTER_BYTES) if counters is None else counters, &self.counted, &size)
        if size < COUNTER_BYTES or <uintptr_t>at % sizeof(int64_t) != 0:
            raise ValueError(f"the counters need {COUNTER_BYTES} bytes, aligned to 8")
        self.answers_by_class = <int64_t*>at
        self.accepted = self.answers_by_class + 6
        self.router = router
        self.limits = limits
        self.loop = loop
        self.pieces = Pieces(loop, usable_cores())
        self.poller = poller if poller is not None else Poller(loop, (), 0)
        self.max_pipelined = limits.max_pipelined
        self.budget = budget if budget is not None else Budget(limits.in_flight_bytes)
        self.bodies = BodyPool(constants.KEPT_BODY_BYTES)
        self.heads = HeadCache()
        self.now = loop.time()
        self.renew_buffer()

    def renew_buffer(self):
        # Two heads fit, so that there is always room after a started one.
        self.buffer = bytearray(max(constants.READ_BUFFER_BYTES, 2 * self.limits.max_head_bytes + constants.KIB))
        self.view = memoryview(self.buffer)
        self.data = PyByteArray_AS_STRING(self.buffer)
        self.view_kept = False

    @property
    def in_flight_bytes(self):
        return self.budget.used

    @property
    def answers(self):
        return [self.answers_by_class[i] for i in range(6)]

    @property
    def connections_total(self):
        return self.accepted[0]

    @connections_total.setter
    def connections_total(self, int64_t value):
        self.accepted[0] = value
