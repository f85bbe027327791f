// The CPU's vector instructions. A build with FASTINFER_EMULATED (`make emulated`) has them from SIMDe, an emulation in
// plain C++, so that the tests run the readers of every width on any CPU.
#pragma once

#if !defined(FASTINFER_EMULATED)
#include <immintrin.h>
#else
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.7.4 lacks.
static inline int64_t _mm_popcnt_u64(uint64_t bits) { return __builtin_popcountll(bits); }

static inline uint64_t _tzcnt_u64(uint64_t bits) { return bits == 0 ? 64 : uint64_t(__builtin_ctzll(bits)); }

static inline uint64_t _blsmsk_u64(uint64_t bits) { return bits ^ (bits - 1); }

static inline unsigned char _addcarry_u64(unsigned char carry, uint64_t a, uint64_t b, unsigned long long* sum) {
    const unsigned __int128 wide = static_cast<unsigned __int128>(a) + b + carry;
    *sum = static_cast<unsigned long long>(wide);
    return static_cast<unsigned char>(wide >> 64);
}

static inline __m512i _mm512_maskz_compress_epi8(uint64_t keep, __m512i bytes) {
    char from[64], to[64] = {};
    int kept = 0;
    _mm512_storeu_si512(from, bytes);
    for (int i = 0; i < 64; i++)
        if (keep >> i & 1)
            to[kept++] = from[i];
    return _mm512_loadu_si512(to);
}
#endif
