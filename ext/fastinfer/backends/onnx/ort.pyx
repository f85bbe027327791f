# ONNX Runtime through its C API: the library, its environment, sessions.
# Lives here: loading the library and models. Does not: a session's options (ort_options), the steps of a run (ort_run),
# requests, batches, native threads.
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
    INVALID_ARGUMENT, INVALID_PROTOBUF, NO_SUCH_FILE, NOT_IMPLEMENTED, EngineError, Feed, Handle, Output, check,
    create_run_options, discard, error_of, execute, make_values, own, receive, release_run_options, release_values,
    use_table,
)
from fastinfer.backends.onnx.ort_options cimport fill, providers, set_config, use_options_table
from fastinfer.backends.onnx.ort_table cimport *
from fastinfer.tensor.datatype cimport from_onnx, name_of
from fastinfer.tensor.tensor cimport MAX_RANK, Tensor, TensorSpec

from fastinfer.backends.onnx import elements
from fastinfer.backends.onnx.ort_run import OrtError
from fastinfer.backends.onnx.settings import SessionSettings

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
    TENSOR = 1                  # ONNXType
    SEQUENCE = 2
    MAP = 3
    OPTIONAL = 6
    MAX_TENSORS = 1024          # inputs or outputs of a model: as many as a request may have
    MAX_NAME_BYTES = 4096       # of an input, an output or a dimension: as long as a request may name

_WHEEL_NEEDED = "fastinfer needs the 'onnxruntime' wheel, 1.32 or newer, for Linux (glibc) or macOS"
cdef enum Role:                 # of a named tensor of a session
    AN_INPUT
    AN_OPTIONAL_INPUT           # an input of an optional type; its specification is that of the tensor in it
    AN_INITIALIZER              # that an input of its name overrides
    AN_OUTPUT

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
    use_options_table(table)
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
    return providers()


# --- Sessions ---------------------------------------------------------------------------------------------------------


@cython.final
cdef class Session:
    def __init__(self, path=None, *, model=None, settings=None, weights_folder=None, **options):
        if self.handle.session != NULL:
            raise RuntimeError("a session is created once")
        given = settings or SessionSettings(**options)
        if model is None:
            if path is None:
                raise ValueError("a path or a model is needed")
            model = _read(path)
        if len(model) == 0:
            raise OrtError("the model is empty", INVALID_PROTOBUF)
        if _env == NULL:
            configure(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        # External data may be in one directory, and nowhere else; the runtime checks that. A model without a path has
        # no such place (the runtime's own default is the current directory).
        folder = given.external_data
        if folder is None:
            folder = os.path.dirname(os.path.abspath(path)) if path is not None else "/dev/null"
        if weights_folder is not None:      # the caller has checked the files in it
            folder = weights_folder
        elif folder != "/dev/null":
            _check_external_data(model, os.fsdecode(folder))
        cdef OrtSessionOptions* session_options = NULL
        check(ort_create_session_options(&session_options))
        try:
            set_config(session_options, "session.load_model_format", "ONNX")
            set_config(session_options, "session.model_external_initializers_file_folder_path", folder)
            fill(session_options, _env, given)
            _create(self, model, session_options)
        finally:
            ort_release_session_options(session_options)
        self._add_run_config(given.run_config)
        _describe(self)

    cdef int _add_run_config(self, dict given) except -1:
        # Every run gets these entries. The pointers lead into self._run_config, which lives as long.
        cdef Handle* handle = &self.handle
        cdef Py_ssize_t i
        if not given:
            return 0
        self._run_config = [(key.encode(), value.encode()) for key, value in given.items()]
        handle.run_config = <const char**>malloc(2 * len(self._run_config) * sizeof(char*))
        if handle.run_config == NULL:
            raise MemoryError()
        handle.run_config_count = len(self._run_config)
        for i in range(handle.run_config_count):
            handle.run_config[2 * i] = <bytes>self._run_config[i][0]
            handle.run_config[2 * i + 1] = <bytes>self._run_config[i][1]
        return 0

    def __dealloc__(self):
        with nogil:         # freeing a large model takes a while
            if self.handle.session != NULL:
                ort_release_session(self.handle.session)
            free(self.handle.input_names)
            free(<void*>self.handle.declared)
            free(self.handle.run_config)

    def run(self, list inputs not None, outputs=None):
        cdef list tensors = _ordered(self.inputs, self.optional_inputs, inputs)
        cdef list wanted = _positions(self.outputs, outputs)
        cdef Py_ssize_t count = len(wanted)
        cdef Py_ssize_t i
        cdef Tensor tensor
        cdef EngineError failure
        cdef Handle handle = self.handle
        cdef OrtRunOptions* options = create_run_options(&self.handle) if self.handle.run_config_count > 0 else NULL
        # The two arrays of feeds and received outputs, then those of values and names.
        cdef Feed* feeds = <Feed*>calloc(len(tensors) + 1, sizeof(Feed))
        cdef Output* received = <Output*>calloc(count + 1, sizeof(Output))
        cdef OrtValue** values = <OrtValue**>calloc(len(tensors) + count + 1, sizeof(OrtValue*))
        cdef const char** names = <const char**>calloc(len(tensors) + count + 1, sizeof(char*))
        cdef Py_ssize_t* positions = <Py_ssize_t*>calloc(count + 1, sizeof(Py_ssize_t))
        try:
            if feeds == NULL or received == NULL or values == NULL or names == NULL or positions == NULL:
                raise MemoryError()
            for i in range(len(tensors)):
                tensor = <Tensor>tensors[i]
                feeds[i] = Feed(tensor.datatype_id, tensor.rank, <const int64_t*>tensor.dims, tensor.data,
                                tensor.nbytes)
            self.name_inputs(tensors, names)
            handle.input_names = names
            handle.input_count = len(tensors)
            for i in range(count):
                positions[i] = wanted[i]
                names[len(tensors) + i] = self.handle.output_names[positions[i]]
            if _run_whole(&handle, feeds, values, names + len(tensors), positions, count, received, options,
                          &failure) < 0:
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
            if options != NULL:
                release_run_options(options)

    cdef int name_inputs(self, list tensors, const char** names) except -1:
        cdef Py_ssize_t i
        for i in range(len(tensors)):
            if i < self.handle.input_count:
                names[i] = self.handle.input_names[i]
            else:
                names[i] = <bytes?>self._optional_names[(<Tensor?>tensors[i]).name]
        return 0


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
    optional = {i for i in range(<Py_ssize_t>inputs) if _kind(handle.session, i) == OPTIONAL}
    session.inputs = tuple([_spec(session, i, AN_INPUT) for i in range(<Py_ssize_t>inputs) if i not in optional])
    session.outputs = tuple([_spec(session, i, AN_OUTPUT) for i in range(<Py_ssize_t>outputs)])
    _describe_optional(session, optional)
    session._names = [(<TensorSpec>spec).name.encode() for spec in session.inputs + session.outputs]
    session._optional_names = {spec.name: spec.name.encode() for spec in session.optional_inputs}
    handle.input_count = len(session.inputs)
    handle.output_count = <Py_ssize_t>outputs
    handle.input_names = <const char**>malloc((len(session._names) + 1) * sizeof(char*))
    if handle.input_names == NULL:
        raise MemoryError()
    handle.output_names = handle.input_names + handle.input_count
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


cdef int _describe_optional(Session session, optional) except -1:
    # The runtime runs without inputs of an optional type, and without those that override initializers.
    cdef OrtSession* described = session.handle.session
    cdef size_t overridable = 0
    check(ort_overridable_count(described, &overridable))
    found, refused = [], []
    if len(session.inputs) + len(optional) + overridable > MAX_TENSORS:
        refused.append(f"the model has {overridable + len(optional)} optional inputs, which are not served because no "
                       f"more than {MAX_TENSORS} inputs are supported")
        optional, overridable = (), 0
    for role, places in ((AN_OPTIONAL_INPUT, sorted(optional)), (AN_INITIALIZER, range(<Py_ssize_t>overridable))):
        for place in places:
            try:
                found.append(_spec(session, place, role))
            except OrtError as error:       # the model runs without it
                refused.append(str(error))
    session.optional_inputs = tuple(found)
    session.refused_inputs = tuple(refused)
    return 0


cdef int _kind(OrtSession* session, Py_ssize_t place) except -1:
    cdef OrtTypeInfo* type_info = NULL
    cdef int32_t kind = 0
    check(ort_input_type(session, place, &type_info))
    try:
        check(ort_kind_of_type(type_info, &kind))
    finally:
        ort_release_type_info(type_info)
    return kind


cdef TensorSpec _spec(Session of, Py_ssize_t index, int role):
    cdef OrtSession* session = of.handle.session
    cdef OrtTypeInfo* type_info = NULL
    cdef char* text = NULL
    if role == AN_OUTPUT:
        check(ort_output_name(session, index, _allocator, &text))
    elif role == AN_INITIALIZER:
        check(ort_overridable_name(session, index, _allocator, &text))
    else:
        check(ort_input_name(session, index, _allocator, &text))
    cdef str name = _take_text(text)
    cdef str what = f"{'output' if role == AN_OUTPUT else 'input'} '{name}'"
    if "\ufffd" in name:
        raise OrtError(f"the name of {what} is not UTF-8", INVALID_PROTOBUF)
    if role == AN_OUTPUT:
        check(ort_output_type(session, index, &type_info))
    elif role == AN_INITIALIZER:
        check(ort_overridable_type(session, index, &type_info))
    else:
        check(ort_input_type(session, index, &type_info))
    try:
        return _tensor_spec(of, name, what, role, &type_info)
    finally:
        ort_release_type_info(type_info)


cdef TensorSpec _tensor_spec(Session of, str name, str what, int role, OrtTypeInfo** type_info):
    # type_info is the caller's; it is replaced by the type that a sequence or an optional value holds.
    cdef const OrtTensorInfo* info = NULL
    cdef (const char*)[MAX_RANK] symbols
    cdef int64_t[MAX_RANK] dims
    cdef size_t rank = 0
    cdef int32_t kind = 0
    cdef int32_t element_type = 0
    cdef bint stacked = False
    cdef bint is_input = role != AN_OUTPUT
    check(ort_kind_of_type(type_info[0], &kind))
    if kind == OPTIONAL and role in (AN_OUTPUT, AN_OPTIONAL_INPUT):
        type_info[0] = _inside(type_info[0], kind)
        check(ort_kind_of_type(type_info[0], &kind))
        of.handle.may_lack_outputs |= role == AN_OUTPUT
    if kind == SEQUENCE and role == AN_OUTPUT:
        stacked = of.handle.may_lack_outputs = True
        of.sequence_outputs += (name,)
        type_info[0] = _inside(type_info[0], kind)
        check(ort_kind_of_type(type_info[0], &kind))
    if kind != TENSOR:
        raise OrtError(_refusal(what, kind, is_input, stacked), NOT_IMPLEMENTED)
    check(ort_tensor_info_of_type(type_info[0], &info))
    check(ort_element_type(info, &element_type))
    if from_onnx(element_type) < 0:
        raise OrtError(f"{what} is {elements.name_of_runtime_type(element_type)}; {elements.NO_DATATYPE}",
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


cdef list _ordered(tuple required, tuple optional, list inputs):
    by_name = {(<Tensor?>tensor).name: tensor for tensor in inputs}
    for spec in required:
        if spec.name not in by_name:
            raise OrtError(f"input '{spec.name}' is missing", INVALID_ARGUMENT)
    ordered = [by_name[spec.name] for spec in required + optional if spec.name in by_name]
    if len(ordered) != len(inputs):
        raise OrtError(f"{len(inputs)} inputs were given, {len(ordered)} of them are the model's", INVALID_ARGUMENT)
    return ordered


cdef list _positions(tuple specs, outputs):
    if outputs is None:
        return list(range(len(specs)))
    positions = {spec.name: i for i, spec in enumerate(specs)}
    for name in outputs:
        if name not in positions:
            raise OrtError(f"the model has no output '{name}'", INVALID_ARGUMENT)
    return [positions[name] for name in outputs]


cdef int _run_whole(const Handle* handle, const Feed* feeds, OrtValue** values, const char** names,
                    const Py_ssize_t* positions, Py_ssize_t count, Output* received,
                    OrtRunOptions* options, EngineError* failure) noexcept:
    # values has room for the inputs and, after them, for the outputs.
    cdef OrtValue** outputs = values + handle.input_count
    cdef Py_ssize_t i
    cdef int failed = 0
    with nogil:
        if make_values(handle, feeds, values, failure) < 0:
            failed = -1
        else:
            failed = execute(handle, values, names, count, outputs, options, failure)
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
