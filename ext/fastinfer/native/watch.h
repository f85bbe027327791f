// Watches the runs on the event loop's thread, and terminates one that takes too long.
//
// The loop's thread marks the start and the end of a run, with two atomic exchanges. A thread of its own checks twice
// per bound while there are such runs, and sleeps after a second without any.
//
// One atomic word holds the time at which the run began. The watching thread may terminate a run only after it has
// changed the word from that time to `kEnding`, and the loop's thread waits until it is changed again; so a termination
// never comes after its run, and never meets another one.

#ifndef FASTINFER_WATCH_H
#define FASTINFER_WATCH_H

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "fastinfer/native/signals.h"

namespace fastinfer {

class Watch {
 public:
    enum : int { kNotEnded = 0, kEnded = 1, kEndedAtWork = 2 };  // at work: it used the processor, it did not wait

    // Constructed on the loop's thread, which it watches. `end` is called with `what`, on the watching thread.
    Watch(int64_t bound_ns, void (*end)(void*), void* what) : bound_ns_(bound_ns), end_(end), what_(what) {
        has_clock_ = pthread_getcpuclockid(pthread_self(), &clock_) == 0;
    }

    ~Watch() { close(); }

    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    // Returns 0 or an error number.
    int start() {
        if (started_)
            return 0;
        closing_ = false;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, kStackBytes);
        sigset_t before;
        block_signals(&before);
        int failed = pthread_create(&thread_, &attributes, &Watch::main, this);
        restore_signals(&before);
        pthread_attr_destroy(&attributes);
        started_ = failed == 0;
        return failed;
    }

    void close() {
        if (!started_)
            return;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            closing_ = true;
        }
        wake_.notify_one();
        pthread_join(thread_, nullptr);
        started_ = false;
    }

    // --- The loop's thread; runs do not nest -------------------------------------------------------------------------

    // now_ns: CLOCK_MONOTONIC; it grows from run to run.
    void begins(int64_t now_ns) {
        latest_.store(now_ns, std::memory_order_relaxed);
        run_.store(now_ns, std::memory_order_seq_cst);  // before asleep_ is read: see sleep_until_run()
        if (asleep_.load(std::memory_order_seq_cst))
            wake_watcher();
    }

    int ends() {
        int64_t mine = latest_.load(std::memory_order_relaxed);
        if (run_.compare_exchange_strong(mine, kNoRun, std::memory_order_acq_rel))
            return kNotEnded;
        while ((mine = run_.load(std::memory_order_acquire)) == kEnding)
            sched_yield();
        run_.store(kNoRun, std::memory_order_release);
        return mine == kWasAtWork ? kEndedAtWork : kEnded;
    }

 private:
    enum : int64_t { kNoRun = 0, kEnding = -1, kWasEnded = -2, kWasAtWork = -3 };
    enum : size_t { kStackBytes = 256 << 10 };
    static const int64_t kRestAfterNs = 1'000'000'000;

    static void* main(void* self) {
        pthread_setname_np(pthread_self(), "fastinfer-watch");
        static_cast<Watch*>(self)->watch();
        return nullptr;
    }

    static int64_t read(clockid_t clock) {
        timespec now;
        clock_gettime(clock, &now);
        return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
    }

    void watch() {
        int64_t seen = kNoRun, seen_at = 0, worked_before = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        while (!closing_) {
            int64_t now = read(CLOCK_MONOTONIC), run = run_.load(std::memory_order_acquire);
            if (run > 0 && run != seen) {
                seen = run;
                seen_at = now;
                worked_before = worked();
            } else if (run > 0 && now - run >= bound_ns_) {
                end(run, 2 * (worked() - worked_before) >= now - seen_at);
            } else if (run == kNoRun && now - latest_.load(std::memory_order_relaxed) > kRestAfterNs) {
                sleep_until_run(lock);
                continue;
            }
            wait_for(lock, bound_ns_ / 2);
        }
    }

    // The processor time of the loop's thread.
    int64_t worked() const { return has_clock_ ? read(clock_) : 0; }

    void end(int64_t run, bool at_work) {
        if (!run_.compare_exchange_strong(run, kEnding, std::memory_order_acq_rel))
            return;
        end_(what_);
        run_.store(at_work || !has_clock_ ? kWasAtWork : kWasEnded, std::memory_order_release);
    }

    void sleep_until_run(std::unique_lock<std::mutex>& lock) {
        // Either the loop's thread sees that this one sleeps, or this one sees the run that has begun.
        asleep_.store(true, std::memory_order_seq_cst);
        while (!closing_ && !woken_ && run_.load(std::memory_order_seq_cst) == kNoRun)
            wake_.wait(lock);
        woken_ = false;
        asleep_.store(false, std::memory_order_seq_cst);
    }

    void wake_watcher() {
        {
            std::lock_guard<std::mutex> guard(mutex_);
            woken_ = true;
        }
        wake_.notify_one();
    }

    void wait_for(std::unique_lock<std::mutex>& lock, int64_t ns) {
        wake_.wait_for(lock, std::chrono::nanoseconds(ns), [this] { return closing_; });
    }

    const int64_t bound_ns_;
    void (*const end_)(void*);
    void* const what_;
    clockid_t clock_;
    bool has_clock_ = false;
    pthread_t thread_;
    bool started_ = false;
    std::atomic<int64_t> run_{kNoRun};  // when the run in progress began, or one of the values above
    std::atomic<int64_t> latest_{0};    // when the latest run began
    std::atomic<bool> asleep_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    bool closing_ = false;  // guarded by mutex_, as the next one
    bool woken_ = false;
};

}  // namespace fastinfer

#endif
