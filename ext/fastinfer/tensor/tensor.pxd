from libc.stdint cimport int64_t

from fastinfer.base.budget cimport Budget

cdef enum:
    MAX_RANK = 16       # more than any published model has; numpy's own limit is 64

# Raw blocks, for code without the GIL. NULL when there is no memory. A block of 0 bytes is a valid pointer.
cdef char* allocate_block(Py_ssize_t nbytes) noexcept nogil
cdef void free_block(char* block) noexcept nogil

# BOOL on the wire: any byte but 0 is true. In memory it is 1, so bytes that are not 0 or 1 cannot be used in place.
cdef bint are_bools(const char* bytes, Py_ssize_t size) noexcept nogil
cdef void put_bools(char* bools, const char* bytes, Py_ssize_t size) noexcept nogil

# The product of dims, or -1 if one is negative or the product is past int64.
cdef int64_t element_count(const int64_t* dims, int rank) noexcept nogil


cdef class Memory:
    # The owner of one block. Its last reference frees the block and releases its bytes in the budget. The buffer
    # protocol gives the block, writable.
    cdef char* data
    cdef readonly Py_ssize_t nbytes
    cdef Budget _budget             # None: it does not count
    cdef Py_ssize_t _charged

    @staticmethod
    cdef Memory allocate(Py_ssize_t nbytes, Budget budget=*)

    # Takes over a block of allocate_block, and `charged` bytes that were reserved for it in `budget`.
    @staticmethod
    cdef Memory adopt(char* block, Py_ssize_t nbytes, Budget budget=*, Py_ssize_t charged=*)


cdef class TensorSpec:
    # A model's declaration of one input or output; -1 stands for a variable dimension. If it declares no shape at all,
    # not even the number of dimensions, the rank is open, and `shape` is (-1,): any tensor fits.
    cdef readonly str name
    cdef readonly bint open_rank
    cdef readonly tuple shape
    cdef readonly tuple symbols     # the symbolic name of each dimension, "" if it has none
    cdef readonly int batch_axis    # if the model is batched: the dimension of rows; -1: none, a batch has one value
    cdef int datatype_id
    cdef int rank
    cdef int64_t[MAX_RANK] dims


cdef class Tensor:
    cdef readonly str name
    cdef int datatype_id
    cdef int rank
    cdef int64_t[MAX_RANK] dims
    cdef int64_t count              # elements: the product of dims
    cdef char* data                 # borrowed from owner; read-only unless the owner is a Memory that nobody else has
    cdef readonly Py_ssize_t nbytes
    cdef readonly object owner      # keeps data alive: Memory, a body's buffer, a runtime's value, an array

    # dims must have been checked (element_count >= 0).
    @staticmethod
    cdef Tensor wrap(str name, int datatype_id, int rank, const int64_t* dims, char* data, Py_ssize_t nbytes,
                     object owner)
    # Rows start .. start+count of the first dimension, sharing the memory.
    cdef Tensor rows(self, int64_t start, int64_t count)
    # The byte at which row `row` of the first dimension starts (walks the elements of BYTES).
    cdef Py_ssize_t row_offset(self, int64_t row) noexcept
