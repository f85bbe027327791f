# The requests that wait for one loaded model, in groups of those that may share a batch. Lives here: their order. Does
# not: batch sizes (policy), runs. Loop's thread only; the queue keeps a request until it is taken or swept out.
#
# Compatible requests (equal priority and shape_key) wait in one group; the group whose oldest is the most urgent, or
# came first, is served first. Delayed requests, whose time in the queue has passed, wait in groups of their own, after
# the others of their priority. Requests that ended while they waited are skipped when their turn comes, or swept out
# when they become many. A group without waiting requests is removed at once: each group stores its place in the heap,
# so a removal takes O(log n) steps.

cimport cython

from fastinfer.base.debug cimport DEBUG, invariant
from fastinfer.base.lists cimport append
from fastinfer.tensor.message cimport QUEUED, RUNNING

cdef enum:
    FEW = 64    # places that may lie unused at the start of a group, or be taken by ended requests


@cython.final
cdef class QueuePolicy:
    def __init__(self, *, int64_t max_size, int64_t timeout_us, int64_t delay_us=0, bint allow_override=True):
        self.max_size = max_size
        self.timeout_us = timeout_us
        self.delay_ns = delay_us * 1000
        self.allow_override = allow_override


@cython.final
cdef class Group:
    cdef InferRequest oldest(self):
        # It waits, if the group was just added to, or returned by Queue.most_urgent.
        return <InferRequest>self.requests[self.start]

    cdef Py_ssize_t next_live(self, Py_ssize_t place) noexcept:
        while place < self.end and (<InferRequest>self.requests[place]).state != QUEUED:
            place += 1
        return place

    cdef int64_t rows_at(self, Py_ssize_t place) noexcept:
        return (<InferRequest>self.requests[place]).rows

    cdef list rows(self):
        cdef list rows = []
        cdef Py_ssize_t place = self.start
        while (place := self.next_live(place)) < self.end:
            rows.append(self.rows_at(place))
            place += 1
        return rows


cdef bint precedes(Group group, Group other) noexcept:
    if group.rank != other.rank:
        return group.rank < other.rank
    if group.since_ns != other.since_ns:
        return group.since_ns < other.since_ns
    return group.number < other.number


@cython.final
cdef class Queue:
    def __init__(self, int64_t priority_levels, int64_t default_priority, policies=None):
        self._priority_levels = priority_levels
        self._default_priority = default_priority
        self.policies = dict(policies) if policies is not None else None
        self._plain = self._new_group(0, None)
        self._groups = {}
        self.heap = []

    # --- In -----------------------------------------------------------------------------------------------------------

    cdef int add(self, InferRequest request) except -1:
        cdef Group group
        request.state = QUEUED
        if self._priority_levels == 0 and request.shape_key is None and not request.delayed:    # the common case
            group = self._plain
        else:
            group = self._group_of(request)
        append(group.requests, group.end, request)
        group.end += 1
        group.live += 1
        if group.policy is not None:
            group.policy.waiting += 1
        if group.place < 0:
            self._push_group(group)
        self.size += 1
        if DEBUG:
            self._check()
        return 0

    cdef int64_t _priority_of(self, InferRequest request) noexcept:
        if self._priority_levels == 0:
            return 0
        return min(request.priority if request.priority != 0 else self._default_priority, self._priority_levels)

    cdef QueuePolicy policy_of(self, InferRequest request):
        if self.policies is None:
            return None
        policy = self.policies.get(self._priority_of(request))
        return policy if policy is not None else self.policies[0]

    cdef tuple _key_of(self, InferRequest request):
        return (self._priority_of(request), request.shape_key, request.delayed)

    cdef Group _group_of(self, InferRequest request):
        cdef tuple key = self._key_of(request)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self._new_group(key[0], key)
            (<Group>group).rank += request.delayed
            (<Group>group).policy = self.policy_of(request)
        return group

    cdef Group _new_group(self, int64_t priority, key):
        cdef Group group = Group.__new__(Group)
        group.rank = 2 * priority
        group.policy = self.policies[0] if self.policies is not None else None
        group.key = key
        group.requests = []
        group.place = -1
        return group

    # --- Out ----------------------------------------------------------------------------------------------------------

    cdef list most_urgent(self, Py_ssize_t wanted):
        # Returns up to this many groups, each with a live request at its start. The candidates for the next place are
        # only the children, in the heap, of the groups found so far.
        cdef list found = []
        cdef list candidates = [0] if self.ready_groups > 0 else []
        cdef Py_ssize_t place, child, best, i
        while len(candidates) > 0 and len(found) < wanted:
            best = 0
            for i in range(1, len(candidates)):
                if precedes(<Group>self.heap[<Py_ssize_t>candidates[i]],
                            <Group>self.heap[<Py_ssize_t>candidates[best]]):
                    best = i
            place = candidates.pop(best)
            found.append(self.heap[place])
            for child in range(2 * place + 1, min(2 * place + 3, self.ready_groups)):
                candidates.append(child)
        for group in found:
            if self.first(<Group>group) is None:    # only if taking a batch has failed midway
                self._drop(<Group>group)
                return self.most_urgent(wanted)
        return found

    cdef InferRequest first(self, Group group):
        # Its first live request, or None.
        cdef InferRequest request
        while group.start < group.end:
            request = <InferRequest>group.requests[group.start]
            if request.state == QUEUED:
                return request
            group.requests[group.start] = None
            group.start += 1
            self._ended -= 1
        return None

    cdef void take_first(self, Group group) noexcept:
        # Takes the request that first() has returned.
        invariant(group.live > 0 and self.size > 0, "a request that is taken has waited")
        (<InferRequest>group.requests[group.start]).state = RUNNING
        group.requests[group.start] = None
        group.start += 1
        group.live -= 1
        if group.policy is not None:
            group.policy.waiting -= 1
        self.size -= 1

    cdef int delay_first(self, Group group) except -1:
        # For the request that first() has returned.
        cdef InferRequest request = <InferRequest>group.requests[group.start]
        self.take_first(group)
        request.delayed = True
        return self.add(request)

    cdef int settle(self, Group group) except -1:
        # Moves a group to its new place after requests were taken from it.
        if group.live == 0:
            return self._drop(group)
        if group.start > FEW and 2 * group.start > group.end:
            del group.requests[:group.start]
            group.end -= group.start
            group.start = 0
        self.first(group)
        self._set_rank(group)
        self._move_up(group, group.place)
        return self._move_down(group, group.place)

    cdef int has_ended(self, InferRequest request) except -1:
        # A group without waiting requests is dropped; ended requests between live ones are removed when they are many,
        # so that a stalled queue cannot hold their memory.
        cdef Group group
        if self._priority_levels == 0 and request.shape_key is None and not request.delayed:
            group = self._plain
        else:
            group = <Group?>self._groups[self._key_of(request)]
        self.size -= 1
        self._ended += 1
        group.live -= 1
        if group.policy is not None:
            group.policy.waiting -= 1
        if group.live == 0:
            self._drop(group)
        elif self._ended > FEW and self._ended > self.size:
            self._sweep_out()
        if DEBUG:
            self._check()
        return 0

    cdef int _sweep_out(self) except -1:
        # Each group has a live request, so there are no more groups than live requests, hence than ended ones: a sweep
        # costs a few steps for each request that has ended since the last.
        cdef Group group
        cdef Py_ssize_t place
        for place in range(self.ready_groups):
            group = <Group>self.heap[place]
            if group.live < <int64_t>(group.end - group.start):
                group.requests = [request for request in group.requests[group.start:group.end]
                                  if (<InferRequest>request).state == QUEUED]
                group.start = 0
                group.end = len(group.requests)
        self._ended = 0
        return 0

    cdef int _check(self) except -1:
        # Checks the counts, the heap and the groups against each other; takes steps for each request.
        cdef Group group
        cdef int64_t live = 0
        cdef Py_ssize_t place
        for place in range(self.ready_groups):
            group = <Group>self.heap[place]
            invariant(group.place == place, "a group knows its place in the heap")
            invariant(place == 0 or not precedes(group, <Group>self.heap[(place - 1) >> 1]),
                      "the heap is in order")
            invariant(group.live == <int64_t>len(group.rows()), "a group counts its live requests")
            invariant(group is self._plain or self._groups.get(group.key) is group, "a group is found by its key")
            live += group.live
        invariant(live == self.size, "the queue's size is that of its groups")
        invariant(self._plain.place >= 0 or self._plain.live == 0, "a group with waiting requests is in the heap")
        return 0

    # --- The heap -----------------------------------------------------------------------------------------------------

    cdef void _set_rank(self, Group group) noexcept:
        group.since_ns = group.oldest().enqueued_ns
        self._number += 1
        group.number = self._number

    cdef int _push_group(self, Group group) except -1:
        self._set_rank(group)
        append(self.heap, self.ready_groups, group)
        self.ready_groups += 1
        return self._move_up(group, self.ready_groups - 1)

    cdef int _remove_group(self, Group group) except -1:
        # The last group takes its place, and moves up or down from there.
        cdef Group last
        self.ready_groups -= 1
        last = <Group>self.heap[self.ready_groups]
        self.heap[self.ready_groups] = None
        if self.ready_groups == 0 and len(self.heap) > FEW:
            self.heap = []
        if last is not group:
            self._move_up(last, group.place)
            self._move_down(last, last.place)
        group.place = -1
        return 0

    cdef int _move_up(self, Group group, Py_ssize_t place) except -1:
        # Moves a group up from a free place.
        cdef list groups = self.heap
        cdef Group parent
        while place > 0:
            parent = <Group>groups[(place - 1) >> 1]
            if not precedes(group, parent):
                break
            groups[place] = parent
            parent.place = place
            place = (place - 1) >> 1
            self.steps += 1
        groups[place] = group
        group.place = place
        return 0

    cdef int _move_down(self, Group group, Py_ssize_t place) except -1:
        cdef list groups = self.heap
        cdef Py_ssize_t count = self.ready_groups
        cdef Py_ssize_t at = 2 * place + 1
        cdef Group child
        while at < count:
            if at + 1 < count and precedes(<Group>groups[at + 1], <Group>groups[at]):
                at += 1
            child = <Group>groups[at]
            if not precedes(child, group):
                break
            groups[place] = child
            child.place = place
            place = at
            at = 2 * place + 1
            self.steps += 1
        groups[place] = group
        group.place = place
        return 0

    cdef int _drop(self, Group group) except -1:
        cdef Py_ssize_t place
        self._remove_group(group)
        self._ended -= group.end - group.start
        if len(group.requests) > FEW:
            group.requests = []
        for place in range(group.start, min(group.end, <Py_ssize_t>len(group.requests))):
            group.requests[place] = None
        group.start = group.end = 0
        group.live = 0
        if group is not self._plain:
            del self._groups[group.key]
        return 0
