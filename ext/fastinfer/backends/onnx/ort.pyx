# ONNX Runtime through its C API: the library, its environment, sessions.
# Lives here: loading the library and models. Does not: the steps of a run (ort_run), requests, batches, native threads.
#
# Any thread, with the GIL; it is released while a model is loaded, run or freed. A Session owns the runtime's session.
# The library is loaded with dlopen from the installed wheel; the package itself is never imported, since it carries a
# second copy of the whole runtime.

import importlib.util
import os
from pathlib import Path
from stat import S_ISREG

cimport cython
from libc.stdlib cimport calloc, free, malloc
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym

from fastinfer.backends.onnx.ort_run cimport (
    INVALID_ARGUMENT, INVALID_PROTOBUF, NO_SUCH_FILE, NOT_IMPLEMENTED, EngineError, Feed, Output, check,
    discard, error_of, execute, make_values, own, receive, release_values, use_table,
)
from fastinfer.backends.onnx.ort_table cimport *
from fastinfer.tensor.datatype cimport from_onnx, name_of
from fastinfer.tensor.tensor cimport MAX_RANK, Tensor, TensorSpec

from fastinfer.backends.onnx.ort_run import OrtError

cdef extern from "fastinfer/native/signals.h" nogil:
    ctypedef struct sigset_t:
        pass
    void block_signals(sigset_t* before)
    void restore_signals(const sigset_t* before)

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char* text, size_t most)
    const void* memmem(const void* where, size_t where_size, const void* what, size_t what_size)

cdef enum:
    API_VERSION = 24            # the oldest that has every function of backends/onnx/ort_table.h
    LOG_FATAL = 4               # failures come back as statuses; the runtime would print each one, too
    PARALLEL = 1                # ExecutionMode
    TENSOR = 1                  # ONNXType
    SEQUENCE = 2
    MAP = 3
    OPTIONAL = 6
    MAX_TENSORS = 1024          # inputs or outputs of a model: as many as a request may have
    MAX_NAME_BYTES = 4096       # of an input, an output or a dimension: as long as a request may name

_WHEEL_NEEDED = "fastinfer needs the 'onnxruntime' wheel, 1.32 or newer, for Linux (glibc) or macOS"
_LEVELS = {"none": 0, "disable": 0, "disabled": 0, "basic": 1, "extended": 2, "layout": 3, "all": 99}
_KINDS = {2: "a sequence", 3: "a map", 4: "an opaque type", 5: "a sparse tensor", 6: "an optional type"}

# The process's one environment. It lives as long as the process, as do the library and its threads: the runtime keeps
# one environment per process in any case, and a second one would only ignore its arguments.
cdef OrtEnv* _env = NULL
cdef OrtAllocator* _allocator = NULL
cdef const OrtApiBase* _base = NULL


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
    global _base, _allocator, ort_table
    if _base != NULL:
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
    use_table(table)
    ort_table = table
    check(ort_default_allocator(&_allocator))
    _base = base
    return 0


def configure(int intra_op_threads, int inter_op_threads=1, bint spinning=False):
    global _env
    if _env != NULL:
        raise RuntimeError("ONNX Runtime is configured already")
    if intra_op_threads < 1 or inter_op_threads < 1:
        raise ValueError("thread counts are positive")
    _load_library()
    cdef OrtThreadingOptions* options = NULL
    cdef sigset_t before
    block_signals(&before)      # for the pools' threads
    try:
        check(ort_create_threading_options(&options))
        check(ort_set_global_intra_op_threads(options, intra_op_threads))
        check(ort_set_global_inter_op_threads(options, inter_op_threads))
        check(ort_set_global_spinning(options, spinning))
        check(ort_create_env_with_global_thread_pools(LOG_FATAL, b"fastinfer", options, &_env))
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
    check(ort_get_available_providers(&names, &count))
    try:
        return tuple([names[i].decode() for i in range(count)])
    finally:
        check(ort_release_available_providers(names, count))


# --- Sessions ---------------------------------------------------------------------------------------------------------


@cython.final
cdef class Session:
    def __init__(self, path=None, *, model=None, intra_op_threads=None, inter_op_threads=None,
                 execution_providers=("CPUExecutionProvider",), graph_optimization_level=None, allow_spinning=None,
                 free_dimension_overrides=None, weights_folder=None):
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
        # External data may be beside the model, and nowhere else; the runtime checks that. A model without a path has
        # no such place (the runtime's own default is the current directory).
        folder = os.path.dirname(os.path.abspath(path)) if path is not None else "/dev/null"
        if weights_folder is not None:      # the caller has checked the files in it
            folder = weights_folder
        elif path is not None:
            _check_external_data(model, os.fsdecode(folder))
        cdef OrtSessionOptions* options = NULL
        check(ort_create_session_options(&options))
        try:
            _set_config(options, "session.load_model_format", "ONNX")
            _set_config(options, "session.model_external_initializers_file_folder_path", folder)
            _set_threads(options, intra_op_threads, inter_op_threads, allow_spinning)
            # The runtime would keep a pattern for every set of input shapes, which clients choose.
            check(ort_disable_mem_pattern(options))
            if graph_optimization_level is not None:
                check(ort_set_graph_optimization_level(options, _level(graph_optimization_level)))
            for name, value in (free_dimension_overrides or {}).items():
                check(ort_override_free_dimension(options, <bytes>name.encode(), value))
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
            free(<void*>self.handle.declared)

    def run(self, list inputs not None, outputs=None):
        cdef list tensors = _ordered(self.inputs, inputs)
        cdef list wanted = _positions(self.outputs, outputs)
        cdef Py_ssize_t count = len(wanted)
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef EngineError failure
        # The two arrays of feeds and received outputs, then those of values and names.
        cdef Feed* feeds = <Feed*>calloc(len(tensors) + 1, sizeof(Feed))
        cdef Output* received = <Output*>calloc(count + 1, sizeof(Output))
        cdef OrtValue** values = <OrtValue**>calloc(len(tensors) + count + 1, sizeof(OrtValue*))
        cdef const char** names = <const char**>calloc(count + 1, sizeof(char*))
        cdef Py_ssize_t* positions = <Py_ssize_t*>calloc(count + 1, sizeof(Py_ssize_t))
        try:
            if feeds == NULL or received == NULL or values == NULL or names == NULL or positions == NULL:
                raise MemoryError()
            for i in range(len(tensors)):
                tensor = <Tensor>tensors[i]
                feeds[i] = Feed(tensor.datatype_id, tensor.rank, <const int64_t*>tensor.dims, tensor.data,
                                tensor.nbytes)
            for i in range(count):
                positions[i] = wanted[i]
                names[i] = self.handle.output_names[positions[i]]
            if _run_whole(&self.handle, feeds, values, names, positions, count, received, &failure) < 0:
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
            free(positions)


def _read(path):
    # Read once, so that the checked bytes are the loaded ones even if the file is replaced meanwhile. (Not mapped: a
    # file that is truncated under a mapping kills the process.)
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
    check(status)
    return 0


cdef bint _holds(const unsigned char[::1] model, bytes pattern):
    cdef const char* start = pattern
    cdef Py_ssize_t size = len(pattern)
    with nogil:
        return memmem(&model[0], model.shape[0], start, size) != NULL


cdef int _check_external_data(model, str folder) except -1:
    # The runtime refuses external data behind symbolic links and "..", but a hard link looks like a file of the
    # directory, except for its link count; and the runtime waits for ever for a pipe's other end. External data is
    # named in the model, under the key "location".
    if not _holds(model, b"location"):
        return 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(parent, name))
            except OSError:
                continue        # for example a dangling link, which the runtime reports
            if not S_ISREG(status.st_mode) and _holds(model, os.fsencode(name)):
                raise OrtError(f"the model's file '{name}' is not a regular file", INVALID_ARGUMENT)
            if status.st_nlink > 1 and _holds(model, os.fsencode(name)):
                raise OrtError(f"the model's file '{name}' has a second name (a hard link)", INVALID_ARGUMENT)
    return 0


cdef int _describe(Session session) except -1:
    cdef Handle* handle = &session.handle
    cdef size_t inputs = 0
    cdef size_t outputs = 0
    cdef Py_ssize_t i
    check(ort_input_count(handle.session, &inputs))
    check(ort_output_count(handle.session, &outputs))
    for what, count in (("inputs", inputs), ("outputs", outputs)):
        if count > MAX_TENSORS:     # no request could name them all; each costs time under the GIL
            raise OrtError(f"the model has {count} {what}, at most {MAX_TENSORS} are supported", NOT_IMPLEMENTED)
    session.sequence_outputs = ()
    session.inputs = tuple([_spec(session, i, True) for i in range(<Py_ssize_t>inputs)])
    session.outputs = tuple([_spec(session, i, False) for i in range(<Py_ssize_t>outputs)])
    session._names = [(<TensorSpec>spec).name.encode() for spec in session.inputs + session.outputs]
    handle.input_count = <Py_ssize_t>inputs
    handle.output_count = <Py_ssize_t>outputs
    handle.input_names = <const char**>malloc((inputs + outputs + 1) * sizeof(char*))
    if handle.input_names == NULL:
        raise MemoryError()
    handle.output_names = handle.input_names + inputs
    for i in range(len(session._names)):
        handle.input_names[i] = <bytes>session._names[i]
    cdef Feed* declared = <Feed*>calloc(outputs + 1, sizeof(Feed))
    if declared == NULL:
        raise MemoryError()
    handle.declared = declared
    for i, spec in enumerate(session.outputs):      # which keep the dims
        declared[i] = _declared(<TensorSpec>spec)
    return 0


cdef Feed _declared(TensorSpec spec) noexcept:
    cdef const int64_t* dims = spec.dims
    return Feed(spec.datatype_id, spec.rank, dims, NULL, 0)


cdef int _set_config(OrtSessionOptions* options, str key, str value) except -1:
    return check(ort_add_session_config(options, key.encode(), os.fsencode(value)))


cdef int _set_threads(OrtSessionOptions* options, intra_op_threads, inter_op_threads, allow_spinning) except -1:
    if intra_op_threads is None and inter_op_threads is None:
        return check(ort_disable_per_session_threads(options))     # the process's pools
    check(ort_set_intra_op_threads(options, intra_op_threads or 1))
    check(ort_set_inter_op_threads(options, inter_op_threads or 1))
    if (inter_op_threads or 1) > 1:
        check(ort_set_execution_mode(options, PARALLEL))
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
    if provider == "CPUExecutionProvider":      # it is always there, as the last
        return 0
    if provider not in available_providers():
        raise OrtError(f"execution provider '{provider}' is not in this build of ONNX Runtime, "
                       f"which has {', '.join(available_providers())}", INVALID_ARGUMENT)
    if provider != "CUDAExecutionProvider":
        return check(ort_append_provider(options, provider.removesuffix("ExecutionProvider").encode(),
                                         NULL, NULL, 0))
    check(ort_create_cuda_options(&cuda))
    try:
        return check(ort_append_cuda_provider(options, cuda))
    finally:
        ort_release_cuda_options(cuda)


cdef TensorSpec _spec(Session of, Py_ssize_t index, bint is_input):
    cdef OrtSession* session = of.handle.session
    cdef OrtTypeInfo* type_info = NULL
    cdef const OrtTensorInfo* info = NULL
    cdef char* text = NULL
    cdef (const char*)[MAX_RANK] symbols
    cdef int64_t[MAX_RANK] dims
    cdef size_t rank = 0
    cdef int32_t kind = 0
    cdef int32_t element_type = 0
    cdef bint stacked = False
    if is_input:
        check(ort_input_name(session, index, _allocator, &text))
    else:
        check(ort_output_name(session, index, _allocator, &text))
    cdef str name = _take_text(text)
    cdef str what = f"{'input' if is_input else 'output'} '{name}'"
    if "\ufffd" in name:
        raise OrtError(f"the name of {what} is not UTF-8", INVALID_PROTOBUF)
    if is_input:
        check(ort_input_type(session, index, &type_info))
    else:
        check(ort_output_type(session, index, &type_info))
    try:
        check(ort_kind_of_type(type_info, &kind))
        if kind in (OPTIONAL, SEQUENCE) and not is_input:
            of.handle.may_lack_outputs = True
        if kind == OPTIONAL and not is_input:
            type_info = _inside(type_info, kind)
            check(ort_kind_of_type(type_info, &kind))
        if kind == SEQUENCE and not is_input:
            stacked = True
            of.sequence_outputs += (name,)
            type_info = _inside(type_info, kind)
            check(ort_kind_of_type(type_info, &kind))
        if kind != TENSOR:
            raise OrtError(_refusal(what, kind, is_input, stacked), NOT_IMPLEMENTED)
        check(ort_tensor_info_of_type(type_info, &info))
        check(ort_element_type(info, &element_type))
        if from_onnx(element_type) < 0:
            raise OrtError(f"{what} has an element type (number {element_type}) that the protocol has no word for",
                           NOT_IMPLEMENTED)
        if not ort_has_shape(info):     # its rank is open; the runtime counts no dimensions, as for a scalar
            return TensorSpec(name, name_of(from_onnx(element_type)), None)
        check(ort_rank(info, &rank))
        if rank + stacked > MAX_RANK:
            raise OrtError(f"{what} has {rank + stacked} dimensions, at most {MAX_RANK} are supported", NOT_IMPLEMENTED)
        check(ort_dimensions(info, dims, rank))
        check(ort_symbolic_dimensions(info, symbols, rank))
        return TensorSpec(name, name_of(from_onnx(element_type)),
                          [-1] * stacked + [dims[i] for i in range(<Py_ssize_t>rank)],
                          [""] * stacked + [_name(symbols[i]) for i in range(<Py_ssize_t>rank)])
    finally:
        ort_release_type_info(type_info)


cdef OrtTypeInfo* _inside(OrtTypeInfo* holder, int32_t kind) except NULL:
    # Takes the type of a sequence or an optional value, and returns the type of what it holds.
    cdef const OrtSequenceInfo* sequence = NULL
    cdef const OrtOptionalInfo* optional = NULL
    cdef OrtTypeInfo* held = NULL
    if kind == SEQUENCE:
        check(ort_sequence_info_of_type(holder, &sequence))
        check(ort_type_of_elements(sequence, &held))
    else:
        check(ort_optional_info_of_type(holder, &optional))
        check(ort_type_of_optional(optional, &held))
    ort_release_type_info(holder)
    return held


cdef str _refusal(str what, int32_t kind, bint is_input, bint stacked):
    # The sentence about an input or output that is no tensor, with the way out if there is one.
    cdef str kinds = _KINDS.get(kind, "no tensor")
    if stacked:
        kinds = f"a sequence of {kinds.removeprefix('a ')}s"
    if kind == MAP and not is_input:
        return f"{what} is {kinds}, which no answer can hold; export the model with zipmap=False"
    if kind == SEQUENCE and is_input:
        return (f"{what} is a sequence, which no request can hold; let the graph construct it from tensors "
                "(SequenceConstruct, SplitToSequence)")
    if kind == MAP:
        return f"{what} is a map, which no request can hold; export the model without DictVectorizer or CastMap"
    return f"{what} is {kinds}; only tensors can be served"


cdef str _name(const char* text):
    cdef size_t size = strnlen(text, MAX_NAME_BYTES + 1)
    name = text[:size].decode("utf-8", "replace")
    if size > MAX_NAME_BYTES:
        raise OrtError(f"the name '{name[:60]}...' is longer than {MAX_NAME_BYTES} bytes", NOT_IMPLEMENTED)
    return name


cdef str _take_text(char* text):
    # Takes a name of the runtime's allocator, and frees it. Longer ones are refused: to decode them would hold the GIL.
    if text == NULL:
        return ""
    try:
        return _name(text)
    finally:
        check(ort_free(_allocator, text))


# --- Runs by name -----------------------------------------------------------------------------------------------------


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


cdef int _run_whole(const Handle* handle, const Feed* feeds, OrtValue** values, const char** names,
                    const Py_ssize_t* positions, Py_ssize_t count, Output* received, EngineError* failure) noexcept:
    # values has room for the inputs and, after them, for the outputs.
    cdef OrtValue** outputs = values + handle.input_count
    cdef Py_ssize_t i
    cdef int failed = 0
    with nogil:
        if make_values(handle, feeds, values, failure) < 0:
            failed = -1
        else:
            failed = execute(handle, values, names, count, outputs, NULL, failure)
            release_values(values, handle.input_count)
        for i in range(count):
            if failed == 0:
                failed = receive(handle, feeds, positions[i], &outputs[i], &received[i], failure)
        release_values(outputs, count)
    return failed


cdef Tensor _tensor(str name, Output* output, Session session):
    cdef char* data = output.data
    return Tensor.wrap(name, output.datatype_id, output.rank, output.dims, data, output.nbytes,
                       own(output, session, session.budget))
