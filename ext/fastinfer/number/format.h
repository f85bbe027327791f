// Number -> text, in the form of Python's repr; spans of elements with a comma between them.
//
// Every function writes at `out` and returns the byte after the text; MAX_* says how much it may touch, which can be
// more than the text. No Python, no allocation.
//
// A span is written a block at a time, in steps that each go over the whole block: the decimal value, its digits, its
// text. Each step is a long chain of operations per element; in separate steps, the processor overlaps the chains of
// many elements. No branch depends on an element's size, because a mispredicted branch costs more than superfluous
// work: all text has one form, whose parts are stored at offsets from a table, some over others. Decisions are made
// once per block: whether its numbers are whole, and how many digits its integers need.
#pragma once

#include "fastinfer/number/digits.h"
#include "fastinfer/number/shortest.h"

namespace fastinfer::number {

constexpr int MAX_BINARY_TEXT = 48;   // "-2.2250738585072014e-308" has 24; wide stores reach further
constexpr int MAX_INTEGER_TEXT = 24;  // "-9223372036854775808" has 20
constexpr int BLOCK = 16;             // elements of floating point
constexpr int INTEGERS = 64;          // elements of a block of integers

// --- Integers --------------------------------------------------------------------------------------------------------

// The numbers up to 1,844, which is 2^64 / 10^16: up to four characters and a comma, and in the last byte how many
// these are.
struct SmallNumbers {
    static constexpr unsigned END = 1845;
    char entries[END][8];
};

constexpr SmallNumbers make_small_numbers() {
    SmallNumbers table{};
    for (unsigned n = 0; n < SmallNumbers::END; n++) {
        unsigned size = n < 10 ? 1 : n < 100 ? 2 : n < 1000 ? 3 : 4;
        for (unsigned i = size, rest = n; i-- > 0; rest /= 10)
            table.entries[n][i] = char('0' + rest % 10);
        table.entries[n][size] = ',';
        table.entries[n][7] = char(size + 1);
    }
    return table;
}

static constexpr SmallNumbers SMALL_NUMBERS = make_small_numbers();

// Writes a number and a comma.
static inline char* put_small(uint64_t number, char* out) {
    const char* entry = SMALL_NUMBERS.entries[number];
    memcpy(out, entry, 8);
    return out + entry[7];
}

// The numbers below 1,000 with all their zeros, as the first half of a word of six digits and as the second half, which
// ends with a comma.
struct Threes {
    uint32_t first[1000];
    uint64_t second[1000];
};

constexpr Threes make_threes() {
    Threes table{};
    for (unsigned n = 0; n < 1000; n++) {
        table.first[n] = ('0' + n / 100) | ('0' + n / 10 % 10) << 8 | ('0' + n % 10) << 16;
        table.second[n] = uint64_t(table.first[n]) << 24 | uint64_t(',') << 48;
    }
    return table;
}

static constexpr Threes THREES = make_threes();

// Writes a number below 1,000,000 and a comma. Leading zeros are shifted out.
static inline char* put_six(uint64_t number, char* out) {
    constexpr uint64_t DIGITS = 0xFF0F0F0F0F0Fu;  // the last one counts even if it is 0
    uint64_t upper = number * 4294968 >> 32, lower = number - 1000 * upper;
    uint64_t text = THREES.first[upper] | THREES.second[lower];
    unsigned zeros = unsigned(__builtin_ctzll(text & DIGITS)) & 56;  // bits
    store64(out, text >> zeros);
    return out + 7 - zeros / 8;
}

// An integer's size and its sign, so that no branch depends on the sign.
struct Integer {
    uint64_t size;
    uint64_t negative;  // 1 or 0
};

template <class T>
static inline T value_at(const char* memory, int i) {
    T value;
    memcpy(&value, memory + i * int64_t(sizeof(T)), sizeof(T));
    return value;
}

template <class T>
static inline Integer integer_at(const char* memory, int i) {
    T value = value_at<T>(memory, i);
    if constexpr (std::is_unsigned_v<T>)
        return {value, 0};
    uint64_t minus = uint64_t(int64_t(value) >> 63);
    return {(uint64_t(int64_t(value)) ^ minus) - minus, minus & 1};
}

// A block of integers of at most DIGITS digits (8, 12, 16 or 20), each with a comma after it. (A load right
// after a store to an overlapping address would stall: hence two steps.)
template <class T, int DIGITS>
static inline char* put_many_digits(const char* memory, int size, char* out) {
    constexpr int FIXED = DIGITS < 16 ? DIGITS : 16;
    alignas(16) char text[INTEGERS][32];  // bytes after the digits are read but not kept
    unsigned nonzero[INTEGERS];           // which digits are not 0
    uint64_t tops[INTEGERS];              // what is before the 16 digits
    if constexpr (DIGITS <= 12) {
        constexpr auto put = DIGITS == 8 ? put_8_and_8 : put_12_and_12;
        for (int i = 0; i < size; i += 2) {
            int next = i + 1 < size ? i + 1 : i;  // the last one may be paired with itself
            unsigned both = put(integer_at<T>(memory, i).size, integer_at<T>(memory, next).size, text[i], text[next]);
            nonzero[i] = both & ((1u << DIGITS) - 1);
            nonzero[next] = both >> (DIGITS == 8 ? 8 : 16);
        }
    } else {
        for (int i = 0; i < size; i++) {
            uint64_t number = integer_at<T>(memory, i).size;
            uint64_t upper = number / TEN_TO_8, lower = number % TEN_TO_8;
            tops[i] = DIGITS == 20 ? upper / TEN_TO_8 : 0;
            nonzero[i] = put_8_and_8(upper - tops[i] * TEN_TO_8, lower, text[i], text[i] + 8) | (tops[i] != 0);
        }
    }
    for (int i = 0; i < size; i++) {
        out[0] = '-';
        out += integer_at<T>(memory, i).negative;
        if constexpr (DIGITS == 20)
            out = put_small(tops[i], out) - (tops[i] != 0 ? 1 : 2);  // no comma, and nothing for 0
        int first = __builtin_ctz(nonzero[i] | 1u << (FIXED - 1));
        copy16(out, text[i] + first);
        out[FIXED - first] = ',';
        out += FIXED - first + 1;
    }
    return out;
}

// Whether one is negative; and an upper bound of their sizes, at most twice the largest: the OR of all their bits,
// which vectors compute faster than the maximum.
struct Bounds {
    bool negative;
    uint64_t largest;
};

template <class T>
static inline Bounds bounds_of(const char* memory, int size) {
    if constexpr (sizeof(T) == 1)
        return {std::is_signed_v<T>, 255};
    T seen = 0;
    for (int i = 0; i < size; i++)
        seen |= value_at<T>(memory, i);
    if (seen >= 0)
        return {false, uint64_t(seen)};
    seen = 0;
    for (int i = 0; i < size; i++) {
        T value = value_at<T>(memory, i);
        seen |= value < 0 ? ~value : value;
    }
    return {true, uint64_t(seen) + 1};
}

// Writes a block of integers in the way that suits the largest.
template <class T>
static inline char* put_integers(const char* memory, int size, uint64_t largest, char* out) {
    if (largest < SmallNumbers::END) {  // pixels, classes
        for (int i = 0; i < size; i++) {
            Integer integer = integer_at<T>(memory, i);
            *out = '-';
            out = put_small(integer.size, out + integer.negative);
        }
    } else if (largest < 1000000) {  // token ids
        for (int i = 0; i < size; i++) {
            Integer integer = integer_at<T>(memory, i);
            *out = '-';
            out = put_six(integer.size, out + integer.negative);
        }
    } else if (largest < TEN_TO_8) {
        out = put_many_digits<T, 8>(memory, size, out);
    } else if (largest <= UINT32_MAX) {
        out = put_many_digits<T, 12>(memory, size, out);
    } else if (largest < TEN_TO_8 * TEN_TO_8) {
        out = put_many_digits<T, 16>(memory, size, out);
    } else {
        out = put_many_digits<T, 20>(memory, size, out);
    }
    return out;
}

static inline char* format_signed(int64_t number, char* out) {
    const char* memory = reinterpret_cast<const char*>(&number);
    return put_integers<int64_t>(memory, 1, integer_at<int64_t>(memory, 0).size, out) - 1;
}

// --- Layouts ---------------------------------------------------------------------------------------------------------

// Where the parts of a number's text go, by the power of ten of its first digit:
//     0.00012345   1.2345   1234.5   123450.0   1.2345e-05
// The digits are stored at `digits`, and again, without the first `cut` of them, at `rest`; then the point, and the
// ending over the superfluous digits.
struct Layout {
    uint8_t digits;
    uint8_t cut;
    uint8_t rest;
    uint8_t point;
    uint8_t more;   // characters besides the digits after the first
    uint8_t least;  // characters at least: 100.0
    uint8_t alone;  // 1 if a single digit has no point: 1e-05
    uint8_t ending_size;
    char ending[8];  // the exponent and the comma
};

constexpr Layout make_layout(int exponent) {
    if (exponent >= -4 && exponent < 0) {
        uint8_t zeros = uint8_t(1 - exponent);  // and the point
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

// By the exponent of the first digit; the first entry is the layout of 0.
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

// --- Spans: `n,n,n` --------------------------------------------------------------------------------------------------

enum Nonfinite : int { NONFINITE_LITERAL = 0, NONFINITE_NULL = 1, NONFINITE_ERROR = 2 };

static inline char* put_nonfinite(bool nan, bool negative, int mode, char* out) {
    const char* text = mode == NONFINITE_NULL ? "null" : nan ? "NaN" : negative ? "-Infinity" : "Infinity";
    size_t size = strlen(text);
    memcpy(out, text, size);
    return out + size;
}

// A block of numbers during their conversion to text.
template <class F>
struct Decimals {
    static constexpr int HEAD = WIDE<F> ? 16 : 8;  // digits
    typename F::Bits bits[BLOCK];
    Shortest shortest[BLOCK];
    unsigned nonzero[BLOCK];  // which digits are not 0
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
                shortest[size] = {};  // they go in pairs
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

    // Writes the text of a finite number and a comma.
    char* put(int i, char* out) const {
        int first = __builtin_ctz(nonzero[i] | 2u << HEAD);  // of 0: one digit too far, which selects its layout
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

// Blocks of whole numbers, as their bits show: below 2^19, and so small that the mantissa's last bit is at most 1/2.
// Then no shorter decimal is nearer to it than to its neighbours: its digits are those of an integer.
template <class F>
struct Whole {
    using Bits = typename F::Bits;
    static constexpr int LAST_EXPONENT = F::MANTISSA <= 18 ? F::MANTISSA - 1 : 18;
    static constexpr uint64_t ALWAYS_0 = (uint64_t(1) << (F::MANTISSA - LAST_EXPONENT)) - 1;  // in each of them

    // Rules out most blocks of other numbers by a look at the first 32 bytes.
    static bool possible(const char* memory, int size) {
        uint64_t seen = 0;
        for (size_t at = 0; at < 32 && at + 8 <= size * sizeof(Bits); at += 8)
            seen |= load64(memory + at);
        for (unsigned width = 32; width >= 8 * sizeof(Bits); width /= 2)
            seen |= seen >> width;
        return (seen & ALWAYS_0) == 0;
    }

    static bool are(const char* memory, int size) {
        int i = 0;
        for (; i + 4 <= size; i += 4)  // four at a time, so that the branch is predictable
            if (!(is(memory, i) & is(memory, i + 1) & is(memory, i + 2) & is(memory, i + 3)))
                return false;
        for (; i < size; i++)
            if (!is(memory, i))
                return false;
        return true;
    }

    // Writes each number and a comma.
    static char* put(const char* memory, int size, char* out) {
        for (int i = 0; i < size; i++) {
            uint64_t bits = value_at<Bits>(memory, i);
            uint64_t biased = (bits & ~F::SIGN) >> F::MANTISSA;
            uint64_t mantissa = (bits & (F::HIDDEN - 1)) | uint64_t(bits != 0) << F::MANTISSA;
            *out = '-';
            out = put_six(mantissa >> ((F::BIAS + F::MANTISSA - biased) & 63), out + ((bits & F::SIGN) != 0));
            memcpy(out - 1, ".0,", 4);
            out += 2;
        }
        return out;
    }

    static bool is(const char* memory, int i) {
        uint64_t bits = value_at<Bits>(memory, i);
        uint64_t exponent = ((bits & ~F::SIGN) >> F::MANTISSA) - F::BIAS;  // below 1: wraps to a large one
        bool no_fraction = ((bits << (exponent & 31)) & (F::HIDDEN - 1)) == 0;
        return (no_fraction & (exponent <= LAST_EXPONENT)) | (bits == 0);  // -0.0 is printed elsewhere
    }
};

// Writes `count` elements with a comma between them. *fault is the index of an element that may not be written, or -1.
template <class F>
static char* format_binary_span(const char* memory, int64_t count, int mode, char* out, int64_t* fault) {
    using Bits = typename F::Bits;
    Decimals<F> block(count);
    *fault = -1;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int size = count - start < BLOCK ? int(count - start) : BLOCK;
        const char* from = memory + start * int64_t(sizeof(Bits));
        if (Whole<F>::possible(from, size)) {
            if (all_zero(from, size * sizeof(Bits))) {  // padding, or outputs of a ReLU
                memcpy(out, "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,", 4 * BLOCK);
                out += 4 * size;
                continue;
            }
            if (Whole<F>::are(from, size)) {  // masks, one-hot rows, counts
                out = Whole<F>::put(from, size, out);
                continue;
            }
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
static char* format_integer_span(const char* memory, int64_t count, int, char* out, int64_t* fault) {
    *fault = -1;
    for (int64_t start = 0; start < count; start += INTEGERS, memory += INTEGERS * sizeof(T)) {
        int size = count - start < INTEGERS ? int(count - start) : INTEGERS;
        Bounds bounds = bounds_of<T>(memory, size);
        // Without a negative one, they are unsigned integers, and there are no signs to print.
        out = bounds.negative ? put_integers<T>(memory, size, bounds.largest, out)
                              : put_integers<std::make_unsigned_t<T>>(memory, size, bounds.largest, out);
    }
    return count > 0 ? out - 1 : out;
}

static char* format_bool_span(const char* memory, int64_t count, int, char* out, int64_t* fault) {
    *fault = -1;
    for (int64_t i = 0; i < count; i++) {
        bool value = memory[i] != 0;
        memcpy(out, value ? "true,   " : "false,  ", 8);
        out += value ? 5 : 6;
    }
    return count > 0 ? out - 1 : out;
}

}  // namespace fastinfer::number
