// Base64 text to bytes: RFC 4648, section 4, with padding, without line breaks or other characters in between.
//
// Superfluous bits of the last character are ignored, as in Python and most other decoders.
#pragma once

#include <array>
#include <cstdint>

namespace fastinfer::base64 {

constexpr std::array<int32_t, 256> make_values() {
    std::array<int32_t, 256> values{};
    const char* const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 256; i++)
        values[size_t(i)] = -1;
    for (int i = 0; i < 64; i++)
        values[size_t(uint8_t(alphabet[i]))] = i;
    return values;
}

// Six bits of each character of the alphabet; -1: it is none. A negative value makes any sum of shifted ones negative.
constexpr std::array<int32_t, 256> VALUES = make_values();

static inline int32_t value(char c) { return VALUES[uint8_t(c)]; }

static inline int32_t join(const char* text) {
    return value(text[0]) * (1 << 18) | value(text[1]) * (1 << 12) | value(text[2]) * (1 << 6) | value(text[3]);
}

static inline void put(int32_t bits, char* out, int count) {
    for (int i = 0; i < count; i++)
        out[i] = char(bits >> (16 - 8 * i));
}

// Decodes `size` characters, a multiple of four without padding, into three quarters as many bytes. `out` may be
// `text`, or lie before it. False if a character is not of the alphabet.
static inline bool decode(const char* text, int64_t size, char* out) {
    int32_t all = 0;
    for (int64_t i = 0; i < size; i += 4, out += 3) {
        const int32_t bits = join(text + i);
        all |= bits;
        put(bits, out, 3);
    }
    return all >= 0;
}

// Decodes the last four characters of a text. Returns the number of their bytes, or -1.
static inline int decode_last(const char* text, char* out) {
    const int count = text[3] != '=' ? 3 : text[2] != '=' ? 2 : 1;
    const char whole[4] = {text[0], text[1], count > 1 ? text[2] : 'A', count > 2 ? text[3] : 'A'};
    const int32_t bits = join(whole);
    if (bits < 0)
        return -1;
    put(bits, out, count);
    return count;
}

}  // namespace fastinfer::base64
