// Softmax and cross entropy, row by row.
//
// Bytes: a row is read three times, from the L1 cache after the first, and written once. Operations: about 10 a number
// and an exponential or two.
#pragma once
#include "arrivals.cuh"
#include "groups.cuh"

namespace fcdense {

template <class C, class T, int THREADS>
__device__ __forceinline__ C row_maximum(const Group<THREADS>& group, const T* z, Index stride, Index classes) {
    C largest = Maximum::start<C>();
    for (Index k = group.rank; k < classes; k += THREADS) largest = maximum(largest, widened<C>(z[k * stride]));
    return group.template joined<Maximum>(largest);
}

struct Softmax {
    const void* z;
    Index z_row, z_column;
    void* out;  // contiguous
    Index rows, classes;
};

// out = exp(z - m) / sum exp(z - m), or with LOG z - m - log sum exp(z - m); m is the row's maximum.
template <class T, int THREADS, int BLOCK, bool LOG>
__device__ void softmax(const Softmax& a) {
    using C = Compute<T>;
    const Group<THREADS> group;
    const Index row = static_cast<Index>(blockIdx.x) * (BLOCK / THREADS) + group.number;
    const Index existing = row < a.rows ? row : a.rows - 1;  // all threads take part in `joined`
    const T* z = static_cast<const T*>(a.z) + existing * a.z_row;
    T* out = static_cast<T*>(a.out) + existing * a.classes;
    const C largest = row_maximum<C>(group, z, a.z_column, a.classes);
    C sum = 0;
    for (Index k = group.rank; k < a.classes; k += THREADS) sum += exp(widened<C>(z[k * a.z_column]) - largest);
    sum = group.template joined<Sum>(sum);
    const C logarithm = LOG ? log(sum) : C(0);
    if (row >= a.rows) return;
    for (Index k = group.rank; k < a.classes; k += THREADS) {
        const C shifted = widened<C>(z[k * a.z_column]) - largest;
        out[k] = Rounded<T>::of(LOG ? shifted - logarithm : exp(shifted) / sum);
    }
}

struct CrossEntropy {
    const void* z;
    Index z_row, z_column;
    const void* target;  // class numbers, or rows of numbers
    Index target_row, target_column;
    const void* weight;  // null, or a number for each row
    Index weight_stride;
    double scale;
    void* losses;        // one of each row, as they are computed
    void* loss;          // their sum
    unsigned* arrivals;  // a counter, 0 before the launch and after it
    void* dz;            // null, or the gradient, contiguous; it may be z
    Index rows, classes;
};

// losses_b = scale w_b sum_k t_bk (log sum exp(z_b - m) - (z_bk - m)), their sum, and its gradient by z. S: how the sum
// is stored.
template <class T, class S, int THREADS, int BLOCK, bool CLASSES>
__device__ void cross_entropy(const CrossEntropy& a) {
    using C = Compute<T>;
    const Group<THREADS> group;
    const Index row = static_cast<Index>(blockIdx.x) * (BLOCK / THREADS) + group.number;
    const Index existing = row < a.rows ? row : a.rows - 1;
    const T* z = static_cast<const T*>(a.z) + existing * a.z_row;
    const T* t = static_cast<const T*>(a.target) + existing * a.target_row;
    Index wanted = -1;
    if constexpr (CLASSES) wanted = static_cast<const Index*>(a.target)[existing * a.target_row];
    const C largest = row_maximum<C>(group, z, a.z_column, a.classes);
    C sum = 0, mass = 0, loss = 0;
    for (Index k = group.rank; k < a.classes; k += THREADS) {
        sum += exp(widened<C>(z[k * a.z_column]) - largest);
    }
    sum = group.template joined<Sum>(sum);
    if (CLASSES && (wanted < 0 || wanted >= a.classes)) sum = loss = not_a_number<C>();
    const C logarithm = log(sum);
    for (Index k = group.rank; k < a.classes; k += THREADS) {
        const C share = CLASSES ? C(k == wanted) : widened<C>(t[CLASSES ? 0 : k * a.target_column]);
        mass += share;
        if (share != C(0))  // 0 where t = 0 meets an infinite z
            loss += share * (logarithm - (widened<C>(z[k * a.z_column]) - largest));
    }
    loss = group.template joined<Sum>(loss);
    mass = CLASSES ? C(1) : group.template joined<Sum>(mass);
    C factor = static_cast<C>(a.scale);
    if (a.weight) factor *= widened<C>(static_cast<const T*>(a.weight)[existing * a.weight_stride]);
    if (row < a.rows && group.rank == 0) static_cast<C*>(a.losses)[row] = factor * loss;
    T* dz = static_cast<T*>(a.dz) + row * a.classes;
    for (Index k = a.dz && row < a.rows ? group.rank : a.classes; k < a.classes; k += THREADS) {
        const C share = CLASSES ? C(k == wanted) : widened<C>(t[CLASSES ? 0 : k * a.target_column]);
        const C p = exp(widened<C>(z[k * a.z_column]) - largest) / sum;
        dz[k] = Rounded<T>::of(factor * (mass * p - share));
    }
    if (!is_last_of(gridDim.x, a.arrivals)) return;
    double total = 0;
    for (Index b = threadIdx.x; b < a.rows; b += BLOCK) total += static_cast<const C*>(a.losses)[b];
    total = Group<BLOCK>().template joined<Sum>(total);
    if (threadIdx.x == 0) *static_cast<S*>(a.loss) = Rounded<S>::of(total);
}

}  // namespace fcdense
