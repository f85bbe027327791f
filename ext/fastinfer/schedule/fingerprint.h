// A 64-bit hash of memory, for content that clients choose: multiply and fold, as wyhash does, with a secret seed.
// Bounded work: of large memory, the hash takes the length, both ends and samples at even distances.

#ifndef FASTINFER_FINGERPRINT_H
#define FASTINFER_FINGERPRINT_H

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastinfer {

enum : size_t {
    WHOLE = 64 << 10,  // up to here every byte counts
    END = 8 << 10,     // of larger memory: this many bytes at both ends ...
    SAMPLES = 48,      // ... and this many samples between them ...
    SAMPLE = 1 << 10,  // ... of this size
};

// Odd, and half of the bits set: wyhash's constants.
static const uint64_t SALT_0 = 0xa0761d6478bd642fULL, SALT_1 = 0xe7037ed1a0b428dbULL;

// Both halves of the product, folded: each bit of the result depends on all bits of both factors.
static inline uint64_t mixed(uint64_t a, uint64_t b) {
    unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

static inline uint64_t word_at(const char* at) {
    uint64_t word;
    memcpy(&word, at, sizeof(word));
    return word;
}

static inline uint64_t hash_number(uint64_t seed, uint64_t number) { return mixed(seed ^ SALT_0, number ^ SALT_1); }

static inline uint64_t hash_bytes(uint64_t seed, const char* at, size_t size) {
    // A client that knows a factor's salt could make it 0, which cancels all bytes before; so both depend on the seed.
    const uint64_t salt_0 = seed ^ SALT_0, salt_1 = seed ^ SALT_1;
    uint64_t first = seed, second = seed;  // two chains, so that one multiplication need not wait for the other
    size_t left = size;
    char rest[32] = {};
    for (; left >= 32; at += 32, left -= 32) {
        first = mixed(word_at(at) ^ salt_0, word_at(at + 8) ^ first);
        second = mixed(word_at(at + 16) ^ salt_1, word_at(at + 24) ^ second);
    }
    if (left > 0) {
        memcpy(rest, at, left);
        first = mixed(word_at(rest) ^ salt_0, word_at(rest + 8) ^ first);
        second = mixed(word_at(rest + 16) ^ salt_1, word_at(rest + 24) ^ second);
    }
    // The size distinguishes zeros at the end from the padding.
    return hash_number(mixed(first ^ SALT_1, second ^ SALT_0), size);
}

static inline uint64_t fingerprint(uint64_t seed, const char* at, size_t size) {
    if (size <= WHOLE)
        return hash_bytes(seed, at, size);
    const size_t between = (size - 2 * END - SAMPLE) / (SAMPLES - 1);
    seed = hash_bytes(hash_number(seed, size), at, END);
    for (size_t i = 0; i < SAMPLES; i++)
        seed = hash_bytes(seed, at + END + i * between, SAMPLE);
    return hash_bytes(seed, at + size - END, END);
}

}  // namespace fastinfer

#endif
