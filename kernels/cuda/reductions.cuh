// Sums, maxima and minima over some axes of an array, always in the same order.
//
// Bytes: the array once. Operations: one a number.
#pragma once
#include "arrivals.cuh"
#include "groups.cuh"
#include "operands.cuh"

namespace fcdense {

struct Identity {
    template <class A, class X>
    static __device__ __forceinline__ A of(X x) {
        return static_cast<A>(x);
    }
};
struct Square {
    template <class A, class X>
    static __device__ __forceinline__ A of(X x) {
        return static_cast<A>(x) * static_cast<A>(x);
    }
};

// The kept axes are those of `out`; the others are walked over. Axes count from the slowest one.
template <int DIMS>
struct Reduction {
    Operand<DIMS> x_kept, x_reduced;
    Index kept_shape[DIMS], reduced_shape[DIMS];
    Index kept, reduced;
    void* out;           // [kept]
    Index part;          // numbers of the reduced axes in one part
    void* parts;         // [part][kept], in the type of the sum, if there are several parts
    unsigned* arrivals;  // null, or a counter for each block of one part, 0 before the launch and after it
    int adds;            // whether `out` is added to
};

// T: of x. R: of out. A: what is summed in. THREADS for each number of `out`; block y takes part y, and the last block
// of them joins the parts if there are counters.
template <class T, class R, class A, class Operation, class Function, int DIMS, int THREADS, int BLOCK>
__device__ void reduce(const Reduction<DIMS>& a) {
    const Group<THREADS> group;
    const Index i = static_cast<Index>(blockIdx.x) * (BLOCK / THREADS) + group.number;
    const Index existing = i < a.kept ? i : a.kept - 1;
    const Index start = blockIdx.y * a.part, rest = a.reduced - start;
    const Index end = start + (rest < a.part ? rest : a.part);
    const T* x = static_cast<const T*>(a.x_kept.data) + a.x_kept.offset(place_of<DIMS>(existing, a.kept_shape));
    A value = Operation::template start<A>();
    for (Index k = start + group.rank; k < end; k += THREADS) {
        const T element = x[a.x_reduced.offset(place_of<DIMS>(k, a.reduced_shape))];
        value = Operation::join(value, Function::template of<A>(widened<A>(element)));
    }
    value = group.template joined<Operation>(value);
    if (gridDim.y > 1) {
        A* parts = static_cast<A*>(a.parts) + existing;
        if (i < a.kept && group.rank == 0) parts[blockIdx.y * a.kept] = value;
        if (!a.arrivals || !is_last_of(gridDim.y, a.arrivals + blockIdx.x)) return;
        value = Operation::template start<A>();
#pragma unroll 4
        for (unsigned y = group.rank; y < gridDim.y; y += THREADS) value = Operation::join(value, parts[y * a.kept]);
        value = group.template joined<Operation>(value);
    }
    if (i >= a.kept || group.rank != 0) return;
    R* out = static_cast<R*>(a.out) + i;
    *out = Rounded<R>::of(a.adds ? widened<A>(*out) + value : value);
}

}  // namespace fcdense
