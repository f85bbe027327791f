// A library of one custom operator for tests: Twice, of the domain test.operators, doubles FP32 values, and calls exit()
// if the first one is -1. It uses ONNX Runtime's C API by positions, as ext/fastinfer/backends/onnx/ort_table.h does.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace {

struct Operator {
    uint32_t version;
    void* (*create_kernel)(const Operator*, void** api, const void* info);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);
    int32_t (*input_type)(const Operator*, size_t);
    size_t (*input_count)(const Operator*);
    int32_t (*output_type)(const Operator*, size_t);
    size_t (*output_count)(const Operator*);
    void (*compute)(void* kernel, void* context);
    void (*destroy)(void* kernel);
    int32_t (*input_characteristic)(const Operator*, size_t);
    int32_t (*output_characteristic)(const Operator*, size_t);
};

void** table;

template <typename... Arguments>
void* call(int position, Arguments... arguments) {
    return reinterpret_cast<void* (*)(Arguments...)>(table[position])(arguments...);
}

void compute(void*, void* context) {
    void *input = nullptr, *output = nullptr, *info = nullptr, *from = nullptr, *to = nullptr;
    size_t rank = 0;
    int64_t dims[8];
    call(90, context, size_t{0}, &input);
    call(65, input, &info);
    call(61, info, &rank);
    call(62, info, dims, rank);
    call(91, context, size_t{0}, dims, rank, &output);
    call(51, input, &from);
    call(51, output, &to);
    call(99, info);
    int64_t count = 1;
    for (size_t i = 0; i < rank; i++)
        count *= dims[i];
    if (count > 0 && static_cast<float*>(from)[0] == -1)
        std::exit(1);
    for (int64_t i = 0; i < count; i++)
        static_cast<float*>(to)[i] = 2 * static_cast<float*>(from)[i];
}

Operator twice = {
    8,
    [](const Operator*, void**, const void*) -> void* { return &twice; },
    [](const Operator*) { return "Twice"; },
    [](const Operator*) -> const char* { return nullptr; },
    [](const Operator*, size_t) { return int32_t{1}; },
    [](const Operator*) { return size_t{1}; },
    [](const Operator*, size_t) { return int32_t{1}; },
    [](const Operator*) { return size_t{1}; },
    compute,
    [](void*) {},
    [](const Operator*, size_t) { return int32_t{0}; },
    [](const Operator*, size_t) { return int32_t{0}; },
};

}  // namespace

extern "C" void* RegisterCustomOps(void* options, void** base) {
    table = reinterpret_cast<void** (*)(uint32_t)>(base[0])(22);
    static void* domain;
    if (domain == nullptr) {
        if (void* status = call(26, "test.operators", &domain))
            return status;
        if (void* status = call(27, domain, &twice))
            return status;
    }
    return call(28, options, domain);
}
