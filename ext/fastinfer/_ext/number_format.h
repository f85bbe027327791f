// Number -> text: the fewest significant digits that read back to the same value of the same type, and of those the
// ones closest to it, in the form of Python's repr.
//
// The digits come from Giulietti's Schubfach, generic over the types: all but FP64 need 64 bits of the power of ten.
// No Python, no allocation. Every function writes at `out` and returns the byte behind; MAX_* says how much it may
// touch, which can be more than it keeps.
#pragma once

#include "number_power.h"

namespace fastinfer::number {

constexpr int MAX_BINARY_TEXT = 48;     // "-2.2250738585072014e-308" has 24; wide stores reach further
constexpr int MAX_INTEGER_TEXT = 24;    // "-9223372036854775808" has 20

// --- Digits ------------------------------------------------------------------------------------------------------------

// The numbers below 1,000: up to three characters, and how many.
struct SmallNumbers {
    char entries[1000][4];
};

constexpr SmallNumbers make_small_numbers() {
    SmallNumbers table{};
    for (int n = 0; n < 1000; n++) {
        int size = n < 10 ? 1 : n < 100 ? 2 : 3;
        for (int i = size - 1, rest = n; i >= 0; i--, rest /= 10)
            table.entries[n][i] = char('0' + rest % 10);
        table.entries[n][3] = char(size);
    }
    return table;
}

static constexpr SmallNumbers SMALL_NUMBERS = make_small_numbers();

// The 8 digits of a number below 10^8, not characters, the first in the lowest byte.
static inline uint64_t digits_of_8(uint32_t number) {
    uint64_t fours = number / 10000 | uint64_t(number % 10000) << 32;
    uint64_t upper = ((fours * 10486) >> 20) & 0x0000007F0000007Fu;
    uint64_t twos = upper | (fours - 100 * upper) << 16;
    uint64_t tens = ((twos * 103) >> 10) & 0x000F000F000F000Fu;
    return tens | (twos - 10 * tens) << 8;
}

// How many of 8 digits, not all 0, are zeros at the end. (Trailing bits, since x86-64's count of leading ones is slow.)
static inline int ending_zeros(uint64_t digits) { return __builtin_ctzll(__builtin_bswap64(digits)) >> 3; }

constexpr uint64_t ZEROS = 0x3030303030303030u;

static inline void store64(char* out, uint64_t word) { memcpy(out, &word, 8); }

static inline char* format_unsigned(uint64_t number, char* out) {
    if (number < 1000) {                                    // the common case: pixels, classes, token ids
        const char* entry = SMALL_NUMBERS.entries[number];
        memcpy(out, entry, 4);
        return out + entry[3];
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
constexpr uint64_t scale_64(int n) {
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
    return uint64_t(product >> 64) | (uint64_t(product) > 0x1FFFFFFFFu);
}

static inline uint64_t round_to_odd(Power scale, uint64_t number) {
    uint128 product = uint128(scale.high) * number + uint64_t((uint128(scale.low) * number) >> 64);
    return uint64_t(product >> 64) | (uint64_t(product) > 1);
}

constexpr int decimal_exponent(int power, bool closer_below) {
    return (power * 1262611 - (closer_below ? 524031 : 0)) >> 22;
}

// What depends on the exponent alone, for the types whose exponents are few: 8 KiB for 8 bits.
struct Scaling {
    uint64_t scale;
    int32_t exponent;
    int32_t shift;
};

template <class F>
struct ScalingTable {
    Scaling entries[2][F::MAX_BIASED];
};

template <class F>
constexpr ScalingTable<F> make_scalings() {
    ScalingTable<F> table{};
    for (int closer = 0; closer < 2; closer++) {
        for (int biased = 0; biased < F::MAX_BIASED; biased++) {
            int power = (biased != 0 ? biased : 1) - F::BIAS - F::MANTISSA;
            int exponent = decimal_exponent(power, closer != 0);
            int shift = power + floor_log2_pow10(-exponent) + 1;
            table.entries[closer][biased] = {scale_64(-exponent), exponent, shift};
        }
    }
    return table;
}

template <class F>
static constexpr ScalingTable<F> SCALINGS = make_scalings<F>();

// `bits` without its sign: finite, not 0.
template <class F>
static inline Shortest shortest(uint64_t bits) {
    uint64_t stored = bits & (F::HIDDEN - 1);
    int biased = int(bits >> F::MANTISSA);
    uint64_t mantissa = biased != 0 ? stored | F::HIDDEN : stored;
    int power = (biased != 0 ? biased : 1) - F::BIAS - F::MANTISSA;
    if ((__builtin_ctzll(mantissa) + power >= 0) & (power <= 0))
        return {mantissa >> -power, 0};                     // a small integer
    bool even = (mantissa & 1) == 0;
    bool closer_below = stored == 0 && biased > 1;          // the neighbour below is half as far away
    uint64_t low, middle, high;
    int exponent;
    if constexpr (F::MANTISSA > 24) {
        exponent = decimal_exponent(power, closer_below);
        int shift = power + floor_log2_pow10(-exponent) + 1;
        Power scale = scale_128(-exponent);
        low = round_to_odd(scale, (4 * mantissa - 2 + closer_below) << shift);
        middle = round_to_odd(scale, (4 * mantissa) << shift);
        high = round_to_odd(scale, (4 * mantissa + 2) << shift);
    } else {
        const Scaling& scaling = SCALINGS<F>.entries[closer_below][biased];
        exponent = scaling.exponent;
        low = round_to_odd(scaling.scale, (4 * mantissa - 2 + closer_below) << scaling.shift);
        middle = round_to_odd(scaling.scale, (4 * mantissa) << scaling.shift);
        high = round_to_odd(scaling.scale, (4 * mantissa + 2) << scaling.shift);
    }
    low += !even;
    high -= !even;
    // Which candidate is taken is as good as random: integers instead of conditions, so that nothing is branched on.
    uint64_t digits = middle / 4;
    uint64_t tens = digits / 10;                            // one digit less?
    uint64_t tens_below = low <= 40 * tens;
    uint64_t tens_above = 40 * tens + 40 <= high;
    uint64_t shorter = (tens_below ^ tens_above) & uint64_t(digits >= 10);
    uint64_t below = low <= 4 * digits;
    uint64_t above = 4 * digits + 4 <= high;
    uint64_t nearer = (middle & 3) + (digits & 1) > 2;      // more than half, or half and odd
    uint64_t one = below ^ above;                           // only one of the two is inside
    uint64_t up = (one & above) | (~one & nearer);
    uint64_t mask = 0 - shorter;
    return {((digits + up) & ~mask) | ((tens + tens_above) & mask), exponent + int(shorter)};
}

// --- repr --------------------------------------------------------------------------------------------------------------

static inline char* put_exponent(int exponent, char* out) {
    unsigned size = unsigned(exponent < 0 ? -exponent : exponent);
    *out++ = 'e';
    *out++ = exponent < 0 ? '-' : '+';
    if (size < 10)
        *out++ = '0';
    return format_unsigned(size, out);
}

// All digits of a number behind each other, right-aligned in DIGITS characters behind some zeros.
template <class F>
struct DigitText {
    static constexpr bool WIDE = F::MANTISSA > 24;
    static constexpr int DIGITS = WIDE ? 17 : 9;
    static constexpr int ZEROS_BEFORE = 4;
    static constexpr int COPY = WIDE ? 24 : 16;             // bytes that hold any text without exponent
    char text[ZEROS_BEFORE + DIGITS + COPY];
    int count;                                              // significant digits, without zeros at their end
    int leading;                                            // characters before them

    explicit DigitText(uint64_t number) {
        memcpy(text, "0000", 4);
        uint64_t low = digits_of_8(uint32_t(number % 100000000));
        uint64_t upper = number / 100000000;
        store64(text + ZEROS_BEFORE + DIGITS - 8, low | ZEROS);
        int before, trailing;
        if constexpr (WIDE) {
            uint64_t high = digits_of_8(uint32_t(upper % 100000000));
            uint64_t head = upper / 100000000;
            store64(text + ZEROS_BEFORE + 1, high | ZEROS);
            text[ZEROS_BEFORE] = char('0' + head);
            if (__builtin_expect(high == 0 || low == 0, 0)) {
                const char* all = text + ZEROS_BEFORE;
                for (before = 0; all[before] == '0';)
                    before++;
                for (trailing = 0; all[DIGITS - 1 - trailing] == '0';)
                    trailing++;
            } else {
                before = head != 0 ? 0 : 1 + (__builtin_ctzll(high) >> 3);
                trailing = ending_zeros(low);
            }
        } else {
            text[ZEROS_BEFORE] = char('0' + upper);
            // A highest (lowest) bit more makes the count right where all 8 digits are 0.
            before = upper != 0 ? 0 : 1 + (__builtin_ctzll(low | uint64_t(1) << 63) >> 3);
            trailing = low != 0 ? ending_zeros(low) : 8;
        }
        count = DIGITS - before - trailing;
        leading = ZEROS_BEFORE + before;
    }
};

// digits * 10^exponent; `digits` is not 0.
template <class F>
static char* put_any_decimal(Shortest value, char* out) {
    using Text = DigitText<F>;
    Text digits(value.digits);
    const char* from = digits.text + digits.leading;
    int point = Text::ZEROS_BEFORE + Text::DIGITS - digits.leading + value.exponent;    // digits before the point
    if (point >= -3 && point < digits.count) {
        // A number below 1 takes zeros from before its digits, so all numbers have the same form.
        int zeros = point > 0 ? 0 : 1 - point;
        from -= zeros;
        point += zeros;
        memcpy(out, from, Text::COPY);
        memcpy(out + point + 1, from + point, Text::COPY - 1);
        out[point] = '.';
        return out + digits.count + zeros + 1;
    }
    if (point >= -3 && point <= 16) {                       // an integer
        memset(out, '0', 18);
        memcpy(out, from, size_t(digits.count));
        memcpy(out + point, ".0", 2);
        return out + point + 2;
    }
    *out++ = *from;
    if (digits.count > 1) {
        *out = '.';
        memcpy(out + 1, from + 1, 16);
        out += digits.count;
    }
    return put_exponent(point - 1, out);
}

// The common case, in registers: text that is stored and loaded again at other places would stall. Up to 9 digits, a
// point among or before them, no exponent. Whether the number is below 1 is told by the caller, who knows it early: a
// branch on the digits themselves would be resolved late, at the end of a long chain of multiplications.
template <class F>
static inline char* put_decimal(Shortest value, bool below_one, char* out) {
    if constexpr (F::MANTISSA > 24) {
        return put_any_decimal<F>(value, out);
    } else {
        uint32_t head = uint32_t(value.digits) / 100000000;
        uint64_t low = digits_of_8(uint32_t(value.digits) - head * 100000000);
        if (__builtin_expect(low == 0, 0))
            return put_any_decimal<F>(value, out);
        // The first 8 significant digits, and a 9th that counts only where there is a head.
        int before = head != 0 ? 0 : 1 + (__builtin_ctzll(low) >> 3);
        uint64_t first = head != 0 ? low << 8 | head : low >> (8 * before - 8);
        uint64_t ninth = (low >> 56) | '0';
        int count = 9 - before - ending_zeros(low);
        int point = 9 - before + value.exponent;            // digits before the point
        first |= ZEROS;
        if (!below_one) {
            if (__builtin_expect(point >= count, 0))
                return put_any_decimal<F>(value, out);
            store64(out, first);
            store64(out + point + 1, (first >> (8 * point - 8)) >> 8 | ninth << (64 - 8 * point));
            out[point] = '.';
            return out + count + 1;
        }
        if (__builtin_expect(point < -3, 0))
            return put_any_decimal<F>(value, out);
        store64(out, 0x3030303030302E30u);                  // 0.000000
        out += 2 - point;
        store64(out, first);
        out[8] = char(ninth);
        return out + count;
    }
}

// --- Runs: `n,n,n` -----------------------------------------------------------------------------------------------------

enum Nonfinite : int { NONFINITE_LITERAL = 0, NONFINITE_NULL = 1, NONFINITE_ERROR = 2 };

static inline char* put_nonfinite(bool nan, bool negative, int mode, char* out) {
    const char* text = mode == NONFINITE_NULL ? "null" : nan ? "NaN" : negative ? "-Infinity" : "Infinity";
    size_t size = strlen(text);
    memcpy(out, text, size);
    return out + size;
}

// Any element's text.
template <class F>
static char* format_binary(uint64_t bits, int mode, char* out) {
    bool negative = (bits & F::SIGN) != 0;
    bits &= ~F::SIGN;
    if (bits >= F::INFINITE)
        return put_nonfinite(bits != F::INFINITE, negative, mode, out);
    *out = '-';
    out += negative;
    if (bits == 0) {
        memcpy(out, "0.0", 3);
        return out + 3;
    }
    return put_any_decimal<F>(shortest<F>(bits), out);
}

// Writes `count` elements with a comma between them. *fault is the index of an element that may not be written, or -1.
//
// In two passes over a few elements at a time: first the digits of all, then the text of all. Each pass is a long chain
// of multiplications an element; apart, the processor has more elements under way at once.
template <class F>
static char* format_binary_run(const char* memory, int64_t count, int mode, char* out, int64_t* fault) {
    constexpr int PASS = 32;
    constexpr uint64_t ONE = uint64_t(F::BIAS) << F::MANTISSA;
    Shortest decimals[PASS];
    uint64_t elements[PASS];
    *fault = -1;
    for (int64_t start = 0; start < count; start += PASS) {
        int size = count - start < PASS ? int(count - start) : PASS;
        for (int i = 0; i < size; i++) {
            typename F::Bits bits;
            memcpy(&bits, memory + (start + i) * int64_t(sizeof(bits)), sizeof(bits));
            elements[i] = bits;
            uint64_t positive = bits & ~F::SIGN;
            decimals[i] = positive - 1 < F::INFINITE - 1 ? shortest<F>(positive) : Shortest{0, 0};
        }
        for (int i = 0; i < size; i++) {
            uint64_t positive = elements[i] & ~F::SIGN;
            if (__builtin_expect(positive - 1 >= F::INFINITE - 1, 0)) {
                if (positive != 0 && mode == NONFINITE_ERROR) {
                    *fault = start + i;
                    return out;
                }
                out = format_binary<F>(elements[i], mode, out);
            } else {
                *out = '-';
                out = put_decimal<F>(decimals[i], positive < ONE, out + (elements[i] != positive));
            }
            *out++ = ',';
        }
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
