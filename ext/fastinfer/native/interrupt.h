// What a native job looks at between pieces of its work: whether it goes on, and whether the event loop may go first.
//
// Where both share a core, the kernel lets a thread that computes go on for its whole slice, about 3 ms, whatever the
// loop has to do. Between pieces a job therefore asks whether the loop has something to read, and only then offers the
// core: to offer it always would hand it to every other process, too.
#pragma once

#include <poll.h>
#include <sched.h>

namespace fastinfer {

struct Interrupt {
    int loop_fd;        // the file in which the loop waits (epoll); 0 or less: unknown
    int is_set;         // nobody waits for the job any more; set on the loop's thread, read on the job's
};

static inline void interrupt(Interrupt* job) { __atomic_store_n(&job->is_set, 1, __ATOMIC_RELAXED); }

static inline bool is_interrupted(const Interrupt* job) {
    return job != nullptr && __atomic_load_n(&job->is_set, __ATOMIC_RELAXED) != 0;
}

// Lets the loop through; false: end the work here. On the loop's own thread `job` is NULL.
static inline bool goes_on(const Interrupt* job) {
    if (job == nullptr)
        return true;
    pollfd waiting = {job->loop_fd, POLLIN, 0};
    if (job->loop_fd > 0 && poll(&waiting, 1, 0) > 0)
        sched_yield();
    return !is_interrupted(job);
}

}  // namespace fastinfer
