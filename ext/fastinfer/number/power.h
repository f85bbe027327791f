// The powers of ten, and the four binary floating-point types. Shared by the reader (number/parse.h) and the writer
// (number/format.h). Exact: the table is computed by integer arithmetic when the module is compiled.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastinfer::number {

__extension__ typedef unsigned __int128 uint128;

// A type is its width, the bits of its stored mantissa and the bits of its exponent.
template <class Bits_, int MANTISSA_, int EXPONENT_>
struct Binary {
    using Bits = Bits_;
    static constexpr int MANTISSA = MANTISSA_;
    static constexpr int EXPONENT = EXPONENT_;
    static constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
    static constexpr int MAX_BIASED = (1 << EXPONENT) - 1;  // infinity and NaN
    static constexpr uint64_t HIDDEN = uint64_t(1) << MANTISSA;
    static constexpr uint64_t SIGN = uint64_t(1) << (MANTISSA + EXPONENT);
    static constexpr uint64_t INFINITE = uint64_t(MAX_BIASED) << MANTISSA;
    static constexpr uint64_t QUIET_NAN = INFINITE | (HIDDEN >> 1);
};
using Binary16 = Binary<uint16_t, 10, 5>;
using BFloat16 = Binary<uint16_t, 7, 8>;
using Binary32 = Binary<uint32_t, 23, 8>;
using Binary64 = Binary<uint64_t, 52, 11>;

// 5^n (and so 10^n) as its first 128 bits, the highest one set; what comes after them is cut off.
struct Power {
    uint64_t high, low;
};

constexpr int MIN_POWER = -342;       // 2^64 * 10^-343 is less than half of the least FP64
constexpr int MAX_POWER = 324;        // the writer scales the least FP64 by 10^324; the reader needs 308
constexpr int LAST_EXACT_POWER = 55;  // 5^0 .. 5^55 have at most 128 bits

struct PowerTable {
    Power entries[MAX_POWER - MIN_POWER + 1];
};

constexpr int POWER_LIMBS = 15;  // 2^959 / 5^342 still has 165 bits; 5^324 has 753

constexpr Power leading_bits(const uint64_t (&limbs)[POWER_LIMBS]) {
    int top = POWER_LIMBS - 1;
    while (limbs[top] == 0)
        top--;
    int shift = __builtin_clzll(limbs[top]);
    uint64_t next = top > 0 ? limbs[top - 1] : 0;
    uint64_t last = top > 1 ? limbs[top - 2] : 0;
    if (shift == 0)
        return {limbs[top], next};
    return {limbs[top] << shift | next >> (64 - shift), next << shift | last >> (64 - shift)};
}

constexpr PowerTable make_powers() {
    PowerTable table{};
    uint64_t limbs[POWER_LIMBS] = {1};
    for (int n = 0; n <= MAX_POWER; n++) {
        table.entries[n - MIN_POWER] = leading_bits(limbs);
        uint64_t carry = 0;
        for (int i = 0; i < POWER_LIMBS; i++) {
            uint128 product = uint128(limbs[i]) * 5 + carry;
            limbs[i] = uint64_t(product);
            carry = uint64_t(product >> 64);
        }
    }
    for (int i = 0; i < POWER_LIMBS; i++)
        limbs[i] = 0;
    limbs[POWER_LIMBS - 1] = uint64_t(1) << 63;
    for (int n = -1; n >= MIN_POWER; n--) {  // floor(floor(x / 5) / 5) == floor(x / 25): nothing is lost on the way
        uint64_t rest = 0;
        for (int i = POWER_LIMBS - 1; i >= 0; i--) {
            uint128 dividend = uint128(rest) << 64 | limbs[i];
            limbs[i] = uint64_t(dividend / 5);
            rest = uint64_t(dividend % 5);
        }
        table.entries[n - MIN_POWER] = leading_bits(limbs);
    }
    return table;
}

static constexpr PowerTable POWERS = make_powers();

constexpr Power power_of_five(int n) { return POWERS.entries[n - MIN_POWER]; }

// floor(log2(10^n)), for |n| <= 1,233
constexpr int floor_log2_pow10(int n) { return (n * 1741647) >> 19; }

// clang-format off
static constexpr uint64_t POW10[20] = {
    1ull, 10ull, 100ull, 1000ull, 10000ull, 100000ull, 1000000ull, 10000000ull, 100000000ull, 1000000000ull,
    10000000000ull, 100000000000ull, 1000000000000ull, 10000000000000ull, 100000000000000ull, 1000000000000000ull,
    10000000000000000ull, 100000000000000000ull, 1000000000000000000ull, 10000000000000000000ull};
// clang-format on

static inline uint64_t load64(const char* at) {
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

static inline uint32_t load32(const char* at) {
    uint32_t word;
    memcpy(&word, at, 4);
    return word;
}

}  // namespace fastinfer::number
