// The classification extension: the largest elements of each row as text, "value:index" or "value:index:label".
//
// A heap keeps the wanted number of a row's elements, so a row is read once and in order, however long it is. Numbers
// are those of printf's %f and %d (Triton's form), written without a locale. No Python; memory is the C++ library's; if
// there is none, a ranking fails and keeps no partial text.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "fastinfer/native/interrupt.h"

namespace fastinfer::classes {

// --- Elements --------------------------------------------------------------------------------------------------------

// The layout of an element in memory (at any address), and its value.
template <class T>
struct Plain {
    using Value = T;
    static constexpr int SIZE = sizeof(T);
    static T load(const char* at) {
        T value;
        memcpy(&value, at, sizeof(T));
        return value;
    }
};

struct Half {
    using Value = float;
    static constexpr int SIZE = 2;
    static float load(const char* at) {
        unsigned bits = Plain<uint16_t>::load(at);
        int exponent = int(bits >> 10 & 31);
        float mantissa = float(bits & 1023), size;
        if (exponent == 31)
            size = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
        else if (exponent == 0)
            size = std::ldexp(mantissa, -24);
        else
            size = std::ldexp(mantissa + 1024, exponent - 25);
        return std::copysign(size, bits & 0x8000 ? -1.0f : 1.0f);
    }
};

struct Brain {
    using Value = float;
    static constexpr int SIZE = 2;
    static float load(const char* at) {
        uint32_t bits = uint32_t(Plain<uint16_t>::load(at)) << 16;
        float value;
        memcpy(&value, &bits, sizeof(value));
        return value;
    }
};

// --- Selection -------------------------------------------------------------------------------------------------------

template <class Value>
struct Candidate {
    Value value;
    int64_t index;
};

// The order of an answer: the largest first, of equal ones the lower index; NaN, which has no size, at the end.
template <class Value>
inline bool precedes(const Candidate<Value>& a, const Candidate<Value>& b) {
    bool number_a = a.value == a.value, number_b = b.value == b.value;
    if (number_a != number_b)
        return number_a;
    if (number_a && a.value != b.value)
        return a.value > b.value;
    return a.index < b.index;
}

// Elements read between two checks of the job's interrupt.
constexpr int64_t YIELD_EVERY = 16 * 1024;

// Fills `best`, which is not empty, with the first of the row's elements, in order; there are at least as many. False
// if the job is cancelled.
template <class Element, class Value = typename Element::Value>
inline bool select(const char* row, int64_t width, std::vector<Candidate<Value>>& best, const Interrupt* job) {
    int64_t wanted = int64_t(best.size());
    for (int64_t i = 0; i < wanted; i++)
        best[i] = {Element::load(row + i * Element::SIZE), i};
    if (wanted < width)
        std::make_heap(best.begin(), best.end(),
                       precedes<Value>);  // at the front is the last one, which is replaced first
    for (int64_t i = wanted; i < width; i++) {
        if (i % YIELD_EVERY == 0 && !yield_to_loop(job))
            return false;
        Candidate<Value> next{Element::load(row + i * Element::SIZE), i};
        if (precedes(next, best.front())) {
            std::pop_heap(best.begin(), best.end(), precedes<Value>);
            best.back() = next;
            std::push_heap(best.begin(), best.end(), precedes<Value>);
        }
    }
    std::sort(best.begin(), best.end(), precedes<Value>);
    return true;
}

// --- Text ------------------------------------------------------------------------------------------------------------

// Label i is the text from starts[i] to the byte before starts[i + 1], which ends its line.
struct Lines {
    const char* text;
    const int64_t* starts;
    int64_t count;
};

constexpr int MAX_TEXT = 352;  // -1.797…e308 in full has 317 characters, a colon and an index 20

// A BYTES element: its size and its text. A class without a label, or with an empty one, has none.
template <class Value>
inline void put(const Candidate<Value>& chosen, const Lines& labels, std::string& out) {
    char text[MAX_TEXT];
    char* end;
    if constexpr (std::is_floating_point_v<Value>)
        end = std::to_chars(text, text + MAX_TEXT, chosen.value, std::chars_format::fixed, 6).ptr;
    else
        end = std::to_chars(text, text + MAX_TEXT, chosen.value).ptr;
    *end++ = ':';
    end = std::to_chars(end, text + MAX_TEXT, chosen.index).ptr;
    int64_t label = 0, label_size = 0;
    if (chosen.index < labels.count) {
        label = labels.starts[chosen.index];
        label_size = labels.starts[chosen.index + 1] - 1 - label;
    }
    if (label_size > 0)
        *end++ = ':';
    uint32_t size = uint32_t(end - text + label_size);
    out.append(reinterpret_cast<const char*>(&size), sizeof(size));
    out.append(text, end - text);
    if (label_size > 0)
        out.append(labels.text + label, label_size);
}

// --- Rankings --------------------------------------------------------------------------------------------------------

constexpr int64_t USUAL_TEXT = 24;  // bytes of an element with its size; a good guess saves growing
// limits.MAX_CLASSES_TEXT_BYTES: large numbers are written in full, so a few bytes of a request become hundreds.
constexpr int64_t MAX_CLASSES_TEXT = 4 << 20;

enum Outcome { RANKED, NO_MEMORY, TOO_LONG, GIVEN_UP };

// One output's classes. What it points to is borrowed; `text`, its answer's elements, is its own.
struct Ranking {
    int (*rank)(Ranking& ranking, const Interrupt* job) = nullptr;
    const char* data = nullptr;
    int64_t rows = 0;
    int64_t width = 0;   // elements of a row
    int64_t wanted = 0;  // of them; at most width
    Lines labels{};
    std::string text;
    int64_t charged = 0;  // bytes of the text that count in a budget

    // An upper bound of the memory that the text takes, growth included.
    int64_t most_text() const {
        if (rows == 0 || wanted == 0 || rows > 2 * MAX_CLASSES_TEXT / wanted)
            return 2 * MAX_CLASSES_TEXT;
        return std::min(rows * wanted * 2 * MAX_TEXT, 2 * MAX_CLASSES_TEXT);
    }

    // Returns an Outcome. A complete text does not move; after a failure it is empty.
    int run(const Interrupt* job) noexcept { return rank(*this, job); }
};

template <class Element>
inline int rank(Ranking& ranking, const Interrupt* job) noexcept {
    if (ranking.rows == 0 || ranking.wanted == 0 || !ranking.text.empty())
        return RANKED;
    try {
        std::vector<Candidate<typename Element::Value>> best(ranking.wanted);
        ranking.text.reserve(std::min(ranking.rows * ranking.wanted * USUAL_TEXT, MAX_CLASSES_TEXT));
        int64_t read = 0;  // elements since the last check
        int outcome = RANKED;
        for (int64_t row = 0; row < ranking.rows && outcome == RANKED; row++) {
            read += ranking.width;
            if (read >= YIELD_EVERY) {
                read = 0;
                if (!yield_to_loop(job))
                    outcome = GIVEN_UP;
            }
            if (!select<Element>(ranking.data + row * ranking.width * Element::SIZE, ranking.width, best, job))
                outcome = GIVEN_UP;
            for (auto chosen = best.begin(); chosen != best.end() && outcome == RANKED; ++chosen) {
                put(*chosen, ranking.labels, ranking.text);
                if (int64_t(ranking.text.size()) > MAX_CLASSES_TEXT)
                    outcome = TOO_LONG;
            }
        }
        if (outcome != RANKED)
            ranking.text.clear();
        return outcome;
    } catch (const std::exception&) {  // bad_alloc, length_error
        ranking.text.clear();
        return NO_MEMORY;
    }
}

}  // namespace fastinfer::classes
