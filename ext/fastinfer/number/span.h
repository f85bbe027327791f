// Reads a span of numbers, `n, n, n` up to the closing bracket, straight into a tensor's memory.
//
// The commas of a piece of text are found first, 64 bytes at a time; then each number is read backwards from its comma
// with loads of fixed width. So no number waits for the end of the one before it, and its length costs no branch.
// An element in another than the common form goes to number/parse.h, which also detects all errors.
#pragma once

#include "fastinfer/number/parse.h"

#if defined(__SSE2__)
#include "fastinfer/number/simd/intrinsics.h"
#endif

namespace fastinfer::number {

struct NumberSpan {
    const char* at;  // after the last element and its white space; at the bad element if `error` is set
    int64_t count;   // elements written
    int error;
};

constexpr int PIECE = 2048;  // bytes whose commas are found in one go: positions stay in the first cache

static inline bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

static inline const char* skip_space(const char* at, const char* end) {
    while (at < end && is_space(*at))
        at++;
    return at;
}

// Bit i is set if byte i of 64 is a comma, or ends the span ('[' or ']'; 'Y' and '_' look alike and are errors).
static inline void find_separators(const char* at, uint64_t* commas, uint64_t* brackets) {
#if defined(__SSE2__)
    uint64_t found_commas = 0, found_brackets = 0;
    for (int i = 0; i < 4; i++) {
        __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * i));
        __m128i comma = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(','));
        __m128i bracket = _mm_cmpeq_epi8(_mm_or_si128(bytes, _mm_set1_epi8(6)), _mm_set1_epi8(0x5F));
        found_commas |= uint64_t(uint32_t(_mm_movemask_epi8(comma))) << (16 * i);
        found_brackets |= uint64_t(uint32_t(_mm_movemask_epi8(bracket))) << (16 * i);
    }
    *commas = found_commas;
    *brackets = found_brackets;
#else
    uint64_t found_commas = 0, found_brackets = 0;
    for (int i = 0; i < 64; i++) {
        found_commas |= uint64_t(at[i] == ',') << i;
        found_brackets |= uint64_t((at[i] | 6) == 0x5F) << i;
    }
    *commas = found_commas;
    *brackets = found_brackets;
#endif
}

// Writes the places of the commas in [at, end), and last that of the first bracket if it is met (*closed).
// Reads at most PIECE bytes.
static inline int index_separators(const char* at, const char* end, uint16_t* places, bool* closed) {
    uint16_t* to = places;
    int size = end - at < PIECE ? int(end - at) : PIECE;
    *closed = false;
    for (int block = 0; block < size && !*closed; block += 64) {
        uint64_t commas, brackets;
        if (size - block >= 64) {
            find_separators(at + block, &commas, &brackets);
        } else {
            char tail[64] = {};
            memcpy(tail, at + block, size_t(size - block));
            find_separators(tail, &commas, &brackets);
        }
        if (brackets != 0) {
            commas = (commas & (brackets ^ (brackets - 1))) | (brackets & (0 - brackets));
            *closed = true;
        }
        for (; commas != 0; commas &= commas - 1)
            *to++ = uint16_t(block + __builtin_ctzll(commas));
    }
    return int(to - places);
}

#if defined(__SSE2__)
// The value of 16 digits (not characters), the first in the lowest byte.
static inline uint64_t value_of_16(__m128i digits) {
    const __m128i pairs = _mm_and_si128(
        _mm_add_epi16(_mm_mullo_epi16(digits, _mm_set1_epi16(10)), _mm_srli_epi16(digits, 8)), _mm_set1_epi16(0xFF));
    const __m128i fours = _mm_madd_epi16(pairs, _mm_set1_epi32(100 | 1 << 16));
    const __m128i eights = _mm_madd_epi16(_mm_packs_epi32(fours, fours), _mm_set1_epi32(10000 | 1 << 16));
    const uint64_t both = uint64_t(_mm_cvtsi128_si64(eights));
    return (both & 0xFFFFFFFFu) * 100000000u + (both >> 32);
}

alignas(64) static const uint8_t LAST_BYTES[48] = {0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
                                                   0,    0,    0,    0,    0,    0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
                                                   0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};

// A mask of the last n of 16 bytes.
static inline __m128i last_bytes(int n) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(LAST_BYTES + n)); }

// Reads [at, end), up to 16 characters without a sign, as digits with at most one dot: word / 10^places.
// The 17 bytes before `end` must be readable. False if it is anything else.
static inline bool read_plain(const char* at, const char* end, uint64_t* word, int* places) {
    int64_t size = end - at;
    if (size < 1 || size > 16)
        return false;
    __m128i ten = _mm_set1_epi8(10);
    __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(end - 16));
    __m128i digits = _mm_sub_epi8(text, _mm_set1_epi8('0'));
    unsigned window = (0xFFFFu << (16 - size)) & 0xFFFFu;
    unsigned dots = unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(text, _mm_set1_epi8('.')))) & window;
    unsigned others = unsigned(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(digits, ten), digits))) & window;
    if (others != dots)
        return false;
    if (dots == 0) {
        if (size > 1 && *at == '0')
            return false;
        *word = value_of_16(_mm_and_si128(digits, last_bytes(int(size))));
        *places = 0;
        return true;
    }
    int after = 15 - __builtin_ctz(dots);  // digits after the dot
    int before = int(size) - 1 - after;
    if ((dots & (dots - 1)) != 0 || after == 0 || before == 0 || (before > 1 && *at == '0'))
        return false;
    // The same text one byte later has the digits before the dot at their places.
    __m128i shifted = _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(end - 17)), _mm_set1_epi8('0'));
    __m128i behind = last_bytes(after);
    __m128i joined = _mm_or_si128(_mm_and_si128(behind, digits), _mm_andnot_si128(behind, shifted));
    *word = value_of_16(_mm_and_si128(joined, last_bytes(int(size) - 1)));
    *places = after;
    return true;
}

// Reads the last `count` of the 16 characters before `end`, all digits.
static inline bool read_16(const char* end, int count, uint64_t* word) {
    __m128i digits =
        _mm_and_si128(_mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(end - 16)), _mm_set1_epi8('0')),
                      last_bytes(count));
    if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(digits, _mm_set1_epi8(9)), _mm_set1_epi8(9))) != 0xFFFF)
        return false;
    *word = value_of_16(digits);
    return true;
}
#else
static inline bool read_16(const char* end, int count, uint64_t* word) {
    uint64_t value = 0;
    for (const char* digit = end - count; digit < end; digit++) {
        if (!is_digit(*digit))
            return false;
        value = value * 10 + uint64_t(*digit - '0');
    }
    *word = value;
    return true;
}

static inline bool read_plain(const char* at, const char* end, uint64_t* word, int* places) {
    int64_t size = end - at;
    if (size < 1 || size > 16)
        return false;
    uint64_t value = 0;
    const char* dot = end;
    for (const char* digit = at; digit < end; digit++) {
        if (*digit == '.' && dot == end && digit > at) {
            dot = digit;
        } else if (is_digit(*digit)) {
            value = value * 10 + uint64_t(*digit - '0');
        } else {
            return false;
        }
    }
    if (dot == end - 1 || (dot - at > 1 && *at == '0'))
        return false;
    *word = value;
    *places = dot == end ? 0 : int(end - dot - 1);
    return true;
}
#endif

constexpr int LEAST_NEAR = -37, MOST_NEAR = 19;

// Exact from 10^0 on: 5^19 has 45 bits. The others are the nearest doubles.
static constexpr double NEAR_POWERS[MOST_NEAR - LEAST_NEAR + 1] = {
    1e-37, 1e-36, 1e-35, 1e-34, 1e-33, 1e-32, 1e-31, 1e-30, 1e-29, 1e-28, 1e-27, 1e-26, 1e-25, 1e-24, 1e-23,
    1e-22, 1e-21, 1e-20, 1e-19, 1e-18, 1e-17, 1e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9,  1e-8,
    1e-7,  1e-6,  1e-5,  1e-4,  1e-3,  1e-2,  1e-1,  1e0,   1e1,   1e2,   1e3,   1e4,   1e5,   1e6,   1e7,
    1e8,   1e9,   1e10,  1e11,  1e12,  1e13,  1e14,  1e15,  1e16,  1e17,  1e18,  1e19};

static inline double near_power(int64_t n) { return NEAR_POWERS[n - LEAST_NEAR]; }
static inline bool has_near_power(int64_t n) { return (n >= LEAST_NEAR) & (n <= MOST_NEAR); }

// word * 10^power, if NEAR_POWERS has the power, for a type narrower than FP64. The product of two rounded doubles is
// off by less than three units in its last place, which matters only near the middle between two values of the narrow
// type.
template <class F>
static inline bool round_near(uint64_t word, int64_t power, bool negative, typename F::Bits* out) {
    constexpr int LOST = 52 - F::MANTISSA;
    constexpr uint64_t MIDDLE = uint64_t(1) << (LOST - 1);
    const double product = double(int64_t(word)) * near_power(power);
    uint64_t wide;
    memcpy(&wide, &product, 8);
    const uint64_t below = wide & (2 * MIDDLE - 1);
    const bool clear = below - (MIDDLE - 3) > 6;
    if constexpr (F::MANTISSA == 23) {  // 10^-37 .. 2^63 * 10^19 are all normal
        const float narrow = float(product);
        uint32_t bits;
        memcpy(&bits, &narrow, 4);
        *out = typename F::Bits(bits | uint32_t(negative) << 31);
        return clear & (int64_t(word) >= 0);
    } else {
        constexpr int64_t REBIAS = int64_t(1023 - F::BIAS) << F::MANTISSA;
        const int64_t bits = word == 0 ? 0 : int64_t((wide + MIDDLE) >> LOST) - REBIAS;
        *out = typename F::Bits(uint64_t(bits) | uint64_t(negative) * F::SIGN);
        const bool normal = (bits >= int64_t(F::HIDDEN)) & (bits < int64_t(F::INFINITE));
        return (clear & normal & (int64_t(word) >= 0)) | (word == 0);
    }
}

// word / 10^places. If a double holds the word, and so both, exactly, the quotient is the nearest double.
template <class F>
static inline bool round_plain(uint64_t word, int places, bool negative, typename F::Bits* out) {
    if constexpr (F::MANTISSA < 52)
        return round_near<F>(word, -places, negative, out);
    const double quotient = double(int64_t(word)) / near_power(places);
    uint64_t wide;
    memcpy(&wide, &quotient, 8);
    *out = typename F::Bits(wide | uint64_t(negative) << 63);
    return word <= uint64_t(1) << 53;
}

// word * 10^power, |power| <= 308: the first stage of to_binary, for results in the normal range.
template <class F>
static inline bool round_product(uint64_t word, int power, bool negative, typename F::Bits* out) {
    constexpr int DROP = 63 - F::MANTISSA;
    constexpr uint64_t HALF = uint64_t(1) << (DROP - 1);
    const int zeros = __builtin_clzll(word | 1);
    const uint128 product = uint128(word << zeros) * power_of_five(power).high;
    const uint64_t high = uint64_t(product >> 64);
    const uint64_t up = (high >> 63) ^ 1;
    const uint64_t value = high << up | (uint64_t(product) >> 63 & up);  // the true value lies in [value, value + 3)
    const uint64_t below = value & (2 * HALF - 1);
    const int biased = floor_log2_pow10(power) + 64 - zeros - int(up) + F::BIAS;
    const uint64_t bits = (uint64_t(int64_t(biased - 1)) << F::MANTISSA) + (value >> DROP) + (below > HALF);
    *out = typename F::Bits((bits & (0 - uint64_t(word != 0))) | uint64_t(negative) * F::SIGN);
    return (below - (HALF - 2) > 2) & (biased >= 1) & (bits < F::INFINITE);
}

// One digit, a dot and 15 to 18 digits: the usual form of a double.
static inline bool read_long(const char* at, const char* end, uint64_t* word, int* places) {
    const int64_t count = end - at - 2;
    if (count < 15 || count > 18 || at[1] != '.')
        return false;
    const int extra = count > 16 ? int(count) - 16 : 0;  // digits after the dot that the 16 do not cover
    uint64_t low;
    if (!read_16(end, count < 16 ? 15 : 16, &low))
        return false;
    const unsigned first = uint8_t(at[0] - '0'), second = uint8_t(at[2] - '0'), third = uint8_t(at[3] - '0');
    if ((first > 9) | (second > 9) | (third > 9))
        return false;
    const uint64_t lead = first * POW10[extra] + (extra == 2 ? second * 10 + third : extra == 1 ? second : 0);
    *word = lead * POW10[count < 16 ? 15 : 16] + low;
    *places = int(count);
    return true;
}

// Returns where an exponent of up to three digits begins, and sets its power; `end` if there is none.
static inline const char* before_exponent(const char* at, const char* end, int* power) {
    const char* digit = end;
    int value = 0, scale = 1;
    for (int i = 0; i < 3 && digit - at > 2 && is_digit(digit[-1]); i++, scale *= 10)
        value += (*--digit - '0') * scale;
    const bool below = digit - at > 1 && digit[-1] == '-';
    const char* mark = digit - (below || (digit - at > 1 && digit[-1] == '+'));
    if (digit == end || mark - at < 2 || (mark[-1] | 0x20) != 'e')
        return end;
    *power = below ? -value : value;
    return mark - 1;
}

// The common forms of a floating-point element. [at, end) is what lies between two commas.
template <class F>
struct BinaryElement {
    using Value = typename F::Bits;

    static inline bool read(const char* at, const char* end, Value* out) {
        at += *at == ' ';
        const bool negative = *at == '-';
        at += negative;
        uint64_t word;
        int places;
        if (read_plain(at, end, &word, &places))
            return round_plain<F>(word, places, negative, out);
        int power = 0;
        if (!read_long(at, end, &word, &places)) {
            end = before_exponent(at, end, &power);
            if (!read_plain(at, end, &word, &places) && !read_long(at, end, &word, &places))
                return false;
        }
        if (F::MANTISSA < 52 && power == 0)
            return round_plain<F>(word, places, negative, out);
        power -= places;
        return power >= MIN_POWER && power <= 308 && round_product<F>(word, power, negative, out);
    }

    static inline const char* parse(const char* at, const char* end, Value* out, int* error, const char** error_at) {
        return parse_binary<F>(at, end, out, error, error_at);
    }
};

// The same with null for NaN, as answers may have it.
template <class F>
struct NullableElement : BinaryElement<F> {
    using Value = typename F::Bits;

    static inline const char* parse(const char* at, const char* end, Value* out, int* error, const char** error_at) {
        if (!starts_with(at, end, "null", 4))
            return parse_binary<F>(at, end, out, error, error_at);
        *out = F::QUIET_NAN;
        *error = OK;
        return at + 4;
    }
};

// The common forms of an integer element: up to 8 digits at once, up to 16 with the wide load.
template <class T>
struct IntegerElement {
    using Value = T;

    static inline bool read(const char* at, const char* end, Value* out) {
        constexpr bool SIGNED = T(-1) < T(0);
        constexpr int64_t MAX = sizeof(T) == 8 ? INT64_MAX : (int64_t(1) << (8 * (sizeof(T) % 8) - SIGNED)) - 1;
        constexpr int64_t MIN = SIGNED ? -MAX - 1 : 0;
        at += *at == ' ';
        bool negative = *at == '-';
        at += negative;
        int64_t size = end - at;
        uint64_t value;
        if (size >= 1 && size <= 8) {
            uint64_t digits = (load64(end - 8) ^ 0x3030303030303030u) & (~uint64_t(0) << (64 - 8 * size));
            if ((((digits + 0x7676767676767676u) | digits) & 0x8080808080808080u) != 0)
                return false;
            value = value_of_8(digits);
        } else {
            int places;
            if (!read_plain(at, end, &value, &places) || places != 0)
                return false;
        }
        if (size > 1 && *at == '0')
            return false;
        int64_t result = negative ? -int64_t(value) : int64_t(value);
        *out = T(result);
        return result >= MIN && result <= MAX;
    }

    static inline const char* parse(const char* at, const char* end, Value* out, int* error, const char** error_at) {
        return parse_integer<T>(at, end, out, error, error_at);
    }
};

struct BoolElement {
    using Value = uint8_t;

    static inline bool read(const char* at, const char* end, Value* out) {
        at += *at == ' ';
        const int64_t size = end - at;
        const uint32_t tail = load32(end - 4);
        const bool yes = (size == 4) & (tail == load32("true"));
        const bool no = (size == 5) & (tail == load32("alse")) & (*at == 'f');
        *out = yes;
        return yes | no;
    }

    static inline const char* parse(const char* at, const char* end, Value* out, int* error, const char** error_at) {
        *error = SYNTAX;
        *error_at = at;
        *out = starts_with(at, end, "true", 4);
        return *out ? at + 4 : starts_with(at, end, "false", 5) ? at + 5 : nullptr;
    }
};

// Reads elements from `at` (not at a closing bracket) until one is not followed by a comma, at most `limit` of them.
// The 17 bytes before `at` must be readable: there is always a key before data.
template <class Element>
static NumberSpan parse_span(const char* at, const char* end, char* memory, int64_t limit) {
    using Value = typename Element::Value;
    uint16_t places[PIECE];
    int64_t done = 0;
    int error;
    const char* fault;
    for (;;) {
        const char* piece = at;
        bool closed;
        int found = index_separators(piece, end, places, &closed);
        for (int i = 0; i < found; i++) {
            const char* separator = piece + places[i];
            Value value;
            if (done >= limit)
                return {at, done, TOO_MANY};
            if (__builtin_expect(!Element::read(at, separator, &value), 0)) {
                at = skip_space(at, separator);
                const char* after = Element::parse(at, separator, &value, &error, &fault);
                if (after == nullptr)
                    return {at, done, error};
                after = skip_space(after, separator);
                if (after != separator)
                    return {after, done + 1, OK};  // something else than a comma follows: the caller's error
            }
            memcpy(memory + done * int64_t(sizeof(Value)), &value, sizeof(Value));
            done++;
            at = separator + 1;
        }
        if (closed)
            return {at - 1, done, OK};
        // The piece ended in the middle of an element (of any length): read that to its own end.
        Value value;
        if (done >= limit)
            return {at, done, TOO_MANY};
        at = skip_space(at, end);
        const char* after = Element::parse(at, end, &value, &error, &fault);
        if (after == nullptr)
            return {at, done, error};
        memcpy(memory + done * int64_t(sizeof(Value)), &value, sizeof(Value));
        done++;
        at = skip_space(after, end);
        if (at == end || *at != ',')
            return {at, done, OK};
        at++;
    }
}

}  // namespace fastinfer::number
