// What a process is about to run, in shared memory that outlives it, and what became of that: the layout.
// See fastinfer/shared/crash_record.pyi for the whole.
//
// One block: the head with the table, then a slot for each process. A slot is written by its process alone, and read
// when that is dead. The table is read by all, added to by the supervisor alone, and anybody may take an entry out.

#ifndef FASTINFER_CRASH_RECORD_H
#define FASTINFER_CRASH_RECORD_H

#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace fastinfer {

enum : int {
    RUNS = 256,       // in progress that one process notes; further ones are only counted
    REQUESTS = 1024,  // of one run whose fingerprints are noted; of further ones only the number
    LOADS = 16,       // in progress that one process notes
    LABEL = 160,      // bytes of what is run, for people
    PLACES = 8192,    // of the table; an entry lies in one of WINDOW places, from the one that its key names
    WINDOW = 16,
};

// What an entry says of its key.
enum Kind : int {
    NONE = 0,
    SUSPECT = 1,       // a request that was running when a process died: it runs alone from now on
    CULPRIT = 2,       // a request that ended the process that ran it alone: it is not run
    LOAD_SUSPECT = 3,  // as SUSPECT, a load
    QUARANTINED = 4,   // as CULPRIT, a load
    WITHDRAWN = 5,     // a model that has ended processes with several requests: none of it is run
};

struct Entry {
    uint64_t key;      // 0: the place is free
    uint64_t group;    // what the key belongs to
    int64_t until_ns;  // CLOCK_MONOTONIC, which all processes share: what is older counts as free
    int32_t kind;
    int16_t strikes;  // times that a process died while this ran alone
    int16_t signal;   // that a process died by
};

struct Noted {
    uint64_t thread;  // that is at it; 0: none yet, or none any more
    uint64_t key;     // of the model or of the load
    uint64_t group;
    char label[LABEL];
};

struct NotedRun {
    Noted what;
    uint64_t ended;
    uint64_t requests;
};

struct Slot {
    uint64_t main_thread;   // the loop's
    uint64_t fault_thread;  // on which a signal of a crash came; 0: none did
    uint64_t unnoted;       // runs in progress for which there was no place
    uint64_t refused;       // requests that were not run because they are culprits; it is never reset
    Noted loads[LOADS];
    NotedRun runs[RUNS];
    uint64_t fingerprints[RUNS][REQUESTS];  // of the runs; pages that are not reached take no memory
};

struct Head {
    uint64_t layout;  // the size of everything above, so that different builds do not meet by mistake
    uint64_t slots;
    uint64_t seed;  // of fingerprints and keys
    uint64_t used;   // places of the table, and ...
    uint64_t dying;  // ... slots in which a crash has come and of which nobody has made entries yet: while there are
                     // none of either, nobody needs to look
    Entry table[PLACES];
};

static const uint64_t LAYOUT = sizeof(Head) ^ (sizeof(Slot) << 32);

template <typename T> static inline T seen(const T& cell) { return __atomic_load_n(&cell, __ATOMIC_ACQUIRE); }
template <typename T> static inline void show(T& cell, T value) { __atomic_store_n(&cell, value, __ATOMIC_RELEASE); }

static inline size_t record_nbytes(size_t slots) { return sizeof(Head) + slots * sizeof(Slot); }

static inline Slot* slot_of(Head* head, size_t slot) { return reinterpret_cast<Slot*>(head + 1) + slot; }

static inline uint64_t* fingerprints_of(Slot* slot, const NotedRun* run) {
    return slot->fingerprints[run - slot->runs];
}

static inline bool is_armed(const Head* head) {
    return (__atomic_load_n(&head->used, __ATOMIC_RELAXED) | __atomic_load_n(&head->dying, __ATOMIC_RELAXED)) != 0;
}

// --- The table --------------------------------------------------------------------------------------------------------

static inline Entry* entry_of(Head* head, uint64_t key, int64_t now_ns) {
    for (uint64_t i = 0; i < WINDOW; i++) {
        Entry* entry = &head->table[(key + i) % PLACES];
        if (seen(entry->key) == key) return entry->until_ns > now_ns ? entry : nullptr;
    }
    return nullptr;
}

static inline bool take_out(Head* head, Entry* entry, uint64_t key) {
    bool taken = __atomic_compare_exchange_n(&entry->key, &key, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    if (taken) __atomic_fetch_sub(&head->used, 1, __ATOMIC_RELAXED);
    return taken;
}

// Whether `a` is missed less than `b`: what is over, then suspects, then what would be over sooner.
static inline bool is_lesser(const Entry& a, const Entry& b, int64_t now_ns) {
    bool a_over = a.until_ns <= now_ns, b_over = b.until_ns <= now_ns;
    if (a_over != b_over) return a_over;
    bool a_suspect = a.kind == SUSPECT, b_suspect = b.kind == SUSPECT;
    if (a_suspect != b_suspect) return a_suspect;
    return a.until_ns < b.until_ns;
}

// The supervisor alone. A full window loses its least entry.
static inline void put_entry(Head* head, const Entry& made, int64_t now_ns) {
    Entry* place = nullptr;
    for (uint64_t i = 0; i < WINDOW; i++) {
        Entry* entry = &head->table[(made.key + i) % PLACES];
        uint64_t key = seen(entry->key);
        if (key == made.key) {
            place = entry;
            break;
        }
        if (place != nullptr && seen(place->key) == 0) continue;
        if (key == 0 || place == nullptr || is_lesser(*entry, *place, now_ns)) place = entry;
    }
    uint64_t before = seen(place->key);
    if (before != 0) take_out(head, place, before);  // nobody sees a half of it
    place->group = made.group;
    place->until_ns = made.until_ns;
    place->kind = made.kind;
    place->strikes = made.strikes;
    place->signal = made.signal;
    __atomic_fetch_add(&head->used, 1, __ATOMIC_RELAXED);
    show(place->key, made.key);
}

// --- Noting -----------------------------------------------------------------------------------------------------------

static inline uint64_t this_thread() { return reinterpret_cast<uint64_t>(pthread_self()); }

// On the thread that does it. Null: there was no place.
static inline void begins(Noted* noted) {
    if (noted != nullptr) show(noted->thread, this_thread());
}

static inline void run_begins(NotedRun* run) {
    if (run != nullptr) begins(&run->what);
}

static inline void run_ends(NotedRun* run) {
    if (run == nullptr) return;
    run->ended = 1;
    show(run->what.thread, uint64_t{0});
}

// --- Dying ------------------------------------------------------------------------------------------------------------

// In a signal handler. The process's connections are closed after it, so a client that asks again is met by this note.
static inline void note_fault_on(Head* head, Slot* slot, uint64_t thread) {
    uint64_t nobody = 0;  // of several faults the first one counts
    if (__atomic_compare_exchange_n(&slot->fault_thread, &nobody, thread, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        __atomic_fetch_add(&head->dying, 1, __ATOMIC_RELEASE);
}

// What a request is, of whose run a process is just dying.
static inline Kind kind_in_dying(Head* head, uint64_t key) {
    for (uint64_t i = 0; i < head->slots; i++) {
        Slot* slot = slot_of(head, i);
        uint64_t thread = seen(slot->fault_thread);
        if (thread == 0) continue;
        for (NotedRun& run : slot->runs) {
            if (seen(run.what.thread) != thread) continue;
            uint64_t count = run.requests < REQUESTS ? run.requests : uint64_t{REQUESTS};
            for (uint64_t j = 0; j < count; j++)
                if (fingerprints_of(slot, &run)[j] == key) return run.requests == 1 ? CULPRIT : SUSPECT;
        }
    }
    return NONE;
}

// What is known of a request or of a model.
static inline int kind_of(Head* head, uint64_t key, int64_t now_ns) {
    const Entry* entry = entry_of(head, key, now_ns);
    if (entry != nullptr) return entry->kind;
    return seen(head->dying) == 0 ? NONE : kind_in_dying(head, key);
}

// The supervisor alone, for a slot whose process is dead and whose deeds are in the table.
static inline void reset_slot(Head* head, Slot* slot) {
    for (Noted& load : slot->loads) load = Noted{};
    for (NotedRun& run : slot->runs) run = NotedRun{};
    slot->main_thread = slot->unnoted = 0;
    if (slot->fault_thread == 0) return;
    show(slot->fault_thread, uint64_t{0});
    __atomic_fetch_sub(&head->dying, 1, __ATOMIC_RELAXED);
}

}  // namespace fastinfer

#endif
