// Reads the resources that a process uses from /proc, without Python, so that ten thousand open files do not block the
// loop. Any thread; the buffers are on the stack.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fastinfer {

// Read as an array of cells.
struct ProcessUsage {
    int64_t virtual_bytes;
    int64_t resident_bytes;
    int64_t start_ticks;  // since the machine was booted
    int64_t cpu_ticks;
    int64_t open_files;
    int64_t max_files;
};

constexpr int USAGE_CELLS = int(sizeof(ProcessUsage) / sizeof(int64_t));

// Reads the beginning of a small file as text; returns its size, or -1.
static inline ssize_t read_text(const char* path, char* text, size_t room) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    const ssize_t size = read(file, text, room - 1);
    close(file);
    if (size >= 0)
        text[size] = 0;
    return size;
}

static inline int64_t count_entries(const char* path) {
    DIR* directory = opendir(path);
    if (directory == nullptr)
        return 0;
    int64_t count = 0;
    while (const dirent* entry = readdir(directory))
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

// The numbers of /proc/PID/stat by their place in proc(5), less one; the first two, which are no numbers, are 0.
constexpr int STAT_FIELDS = 25;

static inline bool read_stat(int64_t pid, int64_t (&fields)[STAT_FIELDS]) {
    char path[64];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", static_cast<long long>(pid));
    if (read_text(path, text, sizeof text) <= 0)
        return false;
    // The second field is the program's name in parentheses and may hold anything; the fields after it are numbers.
    const char* at = strrchr(text, ')');
    if (at == nullptr)
        return false;
    for (int number = 2; number < STAT_FIELDS; number++) {
        at = strchr(at, ' ');
        if (at == nullptr)
            return false;
        fields[number] = strtoll(++at, nullptr, 10);
    }
    return true;
}

// The CPU time of its children that have ended and were waited for.
static inline int64_t ended_children_ticks(int64_t pid) {
    int64_t fields[STAT_FIELDS] = {};
    return read_stat(pid, fields) ? fields[15] + fields[16] : 0;
}

// False: there is no such process (any more), or it is not visible.
static inline bool read_usage(int64_t pid, bool with_ended_children, ProcessUsage* usage) {
    char path[64];
    int64_t fields[STAT_FIELDS] = {};
    if (!read_stat(pid, fields))
        return false;
    usage->cpu_ticks = fields[13] + fields[14] + (with_ended_children ? fields[15] + fields[16] : 0);
    usage->start_ticks = fields[21];
    usage->virtual_bytes = fields[22];
    usage->resident_bytes = fields[23] * sysconf(_SC_PAGESIZE);
    // Values that the system does not report are 0.
    snprintf(path, sizeof path, "/proc/%lld/fd", static_cast<long long>(pid));
    usage->open_files = count_entries(path);
    rlimit limit{};
    usage->max_files = prlimit(pid_t(pid), RLIMIT_NOFILE, nullptr, &limit) == 0 ? int64_t(limit.rlim_cur) : 0;
    return true;
}

// Adds a process to the sum over several; the earliest start counts. Only the first one's ended children are included.
static inline void add_usage(int64_t pid, bool first, int64_t* cells) {
    ProcessUsage one;
    if (!read_usage(pid, first, &one))
        return;
    ProcessUsage all;
    memcpy(&all, cells, sizeof all);
    all.start_ticks = all.start_ticks == 0 || one.start_ticks < all.start_ticks ? one.start_ticks : all.start_ticks;
    all.virtual_bytes += one.virtual_bytes;
    all.resident_bytes += one.resident_bytes;
    all.cpu_ticks += one.cpu_ticks;
    all.open_files += one.open_files;
    all.max_files += one.max_files;
    memcpy(cells, &all, sizeof all);
}

}  // namespace fastinfer
