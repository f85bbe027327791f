// Whole numbers -> decimal digits, many at once.
//
// Digits are a byte each, the first one first. With SSE2, which every x86-64 has, 16 digits come from one vector;
// elsewhere 8 come from one word. No Python, no allocation.
#pragma once

#include "number_power.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastinfer::number {

constexpr uint64_t ZEROS = 0x3030303030303030u;
constexpr uint64_t TEN_TO_8 = 100000000;

static inline void store64(char* out, uint64_t word) { memcpy(out, &word, 8); }

// Of fixed size, so two moves through a register.
static inline void copy16(char* to, const char* from) {
    char bytes[16];
    memcpy(bytes, from, 16);
    memcpy(to, bytes, 16);
}

// Writes the 8 digits of each of two numbers below 10^8, each behind its pointer. Returns which of the 16 are not 0: a
// bit each, the first digit's lowest.
#if defined(__SSE2__)

static inline unsigned put_8_and_8(uint64_t first, uint64_t second, char* first_out, char* second_out) {
    // Each step halves the groups of digits: v becomes v / n, and behind it v % n. Division is multiplication by a
    // reciprocal, exact for groups of this size.
    __m128i hundred = _mm_set1_epi16(100), ten = _mm_set1_epi16(10);
    __asm__("" : "+x"(hundred), "+x"(ten));     // else they become shifts and additions, which are slower
    __m128i eights = _mm_set_epi64x(int64_t(second), int64_t(first));
    __m128i upper = _mm_srli_epi64(_mm_mul_epu32(eights, _mm_set1_epi64x(3518437209)), 45);             // / 10,000
    __m128i lower = _mm_sub_epi64(eights, _mm_mul_epu32(upper, _mm_set1_epi64x(10000)));
    __m128i fours = _mm_or_si128(upper, _mm_slli_epi64(lower, 32));
    upper = _mm_srli_epi16(_mm_mulhi_epu16(fours, _mm_set1_epi16(5243)), 3);                            // / 100
    lower = _mm_sub_epi16(fours, _mm_mullo_epi16(upper, hundred));
    __m128i twos = _mm_or_si128(upper, _mm_slli_epi32(lower, 16));
    upper = _mm_mulhi_epu16(twos, _mm_set1_epi16(6554));                                                // / 10
    lower = _mm_sub_epi16(twos, _mm_mullo_epi16(upper, ten));
    __m128i digits = _mm_or_si128(upper, _mm_slli_epi16(lower, 8));
    __m128i text = _mm_or_si128(digits, _mm_set1_epi8('0'));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(first_out), text);
    _mm_storeh_pd(reinterpret_cast<double*>(second_out), _mm_castsi128_pd(text));
    return 0xFFFFu ^ unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(digits, _mm_setzero_si128())));
}

#else

// The 8 digits of a number below 10^8, the first in the lowest byte.
static inline uint64_t digits_of_8(uint64_t number) {
    uint64_t fours = number / 10000 | (number % 10000) << 32;
    uint64_t upper = ((fours * 10486) >> 20) & 0x0000007F0000007Fu;
    uint64_t twos = upper | (fours - 100 * upper) << 16;
    uint64_t tens = ((twos * 103) >> 10) & 0x000F000F000F000Fu;
    return tens | (twos - 10 * tens) << 8;
}

// A bit for each byte that is not 0; bytes are below 16.
static inline unsigned nonzero_bytes(uint64_t digits) {
    uint64_t ones = ((digits + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
    return unsigned((ones * 0x0102040810204080u) >> 56);
}

static inline unsigned put_8_and_8(uint64_t first, uint64_t second, char* first_out, char* second_out) {
    uint64_t first_digits = digits_of_8(first), second_digits = digits_of_8(second);
    store64(first_out, first_digits | ZEROS);
    store64(second_out, second_digits | ZEROS);
    return nonzero_bytes(first_digits) | nonzero_bytes(second_digits) << 8;
}

#endif

}  // namespace fastinfer::number
