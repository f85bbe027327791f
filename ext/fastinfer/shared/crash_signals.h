// Notes the thread that got a crash signal, then lets the signal end the process as usual.
// Included once: by crash_record.pyx.

#ifndef FASTINFER_CRASH_SIGNALS_H
#define FASTINFER_CRASH_SIGNALS_H

#include <signal.h>
#include <stdlib.h>

#include <initializer_list>

#include "fastinfer/shared/crash_record.h"

namespace fastinfer {

enum : size_t { SIGNAL_STACK = 64 << 10 };

static RecordHeader* watched_header;  // its memory is never unmapped
static RecordSlot* watched_slot;      // of this process

static inline void note_fault(int signal_number) {
    note_fault_on(watched_header, watched_slot, this_thread());
    raise(signal_number);  // the handler is gone by now, so this ends the process when the handler returns
}

static inline int watch_faults(RecordHeader* header, RecordSlot* slot) {
    struct sigaction action = {};
    stack_t stack = {};
    watched_header = header;
    watched_slot = slot;
    // The loop's thread may overflow its stack. A thread without an alternate stack is then killed without a note.
    stack.ss_size = SIGNAL_STACK;
    stack.ss_sp = malloc(stack.ss_size);
    if (stack.ss_sp == nullptr || sigaltstack(&stack, nullptr) < 0)
        return -1;
    action.sa_handler = note_fault;
    action.sa_flags = SA_RESETHAND | SA_ONSTACK;
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT})
        if (sigaction(fault, &action, nullptr) < 0)
            return -1;
    return 0;
}

}  // namespace fastinfer

#endif
