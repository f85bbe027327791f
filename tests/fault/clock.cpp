// Preloaded into a server: its wall clock jumps by an hour, back and forth, a second each. The monotonic clock is the
// system's. The machine's own clock cannot be moved for a test, and a time namespace does not have one of its own.

#include <cerrno>
#include <ctime>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

namespace {

constexpr long HOUR = 3600;

int system_time(clockid_t clock, timespec* t) { return static_cast<int>(syscall(SYS_clock_gettime, clock, t)); }

long jump() {
    timespec t{};
    system_time(CLOCK_MONOTONIC, &t);
    return (t.tv_sec % 4 - 1) * HOUR;  // an hour back, right, an hour ahead, two
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* t) {
    int failed = system_time(clock, t);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        t->tv_sec += jump();
    return failed;
}

int gettimeofday(timeval* __restrict t, void* __restrict) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t* t) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (t)
        *t = now.tv_sec;
    return now.tv_sec;
}
}
