# backends/onnx/ort_table.h for Cython; the C++ compiler compares the two. Each module has its own copy of the table:
# ort sets its own and those of ort_run and ort_options; no other module may use this.

from libc.stdint cimport int32_t, int64_t, uint32_t

cdef extern from "fastinfer/backends/onnx/ort_table.h" nogil:
    ctypedef struct OrtStatus
    ctypedef struct OrtSession
    ctypedef struct OrtRunOptions
    ctypedef struct OrtValue
    ctypedef struct OrtEnv
    ctypedef struct OrtThreadingOptions
    ctypedef struct OrtSessionOptions
    ctypedef struct OrtTypeInfo
    ctypedef struct OrtTensorInfo
    ctypedef struct OrtSequenceInfo
    ctypedef struct OrtOptionalInfo
    ctypedef struct OrtMemoryInfo
    ctypedef struct OrtAllocator
    ctypedef struct OrtIoBinding
    ctypedef struct OrtCudaOptions
    ctypedef struct OrtEpDevice
    ctypedef struct OrtApiBase:
        void** (*get_api)(uint32_t version) noexcept
        const char* (*get_version_string)() noexcept
    void** ort_table

    int32_t ort_get_error_code(OrtStatus* status)
    const char* ort_get_error_message(OrtStatus* status)
    void ort_release_status(OrtStatus* status)

    OrtStatus* ort_create_env_with_global_thread_pools(int32_t log_level, const char* log_id,
                                                       OrtThreadingOptions* options, OrtEnv** out)
    OrtStatus* ort_create_threading_options(OrtThreadingOptions** out)
    void ort_release_threading_options(OrtThreadingOptions* options)
    OrtStatus* ort_set_global_intra_op_threads(OrtThreadingOptions* options, int32_t count)
    OrtStatus* ort_set_global_inter_op_threads(OrtThreadingOptions* options, int32_t count)
    OrtStatus* ort_set_global_spinning(OrtThreadingOptions* options, int32_t allow)

    OrtStatus* ort_create_session_options(OrtSessionOptions** out)
    OrtStatus* ort_set_optimized_model_path(OrtSessionOptions* options, const char* path)
    OrtStatus* ort_set_execution_mode(OrtSessionOptions* options, int32_t mode)
    OrtStatus* ort_enable_profiling(OrtSessionOptions* options, const char* prefix)
    OrtStatus* ort_enable_mem_pattern(OrtSessionOptions* options)
    OrtStatus* ort_disable_mem_pattern(OrtSessionOptions* options)
    OrtStatus* ort_disable_mem_arena(OrtSessionOptions* options)
    OrtStatus* ort_set_session_log_id(OrtSessionOptions* options, const char* id)
    OrtStatus* ort_set_session_log_verbosity(OrtSessionOptions* options, int32_t level)
    OrtStatus* ort_set_session_log_severity(OrtSessionOptions* options, int32_t level)
    OrtStatus* ort_set_graph_optimization_level(OrtSessionOptions* options, int32_t level)
    OrtStatus* ort_set_intra_op_threads(OrtSessionOptions* options, int32_t count)
    OrtStatus* ort_set_inter_op_threads(OrtSessionOptions* options, int32_t count)
    OrtStatus* ort_disable_per_session_threads(OrtSessionOptions* options)
    OrtStatus* ort_override_free_dimension(OrtSessionOptions* options, const char* name, int64_t value)
    OrtStatus* ort_add_session_config(OrtSessionOptions* options, const char* key, const char* value)
    OrtStatus* ort_append_provider(OrtSessionOptions* options, const char* name, const char** keys,
                                   const char** values, size_t count)
    OrtStatus* ort_append_cuda_provider(OrtSessionOptions* options, OrtCudaOptions* cuda)
    OrtStatus* ort_create_cuda_options(OrtCudaOptions** out)
    void ort_release_cuda_options(OrtCudaOptions* cuda)
    OrtStatus* ort_update_cuda_options(OrtCudaOptions* cuda, const char** keys, const char** values, size_t count)
    OrtStatus* ort_register_operators(OrtSessionOptions* options, const char* path)
    OrtStatus* ort_get_available_providers(char*** out, int32_t* count)
    OrtStatus* ort_release_available_providers(char** names, int32_t count)
    void ort_release_session_options(OrtSessionOptions* options)

    OrtStatus* ort_register_provider_library(OrtEnv* env, const char* name, const char* path)
    OrtStatus* ort_provider_devices(OrtEnv* env, const OrtEpDevice*** borrowed, size_t* count)
    OrtStatus* ort_append_provider_devices(OrtSessionOptions* options, OrtEnv* env, const OrtEpDevice** devices,
                                           size_t device_count, const char** keys, const char** values, size_t count)
    const char* ort_provider_of_device(const OrtEpDevice* device)

    OrtStatus* ort_create_session_from_array(OrtEnv* env, const void* model, size_t nbytes,
                                             OrtSessionOptions* options, OrtSession** out)
    OrtStatus* ort_run(OrtSession* session, OrtRunOptions* options, const char** input_names, OrtValue** inputs,
                       size_t input_count, const char** output_names, size_t output_count, OrtValue** outputs)
    void ort_release_session(OrtSession* session)
    OrtStatus* ort_input_count(OrtSession* session, size_t* out)
    OrtStatus* ort_output_count(OrtSession* session, size_t* out)
    OrtStatus* ort_input_type(OrtSession* session, size_t index, OrtTypeInfo** out)
    OrtStatus* ort_output_type(OrtSession* session, size_t index, OrtTypeInfo** out)
    OrtStatus* ort_input_name(OrtSession* session, size_t index, OrtAllocator* allocator, char** out)
    OrtStatus* ort_output_name(OrtSession* session, size_t index, OrtAllocator* allocator, char** out)
    OrtStatus* ort_overridable_count(OrtSession* session, size_t* out)
    OrtStatus* ort_overridable_type(OrtSession* session, size_t index, OrtTypeInfo** out)
    OrtStatus* ort_overridable_name(OrtSession* session, size_t index, OrtAllocator* allocator, char** out)

    OrtStatus* ort_create_run_options(OrtRunOptions** out)
    OrtStatus* ort_terminate(OrtRunOptions* options)
    OrtStatus* ort_unset_terminate(OrtRunOptions* options)
    void ort_release_run_options(OrtRunOptions* options)
    OrtStatus* ort_add_run_config(OrtRunOptions* options, const char* key, const char* value)

    OrtStatus* ort_create_io_binding(OrtSession* session, OrtIoBinding** out)
    OrtStatus* ort_bind_input(OrtIoBinding* binding, const char* name, OrtValue* value)
    OrtStatus* ort_bind_output(OrtIoBinding* binding, const char* name, OrtValue* value)
    OrtStatus* ort_run_with_binding(OrtSession* session, OrtRunOptions* options, OrtIoBinding* binding)
    OrtStatus* ort_bound_outputs(OrtIoBinding* binding, OrtAllocator* allocator, OrtValue*** out, size_t* count)
    void ort_release_io_binding(OrtIoBinding* binding)

    OrtStatus* ort_tensor_info_of_type(OrtTypeInfo* type, const OrtTensorInfo** borrowed)
    OrtStatus* ort_kind_of_type(OrtTypeInfo* type, int32_t* out)
    OrtStatus* ort_element_type(const OrtTensorInfo* info, int32_t* out)
    OrtStatus* ort_rank(const OrtTensorInfo* info, size_t* out)
    OrtStatus* ort_dimensions(const OrtTensorInfo* info, int64_t* dims, size_t count)
    OrtStatus* ort_symbolic_dimensions(const OrtTensorInfo* info, const char** borrowed, size_t count)
    bint ort_has_shape(const OrtTensorInfo* info)
    OrtStatus* ort_tensor_info_of_value(OrtValue* value, OrtTensorInfo** out)
    OrtStatus* ort_kind_of_value(OrtValue* value, int32_t* out)
    OrtStatus* ort_sequence_info_of_type(OrtTypeInfo* type, const OrtSequenceInfo** borrowed)
    OrtStatus* ort_type_of_elements(const OrtSequenceInfo* info, OrtTypeInfo** out)
    OrtStatus* ort_optional_info_of_type(OrtTypeInfo* type, const OrtOptionalInfo** borrowed)
    OrtStatus* ort_type_of_optional(const OrtOptionalInfo* info, OrtTypeInfo** out)
    void ort_release_type_info(OrtTypeInfo* type)
    void ort_release_tensor_info(OrtTensorInfo* info)

    OrtStatus* ort_create_tensor(OrtAllocator* allocator, const int64_t* dims, size_t rank, int32_t type,
                                 OrtValue** out)
    OrtStatus* ort_create_tensor_over(OrtMemoryInfo* memory, void* data, size_t nbytes, const int64_t* dims,
                                      size_t rank, int32_t type, OrtValue** out)
    OrtStatus* ort_tensor_data(OrtValue* value, void** out)
    OrtStatus* ort_strings_size(OrtValue* value, size_t* out)
    OrtStatus* ort_strings(OrtValue* value, void* into, size_t nbytes, size_t* offsets, size_t count)
    OrtStatus* ort_resized_string(OrtValue* value, size_t index, size_t nbytes, char** borrowed)
    OrtStatus* ort_element(const OrtValue* sequence, int32_t index, OrtAllocator* allocator, OrtValue** copy)
    OrtStatus* ort_count_of_elements(const OrtValue* sequence, size_t* out)
    OrtStatus* ort_has_value(const OrtValue* optional, int32_t* out)
    void ort_release_value(OrtValue* value)

    OrtStatus* ort_create_cpu_memory_info(int32_t allocator_type, int32_t memory_type, OrtMemoryInfo** out)
    OrtStatus* ort_free(OrtAllocator* allocator, void* block)
    OrtStatus* ort_default_allocator(OrtAllocator** borrowed)
