# The requests that wait for one loaded model: see queue.pxd.

from heapq import heapify, heappop, heappush, nsmallest

cimport cython

from fastinfer._ext.message cimport QUEUED, RUNNING

cdef enum:
    FEW = 64    # places that may lie unused at the start of a group, or be taken by ended requests


@cython.final
cdef class Group:
    def __lt__(self, Group other):
        if self.priority != other.priority:
            return self.priority < other.priority
        if self.since_ns != other.since_ns:
            return self.since_ns < other.since_ns
        return self.number < other.number

    cdef InferRequest oldest(self):
        # Alive, or the only one: for a group that was just added to, or that Queue.most_urgent has given.
        return <InferRequest>self.requests[self.start]

    cdef list rows(self, int64_t max_batch_size):
        # The rows of the live requests, as far as they can matter to one batch.
        cdef InferRequest request
        cdef list rows = []
        cdef int64_t total = 0
        cdef Py_ssize_t i
        for i in range(self.start, len(self.requests)):
            request = <InferRequest>self.requests[i]
            if request.state == QUEUED:
                rows.append(request.rows)
                total += request.rows
                if total > max_batch_size:
                    break
        return rows


cdef Group new_group(int64_t priority, key):
    cdef Group group = Group.__new__(Group)
    group.priority = priority
    group.key = key
    group.requests = []
    return group


@cython.final
cdef class Queue:
    def __init__(self, int64_t priority_levels, int64_t default_priority):
        self._priority_levels = priority_levels
        self._default_priority = default_priority
        self._plain = new_group(0, None)
        self._groups = {}
        self.heads = []

    # --- In -----------------------------------------------------------------------------------------------------------

    cdef int add(self, InferRequest request) except -1:
        cdef Group group
        request.state = QUEUED
        if self._priority_levels == 0 and request.shape_key is None:    # the common case
            group = self._plain
        else:
            group = self._group_of(request)
        group.requests.append(request)
        if not group.is_head:
            self._push_head(group)
        self.size += 1
        return 0

    cdef Group _group_of(self, InferRequest request):
        cdef int64_t priority = 0
        if self._priority_levels != 0:
            priority = min(request.priority if request.priority != 0 else self._default_priority,
                           self._priority_levels)
        key = (priority, request.shape_key)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = new_group(priority, key)
        return group

    # --- Out ----------------------------------------------------------------------------------------------------------

    cdef list most_urgent(self, Py_ssize_t wanted):
        # So many groups, each with a live request at its start.
        cdef list heads, empty
        while True:
            heads = nsmallest(wanted, self.heads) if wanted > 1 else self.heads[:1]
            empty = [group for group in heads if self.first(<Group>group) is None]
            if not empty:
                return heads
            for group in empty:
                self._drop(<Group>group)

    cdef InferRequest first(self, Group group):
        # Its first live request, or None.
        cdef InferRequest request
        while group.start < len(group.requests):
            request = <InferRequest>group.requests[group.start]
            if request.state == QUEUED:
                return request
            group.requests[group.start] = None
            group.start += 1
            self._ended -= 1
        return None

    cdef void take_first(self, Group group) noexcept:
        # What first() has given waits no more.
        (<InferRequest>group.requests[group.start]).state = RUNNING
        group.requests[group.start] = None
        group.start += 1
        self.size -= 1

    cdef int settle(self, Group group) except -1:
        # Gives a group that was taken from its new place.
        if group.start == len(group.requests):
            return self._drop(group)
        if group.start > FEW and 2 * group.start > len(group.requests):
            del group.requests[:group.start]
            group.start = 0
        self._remove_head(group)
        return self._push_head(group)

    cdef int has_ended(self) except -1:
        # A request that waited does not any more. Those that lie behind live ones are let go of when they are many, so
        # that a stalled queue cannot hold their memory.
        self.size -= 1
        self._ended += 1
        if self._ended > FEW and self._ended > self.size:
            self._sweep_out()
        return 0

    cdef int _sweep_out(self) except -1:
        cdef Group group
        for group in self.heads.copy():
            group.requests = [request for request in group.requests[group.start:]
                              if (<InferRequest>request).state == QUEUED]
            group.start = 0
            if len(group.requests) == 0:
                self._drop(group)
        self._ended = 0
        return 0

    # --- The heads ----------------------------------------------------------------------------------------------------

    cdef int _push_head(self, Group group) except -1:
        group.since_ns = group.oldest().enqueued_ns
        self._number += 1
        group.number = self._number
        group.is_head = True
        if len(self.heads) == 0:        # the common case
            self.heads.append(group)
        else:
            heappush(self.heads, group)
        return 0

    cdef int _remove_head(self, Group group) except -1:
        group.is_head = False
        if self.heads[0] is not group:
            self.heads.remove(group)
            heapify(self.heads)
        elif len(self.heads) == 1:      # the common case
            self.heads.pop()
        else:
            heappop(self.heads)
        return 0

    cdef int _drop(self, Group group) except -1:
        self._remove_head(group)
        group.requests.clear()
        group.start = 0
        if group is not self._plain:
            del self._groups[group.key]
        return 0
