// Number -> text: the fewest significant digits that read back to the same value of the same type, and of those the
// ones closest to it, in the form of Python's repr.
//
// The digits come from Giulietti's Schubfach, generic over the types: all but FP64 need 64 bits of the power of ten.
// No Python, no allocation. Every function writes at `out` and returns the byte behind; MAX_* says how much it may
// touch, which can be more than it keeps.
#pragma once

#include "number_power.h"

namespace fastinfer::number {

constexpr int MAX_BINARY_TEXT = 40;     // "-2.2250738585072014e-308" has 24; wide stores reach further
constexpr int MAX_INTEGER_TEXT = 24;    // "-9223372036854775808" has 20

// --- Digits ------------------------------------------------------------------------------------------------------------

static constexpr char PAIRS[] =
    "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
    "50515253545556575859606162636465666768697071727374757677787980818283848586878889909192939495969798"
    "99";

static inline char* put_pair(char* out, uint64_t pair) {
    memcpy(out, PAIRS + 2 * pair, 2);
    return out + 2;
}

// The 8 digits of a number below 10^8, not characters, the first in the lowest byte.
static inline uint64_t digits_of_8(uint32_t number) {
    uint64_t fours = number / 10000 | uint64_t(number % 10000) << 32;
    uint64_t upper = ((fours * 10486) >> 20) & 0x0000007F0000007Fu;
    uint64_t twos = upper | (fours - 100 * upper) << 16;
    uint64_t tens = ((twos * 103) >> 10) & 0x000F000F000F000Fu;
    return tens | (twos - 10 * tens) << 8;
}

constexpr uint64_t ZEROS = 0x3030303030303030u;

static inline void store64(char* out, uint64_t word) { memcpy(out, &word, 8); }

static inline char* format_unsigned(uint64_t number, char* out) {
    if (number < 100) {                                     // the common case: pixels
        if (number < 10) {
            *out = char('0' + number);
            return out + 1;
        }
        return put_pair(out, number);
    }
    if (number < 100000000) {
        uint64_t digits = digits_of_8(uint32_t(number));
        int leading = __builtin_ctzll(digits) >> 3;
        store64(out, (digits | ZEROS) >> (8 * leading));
        return out + 8 - leading;
    }
    uint64_t rest = number % 100000000;
    out = format_unsigned(number / 100000000, out);
    store64(out, digits_of_8(uint32_t(rest)) | ZEROS);
    return out + 8;
}

static inline char* format_signed(int64_t number, char* out) {
    *out = '-';
    return format_unsigned(number < 0 ? 0 - uint64_t(number) : uint64_t(number), out + (number < 0));
}

// --- Shortest digits ---------------------------------------------------------------------------------------------------

struct Shortest {
    uint64_t digits;        // may end in zeros
    int exponent;           // the value is digits * 10^exponent
};

// floor(10^n's leading bits) + 1 where it is not exact: what Schubfach's proofs ask for.
static inline uint64_t scale_64(int n) {
    Power power = power_of_five(n);
    return power.high + !(n >= 0 && n <= 27);
}

static inline Power scale_128(int n) {
    Power power = power_of_five(n);
    power.low += !(n >= 0 && n <= LAST_EXACT_POWER);
    power.high += power.low == 0 && !(n >= 0 && n <= LAST_EXACT_POWER);
    return power;
}

static inline uint64_t round_to_odd(uint64_t scale, uint64_t number) {
    uint128 product = uint128(scale) * number;
    return uint64_t(product >> 64) | (uint32_t(product >> 32) > 1);
}

static inline uint64_t round_to_odd(Power scale, uint64_t number) {
    uint128 product = uint128(scale.high) * number + uint64_t((uint128(scale.low) * number) >> 64);
    return uint64_t(product >> 64) | (uint64_t(product) > 1);
}

// `bits` without its sign: finite, not 0.
template <class F>
static inline Shortest shortest(uint64_t bits) {
    uint64_t stored = bits & (F::HIDDEN - 1);
    int biased = int(bits >> F::MANTISSA);
    uint64_t mantissa = biased != 0 ? stored | F::HIDDEN : stored;
    int power = (biased != 0 ? biased : 1) - F::BIAS - F::MANTISSA;
    if (biased != 0 && power <= 0 && power > -F::MANTISSA - 1 && (mantissa & ((uint64_t(1) << -power) - 1)) == 0)
        return {mantissa >> -power, 0};                     // a small integer
    bool even = (mantissa & 1) == 0;
    bool closer_below = stored == 0 && biased > 1;          // the neighbour below is half as far away
    int exponent = (power * 1262611 - (closer_below ? 524031 : 0)) >> 22;
    int shift = power + floor_log2_pow10(-exponent) + 1;
    uint64_t low, middle, high;
    if constexpr (F::MANTISSA > 24) {
        Power scale = scale_128(-exponent);
        low = round_to_odd(scale, (4 * mantissa - 2 + closer_below) << shift);
        middle = round_to_odd(scale, (4 * mantissa) << shift);
        high = round_to_odd(scale, (4 * mantissa + 2) << shift);
    } else {
        uint64_t scale = scale_64(-exponent);
        low = round_to_odd(scale, (4 * mantissa - 2 + closer_below) << shift);
        middle = round_to_odd(scale, (4 * mantissa) << shift);
        high = round_to_odd(scale, (4 * mantissa + 2) << shift);
    }
    low += !even;
    high -= !even;
    uint64_t digits = middle / 4;
    if (digits >= 10) {                                     // one digit less?
        uint64_t tens = digits / 10;
        bool below_inside = low <= 40 * tens;
        bool above_inside = 40 * tens + 40 <= high;
        if (below_inside != above_inside)
            return {tens + above_inside, exponent + 1};
    }
    bool below_inside = low <= 4 * digits;
    bool above_inside = 4 * digits + 4 <= high;
    if (below_inside != above_inside)
        return {digits + above_inside, exponent};
    uint64_t half = 4 * digits + 2;
    return {digits + (middle > half || (middle == half && (digits & 1))), exponent};
}

// --- repr --------------------------------------------------------------------------------------------------------------

static inline char* put_exponent(int exponent, char* out) {
    *out++ = 'e';
    *out++ = exponent < 0 ? '-' : '+';
    unsigned size = unsigned(exponent < 0 ? -exponent : exponent);
    if (size >= 100) {
        *out++ = char('0' + size / 100);
        size %= 100;
    }
    return put_pair(out, size);
}

// digits * 10^exponent; `digits` is not 0.
template <class F>
static inline char* put_decimal(Shortest value, char* out) {
    // All digits behind each other, right-aligned in 24 characters, the last 8 of which stay free for wide copies.
    char text[48];
    uint64_t head, word;
    int start, trailing;
    if constexpr (F::MANTISSA > 24) {
        uint64_t upper = value.digits / 100000000;
        head = upper / 100000000;                           // 17 digits at most
        uint64_t high_word = digits_of_8(uint32_t(upper % 100000000));
        word = digits_of_8(uint32_t(value.digits % 100000000));
        text[0] = char('0' + head);
        store64(text + 1, high_word | ZEROS);
        store64(text + 9, word | ZEROS);
        start = head != 0 ? 0 : high_word != 0 ? 1 + (__builtin_ctzll(high_word) >> 3) : 9 + (__builtin_ctzll(word) >> 3);
        trailing = word != 0 ? __builtin_clzll(word) >> 3
                   : high_word != 0 ? 8 + (__builtin_clzll(high_word) >> 3) : 16;
        trailing += 0;
        head = 17;
    } else {
        head = value.digits / 100000000;                    // 9 digits at most
        word = digits_of_8(uint32_t(value.digits % 100000000));
        text[0] = char('0' + head);
        store64(text + 1, word | ZEROS);
        start = head != 0 ? 0 : 1 + (__builtin_ctzll(word) >> 3);
        trailing = word != 0 ? __builtin_clzll(word) >> 3 : 8;
        head = 9;
    }
    const char* digits = text + start;
    int count = int(head) - start - trailing;
    int point = int(head) - start + value.exponent;         // digits before the point
    if (point > 16 || point < -3) {
        *out++ = digits[0];
        if (count > 1) {
            *out++ = '.';
            memcpy(out, digits + 1, 16);
            out += count - 1;
        }
        return put_exponent(point - 1, out);
    }
    if (point <= 0) {
        memcpy(out, "0.000", 5);
        out += 2 - point;
        memcpy(out, digits, 17);
        return out + count;
    }
    if (count <= point) {                                   // an integer
        memset(out, '0', 18);
        memcpy(out, digits, size_t(count));
        memcpy(out + point, ".0", 2);
        return out + point + 2;
    }
    memcpy(out, digits, 17);
    memcpy(out + point + 1, digits + point, 16);
    out[point] = '.';
    return out + count + 1;
}

// A finite value's text.
template <class F>
static inline char* format_binary(uint64_t bits, char* out) {
    *out = '-';
    out += (bits & F::SIGN) != 0;
    bits &= ~F::SIGN;
    if (bits == 0) {
        memcpy(out, "0.0", 3);
        return out + 3;
    }
    return put_decimal<F>(shortest<F>(bits), out);
}

// --- Runs: `n,n,n` -----------------------------------------------------------------------------------------------------

enum Nonfinite : int { NONFINITE_LITERAL = 0, NONFINITE_NULL = 1, NONFINITE_ERROR = 2 };

static inline char* put_nonfinite(bool nan, bool negative, int mode, char* out) {
    const char* text = mode == NONFINITE_NULL ? "null" : nan ? "NaN" : negative ? "-Infinity" : "Infinity";
    size_t size = strlen(text);
    memcpy(out, text, size);
    return out + size;
}

// Writes `count` elements with a comma between them. *fault is the index of an element that may not be written, or -1.
template <class F>
static char* format_binary_run(const char* memory, int64_t count, int mode, char* out, int64_t* fault) {
    *fault = -1;
    for (int64_t i = 0; i < count; i++) {
        typename F::Bits bits;
        memcpy(&bits, memory + i * int64_t(sizeof(bits)), sizeof(bits));
        if (__builtin_expect((bits & F::INFINITE) == F::INFINITE, 0)) {
            if (mode == NONFINITE_ERROR) {
                *fault = i;
                return out;
            }
            out = put_nonfinite((bits & (F::HIDDEN - 1)) != 0, (bits & F::SIGN) != 0, mode, out);
        } else {
            out = format_binary<F>(bits, out);
        }
        *out++ = ',';
    }
    return count > 0 ? out - 1 : out;
}

template <class T>
static char* format_integer_run(const char* memory, int64_t count, int, char* out, int64_t* fault) {
    *fault = -1;
    for (int64_t i = 0; i < count; i++) {
        T value;
        memcpy(&value, memory + i * int64_t(sizeof(T)), sizeof(T));
        if constexpr (T(-1) < T(0))
            out = format_signed(value, out);
        else
            out = format_unsigned(value, out);
        *out++ = ',';
    }
    return count > 0 ? out - 1 : out;
}

static char* format_bool_run(const char* memory, int64_t count, int, char* out, int64_t* fault) {
    *fault = -1;
    for (int64_t i = 0; i < count; i++) {
        bool value = memory[i] != 0;
        memcpy(out, value ? "true,   " : "false,  ", 8);
        out += value ? 5 : 6;
    }
    return count > 0 ? out - 1 : out;
}

}  // namespace fastinfer::number
