// A native thread lets the event loop through.
//
// Where both share a core, the kernel lets a thread that computes go on for its whole slice, about 3 ms, whatever the
// loop has to do. Between pieces of its work the thread therefore asks whether the loop has something to read, and only
// then offers the core: to offer it always would hand it to every other process, too.
#pragma once

#include <poll.h>
#include <sched.h>

namespace fastinfer {

// `loop_fd`: the file in which the loop waits (epoll), or -1 on the loop's own thread.
static inline void give_way(int loop_fd) {
    pollfd waiting = {loop_fd, POLLIN, 0};
    if (loop_fd >= 0 && poll(&waiting, 1, 0) > 0)
        sched_yield();
}

}  // namespace fastinfer
