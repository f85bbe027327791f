// A library of an execution provider for tests, called Idle: it takes no node, so that the CPU runs them all. If it has
// the option `refuse`, it makes no session, and answers with the option's value.

#include <cstddef>
#include <cstdint>

namespace {

struct Provider {
    uint32_t version;
    const char* (*name)(const Provider*);
    void* (*capability)(Provider*, const void* graph, void* info);
    void* rest[64];
};

struct Factory {
    uint32_t version;
    const char* (*name)(const Factory*);
    const char* (*vendor)(const Factory*);
    void* (*devices)(Factory*, const void* const*, size_t, void** found, size_t most, size_t* count);
    void* (*create)(Factory*, const void* const*, const void* const*, size_t, const void* options, const void* logger,
                    Provider** made);
    void (*release)(Factory*, Provider*);
    uint32_t (*vendor_id)(const Factory*);
    const char* (*own_version)(const Factory*);
    void* (*rest[32])();  // of allocators, transfers, streams: all say that there are none
};

void** table;

void* status_of(const char* text) { return reinterpret_cast<void* (*)(int32_t, const char*)>(table[0])(1, text); }

void* devices(Factory* factory, const void* const* machine, size_t count, void** found, size_t most, size_t* made) {
    *made = 0;
    if (count == 0 || most == 0)
        return nullptr;
    void** provider_table = reinterpret_cast<void** (*)()>(table[317])();
    *made = 1;
    return reinterpret_cast<void* (*)(Factory*, const void*, const void*, const void*, void**)>(provider_table[0])(
        factory, machine[0], nullptr, nullptr, found);
}

void* create(Factory*, const void* const*, const void* const*, size_t, const void* options, const void*,
             Provider** made) {
    char value[256];
    size_t size = sizeof value;
    int32_t has = 0;
    reinterpret_cast<void* (*)(const void*, const char*, int32_t*)>(table[237])(options, "ep.idle.refuse", &has);
    if (has != 0) {
        reinterpret_cast<void* (*)(const void*, const char*, char*, size_t*)>(table[238])(options, "ep.idle.refuse",
                                                                                          value, &size);
        return status_of(value);
    }
    *made = new Provider{
        22, [](const Provider*) { return "Idle"; }, [](Provider*, const void*, void*) -> void* { return nullptr; }, {}};
    return nullptr;
}

Factory factory = {
    22,
    [](const Factory*) { return "Idle"; },
    [](const Factory*) { return "tests"; },
    devices,
    create,
    [](Factory*, Provider* made) { delete made; },
    [](const Factory*) { return uint32_t{0}; },
    [](const Factory*) { return "1.0.0"; },
    {},
};

}  // namespace

extern "C" void* CreateEpFactories(const char*, void** base, const void*, Factory** made, size_t, size_t* count) {
    table = reinterpret_cast<void** (*)(uint32_t)>(base[0])(22);
    for (auto& each : factory.rest)
        each = []() -> void* { return nullptr; };
    made[0] = &factory;
    *count = 1;
    return nullptr;
}

extern "C" void* ReleaseEpFactory(Factory*) { return nullptr; }
