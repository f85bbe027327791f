// Text -> number: one number at a time, RFC 8259's grammar, rounded once to its own type.
//
// Floating point goes through three stages, each of which detects that it cannot decide: one 64x64-bit product with the
// power of ten, the 64x128-bit product, and big integers. A stage answers only if the whole interval in which the true
// value lies rounds to one result. (The first two are Eisel and Lemire's algorithm.)
// No Python, no allocation. All reads lie in [at, end).
#pragma once

#include "fastinfer/number/power.h"

namespace fastinfer::number {

enum Error : int {
    OK = 0,
    SYNTAX = 1,       // not a number
    RANGE = 2,        // a number that its type cannot hold
    NOT_INTEGER = 3,  // a number, but written with a fraction or an exponent
    TOO_MANY = 4,     // more elements than there is room for (number/span.h)
};

constexpr int MAX_DIGITS_IN_WORD = 19;  // 10^19 < 2^64

// A number's text, cut into its parts. The value is `word` * 10^`exponent`, or a little more if it is `truncated`.
struct Decimal {
    uint64_t word;  // the first 19 significant digits
    int64_t exponent;
    const char* digits;      // the first significant digit ...
    const char* digits_end;  // ... and the end of all digits (a dot may lie between)
    bool negative;
    bool truncated;
    bool integer;  // neither fraction nor exponent
};

static inline bool is_digit(char c) { return uint8_t(c - '0') < 10; }

// Eight bytes that hold only digits (SWAR; Mula and Lemire).
static inline bool are_digits(uint64_t word) {
    return ((word & 0xF0F0F0F0F0F0F0F0u) | (((word + 0x0606060606060606u) & 0xF0F0F0F0F0F0F0F0u) >> 4)) ==
           0x3333333333333333u;
}

// Eight digits (not characters) in memory order -> their value.
static inline uint64_t value_of_8(uint64_t digits) {
    digits = digits * 10 + (digits >> 8);
    return (((digits & 0x000000FF000000FFu) * 0x000F424000000064u) +
            (((digits >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u)) >>
           32;
}

static inline const char* scan_digits(const char* at, const char* end, uint64_t* word) {
    uint64_t value = *word;  // wraps past 19 digits; take_digits corrects it
    while (end - at >= 8) {
        uint64_t eight = load64(at);
        if (!are_digits(eight))
            break;
        value = value * 100000000 + value_of_8(eight - 0x3030303030303030u);
        at += 8;
    }
    while (at < end && is_digit(*at))
        value = value * 10 + uint64_t(*at++ - '0');
    *word = value;
    return at;
}

// Takes the first 19 significant digits if there are more.
static inline void take_digits(Decimal* number, int64_t fraction_digits) {
    const char* at = number->digits;
    const char* end = number->digits_end;
    const char* dot = fraction_digits > 0 ? end - fraction_digits - 1 : end;
    uint64_t word = 0;
    int taken = 0;
    while (at < end && (*at == '0' || *at == '.'))
        at++;
    number->digits = at;
    for (; at < end && taken < MAX_DIGITS_IN_WORD; at++) {
        if (at == dot)
            continue;
        word = word * 10 + uint64_t(*at - '0');
        taken++;
    }
    number->word = word;
    int64_t dropped = (end - at) - (at <= dot && dot < end);
    number->exponent += dropped;
    number->truncated = dropped > 0;
}

// Reads one number. Returns the byte after it, or NULL with *error_at set.
static inline const char* scan_number(const char* at, const char* end, Decimal* number, const char** error_at) {
    constexpr int64_t EXPONENT_CAP = int64_t(1) << 40;  // far past any body's digits
    number->negative = at < end && *at == '-';
    at += number->negative;
    const char* digits = at;
    uint64_t word = 0;
    int64_t exponent = 0;
    int64_t fraction_digits = 0;
    at = scan_digits(at, end, &word);
    int64_t count = at - digits;
    *error_at = at;
    if (count == 0)
        return nullptr;
    if (count > 1 && *digits == '0') {
        *error_at = digits;
        return nullptr;
    }
    number->integer = true;
    if (at < end && *at == '.') {
        const char* fraction = ++at;
        at = scan_digits(at, end, &word);
        fraction_digits = at - fraction;
        *error_at = at;
        if (fraction_digits == 0)
            return nullptr;
        number->integer = false;
    }
    number->digits = digits;
    number->digits_end = at;
    if (at < end && (*at | 0x20) == 'e') {
        at++;
        bool below = at < end && *at == '-';
        at += at < end && (*at == '-' || *at == '+');
        *error_at = at;
        if (at == end || !is_digit(*at))
            return nullptr;
        for (; at < end && is_digit(*at); at++)
            if (exponent < EXPONENT_CAP)
                exponent = exponent * 10 + (*at - '0');
        exponent = below ? -exponent : exponent;
        number->integer = false;
    }
    number->word = word;
    number->exponent = exponent - fraction_digits;
    number->truncated = false;
    if (count + fraction_digits > MAX_DIGITS_IN_WORD)
        take_digits(number, fraction_digits);
    return at;
}

// --- The last stage: exact comparison --------------------------------------------------------------------------------

constexpr int MAX_EXACT_DIGITS = 800;  // the midpoint of two FP64 has at most 767; those of the others have fewer

// An unsigned integer of at most 4,096 bits: both sides of the comparison below stay under 2,800.
struct BigInteger {
    static constexpr int LIMBS = 64;
    uint64_t limbs[LIMBS];
    int size = 0;

    void multiply_add(uint64_t factor, uint64_t summand) {
        uint64_t carry = summand;
        for (int i = 0; i < size; i++) {
            uint128 product = uint128(limbs[i]) * factor + carry;
            limbs[i] = uint64_t(product);
            carry = uint64_t(product >> 64);
        }
        if (carry != 0 && size < LIMBS)
            limbs[size++] = carry;
    }

    void multiply_power_of_five(int64_t n) {
        for (; n >= 27; n -= 27)
            multiply_add(7450580596923828125u, 0);  // 5^27, the highest in 64 bits
        for (; n > 0; n--)
            multiply_add(5, 0);
    }

    void shift_left(int64_t bits) {
        int whole = int(bits / 64), part = int(bits % 64);
        if (size == 0 || size + whole + 1 > LIMBS)
            return;
        limbs[size] = 0;
        for (int i = size; i >= 0; i--)
            limbs[i + whole] = part == 0 ? limbs[i] : limbs[i] << part | (i > 0 ? limbs[i - 1] >> (64 - part) : 0);
        for (int i = 0; i < whole; i++)
            limbs[i] = 0;
        size += whole + 1;
        while (size > 0 && limbs[size - 1] == 0)
            size--;
    }

    int compare(const BigInteger& other) const {
        if (size != other.size)
            return size < other.size ? -1 : 1;
        for (int i = size - 1; i >= 0; i--)
            if (limbs[i] != other.limbs[i])
                return limbs[i] < other.limbs[i] ? -1 : 1;
        return 0;
    }
};

// The sign of (the number's absolute value) - `mantissa` * 2^`exponent`.
static int compare_exactly(const Decimal& number, uint64_t mantissa, int64_t exponent) {
    BigInteger left, right;
    int64_t power = number.exponent;
    int taken = 0;
    bool more = false;
    const char* at = number.digits;
    uint64_t part = 0, scale = 1;
    while (at < number.digits_end && (*at == '0' || *at == '.'))
        at++;
    for (; at < number.digits_end && taken < MAX_EXACT_DIGITS; at++) {
        if (*at == '.')
            continue;
        part = part * 10 + uint64_t(*at - '0');
        scale *= 10;
        if (++taken % 18 == 0) {
            left.multiply_add(scale, part);
            part = 0, scale = 1;
        }
    }
    left.multiply_add(scale, part);
    int64_t rest = 0;
    for (; at < number.digits_end; at++) {
        more |= *at != '0' && *at != '.';
        rest += *at != '.';
    }
    // number.exponent belongs to `word`, which has the first 19 of these digits.
    power += rest;
    if (number.truncated)
        power -= (taken + rest) - MAX_DIGITS_IN_WORD;
    if (more) {
        left.multiply_add(10, 1);
        power--;
    }
    right.multiply_add(1, mantissa);
    (power >= 0 ? left : right).multiply_power_of_five(power >= 0 ? power : -power);
    int64_t shift = power - exponent;
    (shift >= 0 ? left : right).shift_left(shift >= 0 ? shift : -shift);
    return left.compare(right);
}

// --- Rounding --------------------------------------------------------------------------------------------------------

// The bits of the nearest value of type F, ties to even. RANGE if it would be infinite.
template <class F>
static int to_binary(const Decimal& number, uint64_t* bits) {
    uint64_t sign = number.negative ? F::SIGN : 0;
    *bits = sign;
    if (number.word == 0 || number.exponent < MIN_POWER)
        return OK;
    if (number.exponent > 308)
        return RANGE;
    int power = int(number.exponent);
    Power five = power_of_five(power);
    int zeros = __builtin_clzll(number.word);
    uint64_t word = number.word << zeros;
    uint128 product = uint128(word) * five.high;
    // The true value lies in [product, product + width); an exact one is product, plus a `rest` in lower bits.
    uint128 width = uint128(1 + (number.truncated ? uint64_t(1) << zeros : 0)) << 64;
    bool exact = power >= 0 && five.low == 0 && !number.truncated;
    bool rest = false;
    for (bool first = true;; first = false) {
        int up = int(product >> 127) ^ 1;
        int biased = floor_log2_pow10(power) + 64 - zeros - up + F::BIAS;
        int drop = 127 - F::MANTISSA;  // bits of the normalised product under the last one kept
        int narrow = 0;                // bits that the product gives up, so that `drop` stays under 127
        uint64_t base = uint64_t(biased - 1) << F::MANTISSA;
        if (biased >= F::MAX_BIASED)
            return RANGE;
        if (biased < 1) {  // subnormal
            base = 0;
            drop += 1 - biased;
            if (drop > 126) {
                narrow = drop - 126;
                drop = 126;
                if (narrow > 4)
                    return OK;  // less than half of the least subnormal
            }
        }
        uint128 half = uint128(1) << (drop - 1);
        uint128 value = (product << up) >> narrow;
        uint128 below = value & ((half << 1) - 1);
        uint64_t mantissa = uint64_t(value >> drop);
        if (exact && narrow == 0) {
            mantissa += below > half || (below == half && (rest || (mantissa & 1)));
        } else if (below > half) {
            mantissa++;
        } else if (below + (width << up) + 1 > half) {  // undecided; + 1: what was narrowed away
            if (first && !number.truncated) {
                uint128 second = uint128(word) * five.low;
                product += uint64_t(second >> 64);
                width = 2;
                exact = power >= 0 && power <= LAST_EXACT_POWER;
                rest = uint64_t(second) != 0;
                continue;
            }
            int order = compare_exactly(number, 2 * mantissa + 1, biased - F::BIAS - 127 + narrow + drop - 1);
            mantissa += order > 0 || (order == 0 && (mantissa & 1));
        }
        uint64_t result = base + mantissa;
        if (result >= F::INFINITE)
            return RANGE;
        *bits = sign | result;
        return OK;
    }
}

// --- Single elements: the fallback of the loop over a tensor ---------------------------------------------------------

static inline bool starts_with(const char* at, const char* end, const char* literal, int size) {
    return end - at >= size && memcmp(at, literal, size_t(size)) == 0;
}

// Reads one element of a floating-point tensor; NaN and the infinities are allowed here.
template <class F>
static const char* parse_binary(const char* at, const char* end, typename F::Bits* out, int* error,
                                const char** error_at) {
    Decimal number;
    uint64_t bits = 0;
    *error = SYNTAX;
    const char* after = scan_number(at, end, &number, error_at);
    if (after != nullptr) {
        *error = to_binary<F>(number, &bits);
        *error_at = at;
    } else if (starts_with(at, end, "NaN", 3)) {
        bits = F::QUIET_NAN, after = at + 3, *error = OK;
    } else if (starts_with(at, end, "Infinity", 8)) {
        bits = F::INFINITE, after = at + 8, *error = OK;
    } else if (starts_with(at, end, "-Infinity", 9)) {
        bits = F::INFINITE | F::SIGN, after = at + 9, *error = OK;
    }
    *out = typename F::Bits(bits);
    return *error == OK ? after : nullptr;
}

// Reads an integer of at most eight digits, as most dimensions and sizes are. Null for any other text.
static inline const char* parse_few_digits(const char* at, const char* end, uint64_t* value) {
    const char* first = at;
    const char* stop = end - at > 8 ? at + 8 : end;
    *value = 0;
    while (at < stop && *at >= '0' && *at <= '9')
        *value = 10 * *value + uint64_t(*at++ - '0');
    if (at == first || at == end || (*first == '0' && at - first > 1))
        return nullptr;
    const bool goes_on = (*at >= '0' && *at <= '9') || *at == '.' || *at == 'e' || *at == 'E';
    return goes_on ? nullptr : at;
}

// Reads one element of an integer tensor. T is its C type.
template <class T>
static const char* parse_integer(const char* at, const char* end, T* out, int* error, const char** error_at) {
    constexpr bool SIGNED = T(-1) < T(0);
    constexpr uint64_t MAX = SIGNED ? (uint64_t(1) << (8 * sizeof(T) - 1)) - 1 : uint64_t(T(-1));
    uint64_t value;
    const char* after = parse_few_digits(at, end, &value);
    if (after != nullptr && value <= MAX) {
        *out = T(value);
        *error = OK;
        return after;
    }
    Decimal number;
    *error = SYNTAX;
    after = scan_number(at, end, &number, error_at);
    if (after == nullptr)
        return nullptr;
    *error_at = at;
    if (!number.integer) {
        *error = NOT_INTEGER;
        return nullptr;
    }
    *error = RANGE;
    value = number.word;
    if (number.truncated) {  // 20 digits may still fit 64 bits
        uint64_t last = uint64_t(number.digits_end[-1] - '0');
        if (number.exponent != 1 || __builtin_mul_overflow(value, uint64_t(10), &value) ||
            __builtin_add_overflow(value, last, &value))
            return nullptr;
    }
    if (value > (number.negative ? (SIGNED ? MAX + 1 : 0) : MAX))
        return nullptr;
    *out = T(number.negative ? 0 - value : value);
    *error = OK;
    return after;
}

}  // namespace fastinfer::number
