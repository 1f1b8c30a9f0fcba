// How a parallel region's threads share the work; without OpenMP there is one thread and it does everything.
#pragma once

#include <algorithm>

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

inline void wait_for_all() {
#pragma omp barrier
}

}  // namespace atlas
