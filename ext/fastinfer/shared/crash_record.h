// The layout of the crash record: what each process is running, and the verdicts on requests and loads, in shared
// memory that outlives the processes. See fastinfer/shared/crash_record.pyi for the whole.
//
// One block: the header with the table, then a slot for each process. Only its process writes a slot; others read it
// when that process crashes. All processes read the table, only the supervisor adds entries, any process may remove
// one.

#ifndef FASTINFER_CRASH_RECORD_H
#define FASTINFER_CRASH_RECORD_H

#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace fastinfer {

enum : int {
    RUNS = 256,       // runs in progress that one process notes; further ones are only counted
    REQUESTS = 1024,  // requests of a run whose fingerprints are noted; further ones are only counted
    LOADS = 16,       // loads in progress that one process notes
    LABEL = 160,      // bytes of the displayed name of what runs
    PLACES = 8192,    // of the table; an entry is in one of WINDOW places, from its key modulo PLACES on
    WINDOW = 16,
};

// The verdict of an entry on its key.
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
    int64_t until_ns;  // CLOCK_MONOTONIC, which all processes share; an expired entry counts as free
    int32_t kind;
    int16_t strikes;  // times that a process died while this ran alone
    int16_t signal;   // the signal that killed a process
};

struct Noted {
    uint64_t thread;  // the thread that runs it; 0: not started, or ended
    uint64_t key;     // of the model or of the load
    uint64_t group;
    char label[LABEL];
};

struct NotedRun {
    Noted what;
    uint64_t ended;
    uint64_t requests;
};

struct RecordSlot {
    uint64_t main_thread;   // the loop's
    uint64_t fault_thread;  // the thread that got a crash signal; 0: none
    uint64_t unnoted;       // runs in progress for which there was no place
    uint64_t refused;       // requests that were not run because they are culprits; it is never reset
    Noted loads[LOADS];
    NotedRun runs[RUNS];
    uint64_t fingerprints[RUNS][REQUESTS];  // of the runs; untouched pages take no memory
};

struct RecordHeader {
    uint64_t layout;  // the sizes of the structs, so that builds with different ones do not share a record
    uint64_t slots;
    uint64_t seed;   // of fingerprints and keys
    uint64_t used;   // places of the table that have an entry
    uint64_t dying;  // slots with a crash that has no entries yet; while `used` and `dying` are 0, no lookup
                     // is needed
    Entry table[PLACES];
};

static const uint64_t LAYOUT = sizeof(RecordHeader) ^ (sizeof(RecordSlot) << 32);

template <typename T>
static inline T load_acquire(const T& cell) {
    return __atomic_load_n(&cell, __ATOMIC_ACQUIRE);
}
template <typename T>
static inline void store_release(T& cell, T value) {
    __atomic_store_n(&cell, value, __ATOMIC_RELEASE);
}

static inline size_t record_nbytes(size_t slots) { return sizeof(RecordHeader) + slots * sizeof(RecordSlot); }

static inline RecordSlot* slot_of(RecordHeader* header, size_t slot) {
    return reinterpret_cast<RecordSlot*>(header + 1) + slot;
}

static inline uint64_t* fingerprints_of(RecordSlot* slot, const NotedRun* run) {
    return slot->fingerprints[run - slot->runs];
}

static inline bool is_armed(const RecordHeader* header) {
    return (__atomic_load_n(&header->used, __ATOMIC_RELAXED) | __atomic_load_n(&header->dying, __ATOMIC_RELAXED)) != 0;
}

// --- The table -------------------------------------------------------------------------------------------------------

static inline Entry* entry_of(RecordHeader* header, uint64_t key, int64_t now_ns) {
    for (uint64_t i = 0; i < WINDOW; i++) {
        Entry* entry = &header->table[(key + i) % PLACES];
        if (load_acquire(entry->key) == key)
            return entry->until_ns > now_ns ? entry : nullptr;
    }
    return nullptr;
}

static inline bool remove_entry(RecordHeader* header, Entry* entry, uint64_t key) {
    bool taken = __atomic_compare_exchange_n(&entry->key, &key, 0, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    if (taken)
        __atomic_fetch_sub(&header->used, 1, __ATOMIC_RELAXED);
    return taken;
}

// Whether `a` is evicted before `b`: expired entries first, then suspects, then entries that expire sooner.
static inline bool is_evicted_before(const Entry& a, const Entry& b, int64_t now_ns) {
    bool a_over = a.until_ns <= now_ns, b_over = b.until_ns <= now_ns;
    if (a_over != b_over)
        return a_over;
    bool a_suspect = a.kind == SUSPECT, b_suspect = b.kind == SUSPECT;
    if (a_suspect != b_suspect)
        return a_suspect;
    return a.until_ns < b.until_ns;
}

// For the supervisor only. A full window evicts an entry.
static inline void put_entry(RecordHeader* header, const Entry& made, int64_t now_ns) {
    Entry* place = nullptr;
    for (uint64_t i = 0; i < WINDOW; i++) {
        Entry* entry = &header->table[(made.key + i) % PLACES];
        uint64_t key = load_acquire(entry->key);
        if (key == made.key) {
            place = entry;
            break;
        }
        if (place != nullptr && load_acquire(place->key) == 0)
            continue;
        if (key == 0 || place == nullptr || is_evicted_before(*entry, *place, now_ns))
            place = entry;
    }
    uint64_t before = load_acquire(place->key);
    if (before != 0)
        remove_entry(header, place, before);  // no reader sees a half-written entry
    place->group = made.group;
    place->until_ns = made.until_ns;
    place->kind = made.kind;
    place->strikes = made.strikes;
    place->signal = made.signal;
    __atomic_fetch_add(&header->used, 1, __ATOMIC_RELAXED);
    store_release(place->key, made.key);
}

// --- Noting ----------------------------------------------------------------------------------------------------------

static inline uint64_t this_thread() { return reinterpret_cast<uint64_t>(pthread_self()); }

// Called on the thread that does the work. NULL: there was no place for the note.
static inline void begins(Noted* noted) {
    if (noted != nullptr)
        store_release(noted->thread, this_thread());
}

static inline void run_begins(NotedRun* run) {
    if (run != nullptr)
        begins(&run->what);
}

static inline void run_ends(NotedRun* run) {
    if (run == nullptr)
        return;
    run->ended = 1;
    store_release(run->what.thread, uint64_t{0});
}

// --- Crashing --------------------------------------------------------------------------------------------------------

// Called in a signal handler. The process's connections are closed after it, so a client that retries meets this note.
static inline void note_fault_on(RecordHeader* header, RecordSlot* slot, uint64_t thread) {
    uint64_t nobody = 0;  // of several faults the first one counts
    if (__atomic_compare_exchange_n(&slot->fault_thread, &nobody, thread, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        __atomic_fetch_add(&header->dying, 1, __ATOMIC_RELEASE);
}

// The verdict on a request whose run is crashing a process at this moment.
static inline Kind kind_in_crashing(RecordHeader* header, uint64_t key) {
    for (uint64_t i = 0; i < header->slots; i++) {
        RecordSlot* slot = slot_of(header, i);
        uint64_t thread = load_acquire(slot->fault_thread);
        if (thread == 0)
            continue;
        for (NotedRun& run : slot->runs) {
            if (load_acquire(run.what.thread) != thread)
                continue;
            uint64_t count = run.requests < REQUESTS ? run.requests : uint64_t{REQUESTS};
            for (uint64_t j = 0; j < count; j++)
                if (fingerprints_of(slot, &run)[j] == key)
                    return run.requests == 1 ? CULPRIT : SUSPECT;
        }
    }
    return NONE;
}

// The verdict on a request or a model.
static inline int kind_of(RecordHeader* header, uint64_t key, int64_t now_ns) {
    const Entry* entry = entry_of(header, key, now_ns);
    if (entry != nullptr)
        return entry->kind;
    return load_acquire(header->dying) == 0 ? NONE : kind_in_crashing(header, key);
}

// For the supervisor only: the slot's process is dead, and the table has the verdicts.
static inline void reset_slot(RecordHeader* header, RecordSlot* slot) {
    for (Noted& load : slot->loads)
        load = Noted{};
    for (NotedRun& run : slot->runs)
        run = NotedRun{};
    slot->main_thread = slot->unnoted = 0;
    if (slot->fault_thread == 0)
        return;
    store_release(slot->fault_thread, uint64_t{0});
    __atomic_fetch_sub(&header->dying, 1, __ATOMIC_RELAXED);
}

}  // namespace fastinfer

#endif
