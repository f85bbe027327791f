// What an extension that was built with FASTINFER_GUIDED=1 calls at the start of each basic block: counts the edges that
// were walked, as AFL does. One thread at a time may be watched.
#include <cstdint>
#include <cstring>

namespace {
constexpr unsigned SIZE = 1 << 16;
uint8_t edges[SIZE];
thread_local uintptr_t previous = 0;
}  // namespace

extern "C" {

void __sanitizer_cov_trace_pc() {
    // The low bits of neighbouring blocks' addresses are alike.
    const uintptr_t here =
        reinterpret_cast<uintptr_t>(__builtin_return_address(0)) * UINT64_C(0x9E3779B97F4A7C15) >> 48;
    uint8_t* edge = &edges[(here ^ previous) & (SIZE - 1)];
    *edge += *edge < 255;
    previous = here >> 1;
}

void fuzz_forget() {
    memset(edges, 0, SIZE);
    previous = 0;
}

// Adds to `seen`, SIZE bytes, what was walked since: a bit for each order of magnitude of how often, or one for all.
// Returns how many bits are new.
int fuzz_learn(uint8_t* seen, bool how_often) {
    int found = 0;
    for (unsigned i = 0; i < SIZE; i++) {
        if (edges[i] == 0)
            continue;
        const uint8_t bit = uint8_t(how_often ? 1u << (31 - __builtin_clz(edges[i])) : 1);
        found += (seen[i] & bit) == 0;
        seen[i] |= bit;
    }
    return found;
}
}
