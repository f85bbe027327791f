// Bytes as bits: which of 64 are digits, commas and so on; and bits as offsets. In registers of 256 and 512 bits.
// To be included by number/simd/wide.h.
#pragma once

#include "fastinfer/number/span.h"

#include "fastinfer/number/simd/intrinsics.h"

namespace fastinfer::number {

enum Mask { COMMAS, BRACKETS, BLANKS, DIGITS, MINUS, ZEROS, DOTS, CLOSING, MASKS };

// One bit for each of 64 bytes.
struct Masks {
    uint64_t of[MASKS];  // CLOSING: a quote or '}'. 'Y' and '_' are taken for brackets, too; they are errors
};

constexpr int STEP = 33;  // offsets that are written at once, and bits in a block at most
constexpr int OFFSETS = PIECE / 2 + 1 + STEP;

// The functions that depend on the width of registers.
struct Vectors {
    void (*classify)(const char* at, int blocks, Masks* masks);
    // Writes the offsets of the set bits, at most STEP in a block, and up to STEP entries more. Returns how many bits.
    int (*list)(const uint64_t* bits, int blocks, uint16_t* offsets);
};

// For the lower four bits of a byte, the only white space that has them.
#define FASTINFER_WHITE _mm_setr_epi8(' ', -1, -1, -1, -1, -1, -1, -1, -1, '\t', '\n', -1, -1, '\r', -1, 0)

// --- 256 bits --------------------------------------------------------------------------------------------------------

static inline uint64_t mask_256(__m256i low, __m256i high) {
    return uint64_t(uint32_t(_mm256_movemask_epi8(low))) | uint64_t(uint32_t(_mm256_movemask_epi8(high))) << 32;
}

static inline uint64_t equal_256(__m256i low, __m256i high, char c) {
    const __m256i wanted = _mm256_set1_epi8(c);
    return mask_256(_mm256_cmpeq_epi8(low, wanted), _mm256_cmpeq_epi8(high, wanted));
}

// Which of up to 64 bytes are an 'e' or a plus: few texts have them, so the others are not searched for them.
static inline void find_exponents(const char* at, int size, uint64_t* letters, uint64_t* pluses) {
    char copy[64];
    if (size < 64) {
        memset(copy, 0, sizeof(copy));
        at = static_cast<const char*>(memcpy(copy, at, size_t(size)));
    }
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
    const __m256i small = _mm256_set1_epi8(0x20);
    *letters = equal_256(_mm256_or_si256(low, small), _mm256_or_si256(high, small), 'e');
    *pluses = equal_256(low, high, '+');
}

static void classify_256(const char* at, int blocks, Masks* masks) {
    const __m256i white = _mm256_broadcastsi128_si256(FASTINFER_WHITE), six = _mm256_set1_epi8(6);
    const __m256i zero = _mm256_set1_epi8('0'), nine = _mm256_set1_epi8(9);
    for (int i = 0; i < blocks; i++, at += 64, masks++) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
        const __m256i low_value = _mm256_sub_epi8(low, zero), high_value = _mm256_sub_epi8(high, zero);
        masks->of[COMMAS] = equal_256(low, high, ',');
        masks->of[BRACKETS] = equal_256(_mm256_or_si256(low, six), _mm256_or_si256(high, six), 0x5F);
        masks->of[BLANKS] = mask_256(_mm256_cmpeq_epi8(_mm256_shuffle_epi8(white, low), low),
                                     _mm256_cmpeq_epi8(_mm256_shuffle_epi8(white, high), high));
        masks->of[DIGITS] = mask_256(_mm256_cmpeq_epi8(_mm256_min_epu8(low_value, nine), low_value),
                                     _mm256_cmpeq_epi8(_mm256_min_epu8(high_value, nine), high_value));
        masks->of[MINUS] = equal_256(low, high, '-');
        masks->of[ZEROS] = equal_256(low, high, '0');
        masks->of[DOTS] = equal_256(low, high, '.');
        masks->of[CLOSING] = equal_256(low, high, '"') | equal_256(low, high, '}');
    }
}

static int list_256(const uint64_t* bits, int blocks, uint16_t* offsets) {
    uint16_t* to = offsets;
    for (int i = 0; i < blocks; i++) {
        uint64_t rest = bits[i];
        uint16_t* const after = to + _mm_popcnt_u64(rest);
        for (; rest != 0; to += 4) {
            for (int k = 0; k < 4; k++) {
                to[k] = uint16_t(64 * i + int(_tzcnt_u64(rest)));
                asm("" ::: "memory");  // one by one: the compiler would gather them in a vector, which takes longer
                rest &= rest - 1;
            }
        }
        to = after;
    }
    return int(to - offsets);
}

static constexpr Vectors VECTORS_256 = {classify_256, list_256};

// --- 512 bits --------------------------------------------------------------------------------------------------------

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC 12's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#if !defined(FASTINFER_EMULATED)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi2")
#endif

static void classify_512(const char* at, int blocks, Masks* masks) {
    const __m512i white = _mm512_broadcast_i32x4(FASTINFER_WHITE);
    for (int i = 0; i < blocks; i++, at += 64, masks++) {
        const __m512i bytes = _mm512_loadu_si512(at);
        masks->of[COMMAS] = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(','));
        masks->of[BRACKETS] =
            _mm512_cmpeq_epi8_mask(_mm512_or_si512(bytes, _mm512_set1_epi8(6)), _mm512_set1_epi8(0x5F));
        masks->of[BLANKS] = _mm512_cmpeq_epi8_mask(_mm512_shuffle_epi8(white, bytes), bytes);
        masks->of[DIGITS] = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(bytes, _mm512_set1_epi8('0')), _mm512_set1_epi8(10));
        masks->of[MINUS] = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('-'));
        masks->of[ZEROS] = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('0'));
        masks->of[DOTS] = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('.'));
        masks->of[CLOSING] =
            _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('"')) | _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8('}'));
    }
}

static int list_512(const uint64_t* bits, int blocks, uint16_t* offsets) {
    alignas(64) static constexpr char COUNT[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                   16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                   32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                   48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    const __m512i numbers = _mm512_load_si512(COUNT);
    uint16_t* to = offsets;
    for (int i = 0; i < blocks; i++) {
        const __m256i first = _mm512_castsi512_si256(_mm512_maskz_compress_epi8(bits[i], numbers));
        const __m256i base = _mm256_set1_epi16(int16_t(64 * i));
        const int64_t count = _mm_popcnt_u64(bits[i]);
        const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(first));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi16(low, base));
        if (count > 16) {
            const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(first, 1));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16), _mm256_add_epi16(high, base));
            to[32] = uint16_t(64 * i + 63);  // the 33rd: a number after the sign at the last block's end
        }
        to += count;
    }
    return int(to - offsets);
}

static constexpr Vectors VECTORS_512 = {classify_512, list_512};

#if !defined(FASTINFER_EMULATED)
#pragma GCC pop_options
#endif
#pragma GCC diagnostic pop

}  // namespace fastinfer::number
