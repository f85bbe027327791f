// The checks of a native job between pieces of its work: it yields to the event loop, and stops if it is cancelled.
//
// If both share a core, the kernel lets a computing thread finish its time slice of about 3 ms even if the loop has an
// event. So between pieces a job polls the loop's epoll descriptor, and calls sched_yield only if an event waits: to
// yield always would give the core to other processes, too.
#pragma once

#include <poll.h>
#include <sched.h>

namespace fastinfer {

struct Interrupt {
    int loop_fd;  // the loop's epoll descriptor; 0 or less: unknown
    int is_set;   // the job is cancelled; set on the loop's thread, read on the job's
};

static inline void interrupt(Interrupt* job) { __atomic_store_n(&job->is_set, 1, __ATOMIC_RELAXED); }

static inline bool is_interrupted(const Interrupt* job) {
    return job != nullptr && __atomic_load_n(&job->is_set, __ATOMIC_RELAXED) != 0;
}

// Yields the core if the loop has an event. False: the job is cancelled. On the loop's own thread `job` is NULL.
static inline bool yield_to_loop(const Interrupt* job) {
    if (job == nullptr)
        return true;
    pollfd waiting = {job->loop_fd, POLLIN, 0};
    if (job->loop_fd > 0 && poll(&waiting, 1, 0) > 0)
        sched_yield();
    return !is_interrupted(job);
}

}  // namespace fastinfer
