// What native threads and the loop's thread ask of the system.
//
// Native threads must not take signals: Python handles them on the main thread. A thread inherits the mask of the
// thread that starts it, so starters block first and restore after.

#ifndef FASTINFER_NATIVE_THREAD_H
#define FASTINFER_NATIVE_THREAD_H

#include <pthread.h>
#include <signal.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <initializer_list>

// Blocks everything but the signals of a crash, which would kill without a trace.
static inline void block_signals(sigset_t* before) {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

static inline void restore_signals(const sigset_t* before) { pthread_sigmask(SIG_SETMASK, before, nullptr); }

// Asks for slices of the CPU of so many nanoseconds for this thread, not for those that it starts. A thread of short
// slices waits less for a core that others use: since Linux 6.12 its wake-up cuts their longer slices short. False
// where the system does not do that.
static inline bool ask_for_short_slices(uint64_t nanoseconds) {
#if defined(__linux__) && defined(SYS_sched_setattr)
    struct {  // sched_attr; older C libraries do not declare it
        uint32_t size;
        uint32_t policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime;
        uint64_t deadline;
        uint64_t period;
    } attributes = {};
    constexpr uint64_t kResetOnFork = 1;
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return false;
    if (attributes.policy != 0) return false;  // somebody chose for us
    attributes.flags = kResetOnFork;
    attributes.runtime = nanoseconds;
    return syscall(SYS_sched_setattr, 0, &attributes, 0) == 0;
#else
    (void)nanoseconds;
    return false;
#endif
}

#endif
