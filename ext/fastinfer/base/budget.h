// Counts the bytes that requests hold in a process, up to a limit. No Python; any thread.
//
// Bytes are counted before their memory is allocated, so that all threads together stay within the limit.
#pragma once

#include <atomic>
#include <cstdint>

#include "fastinfer/base/debug.h"

namespace fastinfer {

class Count {
 public:
    void set_limit(int64_t limit) { limit_ = limit; }

    int64_t used() const { return used_.load(std::memory_order_relaxed); }

    // Returns false, and counts nothing, if that would exceed the limit.
    bool reserve(int64_t nbytes) {
        invariant(nbytes >= 0, "bytes are reserved");
        if (used_.fetch_add(nbytes, std::memory_order_relaxed) <= limit_ - nbytes)
            return true;
        used_.fetch_sub(nbytes, std::memory_order_relaxed);
        refused_.fetch_add(1, std::memory_order_relaxed);
        return false;
    }

    // Counts memory that is allocated already, whatever the limit.
    void add(int64_t nbytes) { used_.fetch_add(nbytes, std::memory_order_relaxed); }
    void release(int64_t nbytes) {
        const int64_t before = used_.fetch_sub(nbytes, std::memory_order_relaxed);
        invariant(nbytes >= 0 && before >= nbytes, "no more bytes are given back than are counted");
    }

    bool spent() const { return used() > limit_; }
    // The number of refused reservations.
    int64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
    std::atomic<int64_t> used_{0};
    std::atomic<int64_t> refused_{0};
    int64_t limit_ = INT64_MAX;
};

}  // namespace fastinfer
