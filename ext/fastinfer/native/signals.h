// Native threads must not take signals: Python handles them on the main thread. A thread inherits the mask of the
// thread that starts it, so starters block first and restore after.

#ifndef FASTINFER_SIGNALS_H
#define FASTINFER_SIGNALS_H

#include <pthread.h>
#include <signal.h>

#include <initializer_list>

// Blocks all signals except those of a crash, which would kill the process without a trace if they were blocked.
static inline void block_signals(sigset_t* before) {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS})
        sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

static inline void restore_signals(const sigset_t* before) { pthread_sigmask(SIG_SETMASK, before, nullptr); }

#endif
