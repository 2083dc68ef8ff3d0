// The inner loops of a column sweep on the CPU; tasks/calibrate/solvers/settling.py says what they do.
//
// Matrices are row-major: work, errors and keep [rows, columns], upper [columns, columns], saliency [columns]. A row stays in
// the cache until its block is done. Called by ctypes, so matrices are solved side by side; nothing here is shared.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE inline __attribute__((always_inline))

// The class Rounding of rounding.py: scale and zero [rows, groups], group [columns]. Without a scale nothing is rounded.
struct Grid {
    const void* scale;
    const void* zero;
    const int32_t* group;
    int64_t groups;
    double lowest, highest;
    int32_t code_bits, code_least, bits, least;
};

namespace {

// The nearest float with so many bits after the first, half to even. Exponents below `least` count as that one.
template <typename Real>
INLINE Real nearest(Real value, int bits, int least) {
    int exponent;
    std::frexp(value, &exponent);
    const Real unit = std::ldexp(Real(1), std::max(exponent - 1, least) - bits);
    return std::nearbyint(value / unit) * unit;
}

// The nearest value on the grid.
template <typename Real>
INLINE Real rounded(Real weight, const Grid& grid, int64_t row, int64_t column) {
    const int64_t place = row * grid.groups + grid.group[column];
    const Real scale = static_cast<const Real*>(grid.scale)[place], zero = static_cast<const Real*>(grid.zero)[place];
    Real code = std::min(std::max(weight / scale + zero, Real(grid.lowest)), Real(grid.highest));
    code = grid.code_bits ? nearest(code, grid.code_bits, grid.code_least) : std::nearbyint(code);
    const Real value = (code - zero) * scale;
    return grid.bits ? nearest(value, grid.bits, grid.least) : value;
}

// Settle one row between two columns; what that costs is made good by the columns after each.
template <typename Real>
INLINE void settle_row(Real* work, Real* errors, const bool* keep, const Real* upper, const Grid& grid, int64_t row,
                       int64_t columns, int64_t first, int64_t last, int64_t end) {
    for (int64_t column = first; column < last; ++column) {
        if (keep[column] && !grid.scale) continue;
        const Real* __restrict__ ahead = upper + column * columns;
        Real* __restrict__ weights = work;
        const Real settled = keep[column] ? rounded(weights[column], grid, row, column) : Real(0);
        const Real error = (weights[column] - settled) / ahead[column];
        for (int64_t later = column + 1; later < end; ++later) weights[later] -= error * ahead[later];
        weights[column] = settled;
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
INLINE void settle_all(Real* work, Real* errors, bool* keep, const Real* upper, const Real* saliency, const Grid& grid,
                       int64_t rows, int64_t columns, int64_t first, int64_t last, int64_t end, int64_t width,
                       int64_t pruned) {
    std::vector<Real> score(width);
    const int64_t step = width ? width : last - first;
    for (int64_t row = 0, at = 0; row < rows; ++row, at += columns)
        for (int64_t start = first; start < last; start += step) {
            if (width) choose(work + at + start, keep + at + start, saliency + start, score.data(), width, pruned);
            settle_row(work + at, errors + at, keep + at, upper, grid, row, columns, start, start + step, end);
        }
}

}  // namespace

#define EXPORT(Real)                                                                                                       \
    FOR_EVERY_CPU void settle_##Real(Real* work, Real* errors, bool* keep, const Real* upper, const Real* saliency,        \
                                     const Grid* grid, int64_t rows, int64_t columns, int64_t first, int64_t last,         \
                                     int64_t end, int64_t width, int64_t pruned) {                                         \
        settle_all(work, errors, keep, upper, saliency, *grid, rows, columns, first, last, end, width, pruned);            \
    }

extern "C" {
EXPORT(float)
EXPORT(double)
}
