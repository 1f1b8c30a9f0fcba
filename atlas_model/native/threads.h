// How a parallel region's threads share the work; without OpenMP there is one thread and it does everything.
#pragma once

#include <algorithm>
#include <atomic>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace atlas {

inline long num_threads_here() {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

inline long thread_here() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// task(index) for each of `count`, which cost about the same.
template <class Task>
inline void share_evenly(long count, Task&& task) {
#pragma omp for schedule(static) nowait
    for (long index = 0; index < count; ++index) task(index);
}

// The same where some cost more than others.
template <class Task>
inline void share_as_they_come(long count, Task&& task) {
#pragma omp for schedule(dynamic, 1) nowait
    for (long index = 0; index < count; ++index) task(index);
}

// task(panel, first_row, last_row): whole panels while there are enough of them for every thread.
template <class Task>
inline void share_panels(long num_panels, long num_rows, Task&& task) {
    constexpr long kMostRows = 96;   // Of them and of a panel as much as the nearer caches hold.
    constexpr long kFewestRows = 6;  // A block of a product.
    const long wanted = (2 * num_threads_here() + num_panels - 1) / num_panels;
    const long most = (num_rows + kFewestRows - 1) / kFewestRows;
    const long num_runs = std::max((num_rows + kMostRows - 1) / kMostRows, std::min(wanted, most));
    share_evenly(num_panels * num_runs, [&](long index) {
        const long panel = index / num_runs, run = index % num_runs;
        task(panel, run * num_rows / num_runs, (run + 1) * num_rows / num_runs);
    });
}

// Where the threads of a region wait for one another. OpenMP's own barrier spins for milliseconds, which on a machine
// that is busy with something else too keeps the awaited thread from running; this one soon goes to sleep.
class Barrier {
   public:
    void wait() {
        const long num_threads = num_threads_here();
        if (num_threads == 1) return;
        const unsigned round = round_.load(std::memory_order_acquire);
        if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
            num_arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            round_.notify_all();
            return;
        }
        for (int turn = 0; turn < kNumTurns; ++turn) {
            if (round_.load(std::memory_order_acquire) != round) return;
            relax();
        }
        round_.wait(round, std::memory_order_acquire);
    }

   private:
    // Some tens of microseconds: the threads' shares of a phase differ by less.
    static constexpr int kNumTurns = 2000;

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    std::atomic<long> num_arrived_{0};
    std::atomic<unsigned> round_{0};
};

}  // namespace atlas
