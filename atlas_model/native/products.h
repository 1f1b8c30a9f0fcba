// Products of rows by matrices. A row's sums are made in the same order whatever other rows there are.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "vectors.h"

namespace atlas {

// A block of a product has kBlockRows x kBlockVectors vectors of sums: as many as there are registers for.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr long kBlockVectors = 4;
#else
constexpr long kBlockVectors = 2;
#endif
constexpr long kBlockRows = 6;
template <class T>
constexpr long kPanelWidth = kBlockVectors * kLanes<T>;

// Numbers at x[r * row_stride + k * depth_stride].
template <class T>
struct Rows {
    const T* x;
    long row_stride;
    long depth_stride = 1;

    Rows from(long row) const { return {x + row * row_stride, row_stride, depth_stride}; }
};

template <long R, long V, class T, class Store>
inline void vector_block(Rows<T> rows, long depth, const T* matrix, long stride, Store&& save) {
    Vector<T> sums[R][V] = {};
    for (long k = 0; k < depth; ++k) {
        Vector<T> right[V];
#pragma GCC unroll 4
        for (long v = 0; v < V; ++v) right[v] = load(matrix + k * stride + v * kLanes<T>);
#pragma GCC unroll 6
        for (long r = 0; r < R; ++r) {
            const T left = rows.x[r * rows.row_stride + k * rows.depth_stride];
#pragma GCC unroll 4
            for (long v = 0; v < V; ++v) sums[r][v] += left * right[v];
        }
    }
    for (long r = 0; r < R; ++r)
        for (long v = 0; v < V; ++v) save(r, v * kLanes<T>, sums[r][v]);
}

template <long V, class T, class Store>
inline void vector_rows(long count, Rows<T> rows, long depth, const T* matrix, long stride, Store&& save) {
    static_assert(kBlockRows == 6);
    switch (count) {
        case 1: return vector_block<1, V>(rows, depth, matrix, stride, save);
        case 2: return vector_block<2, V>(rows, depth, matrix, stride, save);
        case 3: return vector_block<3, V>(rows, depth, matrix, stride, save);
        case 4: return vector_block<4, V>(rows, depth, matrix, stride, save);
        case 5: return vector_block<5, V>(rows, depth, matrix, stride, save);
        default: return vector_block<6, V>(rows, depth, matrix, stride, save);
    }
}

// rows [count, depth] by matrix [depth, columns], whose rows are `stride` apart: save(row, column, sums), where sums
// are a vector of neighbouring columns or the one number of the last ones.
template <class T, class Store>
inline void product(long count, long columns, long depth, Rows<T> rows, const T* matrix, long stride, Store&& save) {
    const long num_blocks = (count + kBlockRows - 1) / kBlockRows;
    for (long block = 0; block < num_blocks; ++block) {
        const long first = block * count / num_blocks, last = (block + 1) * count / num_blocks;
        const Rows<T> own = rows.from(first);
        long column = 0;
        const auto save_here = [&](long row, long offset, auto sums) { save(first + row, column + offset, sums); };
        for (; column + kPanelWidth<T> <= columns; column += kPanelWidth<T>)
            vector_rows<kBlockVectors>(last - first, own, depth, matrix + column, stride, save_here);
        for (; column + kLanes<T> <= columns; column += kLanes<T>)
            vector_rows<1>(last - first, own, depth, matrix + column, stride, save_here);
        for (; column < columns; ++column)
            for (long row = first; row < last; ++row) {
                T sum = 0;
                for (long k = 0; k < depth; ++k)
                    sum += rows.x[row * rows.row_stride + k * rows.depth_stride] * matrix[k * stride + column];
                save(row, column, sum);
            }
    }
}

// A weight [outputs, inputs] in the order in which it is read: panels of kPanelWidth outputs, each [inputs, width].
template <class T>
class PackedWeight {
   public:
    PackedWeight(const T* weight, long outputs, long inputs) : outputs_(outputs), inputs_(inputs) {
        const std::size_t num_bytes = static_cast<std::size_t>(outputs * inputs) * sizeof(T);
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, num_bytes) != 0) throw std::bad_alloc();
        numbers_.reset(static_cast<T*>(memory));
        for (long index = 0; index < num_panels(); ++index) {
            T* panel = numbers_.get() + index * kPanelWidth<T> * inputs;
            for (long k = 0; k < inputs; ++k)
                for (long column = 0; column < width(index); ++column)
                    *panel++ = weight[(index * kPanelWidth<T> + column) * inputs + k];
        }
    }

    long outputs() const { return outputs_; }
    long num_panels() const { return (outputs_ + kPanelWidth<T> - 1) / kPanelWidth<T>; }
    long width(long panel) const { return std::min(kPanelWidth<T>, outputs_ - panel * kPanelWidth<T>); }

    // Rows [count, inputs] by one panel's outputs: save(row, output, sums) as of `product`.
    template <class Store>
    void multiply(long panel, long count, Rows<T> rows, Store&& save) const {
        const long first = panel * kPanelWidth<T>;
        product(count, width(panel), inputs_, rows, numbers_.get() + first * inputs_, width(panel),
                [&](long row, long column, auto sums) { save(row, first + column, sums); });
    }

   private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    long outputs_, inputs_;
    std::unique_ptr<T[], Free> numbers_;
};

// What `save` may do: put the sums down, or add them to what is there.
template <class T>
struct Put {
    T* target;
    long stride;
    void operator()(long row, long column, Vector<T> sums) const { store<T>(target + row * stride + column, sums); }
    void operator()(long row, long column, T sum) const { target[row * stride + column] = sum; }
};
template <class T>
struct Add {
    T* target;
    long stride;
    void operator()(long row, long column, Vector<T> sums) const {
        T* place = target + row * stride + column;
        store<T>(place, load(place) + sums);
    }
    void operator()(long row, long column, T sum) const { target[row * stride + column] += sum; }
};

}  // namespace atlas
