# ONNX Runtime through its C API: see ort.pxd. The library is loaded with dlopen from the installed wheel; the package
# itself is never imported, since it carries a second copy of the whole runtime.

import importlib.util
import os
from pathlib import Path

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove, strlen
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym

from fastinfer._ext.datatype cimport BYTES, from_onnx, name_of, row
from fastinfer._ext.ort_table cimport *
from fastinfer._ext.tensor cimport Memory, Tensor, TensorSpec, allocate_block, element_count, free_block

cdef extern from "signals.h" nogil:
    ctypedef struct sigset_t:
        pass
    void block_signals(sigset_t* before)
    void restore_signals(const sigset_t* before)

cdef extern from "<string.h>" nogil:
    const void* memmem(const void* where, size_t where_size, const void* what, size_t what_size)

cdef enum:
    API_VERSION = 16            # the oldest that has every function of ort_table.h
    LOG_FATAL = 4               # failures come back as statuses; the runtime would print each one, too
    PARALLEL = 1                # ExecutionMode
    TENSOR = 1                  # ONNXType
    ARENA = 1                   # OrtAllocatorType
    DEFAULT_MEMORY = 0          # OrtMemType

    FAIL = 1                    # OrtErrorCode
    INVALID_ARGUMENT = 2
    NO_SUCH_FILE = 3
    INVALID_PROTOBUF = 7
    NOT_IMPLEMENTED = 9

_WHEEL_NEEDED = "fastinfer needs the 'onnxruntime' wheel, 1.32 or newer, for Linux (glibc) or macOS"
_LEVELS = {"none": 0, "disable": 0, "disabled": 0, "basic": 1, "extended": 2, "layout": 3, "all": 99}
_KINDS = {2: "a sequence", 3: "a map", 4: "an opaque type", 5: "a sparse tensor", 6: "an optional type"}
# Operators whose time depends on values, not only on shapes.
_LOOPING = (b"Loop", b"If", b"Scan", b"SequenceMap", b"BeamSearch", b"WhisperBeamSearch", b"GreedySearch", b"Sampling")

# The process's one environment. It lives as long as the process, as do the library and its threads: the runtime keeps
# one environment per process in any case, and a second one would only ignore its arguments.
cdef OrtEnv* _env = NULL
cdef OrtMemoryInfo* _cpu = NULL
cdef OrtAllocator* _allocator = NULL
cdef const OrtApiBase* _base = NULL
cdef char _no_bytes = 0         # what an output without elements points to


class OrtError(Exception):
    def __init__(self, str message not None, int code=FAIL):
        super().__init__(message)
        self.code = code


# --- The library ------------------------------------------------------------------------------------------------------


cdef str _library_path():
    # find_spec finds the package without running it.
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise OrtError(f"{_WHEEL_NEEDED}; it is not installed", NO_SUCH_FILE)
    folder = Path(spec.submodule_search_locations[0]) / "capi"
    found = sorted([*folder.glob("libonnxruntime.so*"), *folder.glob("libonnxruntime.[0-9]*.dylib")])
    if len(found) != 1:
        raise OrtError(f"{_WHEEL_NEEDED}; the installed one has {len(found)} runtime libraries instead of one",
                       NO_SUCH_FILE)
    return str(found[0])


cdef int _load_library() except -1:
    global _base, ort_table
    if ort_table != NULL:
        return 0
    if os.environ.get("FASTINFER_ORT_TELEMETRY") != "1":
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"       # os.environ writes C's environment, too
    cdef bytes path = os.fsencode(_library_path())
    cdef void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL)        # never closed: its threads run its code
    if library == NULL:
        raise OrtError(f"{_WHEEL_NEEDED}; the installed one cannot be loaded: {dlerror().decode()}", NO_SUCH_FILE)
    cdef const OrtApiBase* (*get_base)() noexcept
    get_base = <const OrtApiBase* (*)() noexcept> dlsym(library, "OrtGetApiBase")
    if get_base == NULL:
        raise OrtError(f"{_WHEEL_NEEDED}; the installed one does not export OrtGetApiBase", NO_SUCH_FILE)
    cdef const OrtApiBase* base = get_base()
    cdef void** table = base.get_api(API_VERSION)
    if table == NULL:
        raise OrtError(f"{_WHEEL_NEEDED}; installed is {base.get_version_string().decode()}", NO_SUCH_FILE)
    _base = base
    ort_table = table
    return 0


cdef int _check(OrtStatus* status) except -1:
    # Raises what a status says, and releases it.
    if status == NULL:
        return 0
    message = ort_get_error_message(status).decode("utf-8", "replace")
    code = ort_get_error_code(status)
    ort_release_status(status)
    raise OrtError(message, code)


def configure(int intra_op_threads, int inter_op_threads=1, bint spinning=False):
    global _env, _cpu, _allocator
    if _env != NULL:
        raise RuntimeError("ONNX Runtime is configured already")
    if intra_op_threads < 1 or inter_op_threads < 1:
        raise ValueError("thread counts are positive")
    _load_library()
    if _cpu == NULL:
        _check(ort_create_cpu_memory_info(ARENA, DEFAULT_MEMORY, &_cpu))
        _check(ort_default_allocator(&_allocator))
    cdef OrtThreadingOptions* options = NULL
    cdef sigset_t before
    block_signals(&before)      # for the pools' threads
    try:
        _check(ort_create_threading_options(&options))
        _check(ort_set_global_intra_op_threads(options, intra_op_threads))
        _check(ort_set_global_inter_op_threads(options, inter_op_threads))
        _check(ort_set_global_spinning(options, spinning))
        _check(ort_create_env_with_global_thread_pools(LOG_FATAL, b"fastinfer", options, &_env))
    finally:
        restore_signals(&before)
        if options != NULL:
            ort_release_threading_options(options)


def version():
    _load_library()
    return _base.get_version_string().decode()


def available_providers():
    _load_library()
    cdef char** names = NULL
    cdef int32_t count = 0
    _check(ort_get_available_providers(&names, &count))
    try:
        return tuple([names[i].decode() for i in range(count)])
    finally:
        _check(ort_release_available_providers(names, count))


# --- Sessions ---------------------------------------------------------------------------------------------------------


@cython.final
cdef class Session:
    def __init__(self, path=None, *, model=None, intra_op_threads=None, inter_op_threads=None,
                 execution_providers=("CPUExecutionProvider",), graph_optimization_level=None, allow_spinning=None,
                 free_dimension_overrides=None):
        if self.handle.session != NULL:
            raise RuntimeError("a session is created once")
        if model is None:
            if path is None:
                raise ValueError("a path or a model is needed")
            model = _read(path)
        if len(model) == 0:
            raise OrtError("the model is empty", INVALID_PROTOBUF)
        if _env == NULL:
            configure(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        # External data may lie beside the model, and nowhere else; the runtime checks that. A model without a path has
        # no such place (the runtime's own default is the current directory).
        folder = os.path.dirname(os.path.abspath(path)) if path is not None else "/dev/null"
        if path is not None:
            _refuse_hard_links(model, os.fsdecode(folder))
        cdef OrtSessionOptions* options = NULL
        _check(ort_create_session_options(&options))
        try:
            _set_config(options, "session.load_model_format", "ONNX")
            _set_config(options, "session.model_external_initializers_file_folder_path", folder)
            _set_threads(options, intra_op_threads, inter_op_threads, allow_spinning)
            # Patterns are kept for every set of input shapes ever seen: clients choose those.
            _check(ort_disable_mem_pattern(options))
            if graph_optimization_level is not None:
                _check(ort_set_graph_optimization_level(options, _level(graph_optimization_level)))
            for name, value in (free_dimension_overrides or {}).items():
                _check(ort_override_free_dimension(options, <bytes>name.encode(), value))
            for provider in execution_providers:
                _append_provider(options, provider)
            _create(self, model, options)
        finally:
            ort_release_session_options(options)
        _describe(self)

    def __dealloc__(self):
        with nogil:         # freeing a large model takes a while
            if self.handle.session != NULL:
                ort_release_session(self.handle.session)
            free(self.handle.input_names)

    def run(self, list inputs not None, outputs=None):
        cdef list tensors = _ordered(self.inputs, inputs)
        cdef list wanted = _positions(self.outputs, outputs)
        cdef Py_ssize_t count = len(wanted)
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef Failure failure
        # The two arrays of feeds and received outputs, then those of values and names.
        cdef Feed* feeds = <Feed*>calloc(len(tensors) + 1, sizeof(Feed))
        cdef Output* received = <Output*>calloc(count + 1, sizeof(Output))
        cdef OrtValue** values = <OrtValue**>calloc(len(tensors) + count + 1, sizeof(OrtValue*))
        cdef const char** names = <const char**>calloc(count + 1, sizeof(char*))
        try:
            if feeds == NULL or received == NULL or values == NULL or names == NULL:
                raise MemoryError()
            for i in range(len(tensors)):
                tensor = <Tensor>tensors[i]
                feeds[i] = Feed(tensor.datatype_id, tensor.rank, <const int64_t*>tensor.dims, tensor.data,
                                tensor.nbytes)
            for i in range(count):
                names[i] = self.handle.output_names[<Py_ssize_t>wanted[i]]
            if _run_whole(&self.handle, feeds, values, names, count, received, &failure) < 0:
                raise error_of(&failure)
            return [_tensor((<TensorSpec>self.outputs[wanted[i]]).name, &received[i], self) for i in range(count)]
        finally:
            if received != NULL:
                for i in range(count):
                    discard(&received[i])
            free(feeds)
            free(received)
            free(values)
            free(names)


def _read(path):
    # Read once: what is checked is what is loaded, even where the file is replaced meanwhile. (Not mapped: a file that
    # is cut short under a mapping kills the process.)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OrtError(f"the model cannot be read: {error.strerror}", NO_SUCH_FILE) from None


cdef int _create(Session session, const unsigned char[::1] model, OrtSessionOptions* options) except -1:
    cdef OrtStatus* status
    cdef sigset_t before
    with nogil:
        block_signals(&before)      # for threads of the session's own
        status = ort_create_session_from_array(_env, &model[0], model.shape[0], options, &session.handle.session)
        restore_signals(&before)
    _check(status)
    # NodeProto.op_type as it stands in the file. Bytes of a weight may look the same; then a model that does not loop
    # is thought to, which only costs it the run on the loop's thread.
    session.may_loop = any([_holds(model, b"\x22" + bytes([len(name)]) + name) for name in _LOOPING])
    return 0


cdef bint _holds(const unsigned char[::1] model, bytes pattern):
    cdef const char* start = pattern
    cdef Py_ssize_t size = len(pattern)
    with nogil:
        return memmem(&model[0], model.shape[0], start, size) != NULL


cdef int _refuse_hard_links(model, str folder) except -1:
    # The runtime refuses external data behind symbolic links and "..", but a hard link cannot be told from a file of
    # the directory's own, except by its count of names. External data is named in the model, under the key "location".
    if not _holds(model, b"location"):
        return 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                shared = os.stat(os.path.join(parent, name)).st_nlink > 1
            except OSError:
                continue        # a dangling link, for one: the runtime will say so
            if shared and _holds(model, os.fsencode(name)):
                raise OrtError(f"the model's file '{name}' has a second name (a hard link)", INVALID_ARGUMENT)
    return 0


cdef int _describe(Session session) except -1:
    cdef Handle* handle = &session.handle
    cdef size_t inputs = 0
    cdef size_t outputs = 0
    cdef Py_ssize_t i
    _check(ort_input_count(handle.session, &inputs))
    _check(ort_output_count(handle.session, &outputs))
    session.inputs = tuple([_spec(handle.session, i, True) for i in range(<Py_ssize_t>inputs)])
    session.outputs = tuple([_spec(handle.session, i, False) for i in range(<Py_ssize_t>outputs)])
    session.metadata = _metadata(handle.session)
    session._names = [(<TensorSpec>spec).name.encode() for spec in session.inputs + session.outputs]
    handle.input_count = <Py_ssize_t>inputs
    handle.output_count = <Py_ssize_t>outputs
    handle.input_names = <const char**>malloc((inputs + outputs + 1) * sizeof(char*))
    if handle.input_names == NULL:
        raise MemoryError()
    handle.output_names = handle.input_names + inputs
    for i in range(len(session._names)):
        handle.input_names[i] = <bytes>session._names[i]
    return 0


cdef int _set_config(OrtSessionOptions* options, str key, str value) except -1:
    return _check(ort_add_session_config(options, key.encode(), os.fsencode(value)))


cdef int _set_threads(OrtSessionOptions* options, intra_op_threads, inter_op_threads, allow_spinning) except -1:
    if intra_op_threads is None and inter_op_threads is None:
        return _check(ort_disable_per_session_threads(options))     # the process's pools
    _check(ort_set_intra_op_threads(options, intra_op_threads or 1))
    _check(ort_set_inter_op_threads(options, inter_op_threads or 1))
    if (inter_op_threads or 1) > 1:
        _check(ort_set_execution_mode(options, PARALLEL))
    spinning = "1" if allow_spinning else "0"
    _set_config(options, "session.intra_op.allow_spinning", spinning)
    return _set_config(options, "session.inter_op.allow_spinning", spinning)


def _level(level):
    if isinstance(level, str):
        if level not in _LEVELS:
            raise OrtError(f"unknown graph optimization level '{level}', known are {', '.join(_LEVELS)}",
                           INVALID_ARGUMENT)
        return _LEVELS[level]
    return level


cdef int _append_provider(OrtSessionOptions* options, str provider) except -1:
    cdef OrtCudaOptions* cuda = NULL
    if provider == "CPUExecutionProvider":      # is there in any case, as the last
        return 0
    if provider not in available_providers():
        raise OrtError(f"execution provider '{provider}' is not in this build of ONNX Runtime, "
                       f"which has {', '.join(available_providers())}", INVALID_ARGUMENT)
    if provider != "CUDAExecutionProvider":
        return _check(ort_append_provider(options, provider.removesuffix("ExecutionProvider").encode(),
                                          NULL, NULL, 0))
    _check(ort_create_cuda_options(&cuda))
    try:
        return _check(ort_append_cuda_provider(options, cuda))
    finally:
        ort_release_cuda_options(cuda)


cdef TensorSpec _spec(OrtSession* session, Py_ssize_t index, bint is_input):
    cdef OrtTypeInfo* type_info = NULL
    cdef const OrtTensorInfo* info = NULL
    cdef char* text = NULL
    cdef (const char*)[MAX_RANK] symbols
    cdef int64_t[MAX_RANK] dims
    cdef size_t rank = 0
    cdef int32_t kind = 0
    cdef int32_t element_type = 0
    if is_input:
        _check(ort_input_name(session, index, _allocator, &text))
    else:
        _check(ort_output_name(session, index, _allocator, &text))
    cdef str name = _take_text(text)
    cdef str what = f"{'input' if is_input else 'output'} '{name}'"
    if "\ufffd" in name:
        raise OrtError(f"the name of {what} is not UTF-8", INVALID_PROTOBUF)
    if is_input:
        _check(ort_input_type(session, index, &type_info))
    else:
        _check(ort_output_type(session, index, &type_info))
    try:
        _check(ort_kind_of_type(type_info, &kind))
        if kind != TENSOR:
            raise OrtError(f"{what} is {_KINDS.get(kind, 'no tensor')}; only tensors can be served", NOT_IMPLEMENTED)
        _check(ort_tensor_info_of_type(type_info, &info))
        _check(ort_element_type(info, &element_type))
        if from_onnx(element_type) < 0:
            raise OrtError(f"{what} has an element type (number {element_type}) that the protocol has no word for",
                           NOT_IMPLEMENTED)
        _check(ort_rank(info, &rank))
        if rank > MAX_RANK:
            raise OrtError(f"{what} has {rank} dimensions, at most {MAX_RANK} are supported", NOT_IMPLEMENTED)
        _check(ort_dimensions(info, dims, rank))
        _check(ort_symbolic_dimensions(info, symbols, rank))
        return TensorSpec(name, name_of(from_onnx(element_type)), [dims[i] for i in range(<Py_ssize_t>rank)],
                          [symbols[i].decode("utf-8", "replace") for i in range(<Py_ssize_t>rank)])
    finally:
        ort_release_type_info(type_info)


cdef dict _metadata(OrtSession* session):
    cdef OrtModelMetadata* metadata = NULL
    cdef char* text = NULL
    cdef char** keys = NULL
    cdef int64_t count = 0
    cdef int64_t i
    cdef dict found = {}
    _check(ort_model_metadata(session, &metadata))
    try:
        _check(ort_custom_metadata_keys(metadata, _allocator, &keys, &count))
        for i in range(count):
            text = NULL
            _check(ort_custom_metadata(metadata, _allocator, keys[i], &text))
            found[_take_text(keys[i])] = _take_text(text)
        if keys != NULL:
            _check(ort_free(_allocator, keys))
        _check(ort_producer_name(metadata, _allocator, &text))
        found["producer"] = _take_text(text)
        _check(ort_graph_name(metadata, _allocator, &text))
        found["graph"] = _take_text(text)
        _check(ort_description(metadata, _allocator, &text))
        found["description"] = _take_text(text)
        _check(ort_model_version(metadata, &i))
        found["version"] = str(i) if i != 0x7FFFFFFFFFFFFFFF else ""      # what the runtime says where it is not set
        return found
    finally:
        ort_release_model_metadata(metadata)


cdef str _take_text(char* text):
    # A text of the runtime's allocator, which is freed.
    if text == NULL:
        return ""
    try:
        return text.decode("utf-8", "replace")
    finally:
        _check(ort_free(_allocator, text))


# --- Runs -------------------------------------------------------------------------------------------------------------


cdef int fail(Failure* failure, int32_t code, const char* text) noexcept nogil:
    cdef size_t size = strlen(text)
    if size >= FAILURE_BYTES:
        size = FAILURE_BYTES - 1
    failure.code = code
    memcpy(failure.text, text, size)
    failure.text[size] = 0
    return -1


cdef int _failed(OrtStatus* status, Failure* failure) noexcept nogil:
    # -1 where the status is a failure, which it then copies and releases.
    if status == NULL:
        return 0
    fail(failure, ort_get_error_code(status), ort_get_error_message(status))
    ort_release_status(status)
    return -1


cdef int bind(const Handle* handle, const Feed* feeds, OrtValue** values, Failure* failure) noexcept nogil:
    cdef Py_ssize_t i
    cdef const Feed* feed
    for i in range(handle.input_count):
        values[i] = NULL
    for i in range(handle.input_count):
        feed = &feeds[i]
        if feed.datatype_id == BYTES:
            if _bind_strings(feed, &values[i], failure) < 0:
                release_values(values, handle.input_count)
                return -1
        elif _failed(ort_create_tensor_over(_cpu, <void*>feed.data, feed.nbytes, feed.dims, feed.rank,
                                            row(feed.datatype_id).onnx, &values[i]), failure) < 0:
            release_values(values, handle.input_count)
            return -1
    return 0


cdef int _bind_strings(const Feed* feed, OrtValue** value, Failure* failure) noexcept nogil:
    cdef int64_t count = element_count(feed.dims, feed.rank)
    cdef Py_ssize_t at = 0
    cdef int64_t i
    cdef uint32_t size
    cdef char* element = NULL
    # Each element has a length of 4 bytes: this also bounds what is allocated by what was received.
    if count < 0 or feed.nbytes // 4 < count:
        return fail(failure, INVALID_ARGUMENT, b"a BYTES input has fewer elements than its shape")
    if _failed(ort_create_tensor(_allocator, feed.dims, feed.rank, row(BYTES).onnx, value), failure) < 0:
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


cdef int run(const Handle* handle, OrtValue** inputs, const char** output_names, Py_ssize_t output_count,
             OrtValue** outputs, OrtRunOptions* options, Failure* failure) noexcept nogil:
    if _failed(ort_run(handle.session, options, handle.input_names, inputs, handle.input_count,
                       output_names, output_count, outputs), failure) < 0:
        release_values(outputs, output_count)
        return -1
    return 0


cdef int receive(const Handle* handle, const Feed* feeds, OrtValue** value, Output* output,
                 Failure* failure) noexcept nogil:
    cdef OrtValue* taken = value[0]
    cdef int failed
    value[0] = NULL
    output.value = NULL
    output.data = NULL
    failed = _receive(taken, output, failure)
    if failed == 0 and output.datatype_id != BYTES:
        if not _lies_in_a_feed(handle, feeds, output):      # the common case
            output.value = taken
            return 0
        failed = _copy_out(output, failure)
    ort_release_value(taken)
    return failed


cdef bint _lies_in_a_feed(const Handle* handle, const Feed* feeds, const Output* output) noexcept nogil:
    # An input that is an output as well comes back as it was given.
    cdef Py_ssize_t i
    for i in range(handle.input_count):
        if feeds[i].data <= output.data < feeds[i].data + feeds[i].nbytes:
            return True
    return False


cdef int _copy_out(Output* output, Failure* failure) noexcept nogil:
    cdef char* block = allocate_block(output.nbytes)
    if block != NULL:
        memcpy(block, output.data, output.nbytes)
    output.data = block
    return 0 if block != NULL else fail(failure, FAIL, b"no memory for an output")


cdef int _receive(OrtValue* value, Output* output, Failure* failure) noexcept nogil:
    cdef OrtTensorInfo* info = NULL
    cdef int32_t kind = 0
    cdef int32_t element_type = 0
    cdef size_t rank = 0
    cdef int64_t count
    cdef void* data = NULL
    if value == NULL:
        return fail(failure, FAIL, b"the model gave no value for an output")
    if _failed(ort_kind_of_value(value, &kind), failure) < 0:
        return -1
    if kind != TENSOR:
        return fail(failure, NOT_IMPLEMENTED, b"the model gave something other than a tensor for an output")
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
    output.nbytes = count * row(output.datatype_id).itemsize
    return 0


cdef int _receive_strings(OrtValue* value, int64_t count, Output* output, Failure* failure) noexcept nogil:
    # The texts are written behind the room for their lengths, then moved forward, each behind its own length.
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
        # The length lies before the text's old place, hence over no text that is still to be moved.
        memcpy(block + offsets[i] + 4 * i, &length, 4)
        memmove(block + offsets[i] + 4 * i + 4, block + offsets[i] + 4 * count, length)
    free(offsets)
    output.data = block
    output.nbytes = <Py_ssize_t>size + 4 * count
    return 0


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


cdef list _ordered(tuple specs, list inputs):
    by_name = {(<Tensor?>tensor).name: tensor for tensor in inputs}
    for spec in specs:
        if spec.name not in by_name:
            raise OrtError(f"input '{spec.name}' is missing", INVALID_ARGUMENT)
    if len(inputs) != len(specs):
        raise OrtError(f"{len(inputs)} inputs were given, the model has {len(specs)}", INVALID_ARGUMENT)
    return [by_name[spec.name] for spec in specs]


cdef list _positions(tuple specs, outputs):
    if outputs is None:
        return list(range(len(specs)))
    positions = {spec.name: i for i, spec in enumerate(specs)}
    for name in outputs:
        if name not in positions:
            raise OrtError(f"the model has no output '{name}'", INVALID_ARGUMENT)
    return [positions[name] for name in outputs]


cdef int _run_whole(const Handle* handle, const Feed* feeds, OrtValue** values, const char** names, Py_ssize_t count,
                    Output* received, Failure* failure) noexcept:
    # values has room for the inputs and, behind them, for the outputs.
    cdef OrtValue** outputs = values + handle.input_count
    cdef Py_ssize_t i
    cdef int failed = 0
    with nogil:
        if bind(handle, feeds, values, failure) < 0:
            failed = -1
        else:
            failed = run(handle, values, names, count, outputs, NULL, failure)
            release_values(values, handle.input_count)
        for i in range(count):
            if failed == 0:
                failed = receive(handle, feeds, &outputs[i], &received[i], failure)
        release_values(outputs, count)
    return failed


cdef OrtRunOptions* create_run_options() except NULL:
    cdef OrtRunOptions* options = NULL
    _check(ort_create_run_options(&options))
    return options


cdef void release_run_options(OrtRunOptions* options) noexcept nogil:
    ort_release_run_options(options)


cdef void terminate(OrtRunOptions* options) noexcept nogil:
    ort_release_status(ort_terminate(options))


@cython.final
cdef class Value:
    # The owner of one value of the runtime, and a reference to the session whose allocator made it.
    cdef OrtValue* value
    cdef Session session

    def __dealloc__(self):
        ort_release_value(self.value)


cdef object own(Output* output, Session session):
    if output.value == NULL:
        memory = Memory.adopt(output.data, output.nbytes)
        output.data = NULL
        return memory
    cdef Value value = Value.__new__(Value)
    value.value = output.value
    value.session = session
    output.value = NULL
    output.data = NULL
    return value


cdef Tensor _tensor(str name, Output* output, Session session):
    cdef char* data = output.data
    return Tensor.wrap(name, output.datatype_id, output.rank, output.dims, data, output.nbytes, own(output, session))


cdef object error_of(const Failure* failure):
    return OrtError((<const char*>failure.text).decode("utf-8", "replace"), failure.code)
