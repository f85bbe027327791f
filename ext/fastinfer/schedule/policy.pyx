# The batching policy: how many of the waiting requests to take now, or how long to wait for more. Lives here: the rule.
# Does not: the queue, clocks, runs. The scheduler has no rule of its own: it asks before each batch.
#
# Loop's thread only. A batch is all requests that wait when an instance becomes free; requests are not delayed to fill
# batches unless the configuration says so. Terms are Triton's (`dynamic_batching` in its model configuration).

from collections import namedtuple

cimport cython
from libc.stdint cimport int64_t

from fastinfer.schedule.queue cimport Group

Decision = namedtuple("Decision", ("take", "wait_ns"))


cdef class Policy:
    def decide(self, rows, waited_ns):
        raise NotImplementedError

    cdef int64_t ask(self, Group waiting, int64_t waited_ns) except? -1:
        take, wait_ns = self.decide(waiting.rows(), waited_ns)
        return take if take > 0 else -max(wait_ns, 0)


@cython.final
cdef class BatchingPolicy(Policy):
    def __init__(self, int64_t max_batch_size=1, tuple preferred_batch_size=(), int64_t max_queue_delay_ns=0):
        self.max_batch_size = max_batch_size
        self.preferred_batch_size = preferred_batch_size
        self._has_preferred = len(preferred_batch_size) > 0
        self.max_queue_delay_ns = max_queue_delay_ns

    def decide(self, rows, int64_t waited_ns):
        cdef Filling filling = Filling(0, 0, 0, False)
        cdef int64_t answer
        for each in rows:
            if not self.add(&filling, each):
                break
        answer = self.answer(&filling, waited_ns)
        return Decision(answer, 0) if answer > 0 else Decision(0, -answer)

    cdef int64_t ask(self, Group waiting, int64_t waited_ns) except? -1:
        cdef Filling filling = Filling(0, 0, 0, False)
        cdef Py_ssize_t place = waiting.start
        cdef Py_ssize_t end = waiting.end
        while (place := waiting.next_live(place)) < end and self.add(&filling, waiting.rows_at(place)):
            place += 1
        cdef int64_t answer = self.answer(&filling, waited_ns)
        return 1 if answer < 0 and waiting.oldest().whole else answer      # nobody can join a request that runs alone

    # Adds a request of this many rows if it fits; returns whether another might fit.
    cdef bint add(self, Filling* filling, int64_t rows) except -1:
        if filling.count > 0 and rows > self.max_batch_size - filling.total:
            filling.full = True
            return False
        filling.count += 1
        filling.total += rows
        if self._has_preferred and filling.total in self.preferred_batch_size:
            filling.preferred = filling.count
        filling.full = filling.total >= self.max_batch_size
        return not filling.full

    cdef int64_t answer(self, const Filling* filling, int64_t waited_ns) noexcept:
        if filling.preferred > 0:
            return filling.preferred
        if filling.full or waited_ns >= self.max_queue_delay_ns:
            return filling.count
        return waited_ns - self.max_queue_delay_ns
