// Reads one number array of an inference request with simdjson's on-demand API: what the decoder is measured against.
//
//     simdjson FP32|FP64|INT32|INT64|UINT8 ROUNDS RANK < BODY
//
// RANK 1: a flat array; 2: an array of rows.
//
// Prints nanoseconds of the fastest and the median round and the sum of the elements. As in a server, the text is
// copied behind enough padding first; the copy is timed too, and told apart. All of the grammar outside of the array is
// left unchecked, which flatters simdjson; it is compiled for this very processor, as its inlined half needs.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <simdjson.h>
#include <string>
#include <vector>

using namespace simdjson;

template <typename T>
inline __attribute__((always_inline)) T get(simdjson_result<T> result) {
    T value{};
    if (std::move(result).get(value))
        std::abort();
    return value;
}

template <typename T, typename Read>
void measure(const std::string& body, int rounds, int rank, Read read) {
    ondemand::parser parser;
    padded_string text(body);
    std::vector<double> times;
    std::vector<T> values(body.size());
    size_t count = 0;
    for (int i = 0; i < rounds; i++) {
        auto start = std::chrono::steady_clock::now();
        count = 0;
        ondemand::document document = parser.iterate(text);
        for (ondemand::object tensor : document["inputs"])
            if (rank == 1)
                for (auto value : tensor["data"])
                    values[count++] = T(read(value));
            else
                for (ondemand::array row : tensor["data"])
                    for (auto value : row)
                        values[count++] = T(read(value));
        times.push_back(std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count());
    }
    auto start = std::chrono::steady_clock::now();
    padded_string copy(body);
    double copied = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
    std::sort(times.begin(), times.end());
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += double(values[i]);
    std::printf(
        "{\"best_ns\":%.0f,\"median_ns\":%.0f,\"copy_ns\":%.0f,\"count\":%zu,\"sum\":%.17g,\"kernel\":\"%s\"}\n",
        times[0], times[times.size() / 2], copied, count, sum, get_active_implementation()->name().c_str());
}

int main(int, char** argv) {
    std::string type = argv[1], body((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    int rounds = std::atoi(argv[2]), rank = std::atoi(argv[3]);
    // Inlined, and with error codes instead of exceptions: twice as fast as the shorter way to write it.
    auto real = [](auto value) __attribute__((always_inline)) { return get<double>(value.get_double()); };
    auto whole = [](auto value) __attribute__((always_inline)) { return get<int64_t>(value.get_int64()); };
    if (type == "FP32")
        measure<float>(body, rounds, rank, real);
    else if (type == "FP64")
        measure<double>(body, rounds, rank, real);
    else if (type == "INT64")
        measure<int64_t>(body, rounds, rank, whole);
    else if (type == "INT32")
        measure<int32_t>(body, rounds, rank, whole);
    else
        measure<uint8_t>(body, rounds, rank, whole);
    return 0;
}
