# Fills a session's options: threads, memory, providers, libraries of operators. Lives here: the calls of ONNX Runtime's
# C API that take session options, and what a process keeps of them: libraries stay loaded. Does not: which options a
# model may have, where libraries may lie (options.py, places.py), sessions (ort).
#
# Load threads, with the GIL; it is released while a library is loaded, because its constructors may take any time.

import os
from threading import Lock

from libc.stdlib cimport free, malloc
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlerror, dlopen, dlsym

from fastinfer.backends.onnx.ort_run cimport FAIL, INVALID_ARGUMENT, NO_SUCH_FILE, check
from fastinfer.backends.onnx.ort_table cimport *

from fastinfer.backends.onnx.ort_run import OrtError

cdef extern from "fastinfer/native/signals.h" nogil:
    ctypedef struct sigset_t:
        pass
    void block_signals(sigset_t* before)
    void restore_signals(const sigset_t* before)

cdef extern from "fastinfer/native/no_exit.h" nogil:
    void forbid_exit(void* library)

cdef enum:
    SEQUENTIAL = 0              # ExecutionMode
    PARALLEL = 1

_LEVELS = {"none": 0, "disable": 0, "disabled": 0, "basic": 1, "extended": 2, "layout": 3, "all": 99}

# The libraries of this process, by path, each with its stamp. They stay loaded: a library may leave threads and
# destructors behind, and the linker would give the old code for a path that it knows.
_libraries = {}
_provider_libraries = {}        # path by name
_lock = Lock()


cdef int use_options_table(void** table) except -1:
    global ort_table
    ort_table = table
    return 0


cdef int fill(OrtSessionOptions* options, OrtEnv* env, object settings) except -1:
    _set_threads(options, settings)
    _set_memory(options, settings)
    _set_outputs(options, settings)
    if settings.graph_optimization_level is not None:
        check(ort_set_graph_optimization_level(options, _level(settings.graph_optimization_level)))
    for name, value in (settings.free_dimension_overrides or {}).items():
        check(ort_override_free_dimension(options, <bytes>name.encode(), value))
    for key, value in settings.config.items():
        set_config(options, key, value)
    for path in settings.operator_libraries:
        _register_operators(options, path)
    for name, path in settings.provider_libraries.items():
        _register_provider_library(env, name, path)
    for provider in settings.execution_providers:
        _append_provider(options, env, provider, settings.provider_options.get(provider, {}))
    return 0


cdef int set_config(OrtSessionOptions* options, str key, str value) except -1:
    return check(ort_add_session_config(options, key.encode(), os.fsencode(value)))


cdef int _set_threads(OrtSessionOptions* options, object settings) except -1:
    intra, inter = settings.intra_op_threads, settings.inter_op_threads
    if intra is None and inter is None:
        return check(ort_disable_per_session_threads(options))     # the process's pools
    check(ort_set_intra_op_threads(options, intra or 1))
    check(ort_set_inter_op_threads(options, inter or 1))
    parallel = (inter or 1) > 1 if settings.parallel is None else settings.parallel
    check(ort_set_execution_mode(options, PARALLEL if parallel else SEQUENTIAL))
    spinning = "1" if settings.allow_spinning else "0"
    set_config(options, "session.intra_op.allow_spinning", spinning)
    return set_config(options, "session.inter_op.allow_spinning", spinning)


cdef int _set_memory(OrtSessionOptions* options, object settings) except -1:
    if not settings.mem_arena:
        check(ort_disable_mem_arena(options))
    # By default off: the runtime would keep a pattern for every set of input shapes, which clients choose.
    return check(ort_enable_mem_pattern(options) if settings.mem_pattern else ort_disable_mem_pattern(options))


cdef int _set_outputs(OrtSessionOptions* options, object settings) except -1:
    if settings.optimized_model is not None:
        check(ort_set_optimized_model_path(options, <bytes>os.fsencode(settings.optimized_model)))
    if settings.profile_prefix is not None:
        check(ort_enable_profiling(options, <bytes>os.fsencode(settings.profile_prefix)))
    if settings.log_id is not None:
        check(ort_set_session_log_id(options, <bytes>settings.log_id.encode()))
    if settings.log_severity is not None:
        check(ort_set_session_log_severity(options, settings.log_severity))
    if settings.log_verbosity is not None:
        check(ort_set_session_log_verbosity(options, settings.log_verbosity))
    return 0


cdef int _level(object level) except? -2:
    if not isinstance(level, str):
        return level
    if level not in _LEVELS:
        raise OrtError(f"unknown graph optimization level '{level}', known are {', '.join(_LEVELS)}", INVALID_ARGUMENT)
    return _LEVELS[level]


# --- Execution providers ----------------------------------------------------------------------------------------------


cdef class KeysAndValues:
    # Two arrays of C strings, and the bytes that they point into.
    cdef const char** keys
    cdef const char** values
    cdef size_t count
    cdef list _bytes

    def __cinit__(self, dict given):
        cdef Py_ssize_t i
        self._bytes = [(key.encode(), os.fsencode(value)) for key, value in given.items()]
        self.count = len(self._bytes)
        self.keys = <const char**>malloc(2 * (self.count + 1) * sizeof(char*))
        if self.keys == NULL:
            raise MemoryError()
        self.values = self.keys + self.count
        for i in range(<Py_ssize_t>self.count):
            self.keys[i] = <bytes>self._bytes[i][0]
            self.values[i] = <bytes>self._bytes[i][1]

    def __dealloc__(self):
        free(self.keys)


cpdef tuple providers():
    cdef char** names = NULL
    cdef int32_t count = 0
    check(ort_get_available_providers(&names, &count))
    try:
        return tuple([names[i].decode() for i in range(count)])
    finally:
        check(ort_release_available_providers(names, count))


cdef int _append_provider(OrtSessionOptions* options, OrtEnv* env, str provider, dict given) except -1:
    cdef OrtCudaOptions* cuda = NULL
    cdef KeysAndValues options_of = KeysAndValues(given)
    if provider == "CPUExecutionProvider":      # it is always there, as the last
        return 0
    if provider not in providers():
        return _append_devices(options, env, provider, options_of)
    if provider != "CUDAExecutionProvider":
        return check(ort_append_provider(options, provider.encode(), options_of.keys, options_of.values,
                                         options_of.count))
    check(ort_create_cuda_options(&cuda))
    try:
        if options_of.count > 0:
            check(ort_update_cuda_options(cuda, options_of.keys, options_of.values, options_of.count))
        return check(ort_append_cuda_provider(options, cuda))
    finally:
        ort_release_cuda_options(cuda)


cdef int _append_devices(OrtSessionOptions* options, OrtEnv* env, str provider, KeysAndValues given) except -1:
    # A provider of a plugin library, with all devices of this machine that it can use.
    cdef const OrtEpDevice** devices = NULL
    cdef const OrtEpDevice** own
    cdef size_t count = 0
    cdef size_t found = 0
    cdef size_t i
    with _lock:         # a registration changes the list of devices
        check(ort_provider_devices(env, &devices, &count))
        names = [ort_provider_of_device(devices[i]).decode("utf-8", "replace") for i in range(count)]
        own = <const OrtEpDevice**>malloc((count + 1) * sizeof(OrtEpDevice*))
        if own == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                if names[i] == provider:
                    own[found] = devices[i]
                    found += 1
            if found == 0:
                known = ", ".join(dict.fromkeys([*providers(), *names]))
                raise OrtError(f"execution provider '{provider}' is not in this build of ONNX Runtime, which has "
                               f"{known}", INVALID_ARGUMENT)
            return check(ort_append_provider_devices(options, env, own, found, given.keys, given.values, given.count))
        finally:
            free(own)


# --- Libraries --------------------------------------------------------------------------------------------------------


cdef int _register_operators(OrtSessionOptions* options, str path) except -1:
    cdef void* library = _load(path)
    if dlsym(library, "RegisterCustomOps") == NULL:
        raise OrtError(f"'{os.path.basename(path)}' is not a library of operators: it has no function "
                       "RegisterCustomOps", INVALID_ARGUMENT)
    forbid_exit(library)
    return check(ort_register_operators(options, <bytes>os.fsencode(path)))


cdef int _register_provider_library(OrtEnv* env, str name, str path) except -1:
    cdef bytes c_name = name.encode()
    cdef bytes c_path = os.fsencode(path)
    with _lock:
        known = _provider_libraries.get(name)
    _load(path)
    if known == path:
        return 0
    if known is not None:
        raise OrtError(f"provider library '{name}' is '{os.path.basename(known)}' in this process, because of another "
                       "model; give this one another name", INVALID_ARGUMENT)
    with _lock:
        if name not in _provider_libraries:
            check(ort_register_provider_library(env, c_name, c_path))
            _provider_libraries[name] = path
    return 0


cdef void* _load(str path) except NULL:
    cdef bytes encoded = os.fsencode(path)
    cdef const char* c_path = encoded
    cdef void* library
    cdef sigset_t before
    name = os.path.basename(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise OrtError(f"library '{name}' cannot be read: {error.strerror}", NO_SUCH_FILE) from None
    stamp = status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
    with _lock:
        if _libraries.setdefault(path, stamp) != stamp:
            raise OrtError(f"library '{name}' is loaded, and its file has changed since: restart the server", FAIL)
    with nogil:
        block_signals(&before)      # for threads of the library's own
        library = dlopen(c_path, RTLD_NOW | RTLD_LOCAL)
        restore_signals(&before)
    if library == NULL:
        reason = dlerror().decode("utf-8", "replace")
        with _lock:
            del _libraries[path]
        raise OrtError(f"library '{name}' cannot be loaded: {reason}", NO_SUCH_FILE)
    return library
