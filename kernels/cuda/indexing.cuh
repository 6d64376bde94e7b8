// Rows by their numbers.
//
// Bytes: what is moved, read and written once. Operations: none, or an addition for each number.
#pragma once
#include "numbers.cuh"

namespace fcdense {

// All of it is contiguous.
struct Rows {
    const void* x;
    const Index* index;
    void* out;
    Index count, columns;  // of the index; of a row
};

// out[k] = x[index[k]]; T is any type of that size.
template <class T>
__device__ void gather_rows(const Rows& a) {
    const Index step = static_cast<Index>(gridDim.x) * blockDim.x, size = a.count * a.columns;
    for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) {
        const Division place = divided(i, a.columns);
        static_cast<T*>(a.out)[i] = static_cast<const T*>(a.x)[a.index[place.quotient] * a.columns + place.rest];
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
        T& out = static_cast<T*>(a.out)[i];
        T sum = out;
        for (Index k = 0; k < a.count; k++)
            if (a.index[k] == row)
                sum = Rounded<T>::of(widened<Compute<T>>(sum) +
                                     widened<Compute<T>>(static_cast<const T*>(a.x)[k * a.columns + j]));
        out = sum;
    }
}

}  // namespace fcdense
