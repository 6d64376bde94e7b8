// Rows by their numbers.
//
// Bytes: what is moved, read and written once. Operations: none, or an addition for each number.
#pragma once
#include "numbers.cuh"

namespace fcdense {

struct Rows {
    const void* x;
    Index x_row, x_column;
    const Index* index;
    Index index_stride;
    void* out;
    Index out_row;
    Index count, columns;  // of the index; of a row
};

// out[k] = x[index[k]]; T is any type of that size.
template <class T>
__device__ void gather_rows(const Rows& a) {
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = a.count * a.columns;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        const Index k = i / a.columns, j = i % a.columns, row = a.index[k * a.index_stride];
        static_cast<T*>(a.out)[k * a.out_row + j] = static_cast<const T*>(a.x)[row * a.x_row + j * a.x_column];
    }
}

// out[index[k]] += x[k], in the order of k: a thread for each number of `out`, of which there are `out_rows` rows.
struct Scatter {
    Rows rows;
    Index out_rows;
};

template <class T>
__device__ void scatter_add_rows(const Scatter& s) {
    const Rows& a = s.rows;
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = s.out_rows * a.columns;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        const Index row = i / a.columns, j = i % a.columns;
        T* out = static_cast<T*>(a.out) + row * a.out_row + j;
        T sum = *out;
        for (Index k = 0; k < a.count; k++)
            if (a.index[k * a.index_stride] == row)
                sum = Rounded<T>::of(widened<Compute<T>>(sum) +
                                     widened<Compute<T>>(static_cast<const T*>(a.x)[k * a.x_row + j * a.x_column]));
        *out = sum;
    }
}

}  // namespace fcdense
