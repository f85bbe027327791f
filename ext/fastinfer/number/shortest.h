// Binary -> the fewest decimal digits that read back to the same value of the same type, and of those the ones closest
// to it. No Python, no allocation.
//
// Neighbours of a value are a step apart. Take the power of ten that is at most a step: one of its multiples is always
// nearer to the value than to a neighbour, and at most one of them can drop its last digit (Giulietti's Schubfach). So
// the value is measured in tens of that power, by one multiplication: `head` is the whole tens, and a fraction is left.
// If head or head + 1 is within half a step of the value, the last digit is 0 and the number is short; else it is the
// fraction, rounded.
//
// What is compared never comes closer than 2^-62.9 to being equal (FP64; 2^-32.1 for the others) without being equal,
// which tests/unit/test_number_shortest.py computes for every exponent; so a fraction of 64 bits (39) is enough.
#pragma once

#include <type_traits>

#include "fastinfer/number/power.h"

namespace fastinfer::number {

// The value is (head * 10 + last) * 10^exponent, with head below 10^16 (FP64) or 10^8. Digits at the end can be 0.
struct Shortest {
    uint64_t head;
    unsigned last;
    int exponent;
};

template <class F>
constexpr bool WIDE = F::MANTISSA > 24;  // needs 128 bits of the power of ten, and 16 digits of head

// The power of two of the mantissa's last bit.
template <class F>
constexpr int binary_exponent(int biased) {
    return (biased != 0 ? biased : 1) - F::BIAS - F::MANTISSA;
}

// The greatest n with 10^n <= a step (3/4 of one if the neighbour below is half as far away).
constexpr int decimal_exponent(int power, bool closer_below) {
    return (power * 1262611 - (closer_below ? 524031 : 0)) >> 22;
}

// Half the distance to the neighbour below, in tens, as 0.high low: rounded up if it is not exact.
constexpr Power half_step(int power, bool closer_below) {
    int n = -1 - decimal_exponent(power, closer_below);
    int shift = closer_below - floor_log2_pow10(n) - power;  // 1 to 4
    Power ten = power_of_five(n);
    bool exact = n >= 0 && n <= LAST_EXACT_POWER && ten.low << (64 - shift) == 0;
    uint64_t low = (ten.low >> shift | ten.high << (64 - shift)) + !exact;
    return {(ten.high >> shift) + (!exact && low == 0), low};
}

// What depends on the exponent alone, by the biased exponent; the row of infinity and NaN is 0.
template <class F>
struct Steps {
    std::conditional_t<WIDE<F>, Power, uint64_t> half[F::MAX_BIASED + 1];
    int16_t exponent[F::MAX_BIASED + 1];
};

template <class F>
constexpr Steps<F> make_steps() {
    Steps<F> steps{};
    for (int biased = 0; biased < F::MAX_BIASED; biased++) {
        Power half = half_step(binary_exponent<F>(biased), false);
        if constexpr (WIDE<F>)
            steps.half[biased] = half;
        else
            steps.half[biased] = half.high + (half.low != 0);
        steps.exponent[biased] = int16_t(decimal_exponent(binary_exponent<F>(biased), false));
    }
    return steps;
}

template <class F>
static constexpr Steps<F> STEPS = make_steps<F>();

// A number with a fraction: whole + 0.fraction rest.
struct Fixed {
    uint64_t whole, fraction, rest;
};

static inline Fixed multiply(uint64_t number, Power factor) {
    uint128 low = uint128(number) * factor.low;
    uint128 high = uint128(number) * factor.high + uint64_t(low >> 64);
    return {uint64_t(high >> 64), uint64_t(high), uint64_t(low)};
}

static inline unsigned carries(uint64_t a, uint64_t b) {
    uint64_t sum;
    return __builtin_add_overflow(a, b, &sum);
}

// The fraction as one digit, rounded. Only .25 and .75 are right between two digits: they go to the even ones, 2 and 8.
static inline unsigned rounded_digit(Fixed tens) {
    constexpr uint64_t HALF = uint64_t(1) << 63, QUARTER = uint64_t(1) << 62;
    uint64_t tie = ((tens.fraction ^ QUARTER) | tens.rest) == 0;
    uint64_t carried = (tens.rest >> 3) * 5 >> 60;
    uint128 digit = uint128(tens.fraction) * 10;
    return unsigned(digit >> 64) + carries(uint64_t(digit), HALF + carried - tie);
}

// A power of two, whose neighbour below is half as far away as the one above (except for the least normal number).
template <class F>
__attribute__((noinline)) static Shortest shortest_power_of_two(int biased) {
    bool closer_below = biased > 1;
    int power = binary_exponent<F>(biased);
    Power half = half_step(power, closer_below);
    Fixed tens = multiply((2 * F::HIDDEN) << closer_below, half);
    uint64_t below = half.high + 1, above = (half.high << closer_below) + 1;
    bool short_above = carries(tens.fraction, above);
    bool short_below = tens.fraction <= below;
    unsigned last = rounded_digit(tens);
    if (uint128(tens.fraction - below) * 10 > uint128(last) << 64)
        last++;  // the nearest one is too far below
    return {tens.whole + short_above, short_above | short_below ? 0 : last, decimal_exponent(power, closer_below)};
}

// `bits` without its sign: finite. (The result for infinity and NaN has no meaning.) Written so that the compiler
// branches only for rare cases.
template <class F>
static inline Shortest shortest(uint64_t bits) {
    uint64_t stored = bits & (F::HIDDEN - 1);
    uint64_t biased = bits >> F::MANTISSA;
    uint64_t mantissa = stored | uint64_t(biased != 0) << F::MANTISSA;
    uint64_t whole, fraction, short_above, short_below;
    unsigned last;
    if constexpr (WIDE<F>) {
        Power half = STEPS<F>.half[biased];
        Fixed tens = multiply(2 * mantissa, half);
        uint64_t reach =
            half.high + 1 - (2 * mantissa & 2);  // exactly in the middle, readers round to an even mantissa
        whole = tens.whole;
        fraction = tens.fraction;
        short_above = carries(fraction, reach);
        short_below = fraction <= reach;
        last = rounded_digit(tens);
    } else {
        constexpr int POINT = 39;  // bits of the fraction
        uint64_t half = STEPS<F>.half[biased];
        uint64_t tens = uint64_t((uint128(mantissa << (POINT + 1)) * half) >> 64);
        uint64_t reach = (half >> (64 - POINT)) + 16 - (32 * mantissa & 32);
        whole = tens >> POINT;
        fraction = tens & ((uint64_t(1) << POINT) - 1);
        short_above = (fraction + reach) >> POINT;
        short_below = fraction <= reach;
        uint64_t tie = fraction == uint64_t(1) << (POINT - 2);
        last = unsigned((fraction * 10 + (uint64_t(1) << (POINT - 1)) - tie) >> POINT);
    }
    if (__builtin_expect(stored < uint64_t(fraction != 0), 0))  // that is, it is 0 and there is a fraction
        return shortest_power_of_two<F>(int(biased));
    if constexpr (F::MANTISSA < 10)
        short_above &= whole != 0;  // the least BF16 is 9.18e-41: 1e-40 is no shorter than 9e-41
    last &= unsigned((short_above | short_below) - 1);
    return {whole + short_above, last, STEPS<F>.exponent[biased]};
}

}  // namespace fastinfer::number
