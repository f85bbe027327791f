// Finds the numbers of a text, 64 bytes at a time, with bit masks.
//
// One mask marks the digits, another the white space, and so on (number/simd/mask.h); the grammar of numbers in an
// array is then a few operations on masks for all of the 64 bytes, white space or not. The offsets of numbers are
// written in order; faults are only flagged, because a caller that needs their place reads number by number.
// To be included by number/simd/wide.h, which says for which CPUs this is compiled.
#pragma once

#include "fastinfer/number/simd/mask.h"

namespace fastinfer::number {

constexpr int BLOCKS = PIECE / 64;

// The numbers of a piece of text, as offsets from its beginning.
struct Found {
    uint16_t digits[OFFSETS];     // where each begins, after its sign
    uint16_t points[OFFSETS];     // the end of its integer part: its dot, or its end
    uint16_t mantissas[OFFSETS];  // the end of what is before its exponent: its 'e', or its end
    uint16_t ends[OFFSETS];
    uint16_t brackets[OFFSETS];  // those right after numbers; the caller checks what follows
    int count;                   // numbers that a comma or a bracket follows
    int bracket_count;
    int next;        // where the rest begins: at a number, or the end
    bool sound;      // numbers, each with one comma before the next, unless a bracket follows
    bool plain;      // each has the grammar of JSON, and no point if POINTS is false
    bool exponents;  // some have one: only then are there `mantissas`
};

// The mask of the byte before each byte; `last` carries a bit from block to block.
static inline uint64_t behind(uint64_t mask, uint64_t* last) {
    const uint64_t moved = mask << 1 | *last;
    *last = mask >> 63;
    return moved;
}

// The byte after the sequence of bytes in `mask` that begins at each start: the carry of an addition goes that far.
// A start that is not in the mask is its own end. `carry` keeps a sequence that goes on in the next block.
static inline uint64_t run_through(uint64_t mask, uint64_t starts, uint64_t* carry) {
    unsigned long long sum;
    *carry = _addcarry_u64(uint8_t(*carry), mask, starts& mask, &sum);
    return (sum | starts) & ~mask;
}

// The exponents of a piece; of most pieces, there are none.
struct Exponents {
    uint64_t any = 0, pending = 0;                      // found; or going on in the next block
    uint64_t last_mark = 0, last_sign = 0, to_end = 0;  // carried over from the block before

    // `others` belong to numbers, but neither to a mantissa nor its sign. Returns what cannot belong to exponents.
    inline uint64_t find(const char* at, int size, uint64_t others, uint64_t digits, uint64_t minus, uint64_t ends,
                         uint64_t whole, uint64_t* mantissas) {
        // An 'e' that is neither at the first digit's place nor after a dot, a sign or another 'e' is after a digit.
        // And since its digits reach the end of the number, it is the only one of its number.
        uint64_t letters, pluses;
        find_exponents(at, size, &letters, &pluses);
        const uint64_t marks = others & letters;
        const uint64_t behind_marks = behind(marks, &last_mark);
        const uint64_t signs = others & behind_marks & (minus | pluses);
        const uint64_t digit_starts = (behind_marks & ~signs) | behind(signs, &last_sign);
        const uint64_t exponent_ends = run_through(digits, digit_starts, &to_end);
        *mantissas = (ends & ~exponent_ends) | marks;
        any |= marks;
        pending = last_mark | last_sign | to_end;
        return (others & ~(marks | signs)) | (whole & ((digit_starts & ~digits) | (exponent_ends & ~ends)));
    }
};

// The masks of `size` bytes. The last block is loaded so that it ends with them; nothing before `begin` is read.
static inline void classify(const Vectors* vectors, const char* begin, const char* at, int size, Masks* masks) {
    const int blocks = size / 64, rest = size % 64;
    vectors->classify(at, blocks, masks);
    if (rest == 0)
        return;
    const char* const end = at + size;
    if (end - begin < 64) {
        char copy[64] = {};
        memcpy(copy, at + 64 * blocks, size_t(rest));
        vectors->classify(copy, 1, masks + blocks);
    } else {
        vectors->classify(end - 64, 1, masks + blocks);
        for (uint64_t& mask : masks[blocks].of)
            mask >>= 64 - rest;
    }
}

// Finds the numbers in `size` bytes, at most PIECE, but none after a quote or a brace, which end the array.
// `at` is where a number should begin. Without POINTS a dot is an error, as a letter is. Nothing before `begin` is
// read.
template <bool POINTS>
static inline void find_numbers(const Vectors* vectors, const char* begin, const char* at, int size, Found* found) {
    Masks masks[BLOCKS];
    uint64_t all_digit_starts[BLOCKS], all_points[BLOCKS], all_mantissas[BLOCKS], all_ends[BLOCKS],
        all_brackets[BLOCKS];
    uint64_t unsound = 0, odd = 0, any_bracket = 0;
    // Carried over from the block before.
    uint64_t last_number = 0, last_comma = 1, last_sign = 0, last_zero = 0, last_dot = 0;
    Exponents exponents;
    uint64_t to_comma = 0, to_number = 0, to_point = 0;
    int blocks = 0;
    classify(vectors, begin, at, size, masks);
    for (; 64 * blocks < size; blocks++) {
        const uint64_t* const of = masks[blocks].of;
        const int rest = size - 64 * blocks;
        uint64_t whole = rest >= 64 ? ~uint64_t(0) : (uint64_t(1) << rest) - 1;
        const uint64_t closing = of[CLOSING] & whole;
        if (closing != 0) {
            whole = _blsmsk_u64(closing) >> 1;
            size = 64 * blocks + int(_tzcnt_u64(closing));
        }
        const uint64_t commas = of[COMMAS] & whole;
        const uint64_t brackets = of[BRACKETS] & whole;
        const uint64_t blanks = of[BLANKS] & whole;
        const uint64_t digits = of[DIGITS] & whole;
        const uint64_t numbers = whole & ~(commas | brackets | blanks);
        const uint64_t behind_number = behind(numbers, &last_number);
        const uint64_t starts = numbers & ~behind_number;
        const uint64_t ends = behind_number & whole & ~numbers;

        // Through white space: from a number to a comma or bracket, from that comma to the next number.
        const uint64_t after_numbers = run_through(blanks, ends, &to_comma);
        const uint64_t after_commas = run_through(blanks, behind(after_numbers & commas, &last_comma), &to_number);
        unsound |= (after_numbers & numbers) | (after_commas & (commas | brackets));
        to_comma |= after_numbers & ~whole;  // the text ends before the comma

        const uint64_t signs = starts & of[MINUS];
        const uint64_t digit_starts = (starts & ~signs) | behind(signs, &last_sign);
        odd |= digit_starts & ~digits;
        odd |= behind(digit_starts & of[ZEROS], &last_zero) & digits;  // a leading zero
        if constexpr (POINTS) {
            const uint64_t dots = of[DOTS] & whole;
            const uint64_t points = run_through(digits, digit_starts, &to_point);
            odd |= dots & ~points;  // the second of a number
            odd |= behind(dots, &last_dot) & ~digits;
            all_points[blocks] = points;
            all_mantissas[blocks] = ends;
            const uint64_t others = numbers & ~(digits | dots | signs);
            if ((others | exponents.pending) != 0)
                odd |= exponents.find(at + 64 * blocks, rest, others, digits, of[MINUS], ends, whole,
                                      &all_mantissas[blocks]);
        } else {
            odd |= numbers & ~(digits | signs);
        }
        all_digit_starts[blocks] = digit_starts;
        all_ends[blocks] = ends;
        all_brackets[blocks] = after_numbers & brackets;
        any_bracket |= all_brackets[blocks];
    }
    const int started = vectors->list(all_digit_starts, blocks, found->digits);
    if constexpr (POINTS)
        vectors->list(all_points, blocks, found->points);
    found->sound = unsound == 0;
    found->plain = odd == 0;
    found->exponents = exponents.any != 0;
    if (found->exponents && found->plain)  // else there may be more of them than numbers
        vectors->list(all_mantissas, blocks, found->mantissas);
    found->bracket_count = any_bracket == 0 ? 0 : vectors->list(all_brackets, blocks, found->brackets);
    found->count = vectors->list(all_ends, blocks, found->ends) - (to_comma != 0);
    found->next = size - int(last_sign);
    if (started > found->count) {  // a number without its comma belongs to the rest
        found->next = found->digits[found->count];
        found->next -= at[found->next - 1] == '-';
    }
}

}  // namespace fastinfer::number
