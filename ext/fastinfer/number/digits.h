// Whole numbers -> decimal digits, 16 at a time.
//
// With SSE2, which every x86-64 has, the digits come from one vector; elsewhere 8 come from one word. Digits are a byte
// each, the first one first. No Python, no allocation.
#pragma once

#include "fastinfer/number/power.h"

#if defined(__SSE2__)
#include "fastinfer/number/simd/intrinsics.h"
#endif

namespace fastinfer::number {

constexpr uint64_t TEN_TO_8 = 100000000;

static inline void store64(char* out, uint64_t word) { memcpy(out, &word, 8); }

static inline void copy16(char* to, const char* from) {
    char bytes[16];
    memcpy(bytes, from, 16);
    memcpy(to, bytes, 16);
}

// There are two ways to put numbers in pairs. Both return a mask of the digits that are not 0, the first digit's bit
// lowest.
//     put_8_and_8     two numbers below 10^8, 8 characters each; the second one's bits begin at bit 8
//     put_12_and_12   two numbers below 2^32, 12 characters each and 4 more; the second one's bits begin at bit 16

#if defined(__SSE2__)

// Division is multiplication by a reciprocal, exact for numbers of 32 bits in lanes of 64.
static inline __m128i divided_by_10000(__m128i numbers) {
    return _mm_srli_epi64(_mm_mul_epu32(numbers, _mm_set1_epi64x(3518437209)), 45);
}

// 10,000 * tops + rests == numbers
static inline __m128i rests_of_10000(__m128i numbers, __m128i tops) {
    return _mm_sub_epi64(numbers, _mm_mul_epu32(tops, _mm_set1_epi64x(10000)));
}

// Four numbers below 10,000 -> 16 digits. Each step halves the groups: v becomes v / n, followed by v % n.
static inline __m128i digits_of_fours(__m128i fours) {
    __m128i hundred = _mm_set1_epi16(100), ten = _mm_set1_epi16(10);
    __asm__("" : "+x"(hundred), "+x"(ten));  // else GCC replaces each multiplication by many shifts and additions
    __m128i upper = _mm_srli_epi16(_mm_mulhi_epu16(fours, _mm_set1_epi16(5243)), 3);
    __m128i lower = _mm_sub_epi16(fours, _mm_mullo_epi16(upper, hundred));
    __m128i twos = _mm_or_si128(upper, _mm_slli_epi32(lower, 16));
    upper = _mm_mulhi_epu16(twos, _mm_set1_epi16(6554));
    lower = _mm_sub_epi16(twos, _mm_mullo_epi16(upper, ten));
    return _mm_or_si128(upper, _mm_slli_epi16(lower, 8));
}

static inline __m128i text_of(__m128i digits) { return _mm_or_si128(digits, _mm_set1_epi8('0')); }

static inline unsigned nonzero(__m128i digits) {
    return 0xFFFFu ^ unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(digits, _mm_setzero_si128())));
}

static inline unsigned put_8_and_8(uint64_t first, uint64_t second, char* first_out, char* second_out) {
    __m128i eights = _mm_set_epi64x(int64_t(second), int64_t(first));
    __m128i upper = divided_by_10000(eights);
    __m128i lower = rests_of_10000(eights, upper);
    __m128i digits = digits_of_fours(_mm_or_si128(upper, _mm_slli_epi64(lower, 32)));
    __m128i text = text_of(digits);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(first_out), text);
    _mm_storeh_pd(reinterpret_cast<double*>(second_out), _mm_castsi128_pd(text));
    return nonzero(digits);
}

static inline unsigned put_12_and_12(uint64_t first, uint64_t second, char* first_out, char* second_out) {
    __m128i twelves = _mm_set_epi64x(int64_t(second), int64_t(first));
    __m128i eights = divided_by_10000(twelves);
    __m128i lower = rests_of_10000(twelves, eights);
    __m128i upper = divided_by_10000(eights);
    __m128i middle = rests_of_10000(eights, upper);
    __m128i fours = _mm_or_si128(upper, _mm_or_si128(_mm_slli_epi64(middle, 16), _mm_slli_epi64(lower, 32)));
    __m128i first_digits = digits_of_fours(_mm_unpacklo_epi16(fours, _mm_setzero_si128()));
    __m128i second_digits = digits_of_fours(_mm_unpackhi_epi16(fours, _mm_setzero_si128()));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(first_out), text_of(first_digits));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(second_out), text_of(second_digits));
    return nonzero(first_digits) | nonzero(second_digits) << 16;
}

#else

constexpr uint64_t ZEROS = 0x3030303030303030u;

// The 8 digits of a number below 10^8, the first in the lowest byte.
static inline uint64_t digits_of_8(uint64_t number) {
    uint64_t fours = number / 10000 | (number % 10000) << 32;
    uint64_t upper = ((fours * 10486) >> 20) & 0x0000007F0000007Fu;
    uint64_t twos = upper | (fours - 100 * upper) << 16;
    uint64_t tens = ((twos * 103) >> 10) & 0x000F000F000F000Fu;
    return tens | (twos - 10 * tens) << 8;
}

// A bit for each byte that is not 0; bytes are below 16.
static inline unsigned nonzero(uint64_t digits) {
    uint64_t ones = ((digits + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
    return unsigned((ones * 0x0102040810204080u) >> 56);
}

static inline unsigned put_8(uint64_t number, char* out) {
    uint64_t digits = digits_of_8(number);
    store64(out, digits | ZEROS);
    return nonzero(digits);
}

static inline unsigned put_8_and_8(uint64_t first, uint64_t second, char* first_out, char* second_out) {
    return put_8(first, first_out) | put_8(second, second_out) << 8;
}

static inline unsigned put_12(uint64_t number, char* out) {
    return put_8(number / 10000, out) | put_8(number % 10000 * 10000, out + 8) << 8;
}

static inline unsigned put_12_and_12(uint64_t first, uint64_t second, char* first_out, char* second_out) {
    return put_12(first, first_out) | put_12(second, second_out) << 16;
}

#endif

}  // namespace fastinfer::number
