from libc.stdint cimport int64_t

from fastinfer.tensor.message cimport InferRequest


# How the requests of a priority wait, and how many do.
cdef class QueuePolicy:
    cdef readonly int64_t max_size      # requests that may wait
    cdef readonly int64_t timeout_us    # of a request that has none of its own; > 0
    cdef readonly int64_t delay_ns      # a request that has waited for so long lets others go first; 0: none does
    cdef readonly bint allow_override   # the timeout that a request gives counts
    cdef readonly int64_t waiting


# Compatible requests that wait, oldest first.
cdef class Group:
    cdef int64_t rank           # of its priority, the most urgent one first; delayed requests follow the others
    cdef QueuePolicy policy     # of its priority, or None
    cdef object key             # of Queue._groups; None for the plain group
    cdef list requests          # from `start` to `end`, the others are None; ended ones may be between those that wait
    cdef Py_ssize_t start
    cdef Py_ssize_t end
    cdef int64_t live           # requests that wait
    # As a member of the heap.
    cdef Py_ssize_t place       # in the heap; -1: it is not in it
    cdef int64_t since_ns       # when its oldest request came
    cdef int64_t number         # unique: the order of groups that are equal otherwise

    cdef InferRequest oldest(self)
    # The first place in `requests` from `place` on with a waiting request, or the end; its rows; the rows of all
    # waiting ones.
    cdef Py_ssize_t next_live(self, Py_ssize_t place) noexcept
    cdef int64_t rows_at(self, Py_ssize_t place) noexcept
    cdef list rows(self)


cdef class Queue:
    cdef readonly int64_t size          # requests that wait
    cdef list heap                      # of the groups with waiting requests, the most urgent one first, then None
    cdef readonly Py_ssize_t ready_groups       # the groups in it
    cdef readonly int64_t steps         # that groups have moved in the heap, for tests
    # A group for requests without priority and shape_key (most models have no others), and groups of all others, none
    # of which is empty.
    cdef Group _plain
    cdef dict _groups                   # (priority, shape_key) -> Group
    cdef int64_t _priority_levels
    cdef int64_t _default_priority
    cdef dict policies                  # priority -> QueuePolicy, 0: of all others; None: there are none
    cdef int64_t _number
    cdef int64_t _ended                 # requests that have ended and still lie in a group

    cdef int add(self, InferRequest request) except -1
    cdef list most_urgent(self, Py_ssize_t wanted)
    cdef InferRequest first(self, Group group)
    cdef void take_first(self, Group group) noexcept
    # Lets the others of its priority go first.
    cdef int delay_first(self, Group group) except -1
    cdef int settle(self, Group group) except -1
    # A request that waited has ended.
    cdef int has_ended(self, InferRequest request) except -1

    # The policy of a request's priority; None without policies.
    cdef QueuePolicy policy_of(self, InferRequest request)
    cdef int64_t _priority_of(self, InferRequest request) noexcept
    cdef Group _new_group(self, int64_t priority, key)
    cdef Group _group_of(self, InferRequest request)
    cdef tuple _key_of(self, InferRequest request)
    cdef void _set_rank(self, Group group) noexcept
    cdef int _push_group(self, Group group) except -1
    cdef int _remove_group(self, Group group) except -1
    cdef int _move_up(self, Group group, Py_ssize_t place) except -1
    cdef int _move_down(self, Group group, Py_ssize_t place) except -1
    cdef int _drop(self, Group group) except -1
    cdef int _sweep_out(self) except -1
    cdef int _check(self) except -1
