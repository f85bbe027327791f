// What native threads ask of the system.
//
// Native threads must not take signals: Python handles them on the main thread. A thread inherits the mask of the
// thread that starts it, so starters block first and restore after.

#ifndef FASTINFER_NATIVE_THREAD_H
#define FASTINFER_NATIVE_THREAD_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>

#include <cerrno>
#include <initializer_list>

// Blocks everything but the signals of a crash, which would kill without a trace.
static inline void block_signals(sigset_t* before) {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

static inline void restore_signals(const sigset_t* before) { pthread_sigmask(SIG_SETMASK, before, nullptr); }

// For threads that compute: the kernel then prefers the loop's thread, whose turns are short and which many wait for.
// As a batch thread this one cuts no other short when it wakes up; its niceness lets the loop's cut it short (one image
// being decoded on the loop's core: p99 of small requests 0.4 instead of 1.0 ms; either alone does little). It still
// gets what the loop leaves. Threads that it starts do the same.
static inline void stand_back() {
#ifdef __linux__
    constexpr int kNiceness = 5;    // a third of the loop's weight
    const sched_param none = {};
    errno = 0;
    const int niceness = getpriority(PRIO_PROCESS, 0);      // of this thread
    if (errno == 0) setpriority(PRIO_PROCESS, 0, niceness + kNiceness);
    if (sched_getscheduler(0) == SCHED_OTHER) sched_setscheduler(0, SCHED_BATCH, &none);    // else somebody chose for us
#endif
}

#endif
