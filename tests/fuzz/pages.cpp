// Reads numbers between pages that may not be touched: a load or store that goes too far ends the process.
//
//     pages COUNT SEED        (built and run by pages.py)
//
// Each text lies at the beginning of its pages or at their end, and its tensor ends with pages of its own. The reader's
// memory is full of ones before: an offset that was never written leads far away. Registers of all widths must agree.

#include "fastinfer/number/simd/table.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <sys/mman.h>
#include <vector>

using namespace fastinfer::number;

constexpr size_t GUARD = 1 << 17;  // farther than 16 bits of offset lead
constexpr size_t PAGES = 1 << 17;
constexpr int SIZES[SPANS] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8};

static std::mt19937_64 source;

static size_t below(size_t n) { return source() % n; }

// The first of PAGES bytes between two guards.
static char* make_pages() {
    void* all = mmap(nullptr, PAGES + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* pages = static_cast<char*>(all) + GUARD;
    if (all == MAP_FAILED || mprotect(pages, PAGES, PROT_READ | PROT_WRITE) != 0)
        abort();
    return pages;
}

// Numbers of one kind, or of all kinds, in one row or many; and then a few other bytes.
static std::string random_text() {
    static const std::vector<std::string> kinds[] = {
        {"1"},
        {"1", "-7", "255", "12"},
        {"0", "0.5", "-1.25", "123456789", "-2147483648", "0.12345678901234567", "1e-05", "3.5E+10"},
        {"1234567890123456789", "12345678901234567890123456789012345", "0.000000000000000000000000000000000012"},
        {"true", "false"},
        {"null", "1", "-0.5", "NaN"},
        {"1", "-", "01", "1.", "", "NaN", "-Infinity", "300", "\"", "}", "[", "]", std::string(2100, '3')},
    };
    static const std::string separators[] = {",", ",", ",", ", ", " ,\n  ", "],[", "] , [ "};
    static const std::string bytes = "0123456789-+.eE, \n[]\"}Yx";
    const std::vector<std::string>& kind = kinds[below(7)];
    const size_t variety = 1 + below(7), size = below(below(8) == 0 ? 6000 : 400);
    std::string text;
    while (text.size() < size)
        text += kind[below(kind.size())] + separators[below(variety)];
    for (size_t edits = below(4); edits > 0 && !text.empty(); edits--)
        text.replace(below(text.size()), below(3), 1, bytes[below(bytes.size())]);
    return text + (below(2) ? "1]}]}" : "");
}

struct Outcome {
    std::string memory;
    std::vector<int64_t> runs;  // of each: where it ended, its elements, its error

    bool operator==(const Outcome& other) const { return memory == other.memory && runs == other.runs; }
};

// Reads row after row, as codec/data.pyx does. `at` is behind the first opening bracket.
static Outcome read_rows(const char* begin, const char* at, const char* end, int datatype, int width, bool nullable,
                         int64_t room, int64_t limit, char* memory) {
    const int size = SIZES[datatype];
    Reader reader;
    Outcome outcome;
    int64_t done = 0;
    memset(static_cast<void*>(&reader), 0xFF, sizeof(reader));
    open_reader(&reader, begin, datatype, width, nullable);
    for (;;) {
        while (at < end && (is_space(*at) || *at == '[' || *at == ']' || (*at == ',' && !outcome.runs.empty())))
            at++;
        if (at == end)
            break;
        const int64_t rest = room - done;
        const NumberSpan span = read_span(&reader, at, end, memory + done * size, std::min(limit, rest), rest);
        at = skip_space(span.at, end);
        done += span.count;
        outcome.runs.insert(outcome.runs.end(), {at - begin, span.count, span.error});
        if (span.error != OK || at == end || *at != ']') {
            done -= span.error == OK;  // what something odd follows is counted, but need not be in memory
            break;
        }
    }
    outcome.memory.assign(memory, size_t(done * size));
    return outcome;
}

// Whether all widths read alike what follows `head`.
static bool check(const std::string& head, const std::string& numbers, int datatype, int64_t room, int64_t limit) {
    static char* const texts = make_pages();
    static char* const tensors = make_pages();
    const std::string text = head + numbers;
    char* const begin = below(2) ? texts : texts + PAGES - text.size();
    char* const memory = tensors + PAGES - room * SIZES[datatype];
    const bool nullable = below(2);
    const auto read = [&](int width) {
        return read_rows(begin, begin + head.size(), begin + text.size(), datatype, width, nullable, room, limit,
                         memory);
    };
    memcpy(begin, text.data(), text.size());
    const Outcome outcome = read(0);
    if (read(256) == outcome && read(512) == outcome)
        return true;
    printf("datatype %d, room %ld, limit %ld: read in two ways: %s\n", datatype, long(room), long(limit), text.c_str());
    return false;
}

int main(int, char** arguments) {
    const long count = atol(arguments[1]);
    // What stands before numbers: as little as can be, or enough for loads that begin before a number.
    const std::string heads[] = {R"({"inputs":[{"data":[)", R"({"inputs":[{"datatype":"FP32","data":[)"};
    // The last of 64 bytes is a sign, and 32 of the next 64 begin a number: with what follows the sign, 33.
    std::string crowded = "11";
    while (crowded.size() < 130)
        crowded += crowded.size() == 62 ? ",-" : ",1";
    source.seed(uint64_t(atol(arguments[2])));
    for (int datatype = 0; datatype < SPANS; datatype++)
        if (!check(heads[1], crowded, datatype, 2, 2))
            return 1;
    for (long i = 0; i < count; i++) {
        const std::string numbers = random_text();
        const size_t most = numbers.size() / 2 + 1;
        const int64_t room = int64_t(below(2) ? most : below(most + 1));
        const int64_t limit = int64_t(below(2) ? most : below(8));
        if (!check(heads[below(2)], numbers, int(below(SPANS)), room, limit))
            return 1;
    }
    printf("%ld texts between pages, registers of up to %d bits\n", count, find_width());
}
