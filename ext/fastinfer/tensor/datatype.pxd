from libc.stdint cimport int32_t

cdef enum DatatypeId:
    BOOL
    UINT8
    UINT16
    UINT32
    UINT64
    INT8
    INT16
    INT32
    INT64
    FP16
    BF16
    FP32
    FP64
    BYTES

cdef enum:
    DATATYPE_COUNT = 14

cdef struct Datatype:
    const char* name        # as on the wire
    Py_ssize_t name_size
    Py_ssize_t itemsize     # bytes an element; 0 for BYTES (elements have their own lengths)
    int32_t onnx            # ONNXTensorElementDataType
    const char* numpy       # numpy's dtype string; BF16 has none of its own and is carried as uint16

cdef const Datatype* datatype_of(int datatype_id) noexcept nogil
# The id of a name, or -1.
cdef int from_name(const char* name, Py_ssize_t size) noexcept nogil
# The id of an ONNX element type, or -1 if v2 has no name for it.
cdef int from_onnx(int32_t onnx_type) noexcept nogil
# The id of a name that is a str; ValueError for an unknown name.
cdef int from_str(str name) except -1
cdef str name_of(int datatype_id)
