// Reads a span of numbers as number/span.h does, on CPUs with AVX2.
//
// First number/simd/find.h finds the numbers of a piece of text and checks their grammar, across the ends of rows. Then
// they are read: short integers four at a time, any other number of up to 31 digits at once, without a branch on its
// length or form. Other text is left to number/span.h, which also detects all errors.
#pragma once

#include "fastinfer/number/span.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTINFER_WIDE 1
#include "fastinfer/number/simd/intrinsics.h"
#if !defined(FASTINFER_EMULATED)
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,lzcnt,popcnt")
#endif
#include "fastinfer/number/simd/find.h"

namespace fastinfer::number {

// --- Numbers ---------------------------------------------------------------------------------------------------------

constexpr int LOADED = 33;  // bytes before the end of a number that are loaded with it

// A mask of the last `n` of 32 bytes.
static inline __m256i last_of_32(int64_t n) {
    alignas(64) static const uint8_t STEP[64] = {
        0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
        0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(STEP + n));
}

static inline __m256i two_of_16(const void* first, const void* second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(first))),
                                   _mm_loadu_si128(static_cast<const __m128i*>(second)), 1);
}

static inline __m256i load_32(const char* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

// The values of two times 16 digits (not characters), the first of each in the lowest byte.
static inline __m256i values_of_16(__m256i digits) {
    const __m256i pairs = _mm256_maddubs_epi16(digits, _mm256_set1_epi16(10 | 1 << 8));
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(100 | 1 << 16));
    const __m256i eights = _mm256_madd_epi16(_mm256_packus_epi32(fours, fours), _mm256_set1_epi32(10000 | 1 << 16));
    return _mm256_add_epi64(_mm256_mul_epu32(eights, _mm256_set1_epi64x(100000000)), _mm256_srli_epi64(eights, 32));
}

static inline uint64_t first_half(__m256i values) {
    return uint64_t(_mm_cvtsi128_si64(_mm256_castsi256_si128(values)));
}

static inline uint64_t second_half(__m256i values) {
    return uint64_t(_mm_cvtsi128_si64(_mm256_extracti128_si256(values, 1)));
}

// The value of 32 digits. False if it may be past 64 bits.
static inline bool value_of_32(__m256i digits, uint64_t* value) {
    const __m256i halves = values_of_16(digits);
    const uint64_t high = first_half(halves);
    *value = high * 10000000000000000u + second_half(halves);
    return high < 1844;  // 1844 * 10^16 < 2^64
}

// The last `count` of 32 characters, as digits; the others are 0.
static inline __m256i digits_of(__m256i text, int64_t count) {
    return _mm256_and_si256(_mm256_sub_epi8(text, _mm256_set1_epi8('0')), last_of_32(count));
}

// Reads number `i` of a piece up to `end`, the end of its fraction: word / 10^places. False if it is too long.
static inline bool read_plain_32(const char* piece, const Found& found, int64_t i, int64_t end, uint64_t* word,
                                 int64_t* places) {
    const int64_t fraction = end - found.points[i];  // with its dot
    const int64_t dotted = fraction != 0;
    const int64_t count = end - found.digits[i] - dotted;
    if (__builtin_expect(count > 31, 0))
        return false;
    *places = fraction - dotted;
    // The text one byte later has the digits before the dot at their places.
    const __m256i behind = load_32(piece + end - 32);
    const __m256i before = load_32(piece + end - 32 - dotted);
    const __m256i both = _mm256_xor_si256(behind, before);
    const __m256i joined = _mm256_xor_si256(before, _mm256_and_si256(both, last_of_32(*places)));
    return value_of_32(digits_of(joined, count), word);
}

// The exponent of number `i` of a piece; 0 if it has none. False if it has more than two digits. No branch depends on
// whether there is one: among small values of one tensor that is unpredictable.
static inline bool read_power(const char* piece, const Found& found, int64_t i, int64_t* power) {
    const int64_t size = found.ends[i] - found.mantissas[i];
    const uint64_t text = load64(piece + found.ends[i] - 8);
    const uint64_t behind_mark = text >> ((72 - 8 * size) & 63) & 0xFF;
    const int64_t below = behind_mark == '-';
    const int64_t sign = below | (behind_mark == '+');
    const int64_t last = int64_t(text >> 56) - '0', before = int64_t(text >> 48 & 0xFF) - '0';
    const int64_t value = last + (10 * before & -int64_t(uint64_t(before) < 10));
    *power = ((value ^ -below) + below) & -int64_t(size != 0);
    return size <= 3 + sign;
}

template <class Element>
struct WideElement;

template <class F>
struct WideElement<BinaryElement<F>> {
    static constexpr bool POINTS = true;
    using Value = typename F::Bits;

    template <bool EXPONENTS>
    static inline bool read(const char* piece, const Found& found, int64_t i, Value* out) {
        uint64_t word;
        int64_t places;
        int64_t power = 0;
        if (!read_plain_32(piece, found, i, EXPONENTS ? found.mantissas[i] : found.ends[i], &word, &places))
            return false;
        if (EXPONENTS && !read_power(piece, found, i, &power))
            return false;
        const bool negative = piece[found.digits[i] - 1] == '-';
        places -= power;
        if constexpr (F::MANTISSA < 52)
            return (!EXPONENTS || has_near_power(-places)) && round_near<F>(word, -places, negative, out);
        // Few digits are common, and a division is exact for them. Doubles as they are usually written have 15 or more.
        if (!EXPONENTS && (word >> 32) == 0 && places <= MOST_NEAR)
            return round_plain<F>(word, int(places), negative, out);
        return round_product<F>(word, -int(places), negative, out);
    }
};

template <class F>
struct WideElement<NullableElement<F>> : WideElement<BinaryElement<F>> {};

template <class T>
struct WideElement<IntegerElement<T>> {
    static constexpr bool POINTS = false;
    static constexpr bool SIGNED = T(-1) < T(0);
    using Value = T;

    template <bool EXPONENTS>
    static inline bool read(const char* piece, const Found& found, int64_t i, Value* out) {
        const int64_t count = found.ends[i] - found.digits[i];
        uint64_t word;
        return count < 32 && value_of_32(digits_of(load_32(piece + found.ends[i] - 32), count), &word) &&
               put(word, piece[found.digits[i] - 1] == '-', out);
    }

    static inline bool put(uint64_t word, bool negative, Value* out) {
        constexpr uint64_t MAX = SIGNED ? (uint64_t(1) << (8 * sizeof(T) - 1)) - 1 : uint64_t(T(-1));
        *out = T((word ^ (0 - uint64_t(negative))) + negative);
        return word <= (SIGNED ? MAX + negative : negative ? 0 : MAX);
    }

    // Two numbers of up to 16 digits. False, too, if one is out of range.
    static inline bool read_two(const char* piece, const Found& found, int64_t i, Value* out) {
        const int64_t first_count = found.ends[i] - found.digits[i];
        const int64_t second_count = found.ends[i + 1] - found.digits[i + 1];
        if ((first_count > 16) | (second_count > 16))
            return false;
        const __m256i text = two_of_16(piece + found.ends[i] - 16, piece + found.ends[i + 1] - 16);
        const __m256i window = two_of_16(LAST_BYTES + first_count, LAST_BYTES + second_count);
        const __m256i values = values_of_16(_mm256_and_si256(_mm256_sub_epi8(text, _mm256_set1_epi8('0')), window));
        return put(first_half(values), piece[found.digits[i] - 1] == '-', out) &
               put(second_half(values), piece[found.digits[i + 1] - 1] == '-', out + 1);
    }

    // Four numbers of up to 7 digits. False, too, if one is out of range.
    static inline bool read_four(const char* piece, const Found& found, int64_t i, Value* out) {
        const __m128i counts = _mm_sub_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(found.ends + i)),
                                             _mm_loadl_epi64(reinterpret_cast<const __m128i*>(found.digits + i)));
        // First, because numbers of one tensor are often all long.
        if (_mm_movemask_epi8(_mm_cmpgt_epi16(counts, _mm_set1_epi16(7))) != 0)
            return false;
        const auto eight_before = [&](int k) { return int64_t(load64(piece + found.ends[i + k] - 8)); };
        const __m256i text = _mm256_set_epi64x(eight_before(3), eight_before(2), eight_before(1), eight_before(0));
        // A number's digits are the highest of its eight bytes.
        const __m256i ones = _mm256_set1_epi8(-1);
        const __m256i bits = _mm256_slli_epi64(_mm256_cvtepu16_epi64(counts), 3);
        const __m256i window = _mm256_sllv_epi64(ones, _mm256_sub_epi64(_mm256_set1_epi64x(64), bits));
        const __m256i digits = _mm256_and_si256(_mm256_sub_epi8(text, _mm256_set1_epi8('0')), window);
        __m256i faults = _mm256_setzero_si256();
        const __m256i pairs = _mm256_maddubs_epi16(digits, _mm256_set1_epi16(10 | 1 << 8));
        const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(100 | 1 << 16));
        __m256i values =
            _mm256_add_epi64(_mm256_mul_epu32(fours, _mm256_set1_epi64x(10000)), _mm256_srli_epi64(fours, 32));
        const __m256i before = _mm256_andnot_si256(window, _mm256_srli_epi64(window, 8));
        const __m256i minus = _mm256_and_si256(before, _mm256_cmpeq_epi8(text, _mm256_set1_epi8('-')));
        if constexpr (SIGNED) {
            const __m256i positive = _mm256_cmpeq_epi64(minus, _mm256_setzero_si256());
            values = _mm256_sub_epi64(positive, _mm256_xor_si256(values, positive));
        } else {
            faults = _mm256_or_si256(faults, minus);
        }
        if constexpr (sizeof(T) <= 2) {
            constexpr int64_t BEYOND = -(int64_t(1) << (8 * (sizeof(T) % 8)));
            const __m256i moved = _mm256_add_epi64(values, _mm256_set1_epi64x(SIGNED ? -BEYOND / 2 : 0));
            faults = _mm256_or_si256(faults, _mm256_and_si256(moved, _mm256_set1_epi64x(BEYOND)));
        }
        if (!_mm256_testz_si256(faults, faults))
            return false;
        store(values, out);
        return true;
    }

    // The low bytes of four 64-bit values.
    static inline void store(__m256i values, Value* out) {
        if constexpr (sizeof(T) == 8) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), values);
            return;
        }
        __m128i narrow =
            _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(values, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6)));
        if constexpr (sizeof(T) == 2)
            narrow = _mm_shuffle_epi8(narrow, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
        if constexpr (sizeof(T) == 1)
            narrow = _mm_shuffle_epi8(narrow, _mm_cvtsi32_si128(0x0C080400));
        memcpy(out, &narrow, 4 * sizeof(T));
    }
};


// --- Rows ------------------------------------------------------------------------------------------------------------

// The state between one row of an array and the next.
struct WideReader {
    const Vectors* vectors;
    const char* piece;    // the text that `found` is about
    int taken;            // numbers of it that rows have taken
    int ready;            // numbers of it that are in memory: all, up to one that is out of range or has no room
    int bracket;          // brackets of it that rows have taken
    const char* odd_end;  // up to here, number/span.h reads ...
    int64_t odd_count;    // ... this many numbers at a time
    Found found;
};

static inline void open_wide(WideReader* reader, const Vectors* vectors, const char* begin) {
    reader->vectors = vectors;
    reader->taken = reader->ready = 0;
    reader->odd_end = begin;
}

// Reads the first `count` numbers of a piece into `memory`. Returns how many: fewer if one is out of range.
template <class Element, bool EXPONENTS>
static int read_numbers(const char* piece, const Found& found, int count, char* memory) {
    using Wide = WideElement<Element>;
    constexpr int64_t SIZE = sizeof(typename Element::Value);
    int i = 0;
    while (i < count) {
        typename Element::Value values[4];
        if constexpr (!Wide::POINTS) {
            if (count - i >= 4 && Wide::read_four(piece, found, i, values)) {
                memcpy(memory + i * SIZE, values, sizeof(values));
                i += 4;
                continue;
            }
        }
        const int stop = count - i < 4 ? count : i + 4;
        for (; i < stop; i++) {
            if constexpr (!Wide::POINTS) {
                if (stop - i >= 2 && Wide::read_two(piece, found, i, values)) {
                    // One by one: a load of both would wait for their stores.
                    memcpy(memory + i * SIZE, values, SIZE);
                    i++;
                    memcpy(memory + i * SIZE, values + 1, SIZE);
                    continue;
                }
            }
            if (__builtin_expect(!Wide::template read<EXPONENTS>(piece, found, i, values), 0)) {
                const char* const first = piece + found.digits[i];
                int error;
                const char* fault;
                if (Element::parse(first - (first[-1] == '-'), piece + found.ends[i], values, &error, &fault) ==
                    nullptr)
                    return i;
            }
            memcpy(memory + i * SIZE, values, SIZE);
        }
    }
    return count;
}

// Reads the numbers of the piece at `at` into `memory`, `room` of them at most.
template <class Element>
static void read_piece(WideReader* reader, const char* begin, const char* at, const char* end, char* memory,
                       int64_t room) {
    constexpr bool POINTS = WideElement<Element>::POINTS;
    Found& found = reader->found;
    // No more text than this many numbers are likely to take, because the text after them may be long.
    const int64_t likely = room < PIECE / 32 ? 64 + 32 * room : PIECE;
    const int64_t size = end - at < likely ? end - at : likely;
    find_numbers<POINTS>(reader->vectors, begin, at, int(size < PIECE ? size : PIECE), &found);
    reader->piece = at;
    reader->taken = reader->ready = reader->bracket = 0;
    if (!found.sound || !found.plain) {
        reader->odd_end = at + found.next;
        reader->odd_count = !found.sound ? INT64_MAX : found.count > 0 ? found.count : 1;
        return;
    }
    const int count = room < found.count ? int(room) : found.count;
    reader->ready = POINTS && found.exponents ? read_numbers<Element, POINTS>(at, found, count, memory)
                                              : read_numbers<Element, false>(at, found, count, memory);
}

// parse_span of number/span.h. Numbers are read ahead, into later rows; there is room for `room` of all rows together.
// Nothing before `begin` is read.
template <class Element>
static NumberSpan parse_span_wide(WideReader* reader, const char* begin, const char* at, const char* end, char* memory,
                                  int64_t limit, int64_t room) {
    constexpr int64_t SIZE = sizeof(typename Element::Value);
    const Found& found = reader->found;
    const auto start_of = [&](int i) {
        const char* const digits = reader->piece + found.digits[i];
        return digits - (digits[-1] == '-');
    };
    NumberSpan span = {at, 0, OK};
    for (;;) {
        const bool known = reader->taken < reader->ready && span.at == start_of(reader->taken);
        if (!known) {
            reader->taken = reader->ready = 0;
            if (span.at - begin >= LOADED && span.at >= reader->odd_end)
                read_piece<Element>(reader, begin, span.at, end, memory + span.count * SIZE, room - span.count);
        }
        if (reader->ready == 0) {
            // An element has at least two bytes, with its comma.
            int64_t many = span.at - begin < LOADED ? LOADED : span.at < reader->odd_end ? reader->odd_count : 1;
            if (many > limit - span.count)
                many = limit - span.count;
            const NumberSpan part = parse_span<Element>(span.at, end, memory + span.count * SIZE, many);
            span = {part.at, span.count + part.count, part.error};
            if (part.error != TOO_MANY || span.count == limit)
                return span;
            continue;
        }
        int last = reader->ready;
        bool closed = false;
        if (reader->bracket < found.bracket_count) {
            const int bracket = found.brackets[reader->bracket];
            last = reader->taken;
            while (last < reader->ready && found.ends[last] <= bracket)
                last++;
            closed = last == found.count || found.digits[last] > bracket;
            span.at = reader->piece + bracket;
        }
        const int64_t count = last - reader->taken;
        if (count > limit - span.count)
            return {start_of(reader->taken + int(limit - span.count)), limit, TOO_MANY};
        reader->taken = last;
        reader->bracket += closed;
        span = {span.at, span.count + count, OK};
        if (closed)
            return span;
        span.at = last < found.count ? start_of(last) : reader->piece + found.next;
    }
}

// Takes whole rows of `size` numbers, at most `limit` of them, after a row whose closing bracket is right before `*at`:
// those that are in memory already, up to one that is written in another way than `],[1,2` or `], [1, 2`. Returns how
// many; `*at` is then after the last one's closing bracket.
static inline int64_t take_rows_wide(WideReader* reader, const char** at, int64_t size, int64_t limit) {
    const Found& found = reader->found;
    const char* const piece = reader->piece;
    int next = reader->taken, bracket = reader->bracket;
    if (size == 0 || reader->ready - next < size || bracket == 0 || piece + found.brackets[bracket - 1] + 1 != *at)
        return 0;
    const auto start_of = [&](int i) { return found.digits[i] - (piece[found.digits[i] - 1] == '-'); };
    int closing = found.brackets[bracket - 1];
    const int gap = start_of(next) - closing;
    if (gap != 3 && gap != 4)
        return 0;
    const uint32_t between = gap == 3 ? load32("],[") : load32("], [");
    const uint32_t significant = gap == 3 ? 0xFFFFFF : 0xFFFFFFFF;
    int64_t rows = 0;
    for (; rows < limit && reader->ready - next >= size && bracket < found.bracket_count; rows++) {
        // The next bracket after a number follows the last of the row: the numbers before it have commas.
        const int end = found.brackets[bracket];
        if (start_of(next) != closing + gap || (load32(piece + closing) & significant) != between ||
            found.ends[next + size - 1] != end || piece[end] != ']')
            break;
        closing = end;
        next += int(size);
        bracket++;
    }
    reader->taken = next;
    reader->bracket = bracket;
    *at = piece + closing + 1;
    return rows;
}

}  // namespace fastinfer::number

#if !defined(FASTINFER_EMULATED)
#pragma GCC pop_options
#endif
#endif
