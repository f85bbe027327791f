from libc.stdint cimport int32_t, int64_t

from fastinfer.backends.onnx.ort_table cimport OrtIoBinding, OrtRunOptions, OrtSession, OrtStatus, OrtValue
from fastinfer.base.budget cimport Budget
from fastinfer.tensor.tensor cimport MAX_RANK

cdef enum:
    FAILURE_BYTES = 1024

    FAIL = 1                    # OrtErrorCode
    INVALID_ARGUMENT = 2
    NO_SUCH_FILE = 3
    INVALID_PROTOBUF = 7
    NOT_IMPLEMENTED = 9

cdef struct EngineError:
    int32_t code                # OrtErrorCode; 0: none
    char[FAILURE_BYTES] text    # NUL-terminated

cdef struct Feed:
    # An input: borrowed memory, which must outlive the run.
    int datatype_id
    int rank
    const int64_t* dims
    const char* data
    Py_ssize_t nbytes

cdef struct Output:
    # Memory of the runtime's value, or a block of allocate_block; see own().
    int datatype_id
    int rank
    int64_t[MAX_RANK] dims
    char* data
    Py_ssize_t nbytes
    OrtValue* value             # NULL if data is a block

cdef struct Handle:
    # The part of a session that a run uses; valid as long as the Session.
    OrtSession* session
    Py_ssize_t input_count
    Py_ssize_t output_count
    const char** input_names
    const char** output_names
    const Feed* declared        # the types and shapes of the outputs, without memory
    bint may_lack_outputs       # an output is an optional value or a sequence, so that it may have no answer
    const char** run_config     # pairs of key and value for every run's options; NULL if there are none
    Py_ssize_t run_config_count

# Every function fills in `failure` if it returns -1.
cdef int fail(EngineError* failure, int32_t code, const char* text) noexcept nogil
# Fills values with handle.input_count values over the feeds' memory (copies BYTES). The caller releases them.
cdef int make_values(const Handle* handle, const Feed* feeds, OrtValue** values, EngineError* failure) noexcept nogil
# Fills outputs, which must be NULLs. The caller passes each one to receive, or releases it.
cdef int execute(const Handle* handle, OrtValue** inputs, const char** output_names, Py_ssize_t output_count,
                 OrtValue** outputs, OrtRunOptions* options, EngineError* failure) noexcept nogil
# Receives an output. Takes its value over in any case, and sets value[0] to NULL. The output does not share memory with
# the feeds. The elements of a sequence become one tensor, along a new first dimension.
# INVALID_ARGUMENT: for these inputs, an optional value is absent, or the elements of a sequence have different shapes.
cdef int receive(const Handle* handle, const Feed* feeds, Py_ssize_t index, OrtValue** value, Output* output,
                 EngineError* failure) noexcept nogil
cdef void release_values(OrtValue** values, Py_ssize_t count) noexcept nogil
# Frees a received output that has no owner yet.
cdef void discard(Output* output) noexcept nogil

# A session bound to memory for its inputs and outputs, none of them BYTES; NULL if that fails. The memory must
# outlive the binding. One thread at a time may run it.
cdef OrtIoBinding* create_binding(const Handle* handle, const Feed* inputs, const Feed* outputs,
                                  EngineError* failure) noexcept nogil
cdef int execute_bound(const Handle* handle, OrtIoBinding* binding, OrtRunOptions* options,
                       EngineError* failure) noexcept nogil
# Fails unless the last run left its outputs in the memory that was bound.
cdef int check_in_place(const Handle* handle, OrtIoBinding* binding, const Feed* outputs,
                        EngineError* failure) noexcept nogil
cdef void release_binding(OrtIoBinding* binding) noexcept nogil

# Run options, which hold the terminate flag: another thread may set it before, during and after the run. With the
# entries of the handle's run_config; NULL: of no session in particular.
cdef OrtRunOptions* create_run_options(const Handle* handle) except NULL
cdef void release_run_options(OrtRunOptions* options) noexcept nogil
cdef void terminate(OrtRunOptions* options) noexcept nogil
cdef void unset_terminate(OrtRunOptions* options) noexcept nogil

# The owner of a received output's memory, which counts in `budget`; to be called once for each output.
# session: kept with it, since its allocator made the value.
cdef object own(Output* output, object session, Budget budget)
cdef object error_of(const EngineError* failure)
# Raises the error of a status, and releases it.
cdef int check(OrtStatus* status) except -1
# The runtime's table of functions (backends/onnx/ort_table.h), before anything else here is called.
cdef int use_table(void** table) except -1
