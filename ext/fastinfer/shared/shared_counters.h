// The sum of a model's counters over all processes, read from the memory that they share.
//
// Lives here: finding the blocks of models in the banks, and copying their cells. Does not:
// writing them (shared/model_counters.py), the sizes of blocks (shared/layout.py), the cells (shared/counters.pyx). Any
// thread; no Python, no allocation. The memory belongs to the caller and outlives the call.
//
// A bank is an array of blocks; the first block is the process's own. A model's block begins with its key. Another
// process may give a block to another model while it is read: the writer first replaces the key by a mark, and the
// reader compares the key again after it has copied the cells.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

namespace fastinfer {

struct Key {
    uint64_t words[2];
};

static inline bool operator==(const Key& one, const Key& other) {
    return one.words[0] == other.words[0] && one.words[1] == other.words[1];
}

static inline Key read_key(const char* block) {
    const uint64_t* words = reinterpret_cast<const uint64_t*>(block);
    Key key;
    key.words[0] = __atomic_load_n(words, __ATOMIC_ACQUIRE);
    key.words[1] = __atomic_load_n(words + 1, __ATOMIC_ACQUIRE);
    return key;
}

// Counters wrap around rather than overflow.
static inline int64_t sum(int64_t one, int64_t other) { return int64_t(uint64_t(one) + uint64_t(other)); }

static inline int64_t read_cell(const int64_t* cell) { return __atomic_load_n(cell, __ATOMIC_RELAXED); }

// A cell with the version of the others: its one writer makes it odd before it changes several that belong together, and
// even again afterwards. A writer that was killed in between leaves it odd until the next one.
static inline void begin_change(int64_t* version) {
    __atomic_store_n(version, *version | 1, __ATOMIC_RELAXED);
    std::atomic_thread_fence(std::memory_order_release);
}

static inline void end_change(int64_t* version) { __atomic_store_n(version, *version + 1, __ATOMIC_RELEASE); }

constexpr int COPIES = 8;  // that are tried at once

// Copies cells. Returns whether they are as they were between two changes: a writer may stand still while it changes
// them.
static inline bool copy_cells(int64_t* copy, const int64_t* cells, int count, int version) {
    for (int tried = 0; tried < COPIES; tried++) {
        const int64_t before = __atomic_load_n(cells + version, __ATOMIC_ACQUIRE);
        for (int i = 0; i < count; i++)
            copy[i] = read_cell(cells + i);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (before % 2 == 0 && read_cell(cells + version) == before)
            return true;
    }
    return false;
}

// Adds cells to `totals`; `latest` is one whose maximum is taken, or -1.
static inline void add_cells(int64_t* totals, const int64_t* cells, int count, int latest) {
    for (int i = 0; i < count; i++)
        totals[i] = i != latest ? sum(totals[i], cells[i]) : cells[i] > totals[i] ? cells[i] : totals[i];
}

// Finds a model by its key: open addressing in `slots`, whose number is a power of two above the number of models.
// A slot has the model's number + 1, or 0.
struct KeyTable {
    const Key* keys;
    uint32_t* slots;
    uint32_t mask;

    void add(uint32_t model) {
        uint32_t at = uint32_t(keys[model].words[0]) & mask;
        while (slots[at] != 0)
            at = (at + 1) & mask;
        slots[at] = model + 1;
    }

    // -1: none has it.
    int64_t find(const Key& key) const {
        for (uint32_t at = uint32_t(key.words[0]) & mask; slots[at] != 0; at = (at + 1) & mask)
            if (keys[slots[at] - 1] == key)
                return int64_t(slots[at]) - 1;
        return -1;
    }
};

enum BlockState { BLOCK_NEVER_USED, BLOCK_ADDED, BLOCK_OF_NOBODY, BLOCK_BUSY };

// Adds a block to the totals of the model whose key it has. `copy` has room for `count` cells. `at_once`: also while its
// cells change.
static inline BlockState add_block(const char* block, int cells_at, int count, int version, int latest,
                                   const KeyTable& table, int64_t* totals, int64_t stride, int64_t* copy,
                                   bool at_once) {
    const Key key = read_key(block);
    if (key == Key{})
        return BLOCK_NEVER_USED;
    const int64_t model = table.find(key);
    if (model < 0)
        return BLOCK_OF_NOBODY;
    if (!copy_cells(copy, reinterpret_cast<const int64_t*>(block + cells_at), count, version) && !at_once)
        return BLOCK_BUSY;
    std::atomic_thread_fence(std::memory_order_acquire);
    if (!(read_key(block) == key))
        return BLOCK_OF_NOBODY;
    add_cells(totals + model * stride, copy, count, latest);
    return BLOCK_ADDED;
}

}  // namespace fastinfer
