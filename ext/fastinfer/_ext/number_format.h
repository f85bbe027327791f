// Number -> text, in the form of Python's repr; runs of elements with a comma between them.
//
// Every function writes at `out` and returns the byte behind; MAX_* says how much it may touch, which can be more than
// it keeps. No Python, no allocation.
//
// A run is written a block at a time, in steps that each go over the whole block: what there is to print, its digits,
// its text. Each step is a long chain of operations an element; apart, the processor has many elements under way at
// once. Nothing branches on an element's size, for what is unpredictable costs more than what is superfluous: all text
// has one form, whose parts are stored at places that a table tells, some over others.
#pragma once

#include "number_digits.h"
#include "number_shortest.h"

namespace fastinfer::number {

constexpr int MAX_BINARY_TEXT = 48;     // "-2.2250738585072014e-308" has 24; wide stores reach further
constexpr int MAX_INTEGER_TEXT = 24;    // "-9223372036854775808" has 20
constexpr int BLOCK = 16;               // elements

// --- Integers ----------------------------------------------------------------------------------------------------------

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

static inline char* put_small(uint64_t number, char* out) {
    const char* entry = SMALL_NUMBERS.entries[number];
    memcpy(out, entry, 4);
    return out + entry[3];
}

// An integer and its sign, apart: nothing branches on it.
struct Integer {
    uint64_t size;
    uint64_t negative;      // 1 or 0
};

template <class T>
static inline Integer integer_at(const char* memory, int i) {
    T value;
    memcpy(&value, memory + i * int64_t(sizeof(T)), sizeof(T));
    if constexpr (T(-1) > T(0))
        return {value, 0};
    uint64_t minus = uint64_t(int64_t(value) >> 63);
    return {(uint64_t(int64_t(value)) ^ minus) - minus, minus & 1};
}

// The largest without sign.
template <class T>
static inline uint64_t largest_of(const char* memory, int size) {
    T least = 0, most = 0;
    for (int i = 0; i < size; i++) {
        T value;
        memcpy(&value, memory + i * int64_t(sizeof(T)), sizeof(T));
        least = value < least ? value : least;
        most = value > most ? value : most;
    }
    uint64_t below = 0 - uint64_t(least), above = uint64_t(most);
    return below > above ? below : above;
}

// A block of integers of at most DIGITS digits (8, 12, 16 or 24), each with a comma behind it. (Text that is loaded
// again right behind its store, at another place, would stall: hence two steps.)
template <class T, int DIGITS>
static inline char* put_integers(const char* memory, int size, char* out) {
    alignas(16) char text[BLOCK][DIGITS == 24 ? 48 : 32];       // what is behind the digits is read but not kept
    unsigned nonzero[BLOCK];                                    // which digits are not 0
    if constexpr (DIGITS <= 12) {
        constexpr auto put = DIGITS == 8 ? put_8_and_8 : put_12_and_12;
        for (int i = 0; i < size; i += 2) {
            int next = i + 1 < size ? i + 1 : i;                // the last one may go with itself
            unsigned both = put(integer_at<T>(memory, i).size, integer_at<T>(memory, next).size, text[i], text[next]);
            nonzero[i] = both & ((1u << DIGITS) - 1);
            nonzero[next] = both >> (DIGITS == 8 ? 8 : 16);
        }
    } else {
        for (int i = 0; i < size; i++) {
            uint64_t number = integer_at<T>(memory, i).size;
            uint64_t upper = number / TEN_TO_8, lower = number % TEN_TO_8;
            if constexpr (DIGITS == 16) {
                nonzero[i] = put_8_and_8(upper, lower, text[i], text[i] + 8);
            } else {
                nonzero[i] = put_8_and_8(upper / TEN_TO_8, upper % TEN_TO_8, text[i], text[i] + 8);
                nonzero[i] |= put_8_and_8(lower, 0, text[i] + 16, text[i] + 24) << 16;
            }
        }
    }
    for (int i = 0; i < size; i++) {
        int first = __builtin_ctz(nonzero[i] | 1u << (DIGITS - 1));
        const char* digits = text[i] + first;
        out[0] = '-';
        out += integer_at<T>(memory, i).negative;
        copy16(out, digits);
        if constexpr (DIGITS == 24)
            memcpy(out + 16, digits + 16, 4);
        out[DIGITS - first] = ',';
        out += DIGITS - first + 1;
    }
    return out;
}

static inline char* format_signed(int64_t number, char* out) {
    Integer integer = integer_at<int64_t>(reinterpret_cast<const char*>(&number), 0);
    if (integer.size >= 1000)
        return put_integers<int64_t, 24>(reinterpret_cast<const char*>(&number), 1, out) - 1;
    *out = '-';
    return put_small(integer.size, out + integer.negative);
}

// --- Layouts -----------------------------------------------------------------------------------------------------------

// Where the parts of a number's text go, by the power of ten of its first digit:
//     0.00012345   1.2345   1234.5   123450.0   1.2345e-05
// The digits are stored at `digits`, and again, without the first `cut` of them, at `rest`; then the point, and the
// ending over what is too much of the digits.
struct Layout {
    uint8_t digits;
    uint8_t cut;
    uint8_t rest;
    uint8_t point;
    uint8_t more;               // characters besides the digits behind the first
    uint8_t least;              // characters at least: 100.0
    uint8_t alone;              // 1 where one digit has no point: 1e-05
    uint8_t ending_size;
    char ending[8];             // the exponent and the comma
};

constexpr Layout make_layout(int exponent) {
    if (exponent >= -4 && exponent < 0) {
        uint8_t zeros = uint8_t(1 - exponent);      // and the point
        return {zeros, 1, uint8_t(zeros + 1), 1, uint8_t(zeros + 1), 0, 0, 1, {','}};
    }
    if (exponent >= 0 && exponent < 16) {
        uint8_t before = uint8_t(exponent + 1);
        return {0, before, uint8_t(before + 1), before, 2, uint8_t(before + 2), 0, 1, {','}};
    }
    int size = exponent < 0 ? -exponent : exponent;
    Layout layout{0, 1, 2, 1, 2, 0, 1, 0, {'e', exponent < 0 ? '-' : '+'}};
    int at = 2;
    if (size >= 100)
        layout.ending[at++] = char('0' + size / 100);
    layout.ending[at++] = char('0' + size / 10 % 10);
    layout.ending[at++] = char('0' + size % 10);
    layout.ending[at++] = ',';
    layout.ending_size = uint8_t(at);
    return layout;
}

// By the exponent of the first digit; before the least of all, the layout of 0.
template <class F>
struct Layouts {
    static constexpr int ZERO = decimal_exponent(binary_exponent<F>(0), false) - 1;
    static constexpr int LAST = decimal_exponent(binary_exponent<F>(F::MAX_BIASED - 1), false) + (WIDE<F> ? 16 : 8);
    Layout entries[LAST - ZERO + 1];
};

template <class F>
constexpr Layouts<F> make_layouts() {
    Layouts<F> table{};
    for (int exponent = Layouts<F>::ZERO; exponent <= Layouts<F>::LAST; exponent++)
        table.entries[exponent - Layouts<F>::ZERO] = make_layout(exponent == Layouts<F>::ZERO ? 0 : exponent);
    return table;
}

template <class F>
static constexpr Layouts<F> LAYOUTS = make_layouts<F>();

// --- Runs: `n,n,n` -----------------------------------------------------------------------------------------------------

enum Nonfinite : int { NONFINITE_LITERAL = 0, NONFINITE_NULL = 1, NONFINITE_ERROR = 2 };

static inline char* put_nonfinite(bool nan, bool negative, int mode, char* out) {
    const char* text = mode == NONFINITE_NULL ? "null" : nan ? "NaN" : negative ? "-Infinity" : "Infinity";
    size_t size = strlen(text);
    memcpy(out, text, size);
    return out + size;
}

// A block of numbers on their way to text.
template <class F>
struct Decimals {
    static constexpr int HEAD = WIDE<F> ? 16 : 8;       // digits
    typename F::Bits bits[BLOCK];
    Shortest shortest[BLOCK];
    unsigned nonzero[BLOCK];                            // which digits are not 0
    // Up to 17 digits, the first ones 0; and zeros, so that 16 characters can be read from any of them.
    alignas(64) char text[BLOCK][64];

    explicit Decimals(int64_t count) { memset(text, '0', size_t(count < BLOCK ? count : BLOCK) * sizeof(text[0])); }

    void put_digits(const char* memory, int size) {
        memcpy(bits, memory, size_t(size) * sizeof(bits[0]));
        if constexpr (WIDE<F>) {
            for (int i = 0; i < size; i++) {
                shortest[i] = number::shortest<F>(bits[i] & ~F::SIGN);
                uint64_t upper = shortest[i].head / TEN_TO_8, lower = shortest[i].head % TEN_TO_8;
                put_last(i, put_8_and_8(upper, lower, text[i], text[i] + 8));
            }
        } else {
            for (int i = 0; i < size; i++)
                shortest[i] = number::shortest<F>(bits[i] & ~F::SIGN);
            if (size % 2 != 0)
                shortest[size] = {};                    // they go in pairs
            for (int i = 0; i < size; i += 2) {
                unsigned both = put_8_and_8(shortest[i].head, shortest[i + 1].head, text[i], text[i + 1]);
                put_last(i, both & 0xFF);
                put_last(i + 1, both >> 8);
            }
        }
    }

    void put_last(int i, unsigned nonzero_in_head) {
        text[i][HEAD] = char('0' + shortest[i].last);
        nonzero[i] = nonzero_in_head | unsigned(shortest[i].last != 0) << HEAD;
    }

    // The text of a finite one and its comma.
    char* put(int i, char* out) const {
        int first = __builtin_ctz(nonzero[i] | 2u << HEAD);         // of 0: a digit too far, which leads to its layout
        unsigned behind = unsigned((31 ^ __builtin_clz(nonzero[i] | 1)) - first);
        const char* digits = text[i] + first;
        const Layout& layout = LAYOUTS<F>.entries[shortest[i].exponent + HEAD - first - Layouts<F>::ZERO];
        out[0] = '-';
        out += (bits[i] & F::SIGN) != 0;
        memcpy(out, "0.000000", 8);
        copy16(out + layout.digits, digits);
        copy16(out + layout.rest, digits + layout.cut);
        out[layout.point] = '.';
        int size = int(behind + layout.more);
        size = size < layout.least ? layout.least : size;
        size -= behind < layout.alone;
        memcpy(out + size, layout.ending, 8);
        return out + size + layout.ending_size;
    }
};

static inline bool all_zero(const char* bytes, size_t size) {
    size_t at = 0;
    for (; at + 8 <= size; at += 8)
        if (load64(bytes + at) != 0)
            return false;
    for (; at < size; at++)
        if (bytes[at] != 0)
            return false;
    return true;
}

// Writes `count` elements with a comma between them. *fault is the index of an element that may not be written, or -1.
template <class F>
static char* format_binary_run(const char* memory, int64_t count, int mode, char* out, int64_t* fault) {
    using Bits = typename F::Bits;
    Decimals<F> block(count);
    *fault = -1;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int size = count - start < BLOCK ? int(count - start) : BLOCK;
        const char* from = memory + start * int64_t(sizeof(Bits));
        if (all_zero(from, size * sizeof(Bits))) {              // padding, masks, what a ReLU has cut off
            memcpy(out, "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,", 4 * BLOCK);
            out += 4 * size;
            continue;
        }
        block.put_digits(from, size);
        for (int i = 0; i < size; i++) {
            Bits bits = block.bits[i];
            if (__builtin_expect(Bits(bits << 1) < Bits(F::INFINITE << 1), 1)) {
                out = block.put(i, out);
                continue;
            }
            if (mode == NONFINITE_ERROR) {
                *fault = start + i;
                return out;
            }
            out = put_nonfinite((bits & ~F::SIGN) != F::INFINITE, (bits & F::SIGN) != 0, mode, out);
            *out++ = ',';
        }
    }
    return count > 0 ? out - 1 : out;
}

template <class T>
static char* format_integer_run(const char* memory, int64_t count, int, char* out, int64_t* fault) {
    constexpr int STEP = sizeof(T) == 1 ? 256 : BLOCK;
    *fault = -1;
    for (int64_t start = 0; start < count; start += STEP, memory += STEP * sizeof(T)) {
        int size = count - start < STEP ? int(count - start) : STEP;
        uint64_t largest = sizeof(T) == 1 ? 0 : largest_of<T>(memory, size);
        if (largest < 1000) {                               // pixels, classes
            for (int i = 0; i < size; i++) {
                Integer integer = integer_at<T>(memory, i);
                *out = '-';
                out = put_small(integer.size, out + integer.negative);
                *out++ = ',';
            }
        } else if (largest < TEN_TO_8) {                    // token ids
            out = put_integers<T, 8>(memory, size, out);
        } else if (largest <= UINT32_MAX) {
            out = put_integers<T, 12>(memory, size, out);
        } else if (largest < TEN_TO_8 * TEN_TO_8) {
            out = put_integers<T, 16>(memory, size, out);
        } else {
            out = put_integers<T, 24>(memory, size, out);
        }
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
