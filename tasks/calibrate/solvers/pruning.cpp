// The inner loops of a pruning sweep on the CPU; tasks/calibrate/solvers/pruning.py says what they do.
//
// Matrices are row-major: work, errors and keep [rows, columns], upper [columns, columns], saliency [columns]. A row stays in
// the cache until its block is done. Called by ctypes, so matrices are solved side by side; nothing here is shared.

#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

// Zero the dead weights of one row between two columns, each made good by the columns after it.
template <typename Real>
INLINE void prune_row(Real* work, Real* errors, const bool* keep, const Real* upper, int64_t columns, int64_t first,
                      int64_t last, int64_t end) {
    for (int64_t column = first; column < last; ++column) {
        if (keep[column]) continue;
        const Real* __restrict__ ahead = upper + column * columns;
        Real* __restrict__ weights = work;
        const Real error = weights[column] / ahead[column];
        for (int64_t later = column + 1; later < end; ++later) weights[later] -= error * ahead[later];
        weights[column] = 0;
        errors[column] = error;
    }
}

// Drop the weights of one group that have `pruned` others of a lower score or more above them; ties: the lower column.
template <typename Real>
INLINE void choose(const Real* work, bool* keep, const Real* saliency, Real* score, int64_t width, int64_t pruned) {
    for (int64_t place = 0; place < width; ++place)
        score[place] = keep[place] ? work[place] * work[place] * saliency[place] : Real(-1);
    for (int64_t place = 0; place < width; ++place) {
        int64_t below = 0;
        for (int64_t other = 0; other < width; ++other)
            below += score[other] < score[place] || (other < place && score[other] == score[place]);
        keep[place] = keep[place] && below >= pruned;
    }
}

template <typename Real>
INLINE void columns_of_all(Real* work, Real* errors, const bool* keep, const Real* upper, int64_t rows, int64_t columns,
                           int64_t first, int64_t last, int64_t end) {
    for (int64_t at = 0; at < rows * columns; at += columns)
        prune_row(work + at, errors + at, keep + at, upper, columns, first, last, end);
}

template <typename Real>
INLINE void groups_of_all(Real* work, Real* errors, bool* keep, const Real* upper, const Real* saliency, int64_t rows,
                          int64_t columns, int64_t width, int64_t pruned, int64_t start, int64_t end) {
    std::vector<Real> score(width);
    for (int64_t at = 0; at < rows * columns; at += columns)
        for (int64_t first = start; first < end; first += width) {
            choose(work + at + first, keep + at + first, saliency + first, score.data(), width, pruned);
            prune_row(work + at, errors + at, keep + at, upper, columns, first, first + width, end);
        }
}

}  // namespace

#define EXPORT(Real)                                                                                                      \
    FOR_EVERY_CPU void prune_columns_##Real(Real* work, Real* errors, const bool* keep, const Real* upper, int64_t rows,  \
                                            int64_t columns, int64_t first, int64_t last, int64_t end) {                  \
        columns_of_all(work, errors, keep, upper, rows, columns, first, last, end);                                       \
    }                                                                                                                     \
    FOR_EVERY_CPU void prune_groups_##Real(Real* work, Real* errors, bool* keep, const Real* upper, const Real* saliency, \
                                           int64_t rows, int64_t columns, int64_t width, int64_t pruned, int64_t start,   \
                                           int64_t end) {                                                                 \
        groups_of_all(work, errors, keep, upper, saliency, rows, columns, width, pruned, start, end);                     \
    }

extern "C" {
EXPORT(float)
EXPORT(double)
}
