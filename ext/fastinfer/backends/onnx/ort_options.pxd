from fastinfer.backends.onnx.ort_table cimport OrtEnv, OrtSessionOptions

# Tells `options` what `settings` (a SessionSettings) says. The environment exists.
cdef int fill(OrtSessionOptions* options, OrtEnv* env, object settings) except -1
cdef int set_config(OrtSessionOptions* options, str key, str value) except -1
# The execution providers of this build of the runtime.
cpdef tuple providers()
# As ort_run.use_table.
cdef int use_options_table(void** table) except -1
