// The processor time of the calling thread, and how often it blocked (voluntary context switches).

#ifndef FASTINFER_THREAD_USAGE_H
#define FASTINFER_THREAD_USAGE_H

#include <sys/resource.h>

#include <cstdint>

namespace fastinfer {

// Preemption raises neither. Both stay 0 if the system does not know them.
static inline void thread_usage(int64_t* cpu_ns, int64_t* waits) {
    rusage usage = {};
    getrusage(RUSAGE_THREAD, &usage);
    const int64_t seconds = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec;
    const int64_t microseconds = usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
    *cpu_ns = (seconds * 1'000'000 + microseconds) * 1000;
    *waits = usage.ru_nvcsw;
}

}  // namespace fastinfer

#endif
