# The table of v2 datatypes: one row each. Everything that depends on a datatype looks it up here.
# Lives here: names, numpy dtypes, ONNX element types, sizes. Does not: memory, shapes, text. Any thread, without the
# GIL: the table is filled when the module is imported, and does not change.

from libc.string cimport memcmp, strlen

cdef Datatype[DATATYPE_COUNT] _TABLE
cdef tuple _NAMES


cdef void _fill(int datatype_id, const char* name, Py_ssize_t itemsize, int32_t onnx, const char* numpy) noexcept:
    _TABLE[datatype_id] = Datatype(name, <Py_ssize_t>strlen(name), itemsize, onnx, numpy)


_fill(BOOL, "BOOL", 1, 9, "?")
_fill(UINT8, "UINT8", 1, 2, "u1")
_fill(UINT16, "UINT16", 2, 4, "<u2")
_fill(UINT32, "UINT32", 4, 12, "<u4")
_fill(UINT64, "UINT64", 8, 13, "<u8")
_fill(INT8, "INT8", 1, 3, "i1")
_fill(INT16, "INT16", 2, 5, "<i2")
_fill(INT32, "INT32", 4, 6, "<i4")
_fill(INT64, "INT64", 8, 7, "<i8")
_fill(FP16, "FP16", 2, 10, "<f2")
_fill(BF16, "BF16", 2, 16, "<u2")
_fill(FP32, "FP32", 4, 1, "<f4")
_fill(FP64, "FP64", 8, 11, "<f8")
_fill(BYTES, "BYTES", 0, 8, "O")

_NAMES = tuple([_TABLE[i].name.decode() for i in range(DATATYPE_COUNT)])
NAMES = _NAMES


cdef const Datatype* datatype_of(int datatype_id) noexcept nogil:
    return &_TABLE[datatype_id]


cdef int from_name(const char* name, Py_ssize_t size) noexcept nogil:
    cdef int i
    for i in range(DATATYPE_COUNT):
        if _TABLE[i].name_size == size and memcmp(_TABLE[i].name, name, size) == 0:
            return i
    return -1


cdef int from_onnx(int32_t onnx_type) noexcept nogil:
    cdef int i
    for i in range(DATATYPE_COUNT):
        if _TABLE[i].onnx == onnx_type:
            return i
    return -1


cdef int from_str(str name) except -1:
    cdef bytes encoded = name.encode()
    cdef int found = from_name(encoded, len(encoded))
    if found < 0:
        raise ValueError(f"unknown datatype {name!r}")
    return found


cdef str name_of(int datatype_id):
    return <str>_NAMES[datatype_id]


def itemsize(str name):
    return _TABLE[from_str(name)].itemsize


def numpy_dtype(str name):
    return _TABLE[from_str(name)].numpy.decode()
