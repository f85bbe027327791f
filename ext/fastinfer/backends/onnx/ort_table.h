// ONNX Runtime's C API without its header: the functions that we use, each with its position in the table of function
// pointers that OrtGetApiBase()->GetApi(version) returns.
//
// Positions and argument types of released versions never change (the project only appends); all of these are in API
// version 24. Lives here: positions and types. Does not: any logic.
//
// Every function that returns an OrtStatus* returns NULL for success; else the status is the caller's to release.

#ifndef FASTINFER_ORT_TABLE_H
#define FASTINFER_ORT_TABLE_H

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtEnv;
struct OrtThreadingOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtTypeInfo;
struct OrtTensorInfo;    // OrtTensorTypeAndShapeInfo
struct OrtSequenceInfo;  // OrtSequenceTypeInfo
struct OrtOptionalInfo;  // OrtOptionalTypeInfo
struct OrtValue;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtIoBinding;
struct OrtCudaOptions;  // OrtCUDAProviderOptionsV2
struct OrtEpDevice;

struct OrtApiBase {
    void** (*get_api)(uint32_t version);
    const char* (*get_version_string)();
};

// The table; set once, before anything below is called.
static void** ort_table = nullptr;

// clang-format off: it takes the parameters for products
#define ORT_FUNCTION(position, result, name, parameters, arguments)                        \
    static inline result name parameters {                                                 \
        return reinterpret_cast<result(*) parameters>(ort_table[position]) arguments;      \
    }

// Status
ORT_FUNCTION(1, int32_t, ort_get_error_code, (const OrtStatus* status), (status))
ORT_FUNCTION(2, const char*, ort_get_error_message, (const OrtStatus* status), (status))
ORT_FUNCTION(93, void, ort_release_status, (OrtStatus* status), (status))

// Environment and its threads
ORT_FUNCTION(119, OrtStatus*, ort_create_env_with_global_thread_pools,
             (int32_t log_level, const char* log_id, const OrtThreadingOptions* options, OrtEnv** out),
             (log_level, log_id, options, out))
ORT_FUNCTION(121, OrtStatus*, ort_create_threading_options, (OrtThreadingOptions** out), (out))
ORT_FUNCTION(122, void, ort_release_threading_options, (OrtThreadingOptions* options), (options))
ORT_FUNCTION(147, OrtStatus*, ort_set_global_intra_op_threads, (OrtThreadingOptions* options, int32_t count),
             (options, count))
ORT_FUNCTION(148, OrtStatus*, ort_set_global_inter_op_threads, (OrtThreadingOptions* options, int32_t count),
             (options, count))
ORT_FUNCTION(149, OrtStatus*, ort_set_global_spinning, (OrtThreadingOptions* options, int32_t allow),
             (options, allow))

// Session options
ORT_FUNCTION(10, OrtStatus*, ort_create_session_options, (OrtSessionOptions** out), (out))
ORT_FUNCTION(11, OrtStatus*, ort_set_optimized_model_path, (OrtSessionOptions* options, const char* path),
             (options, path))
ORT_FUNCTION(13, OrtStatus*, ort_set_execution_mode, (OrtSessionOptions* options, int32_t mode), (options, mode))
ORT_FUNCTION(14, OrtStatus*, ort_enable_profiling, (OrtSessionOptions* options, const char* prefix), (options, prefix))
ORT_FUNCTION(16, OrtStatus*, ort_enable_mem_pattern, (OrtSessionOptions* options), (options))
ORT_FUNCTION(17, OrtStatus*, ort_disable_mem_pattern, (OrtSessionOptions* options), (options))
ORT_FUNCTION(19, OrtStatus*, ort_disable_mem_arena, (OrtSessionOptions* options), (options))
ORT_FUNCTION(20, OrtStatus*, ort_set_session_log_id, (OrtSessionOptions* options, const char* id), (options, id))
ORT_FUNCTION(21, OrtStatus*, ort_set_session_log_verbosity, (OrtSessionOptions* options, int32_t level),
             (options, level))
ORT_FUNCTION(22, OrtStatus*, ort_set_session_log_severity, (OrtSessionOptions* options, int32_t level),
             (options, level))
ORT_FUNCTION(23, OrtStatus*, ort_set_graph_optimization_level, (OrtSessionOptions* options, int32_t level),
             (options, level))
ORT_FUNCTION(24, OrtStatus*, ort_set_intra_op_threads, (OrtSessionOptions* options, int32_t count), (options, count))
ORT_FUNCTION(25, OrtStatus*, ort_set_inter_op_threads, (OrtSessionOptions* options, int32_t count), (options, count))
ORT_FUNCTION(100, void, ort_release_session_options, (OrtSessionOptions* options), (options))
ORT_FUNCTION(120, OrtStatus*, ort_disable_per_session_threads, (OrtSessionOptions* options), (options))
ORT_FUNCTION(124, OrtStatus*, ort_override_free_dimension,
             (OrtSessionOptions* options, const char* name, int64_t value), (options, name, value))
ORT_FUNCTION(130, OrtStatus*, ort_add_session_config, (OrtSessionOptions* options, const char* key, const char* value),
             (options, key, value))
ORT_FUNCTION(216, OrtStatus*, ort_append_provider,
             (OrtSessionOptions* options, const char* name, const char* const* keys, const char* const* values,
              size_t count),
             (options, name, keys, values, count))
ORT_FUNCTION(204, OrtStatus*, ort_append_cuda_provider, (OrtSessionOptions* options, const OrtCudaOptions* cuda),
             (options, cuda))
ORT_FUNCTION(205, OrtStatus*, ort_create_cuda_options, (OrtCudaOptions** out), (out))
ORT_FUNCTION(208, void, ort_release_cuda_options, (OrtCudaOptions* cuda), (cuda))
ORT_FUNCTION(206, OrtStatus*, ort_update_cuda_options,
             (OrtCudaOptions* cuda, const char* const* keys, const char* const* values, size_t count),
             (cuda, keys, values, count))
ORT_FUNCTION(228, OrtStatus*, ort_register_operators, (OrtSessionOptions* options, const char* path), (options, path))
ORT_FUNCTION(125, OrtStatus*, ort_get_available_providers, (char*** out, int32_t* count), (out, count))
ORT_FUNCTION(126, OrtStatus*, ort_release_available_providers, (char** names, int32_t count), (names, count))

// Execution providers of plugin libraries, and the devices that they offer
ORT_FUNCTION(301, OrtStatus*, ort_register_provider_library, (OrtEnv* env, const char* name, const char* path),
             (env, name, path))
ORT_FUNCTION(303, OrtStatus*, ort_provider_devices,
             (const OrtEnv* env, const OrtEpDevice*** borrowed, size_t* count),
             (env, borrowed, count))
ORT_FUNCTION(304, OrtStatus*, ort_append_provider_devices,
             (OrtSessionOptions* options, OrtEnv* env, const OrtEpDevice* const* devices, size_t device_count,
              const char* const* keys, const char* const* values, size_t count),
             (options, env, devices, device_count, keys, values, count))
ORT_FUNCTION(312, const char*, ort_provider_of_device, (const OrtEpDevice* device), (device))

// Session
ORT_FUNCTION(8, OrtStatus*, ort_create_session_from_array,
             (const OrtEnv* env, const void* model, size_t nbytes, const OrtSessionOptions* options, OrtSession** out),
             (env, model, nbytes, options, out))
ORT_FUNCTION(9, OrtStatus*, ort_run,
             (OrtSession* session, const OrtRunOptions* options, const char* const* input_names,
              const OrtValue* const* inputs, size_t input_count, const char* const* output_names, size_t output_count,
              OrtValue** outputs),
             (session, options, input_names, inputs, input_count, output_names, output_count, outputs))
ORT_FUNCTION(95, void, ort_release_session, (OrtSession* session), (session))
ORT_FUNCTION(30, OrtStatus*, ort_input_count, (const OrtSession* session, size_t* out), (session, out))
ORT_FUNCTION(31, OrtStatus*, ort_output_count, (const OrtSession* session, size_t* out), (session, out))
ORT_FUNCTION(33, OrtStatus*, ort_input_type, (const OrtSession* session, size_t index, OrtTypeInfo** out),
             (session, index, out))
ORT_FUNCTION(34, OrtStatus*, ort_output_type, (const OrtSession* session, size_t index, OrtTypeInfo** out),
             (session, index, out))
ORT_FUNCTION(36, OrtStatus*, ort_input_name,
             (const OrtSession* session, size_t index, OrtAllocator* allocator, char** out),
             (session, index, allocator, out))
ORT_FUNCTION(37, OrtStatus*, ort_output_name,
             (const OrtSession* session, size_t index, OrtAllocator* allocator, char** out),
             (session, index, allocator, out))
ORT_FUNCTION(32, OrtStatus*, ort_overridable_count, (const OrtSession* session, size_t* out), (session, out))
ORT_FUNCTION(35, OrtStatus*, ort_overridable_type, (const OrtSession* session, size_t index, OrtTypeInfo** out),
             (session, index, out))
ORT_FUNCTION(38, OrtStatus*, ort_overridable_name,
             (const OrtSession* session, size_t index, OrtAllocator* allocator, char** out),
             (session, index, allocator, out))

// Run options
ORT_FUNCTION(39, OrtStatus*, ort_create_run_options, (OrtRunOptions** out), (out))
ORT_FUNCTION(46, OrtStatus*, ort_terminate, (OrtRunOptions* options), (options))
ORT_FUNCTION(47, OrtStatus*, ort_unset_terminate, (OrtRunOptions* options), (options))
ORT_FUNCTION(97, void, ort_release_run_options, (OrtRunOptions* options), (options))
ORT_FUNCTION(165, OrtStatus*, ort_add_run_config, (OrtRunOptions* options, const char* key, const char* value),
             (options, key, value))

// Bindings: a session with its inputs and outputs
ORT_FUNCTION(134, OrtStatus*, ort_create_io_binding, (OrtSession* session, OrtIoBinding** out), (session, out))
ORT_FUNCTION(136, OrtStatus*, ort_bind_input, (OrtIoBinding* binding, const char* name, const OrtValue* value),
             (binding, name, value))
ORT_FUNCTION(137, OrtStatus*, ort_bind_output, (OrtIoBinding* binding, const char* name, const OrtValue* value),
             (binding, name, value))
ORT_FUNCTION(133, OrtStatus*, ort_run_with_binding,
             (OrtSession* session, const OrtRunOptions* options, const OrtIoBinding* binding),
             (session, options, binding))
ORT_FUNCTION(140, OrtStatus*, ort_bound_outputs,
             (const OrtIoBinding* binding, OrtAllocator* allocator, OrtValue*** out, size_t* count),
             (binding, allocator, out, count))
ORT_FUNCTION(135, void, ort_release_io_binding, (OrtIoBinding* binding), (binding))

// Types and shapes
ORT_FUNCTION(55, OrtStatus*, ort_tensor_info_of_type, (const OrtTypeInfo* type, const OrtTensorInfo** borrowed),
             (type, borrowed))
ORT_FUNCTION(56, OrtStatus*, ort_kind_of_type, (const OrtTypeInfo* type, int32_t* out), (type, out))
ORT_FUNCTION(60, OrtStatus*, ort_element_type, (const OrtTensorInfo* info, int32_t* out), (info, out))
ORT_FUNCTION(61, OrtStatus*, ort_rank, (const OrtTensorInfo* info, size_t* out), (info, out))
ORT_FUNCTION(62, OrtStatus*, ort_dimensions, (const OrtTensorInfo* info, int64_t* dims, size_t count),
             (info, dims, count))
ORT_FUNCTION(63, OrtStatus*, ort_symbolic_dimensions, (const OrtTensorInfo* info, const char** borrowed, size_t count),
             (info, borrowed, count))
ORT_FUNCTION(390, bool, ort_has_shape, (const OrtTensorInfo* info), (info))
ORT_FUNCTION(65, OrtStatus*, ort_tensor_info_of_value, (const OrtValue* value, OrtTensorInfo** out), (value, out))
ORT_FUNCTION(67, OrtStatus*, ort_kind_of_value, (const OrtValue* value, int32_t* out), (value, out))
ORT_FUNCTION(104, OrtStatus*, ort_sequence_info_of_type, (const OrtTypeInfo* type, const OrtSequenceInfo** borrowed),
             (type, borrowed))
ORT_FUNCTION(107, OrtStatus*, ort_type_of_elements, (const OrtSequenceInfo* info, OrtTypeInfo** out), (info, out))
ORT_FUNCTION(250, OrtStatus*, ort_optional_info_of_type, (const OrtTypeInfo* type, const OrtOptionalInfo** borrowed),
             (type, borrowed))
ORT_FUNCTION(251, OrtStatus*, ort_type_of_optional, (const OrtOptionalInfo* info, OrtTypeInfo** out), (info, out))
ORT_FUNCTION(98, void, ort_release_type_info, (OrtTypeInfo* type), (type))
ORT_FUNCTION(99, void, ort_release_tensor_info, (OrtTensorInfo* info), (info))

// Values
ORT_FUNCTION(48, OrtStatus*, ort_create_tensor,
             (OrtAllocator* allocator, const int64_t* dims, size_t rank, int32_t type, OrtValue** out),
             (allocator, dims, rank, type, out))
ORT_FUNCTION(49, OrtStatus*, ort_create_tensor_over,
             (const OrtMemoryInfo* memory, void* data, size_t nbytes, const int64_t* dims, size_t rank, int32_t type,
              OrtValue** out),
             (memory, data, nbytes, dims, rank, type, out))
ORT_FUNCTION(51, OrtStatus*, ort_tensor_data, (OrtValue* value, void** out), (value, out))
ORT_FUNCTION(53, OrtStatus*, ort_strings_size, (const OrtValue* value, size_t* out), (value, out))
ORT_FUNCTION(54, OrtStatus*, ort_strings,
             (const OrtValue* value, void* into, size_t nbytes, size_t* offsets, size_t count),
             (value, into, nbytes, offsets, count))
ORT_FUNCTION(252, OrtStatus*, ort_resized_string, (OrtValue* value, size_t index, size_t nbytes, char** borrowed),
             (value, index, nbytes, borrowed))
ORT_FUNCTION(80, OrtStatus*, ort_element,
             (const OrtValue* sequence, int32_t index, OrtAllocator* allocator, OrtValue** copy),
             (sequence, index, allocator, copy))
ORT_FUNCTION(81, OrtStatus*, ort_count_of_elements, (const OrtValue* sequence, size_t* out), (sequence, out))
ORT_FUNCTION(192, OrtStatus*, ort_has_value, (const OrtValue* optional, int32_t* out), (optional, out))
ORT_FUNCTION(96, void, ort_release_value, (OrtValue* value), (value))

// Memory
ORT_FUNCTION(69, OrtStatus*, ort_create_cpu_memory_info, (int32_t allocator_type, int32_t memory_type,
                                                          OrtMemoryInfo** out),
             (allocator_type, memory_type, out))
ORT_FUNCTION(76, OrtStatus*, ort_free, (OrtAllocator* allocator, void* block), (allocator, block))
ORT_FUNCTION(78, OrtStatus*, ort_default_allocator, (OrtAllocator** borrowed), (borrowed))

// clang-format on
#undef ORT_FUNCTION

#endif
