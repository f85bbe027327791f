# Runs a session through ONNX Runtime's C API, without the GIL and on any thread; several threads may run one Handle at
# the same time. Lives here: converting memory to the runtime's values and back. Does not: sessions and the library
# (ort), requests, batches.
#
# A run has three steps, so that each can be timed: make the values of the inputs, execute, receive the outputs. If the
# shapes repeat, a binding does the first and the last step once. The caller owns the inputs' memory; `own` gives each
# output an owner.

cimport cython
from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove, strlen

from fastinfer.backends.onnx.ort_table cimport *
from fastinfer.base.budget cimport Budget
from fastinfer.tensor.datatype cimport BYTES, from_onnx, datatype_of
from fastinfer.tensor.tensor cimport Memory, allocate_block, element_count, free_block

cdef enum:
    TENSOR = 1                  # ONNXType
    SEQUENCE = 2
    ARENA = 1                   # OrtAllocatorType
    DEFAULT_MEMORY = 0          # OrtMemType
    MAX_TEXT_BYTES = 16384      # of a failure's text; the rest is never shown
    MAX_NAME_SHOWN = 200        # bytes of an output's name in a failure's text

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char* text, size_t most)

# One per process, for its whole life.
cdef OrtMemoryInfo* _cpu = NULL
cdef OrtAllocator* _allocator = NULL
cdef char _no_bytes = 0         # the data of an output without elements


class OrtError(Exception):
    def __init__(self, str message not None, int code=FAIL):
        super().__init__(message)
        self.code = code


cdef object error_of(const EngineError* failure):
    return OrtError((<const char*>failure.text).decode("utf-8", "replace"), failure.code)


cdef int check(OrtStatus* status) except -1:
    if status == NULL:
        return 0
    cdef const char* text = ort_get_error_message(status)
    # Some texts repeat a name of the model, which may be as long as its file: only the beginning is decoded.
    message = text[:strnlen(text, MAX_TEXT_BYTES)].decode("utf-8", "replace")
    code = ort_get_error_code(status)
    ort_release_status(status)
    raise OrtError(message, code)


cdef int use_table(void** table) except -1:
    global ort_table, _cpu, _allocator
    ort_table = table
    check(ort_create_cpu_memory_info(ARENA, DEFAULT_MEMORY, &_cpu))
    return check(ort_default_allocator(&_allocator))


# --- Failures ---------------------------------------------------------------------------------------------------------


cdef int fail(EngineError* failure, int32_t code, const char* text) noexcept nogil:
    cdef size_t size = strlen(text)
    if size >= FAILURE_BYTES:
        size = FAILURE_BYTES - 1
    failure.code = code
    memcpy(failure.text, text, size)
    failure.text[size] = 0
    return -1


cdef int _failed(OrtStatus* status, EngineError* failure) noexcept nogil:
    # Returns -1 if the status is a failure, which it then copies and releases.
    if status == NULL:
        return 0
    fail(failure, ort_get_error_code(status), ort_get_error_message(status))
    ort_release_status(status)
    return -1


# --- Memory to values -------------------------------------------------------------------------------------------------


cdef int make_values(const Handle* handle, const Feed* feeds, OrtValue** values, EngineError* failure) noexcept nogil:
    cdef Py_ssize_t i
    cdef const Feed* feed
    for i in range(handle.input_count):
        values[i] = NULL
    for i in range(handle.input_count):
        feed = &feeds[i]
        if feed.datatype_id == BYTES:
            if _make_strings(feed, &values[i], failure) < 0:
                release_values(values, handle.input_count)
                return -1
        elif _value_over(feed, &values[i], failure) < 0:
            release_values(values, handle.input_count)
            return -1
    return 0


cdef int _value_over(const Feed* feed, OrtValue** value, EngineError* failure) noexcept nogil:
    # A value over the feed's own memory.
    return _failed(ort_create_tensor_over(_cpu, <void*>feed.data, feed.nbytes, feed.dims, feed.rank,
                                          datatype_of(feed.datatype_id).onnx, value), failure)


cdef int _make_strings(const Feed* feed, OrtValue** value, EngineError* failure) noexcept nogil:
    cdef int64_t count = element_count(feed.dims, feed.rank)
    cdef Py_ssize_t at = 0
    cdef int64_t i
    cdef uint32_t size
    cdef char* element = NULL
    # Each element has a length of 4 bytes, so this check also bounds the allocation by the received bytes.
    if count < 0 or feed.nbytes // 4 < count:
        return fail(failure, INVALID_ARGUMENT, b"a BYTES input has fewer elements than its shape")
    if _failed(ort_create_tensor(_allocator, feed.dims, feed.rank, datatype_of(BYTES).onnx, value), failure) < 0:
        return -1
    for i in range(count):
        if feed.nbytes - at < 4:
            return fail(failure, INVALID_ARGUMENT, b"a BYTES input has fewer elements than its shape")
        memcpy(&size, feed.data + at, 4)
        at += 4
        if <Py_ssize_t>size > feed.nbytes - at:
            return fail(failure, INVALID_ARGUMENT, b"an element of a BYTES input is longer than the input")
        if _failed(ort_resized_string(value[0], i, size, &element), failure) < 0:
            return -1
        memcpy(element, feed.data + at, size)
        at += size
    return 0


# --- The run ----------------------------------------------------------------------------------------------------------


cdef int execute(const Handle* handle, OrtValue** inputs, const char** output_names, Py_ssize_t output_count,
                 OrtValue** outputs, OrtRunOptions* options, EngineError* failure) noexcept nogil:
    if _failed(ort_run(handle.session, options, handle.input_names, inputs, handle.input_count,
                       output_names, output_count, outputs), failure) < 0:
        release_values(outputs, output_count)
        return -1
    return 0


cdef OrtIoBinding* create_binding(const Handle* handle, const Feed* inputs, const Feed* outputs,
                                  EngineError* failure) noexcept nogil:
    cdef OrtIoBinding* binding = NULL
    cdef Py_ssize_t i
    cdef int failed = _failed(ort_create_io_binding(handle.session, &binding), failure)
    for i in range(handle.input_count):
        if failed == 0:
            failed = _bind_one(binding, handle.input_names[i], &inputs[i], True, failure)
    for i in range(handle.output_count):
        if failed == 0:
            failed = _bind_one(binding, handle.output_names[i], &outputs[i], False, failure)
    if failed < 0 and binding != NULL:
        ort_release_io_binding(binding)
        binding = NULL
    return binding


cdef int _bind_one(OrtIoBinding* binding, const char* name, const Feed* feed, bint is_input,
                   EngineError* failure) noexcept nogil:
    cdef OrtValue* value = NULL
    cdef int failed = _value_over(feed, &value, failure)
    if failed == 0:
        failed = _failed(ort_bind_input(binding, name, value) if is_input else ort_bind_output(binding, name, value),
                         failure)
        ort_release_value(value)        # the binding has its own reference
    return failed


cdef int execute_bound(const Handle* handle, OrtIoBinding* binding, OrtRunOptions* options,
                       EngineError* failure) noexcept nogil:
    return _failed(ort_run_with_binding(handle.session, options, binding), failure)


cdef int check_in_place(const Handle* handle, OrtIoBinding* binding, const Feed* outputs,
                        EngineError* failure) noexcept nogil:
    cdef OrtValue** values = NULL
    cdef size_t count = 0
    cdef void* data = NULL
    cdef Py_ssize_t i
    cdef int failed = _failed(ort_bound_outputs(binding, _allocator, &values, &count), failure)
    if failed < 0:
        return failed
    for i in range(handle.output_count):
        if failed == 0:
            failed = _failed(ort_tensor_data(values[i], &data), failure)
            if failed == 0 and data != outputs[i].data:
                failed = fail(failure, FAIL, b"an output is not where it was bound")
    release_values(values, <Py_ssize_t>count)
    ort_release_status(ort_free(_allocator, values))
    return failed


cdef void release_binding(OrtIoBinding* binding) noexcept nogil:
    ort_release_io_binding(binding)


cdef OrtRunOptions* create_run_options(const Handle* handle) except NULL:
    cdef OrtRunOptions* options = NULL
    cdef Py_ssize_t i
    check(ort_create_run_options(&options))
    if handle != NULL:
        for i in range(handle.run_config_count):
            try:
                check(ort_add_run_config(options, handle.run_config[2 * i], handle.run_config[2 * i + 1]))
            except BaseException:
                ort_release_run_options(options)
                raise
    return options


cdef void release_run_options(OrtRunOptions* options) noexcept nogil:
    ort_release_run_options(options)


cdef void terminate(OrtRunOptions* options) noexcept nogil:
    ort_release_status(ort_terminate(options))


cdef void unset_terminate(OrtRunOptions* options) noexcept nogil:
    ort_release_status(ort_unset_terminate(options))


# --- Values to memory -------------------------------------------------------------------------------------------------


cdef int receive(const Handle* handle, const Feed* feeds, Py_ssize_t index, OrtValue** value, Output* output,
                 EngineError* failure) noexcept nogil:
    cdef const char* name = handle.output_names[index]
    cdef OrtValue* taken = value[0]
    cdef int32_t kind = TENSOR
    cdef int failed
    value[0] = NULL
    output.value = NULL
    output.data = NULL
    failed = _kind_of(handle, name, taken, &kind, failure)
    if failed == 0 and kind == SEQUENCE:
        failed = _stack(name, &handle.declared[index], taken, output, failure)
        ort_release_value(taken)
        return failed
    if failed == 0 and kind != TENSOR:
        failed = fail(failure, NOT_IMPLEMENTED, b"the model gave something other than a tensor for an output")
    if failed == 0:
        failed = _receive(taken, output, failure)
    if failed == 0 and output.datatype_id != BYTES:
        if not _lies_in_a_feed(handle, feeds, output):      # the common case
            output.value = taken
            return 0
        failed = _copy_out(output, failure)
    ort_release_value(taken)
    return failed


cdef int _kind_of(const Handle* handle, const char* name, OrtValue* value, int32_t* kind,
                  EngineError* failure) noexcept nogil:
    cdef int32_t has_value = 1
    if value == NULL:
        return fail(failure, FAIL, b"the model gave no value for an output")
    if handle.may_lack_outputs:
        if _failed(ort_has_value(value, &has_value), failure) < 0:
            return -1
        if not has_value:
            return _fail_about(failure, INVALID_ARGUMENT, name, b"is optional, and absent; ask only for other outputs")
    return _failed(ort_kind_of_value(value, kind), failure)


cdef bint _lies_in_a_feed(const Handle* handle, const Feed* feeds, const Output* output) noexcept nogil:
    # An output that is also an input is returned in the input's memory.
    cdef Py_ssize_t i
    for i in range(handle.input_count):
        if feeds[i].data <= output.data < feeds[i].data + feeds[i].nbytes:
            return True
    return False


cdef int _copy_out(Output* output, EngineError* failure) noexcept nogil:
    cdef char* block = allocate_block(output.nbytes)
    if block != NULL:
        memcpy(block, output.data, output.nbytes)
    output.data = block
    return 0 if block != NULL else fail(failure, FAIL, b"no memory for an output")


cdef int _receive(OrtValue* value, Output* output, EngineError* failure) noexcept nogil:
    # Of a tensor.
    cdef OrtTensorInfo* info = NULL
    cdef int32_t element_type = 0
    cdef size_t rank = 0
    cdef int64_t count
    cdef void* data = NULL
    if _failed(ort_tensor_info_of_value(value, &info), failure) < 0:
        return -1
    cdef bint failed = (_failed(ort_element_type(info, &element_type), failure) < 0
                        or _failed(ort_rank(info, &rank), failure) < 0)
    if not failed and rank > MAX_RANK:
        fail(failure, NOT_IMPLEMENTED, b"the model gave an output of more than 16 dimensions")
        failed = True
    if not failed:
        failed = _failed(ort_dimensions(info, output.dims, rank), failure) < 0
    ort_release_tensor_info(info)
    if failed:
        return -1
    output.rank = <int>rank
    output.datatype_id = from_onnx(element_type)
    count = element_count(output.dims, output.rank)
    if output.datatype_id < 0 or count < 0:
        return fail(failure, NOT_IMPLEMENTED, b"the model gave an output of a type that the protocol has no word for")
    if output.datatype_id == BYTES:
        return _receive_strings(value, count, output, failure)
    if _failed(ort_tensor_data(value, &data), failure) < 0:
        return -1
    output.data = <char*>data if data != NULL else &_no_bytes
    output.nbytes = count * datatype_of(output.datatype_id).itemsize
    return 0


cdef int _receive_strings(OrtValue* value, int64_t count, Output* output, EngineError* failure) noexcept nogil:
    # The texts are written after the room for their lengths, then moved forward, each after its own length.
    cdef size_t size = 0
    cdef size_t* offsets
    cdef char* block
    cdef size_t end
    cdef uint32_t length
    cdef int64_t i
    if _failed(ort_strings_size(value, &size), failure) < 0:
        return -1
    offsets = <size_t*>malloc((count + 1) * sizeof(size_t))
    block = allocate_block(<Py_ssize_t>size + 4 * count)
    if offsets == NULL or block == NULL:
        free(offsets)
        free_block(block)
        return fail(failure, FAIL, b"no memory for an output")
    if count > 0 and _failed(ort_strings(value, block + 4 * count, size, offsets, count), failure) < 0:
        free(offsets)
        free_block(block)
        return -1
    for i in range(count):
        end = offsets[i + 1] if i + 1 < count else size
        if end - offsets[i] > 0xFFFFFFFFu:
            free(offsets)
            free_block(block)
            return fail(failure, FAIL, b"an element of an output has 4 GiB or more")
        length = <uint32_t>(end - offsets[i])
        # The length is written before the text's old place, so it does not overwrite a text that is still to be moved.
        memcpy(block + offsets[i] + 4 * i, &length, 4)
        memmove(block + offsets[i] + 4 * i + 4, block + offsets[i] + 4 * count, length)
    free(offsets)
    output.data = block
    output.nbytes = <Py_ssize_t>size + 4 * count
    return 0


# --- Sequences to memory ----------------------------------------------------------------------------------------------


cdef int _stack(const char* name, const Feed* declared, OrtValue* sequence, Output* output,
                EngineError* failure) noexcept nogil:
    # Copies the elements, one after the other, to a block. They must be tensors of one shape.
    cdef Output element
    cdef Py_ssize_t room = 0
    cdef int64_t i
    cdef size_t count = 0
    cdef int failed = 0
    if _failed(ort_count_of_elements(sequence, &count), failure) < 0:
        return -1
    _begin_stack(count, declared, output)
    for i in range(<int64_t>count):
        failed = _receive_element(sequence, i, &element, failure)
        if failed == 0 and i == 0:
            failed = _shape_stack(name, &element, output, failure)
        if failed == 0:
            failed = _append(name, &element, <int64_t>count - i, output, &room, failure)
        discard(&element)
        if failed < 0:
            discard(output)
            return -1
    return 0 if output.data != NULL or _reserve(output, 0, &room) == 0 else _fail_memory(failure)


cdef void _begin_stack(size_t count, const Feed* declared, Output* output) noexcept nogil:
    # The shape for no elements: as it is declared, with 0 for what is open.
    cdef int i
    output.datatype_id = declared.datatype_id
    output.rank = max(declared.rank, 1)
    output.dims[0] = <int64_t>count
    for i in range(1, declared.rank):
        output.dims[i] = max(declared.dims[i], 0)
    output.nbytes = 0


cdef int _receive_element(OrtValue* sequence, int64_t index, Output* element, EngineError* failure) noexcept nogil:
    element.value = NULL
    element.data = NULL
    if _failed(ort_element(sequence, <int32_t>index, _allocator, &element.value), failure) < 0:
        return -1
    cdef OrtValue* value = element.value
    cdef int failed = _receive(value, element, failure)
    if failed == 0 and element.datatype_id == BYTES:    # it has a block of its own now
        ort_release_value(value)
        element.value = NULL
    return failed


cdef int _shape_stack(const char* name, const Output* first, Output* output, EngineError* failure) noexcept nogil:
    if first.rank == MAX_RANK:
        return _fail_about(failure, NOT_IMPLEMENTED, name, b"is a sequence of tensors of 16 dimensions")
    output.datatype_id = first.datatype_id
    output.rank = first.rank + 1
    memcpy(output.dims + 1, first.dims, first.rank * sizeof(int64_t))
    return 0


cdef int _append(const char* name, const Output* element, int64_t left, Output* output, Py_ssize_t* room,
                 EngineError* failure) noexcept nogil:
    # left: the number of elements that are still to be appended, this one included.
    if (element.rank + 1 != output.rank or element.datatype_id != output.datatype_id
            or memcmp(element.dims, output.dims + 1, element.rank * sizeof(int64_t)) != 0):
        return _fail_about(failure, INVALID_ARGUMENT, name,
                           b"is a sequence of tensors of different shapes, which no single tensor can hold; let the "
                           b"graph pad or concatenate them, or ask only for other outputs")
    if element.nbytes > room[0] - output.nbytes and _reserve(output, element.nbytes * left, room) < 0:
        return _fail_memory(failure)
    memcpy(output.data + output.nbytes, element.data, element.nbytes)
    output.nbytes += element.nbytes
    return 0


cdef int _reserve(Output* output, Py_ssize_t more, Py_ssize_t* room) noexcept nogil:
    # Moves the stack to a block with room for `more` bytes. Only that of BYTES moves more than once: as often as it
    # doubles.
    cdef Py_ssize_t size = max(output.nbytes + more, 2 * output.nbytes)
    cdef char* block = allocate_block(size)
    if block == NULL:
        return -1
    if output.data != NULL:
        memcpy(block, output.data, output.nbytes)
        free_block(output.data)
    output.data = block
    room[0] = size
    return 0


cdef int _fail_about(EngineError* failure, int32_t code, const char* name, const char* what) noexcept nogil:
    failure.code = code
    snprintf(failure.text, FAILURE_BYTES, b"output '%.*s' %s", <int>MAX_NAME_SHOWN, name, what)
    return -1


cdef int _fail_memory(EngineError* failure) noexcept nogil:
    return fail(failure, FAIL, b"no memory for an output")


cdef void release_values(OrtValue** values, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if values[i] != NULL:
            ort_release_value(values[i])
            values[i] = NULL


cdef void discard(Output* output) noexcept nogil:
    if output.value != NULL:
        ort_release_value(output.value)
    else:
        free_block(output.data)
    output.value = NULL
    output.data = NULL


@cython.no_gc_clear         # session and budget are needed at the end
@cython.final
cdef class Value:
    # The owner of one value of the runtime, and a reference to the session whose allocator made it.
    cdef OrtValue* value
    cdef object session
    cdef Budget budget          # None: it does not count
    cdef Py_ssize_t charged

    def __dealloc__(self):
        ort_release_value(self.value)
        if self.charged > 0:
            self.budget.count.release(self.charged)


cdef object own(Output* output, object session, Budget budget):
    # Counted even above the limit, because the memory is allocated already. The runner checks the budget before a run.
    cdef Py_ssize_t charged = 0 if budget is None else output.nbytes
    if charged > 0:
        budget.count.add(charged)
    if output.value == NULL:
        memory = Memory.adopt(output.data, output.nbytes, budget, charged)
        output.data = NULL
        return memory
    cdef Value value = Value.__new__(Value)
    value.budget = budget
    value.charged = charged
    value.value = output.value
    value.session = session
    output.value = NULL
    output.data = NULL
    return value
