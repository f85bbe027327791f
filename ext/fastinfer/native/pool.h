// Native threads, a queue for each share, one eventfd for completions. No Python here: a Task's work and state are
// plain C.
//
// A share is a scheduling class: one model's runs, or data work of one kind. The next task comes from the share with
// the fewest running tasks, of equal shares from the one whose task was submitted first; the last free thread is
// reserved for shares without a running task. Native code cannot be preempted by us, so long tasks are demoted: all but
// (cores - 1) of them get a lower priority, and while a share without a running task waits for a thread, a long task
// stops counting against the number of threads. A demoted thread ends with its task, and a new one replaces it.
//
// submit, take_done, demote_overlong and the gauges are for the loop's thread; the native threads only run tasks.
// The eventfd is written only when the done list was empty, so that wake-ups of a busy loop coalesce (measured: 533,000
// tiny jobs a second, against 35,000 through Python's ThreadPoolExecutor; 2026-11-23, 2 cores).

#ifndef FASTINFER_POOL_H
#define FASTINFER_POOL_H

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <list>
#include <mutex>
#include <vector>

#include "fastinfer/native/signals.h"

namespace fastinfer {

struct Share;

struct Task {
    void (*work)(void*) = nullptr;
    void* state = nullptr;
    void* owner = nullptr;  // for the submitter
    Share* share = nullptr;
    int64_t number = 0;  // in the order of submits
    int64_t started_ns = 0;
    int64_t ended_ns = 0;
    Task* next = nullptr;
};

// First in, first out; links the tasks themselves, so that nothing is allocated under the lock.
class TaskList {
 public:
    bool empty() const { return head_ == nullptr; }
    const Task* first() const { return head_; }

    void push(Task* task) {
        task->next = nullptr;
        (head_ == nullptr ? head_ : tail_->next) = task;
        tail_ = task;
    }

    Task* pop() {
        Task* task = head_;
        head_ = task->next;
        return task;
    }

    Task* take_all() {
        Task* all = head_;
        head_ = nullptr;
        return all;
    }

 private:
    Task* head_ = nullptr;
    Task* tail_ = nullptr;
};

// Belongs to one pool, whose lock guards it. Its owner keeps it until its tasks are done.
struct Share {
    TaskList waiting;
    int running = 0;
    bool listed = false;  // in the pool's list, because tasks wait
};

class Pool {
 public:
    Pool() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

    ~Pool() {
        close();
        if (fd_ >= 0)
            ::close(fd_);
    }

    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Returns 0 or an error number.
    int start(int threads) {
        if (fd_ < 0)
            return errno;
        std::lock_guard<std::mutex> lock(mutex_);
        places_ = threads;
        int failed = 0;
        for (int i = 0; i < threads && failed == 0; i++)
            failed = add_thread();
        return failed;
    }

    int fd() const { return fd_; }

    // False once the pool is closed.
    bool submit(Task* task) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (closed_)
                return false;
            task->number = ++submitted_;
            task->share->waiting.push(task);
            if (!task->share->listed) {
                task->share->listed = true;
                shares_.push_back(task->share);
            }
            queued_++;
        }
        wake_.notify_one();
        return true;
    }

    // The tasks that have ended since the last call, linked by `next`, oldest first.
    Task* take_done() {
        uint64_t count;
        while (read(fd_, &count, sizeof count) < 0 && errno == EINTR) {
        }
        // The list is emptied after the eventfd: a task that ends in between only causes an unnecessary wake-up.
        std::lock_guard<std::mutex> lock(mutex_);
        return done_.take_all();
    }

    int queued() {
        std::lock_guard<std::mutex> lock(mutex_);
        return queued_;
    }

    int running() {
        std::lock_guard<std::mutex> lock(mutex_);
        return running_;
    }

    // Running tasks that do not count against the number of threads.
    int displaced() {
        std::lock_guard<std::mutex> lock(mutex_);
        return displaced_;
    }

    // Demotes long tasks. Of those that began before `long_since_ns`, all but `normal` get a lower priority. Of those
    // that began before `overlong_since_ns`, as many as shares without a running task need stop counting against the
    // number of threads, at most `most` at a time.
    void demote_overlong(int64_t long_since_ns, int64_t overlong_since_ns, int normal, int most) {
        std::lock_guard<std::mutex> lock(mutex_);
        join_ended();
        int wanted = next() == nullptr ? starved() : 0;
        for (Thread& thread : threads_) {
            if (closed_)
                return;
            if (thread.task_since_ns == 0 || thread.task_since_ns > long_since_ns || thread.displaced)
                continue;
            const bool displace = thread.task_since_ns <= overlong_since_ns && wanted > 0 && displaced_ < most;
            if (!thread.lowered && (displace || --normal < 0) && !lower(thread))
                return;
            if (!displace)
                continue;
            thread.displaced = true;
            displaced_++;
            wanted--;
            wake_.notify_one();  // the thread that replaces a lowered one may be waiting for a place already
        }
    }

    // Finishes what runs and joins the threads. Returns the tasks that never started; further calls return none.
    Task* close() {
        TaskList never_started;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            closed_ = true;
            queued_ = 0;
            for (Share* share : shares_) {
                share->listed = false;
                while (!share->waiting.empty())
                    never_started.push(share->waiting.pop());
            }
            shares_.clear();
        }
        wake_.notify_all();
        for (Thread& thread : threads_)
            pthread_join(thread.handle, nullptr);
        threads_.clear();
        return never_started.take_all();
    }

 private:
    static constexpr size_t kStackBytes = 8 << 20;
    static constexpr int kNiceness = 10;

    struct Thread {
        Pool* pool;
        pthread_t handle{};
        pid_t id = 0;
        int64_t task_since_ns = 0;  // 0: it has none
        bool lowered = false;       // it has a lower priority, and ends with its task
        bool displaced = false;     // ... and does not count against the number of threads
        bool ended = false;
    };

    static void* main(void* thread) {
        auto* self = static_cast<Thread*>(thread);
        self->pool->serve(*self);
        return nullptr;
    }

    static int64_t now_ns() {
        timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
    }

    // Models may recurse deeply, so the stack does not follow `ulimit -s`.
    int add_thread() {
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, kStackBytes);
        sigset_t before;
        block_signals(&before);
        threads_.push_back(Thread{this});
        Thread& added = threads_.back();
        int failed = pthread_create(&added.handle, &attributes, &Pool::main, &added);
        if (failed != 0)
            threads_.pop_back();
#ifdef __linux__
        if (failed == 0) {
            char name[16];
            snprintf(name, sizeof name, "fastinfer-%hu", named_++);
            pthread_setname_np(added.handle, name);
        }
#endif
        restore_signals(&before);
        pthread_attr_destroy(&attributes);
        return failed;
    }

    // Lowers the priority of one thread. To raise it again takes a privilege, so the thread ends with its task, and its
    // replacement starts now.
    bool lower(Thread& thread) {
        if (add_thread() != 0)
            return false;
        thread.lowered = true;
        setpriority(PRIO_PROCESS, static_cast<id_t>(thread.id), kNiceness);
        return true;
    }

    void join_ended() {
        for (auto thread = threads_.begin(); thread != threads_.end();) {
            if (thread->ended) {
                pthread_join(thread->handle, nullptr);
                thread = threads_.erase(thread);
            } else {
                ++thread;
            }
        }
    }

    int starved() const {
        int count = 0;
        for (const Share* share : shares_)
            count += share->running == 0;
        return count;
    }

    // The share of the next task, or NULL if no waiting task may run now.
    Share* next() {
        const int in_places = running_ - displaced_;
        const bool last = places_ > 1 && in_places >= places_ - 1;
        Share* best = nullptr;
        for (Share* share : shares_) {
            if (last && share->running > 0)
                continue;
            if (best == nullptr || share->running < best->running ||
                (share->running == best->running && share->waiting.first()->number < best->waiting.first()->number))
                best = share;
        }
        return in_places < places_ ? best : nullptr;
    }

    Task* take(Share* share) {
        Task* task = share->waiting.pop();
        if (share->waiting.empty()) {
            share->listed = false;
            for (size_t i = 0; i < shares_.size(); i++) {
                if (shares_[i] == share) {
                    shares_[i] = shares_.back();
                    shares_.pop_back();
                    break;
                }
            }
        }
        share->running++;
        queued_--;
        running_++;
        return task;
    }

    void serve(Thread& self) {
        std::unique_lock<std::mutex> lock(mutex_);
        self.id = static_cast<pid_t>(syscall(SYS_gettid));
        while (!self.lowered) {
            Share* share = nullptr;
            wake_.wait(lock, [this, &share] { return closed_ || (share = next()) != nullptr; });
            if (share == nullptr)
                return;
            Task* task = take(share);
            task->started_ns = self.task_since_ns = now_ns();
            lock.unlock();
            task->work(task->state);
            task->ended_ns = now_ns();
            lock.lock();
            self.task_since_ns = 0;
            share->running--;  // before the task is done: its owner may free the share then
            running_--;
            if (self.displaced)
                displaced_--;
            const bool first = done_.empty();
            done_.push(task);
            if (first) {
                lock.unlock();
                signal();
                lock.lock();
            }
        }
        self.ended = true;
        wake_.notify_one();  // its place is free, and its replacement may be waiting for one
    }

    void signal() {
        const uint64_t one = 1;
        while (write(fd_, &one, sizeof one) < 0 && errno == EINTR) {
        }
    }

    const int fd_;
    std::mutex mutex_;  // guards everything below
    std::condition_variable wake_;
    std::list<Thread> threads_;   // a list, because threads keep pointers to their entries
    std::vector<Share*> shares_;  // those with waiting tasks
    TaskList done_;
    int64_t submitted_ = 0;
    int places_ = 0;
    int queued_ = 0;
    int running_ = 0;
    int displaced_ = 0;
    unsigned short named_ = 0;
    bool closed_ = false;
};

}  // namespace fastinfer

#endif
