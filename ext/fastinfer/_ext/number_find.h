// Where the numbers of a text are: 64 bytes at a time, as bit masks (AVX2).
//
// One mask tells which bytes are digits, another which are white space, and so on; the grammar of numbers in an array is
// then a few operations on masks for all of the 64 bytes, white space or not. Offsets are written down for what is found
// in order; the faults are only counted: whoever needs their place reads one number after the other.
// To be included by number_wide.h, which says for which CPUs this is compiled.
#pragma once

#include "number_run.h"

#include <immintrin.h>

namespace fastinfer::number {

constexpr int LOADED = 33;              // bytes before the end of a number that are loaded with it
constexpr int SPARE = 4;                // entries behind a list: it is filled in steps
constexpr int MOST = PIECE / 2 + 1;     // numbers in a piece, each with its comma

// The numbers of a piece of text, as offsets from its beginning.
struct Found {
    uint16_t digits[MOST + SPARE];      // where each begins, behind its sign
    uint16_t points[MOST + SPARE];      // the end of its integer part: its dot, or its end
    uint16_t ends[MOST + SPARE];
    uint16_t brackets[MOST + SPARE];    // those right behind numbers; what follows them is the caller's
    int count;                          // numbers that a comma or a bracket follows
    int bracket_count;
    int next;                           // where the rest begins: at a number, or the end
    bool sound;                         // numbers, each with one comma before the next, but for where a bracket follows
    bool plain;                         // each is an optional sign, digits, and perhaps a dot and digits
};

// One bit for each of 64 bytes.
static inline uint64_t mask_of(__m256i low, __m256i high) {
    return uint64_t(uint32_t(_mm256_movemask_epi8(low))) | uint64_t(uint32_t(_mm256_movemask_epi8(high))) << 32;
}

struct Block {
    __m256i low, high;

    static inline Block load(const char* at) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32))};
    }

    // The `size` bytes before `end`, fewer than 64, and zeros. Nothing outside of [begin, end) is read.
    static inline Block load_tail(const char* begin, const char* end, int size) {
        alignas(32) char copy[128] = {};
        if (end - begin < 64) {
            memcpy(copy, end - size, size_t(size));
            return load(copy);
        }
        const Block last = load(end - 64);
        _mm256_store_si256(reinterpret_cast<__m256i*>(copy), last.low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(copy + 32), last.high);
        return load(copy + 64 - size);
    }

    inline uint64_t equal(char c) const {
        const __m256i wanted = _mm256_set1_epi8(c);
        return mask_of(_mm256_cmpeq_epi8(low, wanted), _mm256_cmpeq_epi8(high, wanted));
    }

    // '[' and ']'; 'Y' and '_' look alike and are errors.
    inline uint64_t brackets() const {
        const __m256i bits = _mm256_set1_epi8(6), wanted = _mm256_set1_epi8(0x5F);
        return mask_of(_mm256_cmpeq_epi8(_mm256_or_si256(low, bits), wanted),
                       _mm256_cmpeq_epi8(_mm256_or_si256(high, bits), wanted));
    }

    inline uint64_t blanks() const {
        // For the lower four bits of a byte, the only white space that has them.
        const __m256i white = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(' ', -1, -1, -1, -1, -1, -1, -1, -1, '\t', '\n', -1, -1, '\r', -1, 0));
        return mask_of(_mm256_cmpeq_epi8(_mm256_shuffle_epi8(white, low), low),
                       _mm256_cmpeq_epi8(_mm256_shuffle_epi8(white, high), high));
    }

    inline uint64_t digits() const {
        const __m256i zero = _mm256_set1_epi8('0'), nine = _mm256_set1_epi8(9);
        const __m256i from_low = _mm256_sub_epi8(low, zero), from_high = _mm256_sub_epi8(high, zero);
        return mask_of(_mm256_cmpeq_epi8(_mm256_min_epu8(from_low, nine), from_low),
                       _mm256_cmpeq_epi8(_mm256_min_epu8(from_high, nine), from_high));
    }
};

// What a mask says of the byte before each byte; `last` keeps it from block to block.
static inline uint64_t behind(uint64_t mask, uint64_t* last) {
    const uint64_t moved = mask << 1 | *last;
    *last = mask >> 63;
    return moved;
}

// From the first byte of a row of bytes in `mask` to the byte behind the row: an addition carries that far.
// A `start` that is not in the mask is its own end. `carry` keeps a row that goes on in the next block.
static inline uint64_t run_through(uint64_t mask, uint64_t starts, uint64_t* carry) {
    unsigned long long sum;
    const uint64_t inner = starts & mask;
    *carry = _addcarry_u64(uint8_t(*carry), mask, inner, &sum);
    return (sum | starts) & ~mask;
}

// Appends the offsets of the bits.
static inline uint16_t* put_offsets(uint64_t bits, int base, uint16_t* to) {
    uint16_t* const after = to + _mm_popcnt_u64(bits);
    while (bits != 0) {
        for (int i = 0; i < SPARE; i++) {
            to[i] = uint16_t(base + int(_tzcnt_u64(bits)));
            asm("" ::: "memory");       // one by one: the compiler would gather them in a vector, which takes longer
            bits &= bits - 1;
        }
        to += SPARE;
    }
    return after;
}

// Finds the numbers in [at, end), but in at most PIECE bytes, and none behind a quote or a brace: there no array goes on.
// `at` is where a number should begin. Without POINTS a dot is as odd as a letter. Nothing before `begin` is read.
template <bool POINTS>
static inline void find_numbers(const char* begin, const char* at, const char* end, Found* found) {
    uint16_t* digits_end = found->digits;
    uint16_t* points_end = found->points;
    uint16_t* ends_end = found->ends;
    uint16_t* brackets_end = found->brackets;
    int size = end - at < PIECE ? int(end - at) : PIECE;
    uint64_t unsound = 0, odd = 0;
    // What the block before says of this one.
    uint64_t last_number = 0, last_comma = 1, last_sign = 0, last_zero = 0, last_dot = 0;
    uint64_t to_comma = 0, to_number = 0, to_point = 0;
    for (int base = 0; base < size; base += 64) {
        const int rest = size - base;
        const Block block = rest >= 64 ? Block::load(at + base) : Block::load_tail(begin, at + size, rest);
        uint64_t whole = rest >= 64 ? ~uint64_t(0) : (uint64_t(1) << rest) - 1;
        const uint64_t closing = (block.equal('"') | block.equal('}')) & whole;
        if (closing != 0) {
            whole = _blsmsk_u64(closing) >> 1;
            size = base + int(_tzcnt_u64(closing));
        }
        const uint64_t commas = block.equal(',') & whole;
        const uint64_t brackets = block.brackets() & whole;
        const uint64_t blanks = block.blanks() & whole;
        const uint64_t digits = block.digits() & whole;
        const uint64_t numbers = whole & ~(commas | brackets | blanks);
        const uint64_t behind_number = behind(numbers, &last_number);
        const uint64_t starts = numbers & ~behind_number;
        const uint64_t ends = behind_number & whole & ~numbers;

        // Through white space: behind a number to a comma or bracket, behind that comma to the next number.
        const uint64_t after_numbers = run_through(blanks, ends, &to_comma);
        const uint64_t after_commas = run_through(blanks, behind(after_numbers & commas, &last_comma), &to_number);
        unsound |= (after_numbers & numbers) | (after_commas & (commas | brackets));
        to_comma |= after_numbers & ~whole;             // the text ends before the comma

        const uint64_t signs = starts & block.equal('-');
        const uint64_t heads = (starts & ~signs) | behind(signs, &last_sign);
        odd |= heads & ~digits;
        odd |= behind(heads & block.equal('0'), &last_zero) & digits;       // a leading zero
        if constexpr (POINTS) {
            const uint64_t dots = block.equal('.') & whole;
            const uint64_t points = run_through(digits, heads, &to_point);
            odd |= numbers & ~(digits | dots | signs);
            odd |= dots & ~points;                      // the second of a number
            odd |= behind(dots, &last_dot) & ~digits;
            points_end = put_offsets(points, base, points_end);
        } else {
            odd |= numbers & ~(digits | signs);
        }
        digits_end = put_offsets(heads, base, digits_end);
        ends_end = put_offsets(ends, base, ends_end);
        brackets_end = put_offsets(after_numbers & brackets, base, brackets_end);
    }
    found->sound = unsound == 0;
    found->plain = odd == 0;
    found->bracket_count = int(brackets_end - found->brackets);
    found->count = int(ends_end - found->ends) - (to_comma != 0);
    found->next = size - int(last_sign);
    if (digits_end - found->digits > found->count) {    // a number without its comma belongs to the rest
        found->next = found->digits[found->count];
        found->next -= at[found->next - 1] == '-';
    }
}

}  // namespace fastinfer::number
